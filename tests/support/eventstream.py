"""A reader of server-sent events, strictly as in WHATWG HTML, section 9.2.6; and a client that works on raw bytes."""

from __future__ import annotations

import json
import socket
from typing import Any, NamedTuple


class Event(NamedTuple):
    """An event, and the ``Last-Event-ID`` that its client reconnects with after it."""

    name: str
    data: Any
    id: str


class Reader:
    """Reads a stream from bytes in pieces of any size. ``id`` is what a client reconnects with if it is cut off now."""

    def __init__(self) -> None:
        self.id = ""
        self.retry: int | None = None
        self.comments = 0
        self._buffer = b""
        self._name, self._data, self._next_id = "", [], ""

    _data: list[str]

    def feed(self, data: bytes) -> list[Event]:
        """Take more bytes; return the events that are now complete."""
        self._buffer += data
        found = []
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            if b"\r" in line:
                raise AssertionError("a bare CR ends a line, too")
            event = self._line(line.decode())
            if event is not None:
                found.append(event)
        return found

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self.comments += 1
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
            case "id":
                self._next_id = value
            case "retry":
                self.retry = int(value)
            case _:
                raise AssertionError(f"a field that is none: {line!r}")
        return None

    def _dispatch(self) -> Event | None:
        self.id = self._next_id
        name, data = self._name, "\n".join(self._data)
        self._name, self._data = "", []
        return Event(name, json.loads(data), self.id) if data else None


class EventClient:
    """A client with a real socket. Blocks: use a thread."""

    def __init__(
        self,
        port: int,
        query: str = "",
        token: str | None = None,
        last: str | None = None,
        method: str = "GET",
        version: str = "1.1",
        receive_buffer: int = 0,
        **headers: str,
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(15)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))
        lines = {"Host": f"127.0.0.1:{port}"}
        if token is not None:
            lines["Authorization"] = f"Bearer {token}"
        if last is not None:
            lines["Last-Event-ID"] = last
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        target = "/events" + (f"?{query}" if query else "")
        self.socket.sendall(f"{method} {target} HTTP/{version}\r\n{head}\r\n".encode())
        self.reader = Reader()
        self._events: list[Event] = []
        self._answered = b""
        self._rest = self._chunks = b""
        self._chunked = False

    def answer(self) -> tuple[int, dict[str, str]]:
        """Read the status and headers; afterwards events can be read."""
        while b"\r\n\r\n" not in self._answered:
            data = self.socket.recv(65536)
            if not data:
                raise AssertionError(f"hung up behind {self._answered!r}")
            self._answered += data
        head, _, self._rest = self._answered.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(first.split()[1]), self.headers

    def body(self) -> Any:
        """The JSON of an answer that is not a stream."""
        data = self._rest
        while more := self.socket.recv(65536):
            data += more
        return json.loads(data)

    def begun(self) -> EventClient:
        """Check that the answer is a stream."""
        status, headers = self.answer()
        if (status, headers.get("content-type")) != (200, "text/event-stream"):
            raise AssertionError(f"{status} {headers}: {self.body()}")
        self._chunked = headers.get("transfer-encoding") == "chunked"
        self._events = self.reader.feed(self._decoded(self._rest))
        return self

    def pull(self, most: int = 65536) -> int:
        """Read what has arrived, up to ``most`` bytes; return how many bytes came, 0 if the stream has ended."""
        try:
            data = self.socket.recv(most)
        except ConnectionResetError:
            return 0
        self._events += self.reader.feed(self._decoded(data))
        return len(data)

    def _decoded(self, data: bytes) -> bytes:
        if not self._chunked:
            return data
        self._chunks += data
        body = b""
        while True:
            size, line, rest = self._chunks.partition(b"\r\n")
            if not line or len(rest) < int(size, 16) + 2:
                return body
            body += rest[: int(size, 16)]
            self._chunks = rest[int(size, 16) + 2 :]

    def taken(self) -> list[Event]:
        """The events that have arrived since the last call."""
        events, self._events = self._events, []
        return events

    def next(self) -> Event | None:
        """Wait for the next event; None if the stream has ended."""
        while not self._events:
            if not self.pull():
                return None
        return self._events.pop(0)

    def until(self, name: str) -> list[Event]:
        """The events up to and including the next one of this name."""
        found: list[Event] = []
        while not found or found[-1].name != name:
            event = self.next()
            if event is None:
                raise AssertionError(f"ended before '{name}', behind {found}")
            found.append(event)
        return found

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
