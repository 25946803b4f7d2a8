"""Finds the messages in the bytes that a NATS server sends. Everything else is left to nats-py's own parser.

nats-py puts what it receives into a stream, wakes a task that reads from it, and tries several patterns on each message. The
format is described at https://docs.nats.io/reference/reference-protocols/nats-protocol.
"""

from __future__ import annotations

from collections.abc import Callable

#: called with a subscription's number, subject, reply subject, payload and header block; the reply subject and the block may
#: be empty. Returns whether it takes the message.
Message = Callable[[int, bytes, bytes, bytes, bytes], bool]

#: bytes of a line whose end has not come; the longest line of a server is INFO, with the addresses of its cluster
_LONGEST_LINE = 2**20


class Splitter:
    """Calls ``message`` for each complete message. ``rest`` gets everything else, piece by complete piece: messages that are not
    taken, and all other lines (``PING``, ``INFO``, ...).

    A line that begins like a message and cannot be read as one goes to ``rest``, and so does everything after it: where the next
    line begins is unknown, and what follows may be a payload that somebody else has written. nats-py closes such a connection.
    """

    def __init__(self, message: Message, rest: Callable[[bytes], None]) -> None:
        self._message = message
        self._rest = rest
        #: an incomplete line or message, and how many more bytes it needs at least
        self._parts: list[bytes] = []
        self._lacks = 0
        #: a line could not be read
        self._lost = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection. Raises ``ValueError`` for a line without an end, and whatever the callbacks raise.

        After that the position in the stream is unknown, and the connection must be closed.
        """
        if self._lost:
            self._rest(data)
            return
        if self._parts:
            self._parts.append(data)
            self._lacks -= len(data)
            if self._lacks > 0:
                return
            data = b"".join(self._parts)
            self._parts = []
        at, end = 0, len(data)
        while at < end:
            line = data.find(b"\r\n", at)
            if line < 0:
                if end - at > _LONGEST_LINE:
                    raise ValueError(f"NATS sent a line of over {_LONGEST_LINE} bytes")
                self._keep(data, at, 1)
                return
            begin = line + 2
            # Only spaces are separators. Servers accept other white space within a subject, such as a vertical tab: with it, whoever
            # may publish a message could choose what is read as its subscription and its size.
            match data[at:line].split(b" "):
                case [b"HMSG", subject, number, *reply, headers, size]:
                    pass
                case [b"MSG", subject, number, *reply, size]:
                    headers = b"0"
                case [b"HMSG" | b"MSG", *_]:
                    headers = number = size = b""
                case _:
                    self._rest(data[at:begin])
                    at = begin
                    continue
            try:
                subscription, payload, stop = int(number), begin + int(headers), begin + int(size)
            except ValueError:
                payload = stop = -1
            if not begin <= payload <= stop:
                self._lost = True
                self._rest(data[at:])
                return
            if stop + 2 > end:
                self._keep(data, at, stop + 2 - end)
                return
            to = reply[0] if reply else b""
            if not self._message(subscription, subject, to, data[payload:stop], data[begin:payload]):
                self._rest(data[at : stop + 2])
            at = stop + 2

    def _keep(self, data: bytes, at: int, lacks: int) -> None:
        self._parts, self._lacks = [data[at:]], lacks
