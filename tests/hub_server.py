"""A Hugging Face Hub on the loopback: the HTTP API that huggingface_hub speaks for datasets, and the ways in which it can fail.

It stores real bytes, makes a commit of each commit, and knows regular files and LFS uploads (no Xet: set
HF_HUB_DISABLE_XET=1). Checked against huggingface_hub 0.36 and 2.4, with the shapes of answers that these read.

    with HubServer() as hub:
        run_script(source, **hub.environment)
        hub.files("me/runs")["run/run_events.jsonl"]
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "t" * 34
LONGEST_HANG_S = 120.0
SLOW_BYTES = 1 << 18


class Repository:
    def __init__(self, private):
        self.private = private
        self.files: dict[str, bytes] = {".gitattributes": b"*.parquet filter=lfs\n"}
        self.large: set[str] = set()
        self.commits: list[dict] = []

    @property
    def sha(self):
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class HubServer:
    """The server; a context manager.

    Attributes:
        repositories: By `user/name`.
        trouble: What is wrong for now: None, a status (401, 403, 500 ...), `garbage`, `hang`, `conflict` (each second commit),
            `slow` (files come at SLOW_BYTES a second).
        requests: What was asked, as `METHOD path`.
        tokens: With which tokens something was to be written.
        lfs_suffixes: Files of these endings are to be uploaded as LFS objects.
    """

    def __init__(self, trouble=None):
        self.repositories: dict[str, Repository] = {}
        self.trouble = trouble
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        self.lfs_suffixes: tuple[str, ...] = (".html",)
        self.objects: dict[str, bytes] = {}
        self.conflicts = 0
        self.committed = threading.Condition()
        self.released = threading.Event()
        owner = self

        class Handler(_Handler):
            hub = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self):
        """For a client in another process."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo):
        """What is in a repository, by path; nothing if there is none."""
        return dict(self.repositories[repo].files) if repo in self.repositories else {}

    def commits(self, repo):
        return list(self.repositories[repo].commits) if repo in self.repositories else []

    def wait_for(self, test, seconds=60.0):
        """Waits for commits until the test holds; whether it did."""
        with self.committed:
            return self.committed.wait_for(test, seconds)

    def url(self, repo, path=""):
        return f"hf://datasets/{repo}" + (f"/{path}" if path else "")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_):
        pass

    def __getattr__(self, name):
        if name in ("do_GET", "do_HEAD", "do_POST", "do_PUT"):
            return self.answer
        raise AttributeError(name)

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self.chunk, b""))
        else:
            self.body = self.rfile.read(length) if length else b""
        place = urlsplit(self.path)
        self.query = parse_qs(place.query)
        self.hub.requests.append(f"{self.command} {unquote(place.path)}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.command == "POST":
            self.hub.tokens.add(token)
        trouble = self.hub.trouble
        if trouble == "hang":
            self.hub.released.wait(LONGEST_HANG_S)
            self.close_connection = True
        elif trouble == "garbage":
            self.send(200, b"<html>this is not the Hub</html>", kind="text/html")
        elif isinstance(trouble, int):
            self.error(trouble, "so it was asked for")
        elif token != TOKEN and self.command == "POST":  # reading is free here, and the address of an upload is its own key
            self.error(401, "Invalid username or password.")
        else:
            for method, pattern, function in _ROUTES:
                found = re.fullmatch(pattern, place.path)
                if found and self.command in method:
                    function(self, *(unquote(part) if part else part for part in found.groups()))
                    return
            self.error(404, f"no such route: {place.path}")

    def chunk(self):
        size = int(self.rfile.readline().strip(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def send(self, status, body=b"", kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        piece = SLOW_BYTES // 8 if self.hub.trouble == "slow" else len(body) or 1
        for start in range(0, len(body), piece):
            self.wfile.write(body[start : start + piece])
            if piece < len(body):
                time.sleep(1 / 8)

    def json(self, value, status=200, **headers):
        self.send(status, json.dumps(value).encode(), **headers)

    def error(self, status, text, code=None):
        headers = {"X_Error_Message": text, **({"X_Error_Code": code} if code else {})}
        self.json({"error": text}, status, **headers)

    def repository(self, name):
        found = self.hub.repositories.get(name)
        if found is None:
            self.error(404, "Repository not found", "RepoNotFound")
        return found

    # Routes

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        assert asked["type"] == "dataset"
        if not name.startswith("me/"):
            self.error(403, f"You don't have the rights to create a dataset under the namespace {name.partition('/')[0]!r}")
            return
        there = name in self.hub.repositories
        if not there:
            private = asked.get("private", {"private": True, "public": False}.get(asked.get("visibility")))
            self.hub.repositories[name] = Repository(private)
        answer = {"url": f"{self.hub.endpoint}/datasets/{name}", "name": name}
        self.json(answer, 409 if there else 200)

    def validate(self):
        content = json.loads(self.body)["content"]
        self.json({"errors": [], "warnings": []} if content.startswith("---\n") else {"warnings": [{"message": "empty"}]})

    def preupload(self, name, revision):
        repo = self.repository(name)
        if repo is None:
            return
        answer = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(self.hub.lfs_suffixes) or file["size"] > 10_000_000
            there = repo.files.get(file["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else _blob(there)
            answer.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        self.json({"files": answer})

    def batch(self, name):
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}"}
            objects.append({**asked, **({} if asked["oid"] in self.hub.objects else {"actions": {"upload": upload}})})
        self.json({"transfer": "basic", "objects": objects})

    def put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.error(400, "the content is not what was announced")
            return
        self.hub.objects[oid] = self.body
        self.send(200)

    def commit(self, name, revision):
        repo = self.repository(name)
        if repo is None:
            return
        if self.hub.trouble == "conflict":
            self.hub.conflicts += 1
            if self.hub.conflicts % 2:
                self.error(412, "A commit has happened since. Please refresh and try again.")
                return
        files, large = {}, set()
        message, parent = "", None
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message, parent = value["summary"], value.get("parentCommit")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                large.add(value["path"])
        with self.hub.committed:
            if parent not in (None, repo.sha):
                self.error(412, "A commit has happened since. Please refresh and try again.")
                return
            repo.files.update(files)
            repo.large |= large
            repo.commits.append({"message": message, "files": files})
            self.hub.committed.notify_all()
        url = f"{self.hub.endpoint}/datasets/{name}/commit/{repo.sha}"
        self.json({"success": True, "commitOid": repo.sha, "commitUrl": url})

    def info(self, name, revision=None):
        repo = self.repository(name)
        if repo is None:
            return
        if revision not in (None, "main"):
            self.error(404, "Invalid rev id", "RevisionNotFound")
            return
        self.json({
            "_id": "1", "id": name, "sha": repo.sha, "private": bool(repo.private), "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": path} for path in repo.files], "author": "me", "disabled": False, "gated": False,
        })

    def tree(self, name, revision, folder=""):
        repo = self.repository(name)
        if repo is None:
            return
        above = f"{folder}/" if folder else ""
        recursive = (self.query.get("recursive") or ["false"])[0].lower() in ("true", "1")
        rows, folders = [], set()
        for path in sorted(repo.files):
            if path.startswith(above):
                parts = path[len(above):].split("/")
                folders |= {above + "/".join(parts[:depth]) for depth in range(1, len(parts) if recursive else min(2, len(parts)))}
                if recursive or len(parts) == 1:
                    rows.append(self.row(repo, path))
        rows = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)] + rows
        if not rows and folder:
            self.error(404, f"{folder} does not exist", "EntryNotFound")
            return
        self.json(rows)

    def row(self, repo, path):
        data = repo.files[path]
        row = {"type": "file", "path": path, "oid": _blob(data), "size": len(data)}
        if path in repo.large:
            row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return row

    def paths(self, name, revision):
        repo = self.repository(name)
        if repo is None:
            return
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(self.body)["paths"]
        else:
            asked = parse_qs(self.body.decode())["paths"]
        self.json([self.row(repo, path) for path in asked if path in repo.files])

    def resolve(self, name, revision, path):
        repo = self.repository(name)
        if repo is None:
            return
        data = repo.files.get(path)
        if data is None:
            self.error(404, "Entry not found", "EntryNotFound")
            return
        tag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{tag}"', "X_Repo_Commit": repo.sha, "Accept_Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self.send(200, data, "application/octet-stream", **headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
        self.send(206, data[start:end + 1], "application/octet-stream", **headers)


def _blob(data):
    """Git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_NAME = r"([^/]+/[^/]+)"
_ROUTES = (
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), f"/api/datasets/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), f"/api/datasets/{_NAME}/commit/([^/]+)", _Handler.commit),
    (("POST",), f"/api/datasets/{_NAME}/paths-info/([^/]+)", _Handler.paths),
    (("GET",), f"/api/datasets/{_NAME}/tree/([^/]+)", _Handler.tree),
    (("GET",), f"/api/datasets/{_NAME}/tree/([^/]+)/(.+)", _Handler.tree),
    (("GET",), f"/api/datasets/{_NAME}/revision/([^/]+)", _Handler.info),
    (("GET",), f"/api/datasets/{_NAME}", _Handler.info),
    (("POST",), f"/datasets/{_NAME}\\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), "/lfs/([0-9a-f]{64})", _Handler.put),
    (("GET", "HEAD"), f"/datasets/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
)

