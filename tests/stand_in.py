"""A stand-in for the hub, on this machine: what the real huggingface_hub client asks for, and how answers can fail."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@dataclass
class Fault:
    """What goes wrong with one file of a repository, the first ``times`` times that it is asked for."""

    status: int = 200
    code: str = ""  # the hub's X-Error-Code
    cut: int | None = None  # only so many bytes of the file ever come, then the connection ends
    body: bytes | None = None  # comes in the file's place
    silent: bool = False  # the connection ends without an answer
    times: float = float("inf")
    ranges: list[str | None] = field(default_factory=list)  # what was asked for meanwhile


@dataclass
class Hub:
    """Repositories as folders, one for each revision; every request is noted."""

    endpoint: str = ""
    repositories: dict[tuple[str, str], Path] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)

    def add(self, name: str, folder: Path, revision: str = "main") -> None:
        self.repositories[name, revision] = folder
        self.repositories[name, COMMITS[revision]] = folder


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        self.hub.requests.append((self.command, self.path))
        names = {name for name, _ in self.hub.repositories}
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            path = path.removeprefix("api/models/")
            name = next((name for name in names if path == name or path.startswith(name + "/")), None)
            revision = path.partition("/revision/")[2] or "main"
            if name is None:
                return self.refuse(401, "RepoNotFound")
            if "/tree/" in path:
                return self.refuse(404, "EntryNotFound")
            folder = self.hub.repositories[name, revision]
            files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            commit = COMMITS.get(revision, revision)
            content = json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": files}).encode()
            return self.send(200, content, {"Content-Type": "application/json"}, body)
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name not in names:
            return self.refuse(401, "RepoNotFound")
        if (name, revision) not in self.hub.repositories:
            return self.refuse(404, "RevisionNotFound")
        fault = self.fault(name, file)
        if fault.silent:
            self.close_connection = True
            return None
        commit = COMMITS.get(revision, revision)
        if fault.status >= 400:
            return self.refuse(fault.status, fault.code, commit)
        if fault.status >= 300:
            return self.send(fault.status, b"", {"Location": self.path}, False)
        place = self.hub.repositories[name, revision] / file
        if not place.is_file():
            return self.refuse(404, "EntryNotFound", commit)
        content = place.read_bytes() if fault.body is None else fault.body
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        headers["Accept-Ranges"] = "bytes"
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        if body:
            fault.ranges.append(self.headers.get("Range"))
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.send(206 if asked else 200, content[start:], headers, body, cut=fault.cut, start=start)

    def fault(self, name, file):
        """Return the fault of a file, whose turns a HEAD does not use up where it is in the body."""
        fault = self.hub.faults.get((name, file)) or self.hub.faults.get((name, "*")) or Fault()
        in_body = fault.cut is not None
        if fault.times <= 0:
            return Fault()
        if not in_body or self.command == "GET":
            fault.times -= 1
        return fault

    def refuse(self, status, code, commit=None):
        self.send(status, b"", {"X-Error-Code": code} | ({"X-Repo-Commit": commit} if commit else {}), False)

    def send(self, status, content, headers, body, *, cut=None, start=0):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content if cut is None else content[: max(0, cut - start)])
        if cut is not None:
            self.close_connection = True


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Give a hub that answers at its endpoint."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
