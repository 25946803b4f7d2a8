"""A page's files, each served under one path."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from notify.http.answers import Answer
from notify.http.request import Request

#: the pages that notify ships
WEB = Path(__file__).resolve().parent.parent / "web"


class File:
    """A file that is read again for each request, so that a change shows immediately; ``headers`` are sent with it."""

    def __init__(self, path: Path, headers: Mapping[bytes, bytes] | None = None) -> None:
        self._path = path
        kind = "text/javascript" if path.suffix in (".js", ".mjs") else mimetypes.guess_type(path.name)[0]
        kind = kind or "application/octet-stream"
        self._type = (kind + "; charset=utf-8" if kind.startswith("text/") else kind).encode("ascii")
        self._headers = {
            b"Cache-Control": b"no-cache",
            b"Referrer-Policy": b"no-referrer",
            **(headers or {}),
        }

    def __call__(self, request: Request) -> Answer:
        """The file."""
        return Answer(HTTPStatus.OK, self._path.read_bytes(), self._type, self._headers)
