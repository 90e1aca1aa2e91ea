"""A hub on this machine: answers the calls of ``huggingface_hub`` that fetch and push models, from a dictionary."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, READER = "hf_writer", "hf_reader"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Models by id, each its files by name; ``private`` and ``gated`` ones need a token, only ``TOKEN`` may write."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.models: dict[str, dict[str, bytes]] = {"me/secret": {"config.json": b"{}"}, "me/gated": {}, "me/empty": {}}
        self.private = {"me/secret"}
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.fetch()

    def do_GET(self) -> None:
        self.fetch()

    def fetch(self) -> None:
        """OWNER/NAME/resolve/REVISION/FILE."""
        self.server.asked.append(f"{self.command} {self.path}")
        parts = self.path.strip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            return self.say(404, {"error": "no such page"})
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if name == "me/gated":
            return self.say(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        if name not in self.server.models or (name in self.server.private and not self.token()):
            return self.say(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.say(404, {"error": "revision"}, {"X-Error-Code": "RevisionNotFound"})
        if file not in self.server.models[name]:
            return self.say(404, {"error": "entry"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = self.server.models[name][file]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "/broken" in self.path or b"broken" in body[:200]:
            return self.say(418, {"error": "broken"})
        if self.path == "/api/validate-yaml":
            return self.say(200, {"errors": [], "warnings": []})
        if self.token() not in (TOKEN, READER):
            return self.say(401, {"error": "Invalid user token."})
        if self.token() == READER:
            return self.say(403, {"error": "read only"})
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [{"path": x["path"], "uploadMode": "regular"} for x in json.loads(body)["files"]]
            return self.say(200, {"files": [x | {"shouldIgnore": False} for x in files]})
        if "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.models[name][value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.address}/{name}/commit/{COMMIT}"
            return self.say(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})
        return self.say(404, {"error": "no such call"})

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        self.server.models.setdefault(name, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self.say(200, {"url": f"{self.server.address}/{name}", "name": name, "id": name})

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def say(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(text))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)
