"""A server that speaks as much of the Hugging Face hub's protocol as a download needs, and counts what it sends."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the files of a folder as one repository; ``ranges`` is whether it answers to a range of bytes."""

    daemon_threads = True

    def __init__(self, name: str, folder: Path, *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.folder, self.ranges = name, folder, ranges
        self.sent: Counter[str] = Counter()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, *, body: bool = True) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{self.server.name}"):
            names = [(file.name, file.stat().st_size) for file in self.server.files()]
            listing = [{"path": name, "type": "file", "size": size, "oid": COMMIT} for name, size in names]
            siblings = [{"rfilename": name} for name, _ in names]
            info = {"id": self.server.name, "modelId": self.server.name, "sha": COMMIT, "siblings": siblings}
            self._send(json.dumps(listing if "/tree/" in path else info).encode(), {"content-type": "application/json"})
            return
        file = self.server.folder / path.rpartition("/")[2]
        if f"/{self.server.name}/resolve/" not in path or not file.is_file():
            self._send(b"", {"x-error-code": "EntryNotFound"}, 404)
            return
        data, status, headers = file.read_bytes(), 200, {"x-repo-commit": COMMIT, "accept-ranges": "bytes"}
        headers["etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        asked = self.headers.get("range")
        if asked and self.server.ranges:
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            headers["content-range"] = f"bytes {start}-{stop}/{len(data)}"
            data, status = data[int(start) : int(stop) + 1], 206
        self._send(data, headers, status, file.name if body else None)

    def _send(self, data: bytes, headers: dict[str, str], status: int = 200, count: str | None = "") -> None:
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if count is None:
            return
        try:
            for start in range(0, len(data), 1 << 14):
                self.wfile.write(data[start : start + (1 << 14)])
                self.server.sent[count] += len(data[start : start + (1 << 14)])
        except OSError:  # hung up on
            pass
