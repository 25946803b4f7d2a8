"""A stream of messages to publish (``GET /v1/stream`` of the HTTP API) and of what became of each, for code that blocks."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from notify.client._wire import Address, Closed, Event, Opened, Text, Wire

_RECEIVED = 256 * 1024


class NoStream(Exception):  # noqa: N818
    """The server, or what is in front of it, opens no stream."""


class Gone(Exception):  # noqa: N818
    """The stream is over, or too slow. What was sent and not answered may have happened or not."""


class Fault(Struct, frozen=True):
    """Why a message was not stored, or is not known to be."""

    code: str = ""
    message: str = ""


class Outcome(Struct, frozen=True):
    """What became of a message: status 200 and its position, or another and why; None: nothing is known of it."""

    status: int | None
    epoch: str = ""
    seq: int = 0
    error: Fault | None = None


class _Answer(Outcome, frozen=True, kw_only=True):
    id: int


_answer = msgspec.json.Decoder(_Answer).decode


class Pipe:
    """One connection. Raises ``OSError`` where nobody is reached, and :class:`NoStream`.

    ``timeout`` is how many seconds the handshake may take, and how many may pass without an answer.
    """

    def __init__(
        self, address: Address, authorization: str, timeout: float, tls: ssl.SSLContext | None
    ) -> None:
        self._timeout = timeout
        self._socket = socket.create_connection((address.host, address.port), timeout)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname=address.host)
            self._wire = Wire(address, (), [(b"authorization", authorization.encode("latin-1"))])
            self._waiting: dict[int, int] = {}
            self._number = 0
            self._shake_hands()
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self) -> None:
        deadline = time.monotonic() + self._timeout
        try:
            self._flush()
            events: list[Event] = []
            while not events:
                events = self._receive(deadline)
        except (OSError, Gone) as error:
            raise NoStream(str(error)) from None
        if not isinstance(events[0], Opened):
            raise NoStream(events[0].reason if isinstance(events[0], Closed) else "not a WebSocket")

    def exchange(self, messages: Sequence[tuple[int, bytes]], take: Callable[[int, Outcome], None]) -> None:
        """Publish messages in order, and hand over what became of each, by its number, as it is known. Raises :class:`Gone`.

        A message is JSON without the brace in front. They go as one list, which is begun as a whole: where the server cannot
        publish now and can in a moment, none of them overtakes those before it.
        """
        self._waiting = {}
        parts = []
        for index, message in messages:
            self._number += 1
            self._waiting[self._number] = index
            parts.append(f'{{"id":{self._number},{message.decode()}')
        self._wire.send(parts[0] if len(parts) == 1 else f"[{','.join(parts)}]")
        try:
            self._flush()
            deadline = time.monotonic() + self._timeout
            while left := len(self._waiting):
                self._handle(self._receive(deadline), take)
                if len(self._waiting) < left:
                    deadline = time.monotonic() + self._timeout
        except OSError as error:
            raise Gone(f"no answer from the server: {error or type(error).__name__}") from None

    def usable(self) -> bool:
        """Whether it is open still: answers what the server asked meanwhile."""
        try:
            while self._handle(self._receive(None), lambda *_: None):
                pass
        except (OSError, Gone):
            return False
        return True

    def close(self) -> None:
        """Say goodbye, without waiting for an answer. Only while nothing is under way."""
        try:
            self._wire.close(1000, "")
            self._flush()
        except OSError:
            pass
        self.drop()

    def drop(self) -> None:
        """Close the socket, whatever was sent of a frame."""
        self._socket.close()

    def _handle(self, events: list[Event], take: Callable[[int, Outcome], None]) -> bool:
        for event in events:
            if isinstance(event, Closed):
                raise Gone(f"the server ended the stream: {event.reason or event.code}")
            if isinstance(event, Text):
                try:
                    answer = _answer(event.text)
                except (msgspec.MsgspecError, RecursionError):
                    raise Gone("the server's answer cannot be understood") from None
                index = self._waiting.pop(answer.id, None)
                if index is not None:
                    take(index, answer)
        return bool(events)

    def _receive(self, deadline: float | None) -> list[Event]:
        """What came, waiting for it until the deadline; None: not at all. Raises ``OSError`` and :class:`Gone`."""
        if deadline is None:
            self._socket.settimeout(0)
        else:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data: Any = self._socket.recv(_RECEIVED)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return []
        if not data:
            raise Gone("the server closed the connection")
        events = self._wire.feed(data)
        self._flush()
        return events

    def _flush(self) -> None:
        if self._wire.outgoing:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(self._wire.outgoing)
            self._wire.outgoing.clear()
