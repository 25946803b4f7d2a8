"""A stream (``GET /v1/stream`` of the HTTP API) that carries messages to the server and their outcomes back, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from notify.client._link import Socket
from notify.client._outcome import Item, Outcome
from notify.client._wire import Address, Closed, Opened, Text, Wire


class _Answer(Outcome, frozen=True, kw_only=True):
    id: int


_answer = msgspec.json.Decoder(_Answer).decode


class Owner(Protocol):
    """The user of a pipe."""

    def pipe_reached(self) -> None:
        """The transport is connected, so the address can be reached."""

    def pipe_opened(self) -> None:
        """Messages may be sent."""

    def pipe_answered(self, answers: Sequence[tuple[Item, Outcome]]) -> None:
        """The server reported the outcomes of these messages."""

    def pipe_ended(self, pipe: Pipe, reason: str) -> None:
        """The pipe has ended. The messages in :attr:`Pipe.sent` were not answered."""

    def end_gone(self, end: object) -> None:
        """The socket is closed as well."""


class Pipe:
    """One connection. The front end calls :meth:`connected`, :meth:`data` and :meth:`lost`."""

    def __init__(self, owner: Owner, address: Address, authorization: str) -> None:
        self._owner: Owner = owner
        self._wire = Wire(address, (), [(b"authorization", authorization.encode("latin-1"))])
        self._socket: Socket | None = None
        self._number = self.bytes = 0
        #: messages that were sent and not answered yet, by number
        self.sent: dict[int, Item] = {}
        #: the transport was connected; the handshake succeeded; messages may be sent; the pipe has ended
        self.reached = self.opened = self.open = self.over = False
        #: set by the front end: stops dialling
        self.cancel: Callable[[], None] = lambda: None

    def connected(self, socket: Socket) -> None:
        """The transport is connected."""
        if self.over:
            socket.abort()
            return
        self._socket, self.reached = socket, True
        self._owner.pipe_reached()
        self._flush()

    def data(self, data: bytes) -> None:
        """Bytes arrived."""
        answers: list[tuple[Item, Outcome]] = []
        ended: str | None = None
        for event in () if self.over else self._wire.feed(data):
            if isinstance(event, Opened):
                self.open = self.opened = True
                self._owner.pipe_opened()
            elif isinstance(event, Text):
                try:
                    answer = _answer(event.text)
                except (msgspec.MsgspecError, RecursionError):
                    ended = "the server's answer cannot be understood"
                    break
                item = self.sent.pop(answer.id, None)
                if item is not None:
                    self.bytes -= len(item.body)
                    answers.append((item, answer))
            elif isinstance(event, Closed):
                ended = f"the server ended the stream: {event.reason or event.code}"
        self._flush()
        if answers:
            self._owner.pipe_answered(answers)
        if ended is not None:
            self._end(ended)
            if self._socket is not None:
                self._socket.close()

    def lost(self, reason: str) -> None:
        """The transport was lost, or could not be connected."""
        self._socket = None
        self._end(reason)
        self._owner.end_gone(self)

    def send(self, items: Sequence[Item]) -> None:
        """Publish messages in order, as one list. The server starts the list as a whole: if it cannot publish at first but can a moment
        later, no message overtakes those before it.
        """
        parts = []
        for item in items:
            self._number += 1
            self.sent[self._number] = item
            self.bytes += len(item.body)
            parts.append(item.keyed(f'"id":{self._number},').decode())
        self._wire.send(parts[0] if len(parts) == 1 else f"[{','.join(parts)}]")
        self._flush()

    def close(self) -> None:
        """Close the connection cleanly. Allowed only if no message is in flight."""
        self._wire.close(1000, "")
        self._flush()
        self._leave()
        if self._socket is not None:
            self._socket.close()

    def drop(self) -> None:
        """Close the socket even in the middle of a frame. After this only the closing of the socket is reported."""
        self._leave()
        if self._socket is not None:
            self._socket.abort()

    def _leave(self) -> None:
        self.over, self.open = True, False
        if self._socket is None:
            self.cancel()

    def _end(self, reason: str) -> None:
        if not self.over:
            self.over, self.open = True, False
            self._owner.pipe_ended(self, reason)

    def _flush(self) -> None:
        if self._socket is not None and self._wire.outgoing:
            data = bytes(self._wire.outgoing)
            self._wire.outgoing.clear()
            self._socket.write(data)
