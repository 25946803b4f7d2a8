"""Reads the frames that clients send (RFC 6455, section 5.2), without I/O.

Almost all of them are plain: a whole message in one masked frame, neither compressed nor fragmented. Those, pings and
pongs are read here. All other frames are passed to the sink, one at a time. After the server's own Close, the reader
only looks for the client's Close, and only for a bounded number of reads and frames.
"""

from __future__ import annotations

from typing import Protocol

#: the kind of a frame: the first byte of a plain one, or one of the last two
TEXT, BINARY, PING, PONG, OTHER, UNFINISHED = 0x81, 0x82, 0x89, 0x8A, 0, -1

#: bytes of an unfinished plain frame that are kept until the rest arrives; a larger one is not treated as plain
SMALL = 4096

#: pongs reported at once, so that a client that sends too many is stopped before all are parsed
CROWD = 100
#: reads and frames that are searched for the client's Close: more than it sends before it sees the server's
BEHIND_CLOSE = 1000

_MESSAGE, _CONTROL = (TEXT, BINARY), (PING, PONG)
_FIN, _OPCODE, _PART, _CLOSE = 0x80, 0x0F, 0x0, 0x8


class Sink(Protocol):
    """Receives the frames. While it is ``ending``, all but a Close are dropped; once it is ``deaf``, all are."""

    ending: bool
    deaf: bool

    def message(self, payload: bytes, binary: bool) -> None:
        """A plain frame: a whole message."""

    def ping(self, payload: bytes) -> None:
        """A plain ping."""

    def pong(self, count: int) -> None:
        """This many plain pongs in a row."""

    def part(self) -> None:
        """The next frame continues a message; :meth:`other` follows."""

    def other(self, data: bytes) -> None:
        """Another frame, or a piece of a large one, whose next piece comes before anything else."""

    def closed(self, answered: bool) -> None:
        """Called while it is ending: the client's Close arrived or, if not ``answered``, too much else.

        The sink becomes deaf.
        """


class Reader:
    """One client's frames, however they are split. Keeps no more than an unfinished small frame."""

    __slots__ = ("_behind", "_fragmented", "_held", "_owed")

    def __init__(self) -> None:
        self._held = b""
        self._owed = 0  # bytes to come of a frame that is being passed on, or skipped
        self._fragmented = False  # a message has begun that other frames continue
        self._behind = 0  # reads and frames after the server's Close

    def feed(self, data: bytes, most: int, sink: Sink) -> None:
        """Bytes arrived. A message of more than ``most`` bytes is not plain."""
        at = 0
        if self._owed:
            at = min(self._owed, len(data))
            self._owed -= at
            if not sink.ending:
                sink.other(data[:at])
        elif self._held:
            data, self._held = self._held + data, b""
        end = len(data)
        while at < end and not sink.ending:
            what, payload, stop = read_frame(data, at, most)
            if what in _MESSAGE and not self._fragmented:
                sink.message(payload, what == BINARY)
            elif what == PONG:
                more, stop = count_pongs(data, stop)
                sink.pong(1 + more)
            elif what == PING:
                sink.ping(payload)
            elif what == UNFINISHED:
                self._held = data[at:]
                return
            else:
                self._give(data, at, stop, sink)
            at = stop
        if sink.ending and not sink.deaf:
            self._seek_close(data, at, sink)

    def _seek_close(self, data: bytes, at: int, sink: Sink) -> None:
        end = len(data)
        self._behind += 1
        while at < end and self._behind <= BEHIND_CLOSE:
            what, _, stop = _not_plain(data, at)
            if what == UNFINISHED:
                self._held = data[at:]
                break
            if data[at] & _OPCODE == _CLOSE:
                sink.closed(True)
                return
            self._behind += 1
            self._owed = max(0, stop - end)
            at = stop
        if self._behind > BEHIND_CLOSE:
            self._held = b""
            sink.closed(False)

    def _give(self, data: bytes, at: int, stop: int, sink: Sink) -> None:
        opcode = data[at] & _OPCODE
        if opcode == _PART:
            sink.part()
        if opcode <= 2:
            self._fragmented = not data[at] & _FIN
        self._owed = max(0, stop - len(data))
        sink.other(data[at:stop])


def read_frame(data: bytes, at: int, most: int) -> tuple[int, bytes, int]:
    """The frame at ``at``: its kind, the payload of a plain message or ping, and where the next frame begins.

    The end of a frame that is not plain may lie beyond the data. The end of an ``UNFINISHED`` one is not given: it
    must be read again together with what follows it.
    """
    left = len(data) - at
    if left < 6:
        return _not_plain(data, at)
    first, length, start = data[at], data[at + 1] - 128, at + 6
    if length == 126 and left >= 8:
        length, start = data[at + 2] << 8 | data[at + 3], at + 8
        if length < 126:
            return _not_plain(data, at)
    elif not 0 <= length < 126:
        return _not_plain(data, at)
    stop = start + length
    if first in _MESSAGE and length <= most:
        if stop <= len(data):
            return first, unmask(data[start - 4 : start], data[start:stop]), stop
        if length <= SMALL:
            return UNFINISHED, b"", at
    elif first in _CONTROL and length < 126:
        if stop > len(data):
            return UNFINISHED, b"", at
        return first, b"" if first == PONG else unmask(data[start - 4 : start], data[start:stop]), stop
    return _not_plain(data, at)


def count_pongs(data: bytes, at: int) -> tuple[int, int]:
    """The number of plain pongs in a row at ``at``, up to ``CROWD``, and where the last one ends."""
    count, last = 0, len(data) - 6
    while at <= last and data[at] == PONG and count < CROWD:
        length = data[at + 1] - 128
        if not 0 <= length < 126 or at + length > last:
            break
        count, at = count + 1, at + 6 + length
    return count, at


def unmask(key: bytes, payload: bytes) -> bytes:
    """The payload without its mask of four bytes (RFC 6455, section 5.3)."""
    length = len(payload)
    mask = int.from_bytes((key * (length // 4 + 1))[:length], "big")
    return (int.from_bytes(payload, "big") ^ mask).to_bytes(length, "big")


def _not_plain(data: bytes, at: int) -> tuple[int, bytes, int]:
    """A frame that is not plain, or not known to be yet, with its end if its whole head is there."""
    end = len(data)
    if end - at < 2:
        return UNFINISHED, b"", at
    length = data[at + 1] & 0x7F
    size = 0 if length < 126 else 2 if length == 126 else 8
    start = at + 2 + size + (data[at + 1] >> 7) * 4
    if start > end:
        return UNFINISHED, b"", at
    if size:
        length = int.from_bytes(data[at + 2 : at + 2 + size], "big")
    return OTHER, b"", start + length
