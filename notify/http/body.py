"""The body of a request, with a length or in chunks, without I/O: what is taken of it, and where it ends.

A body that nobody will read has ``most`` None: it is counted, and nothing of it is kept.
"""

from __future__ import annotations

import re
from typing import Protocol

from notify.wire.head import MAX_HEAD, Malformed

#: bytes that chunks may have about them: so many, and as many again as the content may have
WRAPPING = 64 * 1024
#: bytes of the line in front of a chunk
MAX_LINE = 1024

# RFC 9112, section 7.1. Sixteen digits are a number that is too large and is refused as such; more are nonsense.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")


class Exceeded(Exception):  # noqa: N818
    """There is more of it than may be."""


class Body(Protocol):
    """A body that comes."""

    #: whether all of it is here
    whole: bool

    def feed(self, data: bytes, at: int) -> int:
        """Take what ``data`` has from ``at`` on, and say where to go on: what lies behind is to come again, with more.

        Raises :class:`Exceeded`, and :class:`~notify.wire.head.Malformed`.
        """

    def content(self) -> bytes:
        """What came."""


class Sized:
    """A body of ``length`` bytes, which the caller has judged."""

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
    """A body in chunks, of at most ``most`` bytes together. Extensions and trailers are read over (RFC 9112, section 7.1)."""

    def __init__(self, most: int) -> None:
        self.whole = False
        self._most = most
        self._pieces: list[bytes] = []
        self._size = 0
        self._read = 0
        #: bytes that the chunk still has
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
        """Where the next piece ends; -1: it is not whole."""
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
