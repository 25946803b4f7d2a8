"""The body of a request, with a length or in chunks, without I/O: what is kept of it, and where it ends.

A body that nobody will read has ``most`` None: it is counted, and none of it is kept.
"""

from __future__ import annotations

import re
from typing import Protocol

from notify.wire.head import MAX_HEAD, Malformed

#: the overhead that chunks may have: this many bytes, and as many again as the content may have
WRAPPING = 64 * 1024
#: the most bytes of the line in front of a chunk
MAX_LINE = 1024

# RFC 9112, section 7.1. A sixteen-digit size is a number, refused as too large; more digits are malformed.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")


class Exceeded(Exception):  # noqa: N818
    """The body is larger than allowed."""


class Body(Protocol):
    """A body that is being received."""

    #: whether it is complete
    whole: bool

    def feed(self, data: bytes, at: int) -> int:
        """Consume ``data`` from ``at`` on. Returns where to continue: pass the rest again, with more data.

        Raises :class:`Exceeded`, and :class:`~notify.wire.head.Malformed`.
        """

    def content(self) -> bytes:
        """The bytes received."""


class Sized:
    """A body of ``length`` bytes; the caller has checked the length."""

    def __init__(self, length: int, kept: bool) -> None:
        self.whole = not length
        self._left = length
        self._pieces: list[bytes] | None = [] if kept else None

    def feed(self, data: bytes, at: int) -> int:
        """See :class:`Body`."""
        end = min(len(data), at + self._left)
        self._left -= end - at
        self.whole = not self._left
        if self._pieces is not None:
            self._pieces.append(data[at:end])
        return end

    def content(self) -> bytes:
        """See :class:`Body`."""
        return b"".join(self._pieces or ())


class Chunked:
    """A body in chunks, of at most ``most`` bytes in total. Extensions and trailers are skipped (RFC 9112, section 7.1)."""

    def __init__(self, most: int) -> None:
        self.whole = False
        self._most = most
        self._pieces: list[bytes] = []
        self._size = 0
        self._read = 0
        #: bytes of the chunk that are still to come
        self._left = 0
        self._behind = False
        self._trailing = False

    def feed(self, data: bytes, at: int) -> int:
        """See :class:`Body`."""
        begin = at
        while not self.whole:
            next_ = self._step(data, at)
            if next_ < 0:
                break
            at = next_
        self._read += at - begin
        if self._read > WRAPPING + 2 * self._most:
            raise Exceeded
        return at

    def content(self) -> bytes:
        """See :class:`Body`."""
        return b"".join(self._pieces)

    def _step(self, data: bytes, at: int) -> int:
        """Where the next piece ends; -1: it is incomplete."""
        if self._left:
            piece = data[at : at + self._left]
            if not piece:
                return -1
            self._pieces.append(piece)
            self._left -= len(piece)
            self._behind = not self._left
            return at + len(piece)
        if self._behind:
            if data[at : at + 2] != b"\r\n"[: len(data) - at]:
                raise Malformed
            if len(data) - at < 2:
                return -1
            self._behind = False
            return at + 2
        return self._trailer(data, at) if self._trailing else self._begin(data, at)

    def _begin(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at, at + MAX_LINE + 2)
        if end < 0:
            if len(data) - at > MAX_LINE:
                raise Malformed
            return -1
        line = _SIZE.fullmatch(data, at, end)
        if line is None:
            raise Malformed
        size = int(line[1], 16)
        self._size += size
        if self._size > self._most:
            raise Exceeded
        self._left, self._trailing = size, not size
        return end + 2

    def _trailer(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at, at + MAX_HEAD + 2)
        if end < 0:
            if len(data) - at > MAX_HEAD:
                raise Malformed
            return -1
        if end == at:
            self.whole = True
        elif not _TRAILER.fullmatch(data, at, end):
            raise Malformed
        return end + 2
