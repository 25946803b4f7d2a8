"""Serves pages to a browser: a folder over HTTP, and optionally the answers of a backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeAlias


class Asked(NamedTuple):
    """A request; ``path`` includes the query."""

    method: str
    path: str
    body: bytes


#: status, type and body; None: serve a file, or 404
Answer: TypeAlias = "Callable[[Asked], tuple[int, str, bytes] | None]"


class _Files(SimpleHTTPRequestHandler):
    def __init__(self, *about: Any, answer: Answer, directory: str) -> None:
        self._answer = answer
        super().__init__(*about, directory=directory)

    def do_GET(self) -> None:
        if not self._answered():
            super().do_GET()

    def do_POST(self) -> None:
        if not self._answered():
            self.send_error(404)

    def _answered(self) -> bool:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        made = self._answer(Asked(self.command, self.path, body))
        if made is None:
            return False
        status, kind, content = made
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return True

    def log_message(self, *about: object) -> None:
        """Suppress the log."""


def serve_pages(case: Any, folder: Path, page: bytes = b"", answer: Answer | None = None) -> str:
    """Serve a folder, and ``page`` at ``/page`` or what ``answer`` gives, until the test ends; return the origin."""

    def at_page(asked: Asked) -> tuple[int, str, bytes] | None:
        return (200, "text/html", page) if page and asked.path.startswith("/page") else None

    handler = partial(_Files, answer=answer or at_page, directory=str(folder))
    files = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    case.addCleanup(files.server_close)
    thread = Thread(target=files.serve_forever)
    thread.start()
    case.addCleanup(thread.join)
    case.addCleanup(files.shutdown)
    return f"http://127.0.0.1:{files.server_port}"
