"""A server on this machine that speaks as much of the Hugging Face hub's HTTP as pushing and loading a model need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class LocalHub:
    """Repositories by name; each is its files by name.

    Attributes:
        tokens: that may write; a request with another is refused.
        created: what was asked for when repositories were made.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    created: list[dict] = field(default_factory=list)


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self._read()

        def do_HEAD(self):
            self._read()

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if urlsplit(self.path).path == "/api/validate-yaml":
                return self._answer(200, {"errors": [], "warnings": []})
            if self.headers.get("Authorization", "").removeprefix("Bearer ") not in hub.tokens:
                return self._answer(401, {"error": "Invalid username or password."})
            path = unquote(urlsplit(self.path).path).strip("/").split("/")
            if path[:3] == ["api", "repos", "create"]:
                asked = json.loads(body)
                hub.created.append(asked)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.repositories.setdefault(name, {})
                return self._answer(200, {"url": f"{hub.url}/{name}"})
            name = "/".join(path[2:4])
            if path[4] == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self._answer(200, {"files": files})
            if path[4] == "commit":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"{hub.url}/{name}/commit/{COMMIT}"
                return self._answer(200, {"commitUrl": url, "commitOid": COMMIT, "commitTitle": "", "success": True})
            return self._answer(200, {})

        def _read(self):
            path = unquote(urlsplit(self.path).path).strip("/").split("/")
            name = "/".join(path[2:4] if path[0] == "api" else path[:2])
            files = hub.repositories.get(name)
            if files is None:
                return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            if path[0] == "api" and "tree" in path:
                return self._answer(200, [self._entry(file, content) for file, content in files.items()])
            if path[0] == "api":
                siblings = [{"rfilename": file} for file in files]
                return self._answer(200, {"id": name, "sha": COMMIT, "siblings": siblings, "private": False})
            content = files.get("/".join(path[4:]))
            if content is None:
                return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self._answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": etag})

        def _entry(self, file, content):
            oid = hashlib.sha1(content).hexdigest()
            return {"type": "file", "path": file, "size": len(content), "oid": oid}

        def _answer(self, status, content, headers=None):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
