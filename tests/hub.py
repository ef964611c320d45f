"""A small server that plays the Hugging Face Hub, as far as a download needs it."""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """``repos``: name -> path -> content. What it was asked for is in ``asked``, as (path, headers)."""

    repos: dict[str, dict[str, bytes]]
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    refused: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)  # path -> status, headers
    token: str = ""  # without it, no repository is known to anyone
    cut_at: dict[str, int] = field(default_factory=dict)  # path -> bytes after which the line is cut, once
    stall_at: dict[str, int] = field(default_factory=dict)  # path -> bytes after which nothing comes
    lies: dict[str, str] = field(default_factory=dict)  # path -> sha256 listed
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def ranges(self, path: str) -> list[str]:
        """Of the requests for this file, where each began."""
        return [headers.get("range", "") for asked, headers in self.asked if asked.endswith(path)]

    def __enter__(self) -> "FakeHub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        path = to.path.partition("?")[0]
        self.asked.append((path, {name.lower(): value for name, value in to.headers.items()}))
        known = not self.token or to.headers.get("authorization") == f"Bearer {self.token}"
        repo, _, file = path.removeprefix("/api/models").strip("/").partition("/re")
        if path in self.refused:
            status, headers = self.refused[path]
            self.send(to, status, b"", headers)
        elif repo not in self.repos or not known:
            self.send(to, 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            self.send(to, 200, json.dumps(self.listing(repo)).encode(), {"content-type": "application/json"})
        else:
            self.send_file(to, self.repos[repo].get(file.split("/", 2)[2]), file.split("/", 2)[2])

    def listing(self, repo: str) -> dict[str, object]:
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                "blobId": "0" * 40,
                **({"lfs": self.large(path, data)} if path.endswith(".safetensors") else {}),
            }
            for path, data in self.repos[repo].items()
        ]
        return {"id": repo, "sha": REVISION, "siblings": siblings}

    def large(self, path: str, data: bytes) -> dict[str, object]:
        digest = self.lies.get(path) or hashlib.sha256(data).hexdigest()
        return {"sha256": digest, "size": len(data), "pointerSize": 134}

    def send(self, to: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        to.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            to.send_header(name, value)
        to.end_headers()
        to.wfile.write(body)

    def send_file(self, to: BaseHTTPRequestHandler, data: bytes | None, path: str) -> None:
        if data is None:
            return self.send(to, 404, b"", {"X-Error-Code": "EntryNotFound"})
        start = int((to.headers.get("range") or "bytes=0-")[6:].rstrip("-"))
        to.send_response(206 if start else 200)
        to.send_header("content-length", str(len(data) - start))
        to.end_headers()
        stop = min(self.cut_at.pop(path, len(data)), self.stall_at.get(path, len(data)))
        to.wfile.write(data[start:stop])
        to.wfile.flush()
        if path in self.stall_at and not self.go_on.is_set():
            self.stalled.set()
            self.go_on.wait(60)
        to.close_connection = True
        return None
