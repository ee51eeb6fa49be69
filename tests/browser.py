"""A headless Chromium, driven over its DevTools pipe: just what the tests of the report page need.

No library and no port: commands and events are JSON, ended by a zero byte, over two pipes. `scripts/chromium.sh` installs
the browser where there is none.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage", "--mute-audio",
    "--force-color-profile=srgb", "--hide-scrollbars", "--remote-debugging-pipe",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_LIMIT_S = 60.0


def find():
    """The browser's path, or None."""
    named = os.environ.get("RLDK_CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One browser process with a profile of its own."""

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(prefix="rldk-chromium-", ignore_cleanup_errors=True)
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # The browser reads from 3 and writes to 4; the pipes must not already be there.
        inherited = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]

        def take_places():
            os.dup2(inherited[0], 3)
            os.dup2(inherited[1], 4)

        self._process = subprocess.Popen(
            [find(), *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            preexec_fn=take_places, close_fds=True, pass_fds=(3, 4), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (theirs_in, theirs_out, *inherited):
            os.close(fd)
        self._in, self._out, self._rest, self._next = ours_in, ours_out, b"", 0
        os.set_blocking(ours_in, False)
        self.pages = {}

    def send(self, method, session=None, /, **parameters):
        """Calls a method and returns its result; events that come meanwhile go to their pages."""
        self._next += 1
        number = self._next
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _LIMIT_S
        while time.monotonic() < deadline:
            for answer in self._read():
                if answer.get("id") == number:
                    assert "error" not in answer, (method, answer["error"])
                    return answer["result"]
        raise TimeoutError(method)

    def _read(self):
        try:
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser has ended"
        except BlockingIOError:
            time.sleep(0.005)
            return
        *whole, self._rest = (self._rest + chunk).split(b"\0")
        for text in whole:
            message = json.loads(text)
            if "method" in message and message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].events.append(message)
            yield message

    def open(self, path, *, width=1280, height=900, dark=False):
        """Opens a file as from disk, with no network, and waits until it is there."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        page.size(width, height)
        page.scheme(dark)
        page.send("Page.navigate", url=Path(path).resolve().as_uri())
        page.wait("document.readyState === 'complete'")
        return page

    def close(self):
        """Ends the browser."""
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()


class Page:
    """A tab."""

    def __init__(self, browser, session, target):
        self._browser, self._session, self._target = browser, session, target
        self.events = []

    def send(self, method, /, **parameters):
        """Calls a method on this tab."""
        return self._browser.send(method, self._session, **parameters)

    def run(self, script):
        """The value of an expression in the page; what it throws is an error here."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script):
        """Waits until an expression is true."""
        deadline = time.monotonic() + _LIMIT_S
        while not self.run(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)

    def size(self, width, height):
        """Sets the window's size in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def scheme(self, dark):
        """Sets what the system's colours are."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def mouse(self, kind, x, y, *, clicks=1, button="left"):
        """One event of the mouse."""
        buttons = 1 if kind == "mousePressed" or (kind == "mouseMoved" and button == "left") else 0
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=clicks)

    def click(self, x, y, clicks=1):
        """A click, or the second one of a double click."""
        self.mouse("mouseMoved", x, y, button="none")
        for count in range(1, clicks + 1):
            self.mouse("mousePressed", x, y, clicks=count)
            self.mouse("mouseReleased", x, y, clicks=count)

    def drag(self, x, y, to_x):
        """Presses, moves sideways, lets go."""
        self.mouse("mouseMoved", x, y, button="none")
        self.mouse("mousePressed", x, y)
        for part in range(1, 6):
            self.mouse("mouseMoved", x + (to_x - x) * part / 5, y)
        self.mouse("mouseReleased", to_x, y)

    def press(self, key):
        """A key, by its name."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Escape": 27, "Enter": 13}.get(key, 0),
                      text="\r" if key == "Enter" and kind == "keyDown" else "")

    def box(self, script):
        """Where an element is in the window, after scrolling to it: x, y, width, height."""
        return self.run(
            f"(() => {{ const node = {script}; node.scrollIntoView({{block: 'center'}}); const box = node.getBoundingClientRect();"
            " return [box.x, box.y, box.width, box.height]; })()"
        )

    def requests(self):
        """Addresses that the page asked for."""
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]

    def complaints(self):
        """What the browser and the page had to say: errors, warnings, violations of the page's policy."""
        self.run("new Promise((done) => setTimeout(done, 20))")  # what is still under way may go wrong
        said = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                said.append(event["params"]["exceptionDetails"]["exception"].get("description"))
            elif event["method"] == "Runtime.consoleAPICalled" or event["method"] == "Log.entryAdded":
                said.append(event["params"])
        return said

    def picture(self, path=None, *, whole=False):
        """A screenshot as PNG."""
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])
        if path is not None:
            Path(path).write_bytes(data)
        return data

    def close(self):
        """Closes the tab."""
        self._browser.send("Target.closeTarget", targetId=self._target)
        self._browser.pages.pop(self._session, None)
