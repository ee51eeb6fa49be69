"""A real trackio server on loopback, for tests: started, asked over HTTP, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

TOKEN = "token-of-the-test"


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class TrackioServer:
    """`trackio show` in a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "BROWSER": "true", "TRACKIO_DIR": str(self.folder),
            "TRACKIO_WRITE_TOKEN": TOKEN, "GRADIO_SERVER_PORT": str(self.port), "GRADIO_ANALYTICS_ENABLED": "False",
        }
        code = "import sys; from trackio.cli import main; sys.argv[1:] = ['show', '--host', '127.0.0.1']; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )
        self.until(lambda: self.get("version"), 60)
        return self

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=5) as answer:
            return json.load(answer)

    def ask(self, question, **arguments):
        request = urllib.request.Request(
            f"{self.url}/api/{question}", json.dumps(arguments).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["data"]

    @staticmethod
    def until(look, seconds=30):
        """What `look` gives once it gives something: what is written to the server arrives a moment later."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = look()
            except (urllib.error.URLError, OSError, ValueError):
                found = None
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)
