"""A small hub on this machine: the few requests that a push and a download make, answered as far as its client reads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_good"


class Hub:
    """Repositories by name; `me` is the only user."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.cards: dict[str, dict[str, Any]] = {}
        self.commits: list[dict[str, Any]] = []
        self.created: list[dict[str, Any]] = []
        self.refuse_commits = False
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _say(self, status: int, body: bytes | Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _exists(self, repo: str) -> bool:
        if repo in self.hub.files:
            return True
        self._say(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        hub = self.hub
        if parts == ["api", "whoami-v2"]:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._say(401, {"error": "Invalid user token."})
            else:
                self._say(200, {"type": "user", "name": "me", "orgs": []})
        elif parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
            if not self._exists(repo):
                return
            files = hub.files[repo]
            if rest[:1] == ["tree"]:
                oids = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
                self._say(
                    200,
                    [{"type": "file", "path": n, "size": len(d), "oid": oids[n]} for n, d in files.items()],
                )
                return
            siblings = [{"rfilename": name} for name in files]
            info = {"_id": "1", "id": repo, "sha": _sha(files), "private": False, "tags": [], "siblings": siblings}
            self._say(200, info | hub.cards.get(repo, {}))
        elif len(parts) > 4 and parts[2] == "resolve":
            repo, name = "/".join(parts[:2]), "/".join(parts[4:])
            if not self._exists(repo):
                return
            files = hub.files[repo]
            if name not in files:
                self._say(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
                return
            etag = hashlib.sha1(files[name]).hexdigest()
            self._say(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=_sha(files))
        else:
            self._say(404, {"error": f"no {self.path}"})

    def do_POST(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        body, hub = self._body(), self.hub
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            repo = f"{owner}/{asked['name']}"
            if owner != "me":
                text = f'You don\'t have the rights to create a model under the namespace "{owner}"'
                self._say(403, {"error": text}, X_Error_Message=text)
                return
            is_there = repo in hub.files
            hub.created.append(asked)
            hub.files.setdefault(repo, {".gitattributes": b""})
            self._say(409 if is_there else 200, {"url": f"{hub.url}/{repo}", "error": "exists"})
            return
        if parts == ["api", "validate-yaml"]:
            self._say(200, {"errors": [], "warnings": []})
            return
        repo, what = "/".join(parts[2:4]), parts[4]
        if what == "preupload":
            asked = json.loads(body)["files"]
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self._say(200, {"files": files})
        elif hub.refuse_commits:
            self._say(400, {"error": "the card is wrong"}, X_Error_Message="the card is wrong")
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            hub.commits.append(lines[0]["value"])
            for line in lines[1:]:
                if line["key"] == "file":
                    hub.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del hub.files[repo][line["value"]["path"]]
            sha = _sha(hub.files[repo])
            self._say(200, {"commitUrl": f"{hub.url}/{repo}/commit/{sha}", "commitOid": sha})


def _sha(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at `url`, until the end."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
