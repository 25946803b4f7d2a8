"""Pages for a browser: a folder that is served over HTTP, and perhaps a page that is none of its files."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


class _Files(SimpleHTTPRequestHandler):
    def __init__(self, *about: Any, page: bytes, directory: str) -> None:
        self._page = page
        super().__init__(*about, directory=directory)

    def do_GET(self) -> None:
        if not self._page or not self.path.startswith("/page"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self._page)
        return None

    def log_message(self, *about: object) -> None:
        """Says nothing."""


def serve_pages(case: Any, folder: Path, page: bytes = b"") -> str:
    """Serve a folder, and ``page`` at ``/page``, until the test case is over; gives the origin."""
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, page=page, directory=str(folder)))
    case.addCleanup(files.server_close)
    thread = Thread(target=files.serve_forever)
    thread.start()
    case.addCleanup(thread.join)
    case.addCleanup(files.shutdown)
    return f"http://127.0.0.1:{files.server_port}"
