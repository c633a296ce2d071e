"""A Hugging Face hub on this machine: enough of its protocol for `datasets` to find, download and stream a data set."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

SHA = "0123456789abcdef0123456789abcdef01234567"
"""The only revision; it is also `main`."""


class _Hub(BaseHTTPRequestHandler):
    root: Path
    seen: list[str]

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        try:
            paths = json.loads(body).get("paths", [])
        except ValueError:
            paths = [unquote(part.partition("=")[2]) for part in body.split("&") if part.startswith("paths=")]
        self._answer(paths)

    def _answer(self, paths: list[str] | None = None) -> None:
        path = unquote(urlparse(self.path).path)
        self.seen.append(f"{self.command} {path}")
        match = re.fullmatch(
            r"/(api/)?datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info|resolve)/([^/]+)/?(.*))?", path
        )
        if match is None:
            return self._fail("EntryNotFound")
        _, repo, kind, revision, rest = match.groups()
        folder = self.root / repo
        if not folder.is_dir():
            return self._fail("RepoNotFound")
        if kind and revision not in ("main", SHA):
            return self._fail("RevisionNotFound")
        if kind == "resolve":
            return self._file(folder / rest)
        if kind == "tree":
            return self._json([self._entry(folder, file) for file in self._files(folder / rest)])
        if kind == "paths-info":
            wanted = [folder / one for one in paths or []]
            return self._json([self._entry(folder, one) for one in wanted if one.exists()])
        siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in self._files(folder)]
        return self._json({"id": repo, "sha": SHA, "private": False, "gated": False, "tags": [], "siblings": siblings})

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        return sorted(file for file in folder.rglob("*")) if folder.is_dir() else []

    @staticmethod
    def _entry(folder: Path, file: Path) -> dict[str, Any]:
        name = file.relative_to(folder).as_posix()
        if file.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        return {
            "type": "file",
            "path": name,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
        }

    def _file(self, file: Path) -> None:
        if not file.is_file():
            return self._fail("EntryNotFound")
        content = file.read_bytes()
        start, end, code = 0, len(content), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, end, code = int(asked.group(1)), int(asked.group(2) or len(content) - 1) + 1, 206
        self.send_response(code)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Accept-Ranges", "bytes")
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}")
        self._body(content[start:end])

    def _json(self, value: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._body(json.dumps(value).encode())

    def _fail(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self._body(b'{"error": "not found"}')

    def _body(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the repositories below `root` (owner/name folders); yields the endpoint and the requests seen."""
    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"root": root, "seen": seen}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
