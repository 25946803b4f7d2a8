"""One connection of a client, from dialling to its end, on whatever transport a front gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from notify.client._wire import Address, Closed, Opened, Text, Wire
from notify.client.actions import Frame

#: seconds between a close frame and giving up on the server's
CLOSING = 2.0


class Socket(Protocol):
    """What a front offers of its transport."""

    def write(self, data: bytes) -> None:
        """Send."""

    def close(self) -> None:
        """Close once everything is sent."""

    def abort(self) -> None:
        """Close at once."""


class Owner(Protocol):
    """What a link needs of its client."""

    @property
    def address(self) -> Address:
        """Where it leads."""

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after so many seconds, unless the returned function is called first."""

    def _opened(self) -> None:
        """The connection is open."""

    def _text(self, text: str) -> None:
        """A message came."""

    def _closed(self, code: int, reason: str) -> None:
        """The connection is gone, or could not be had."""

    def _closing(self, link: Link) -> None:
        """Nothing more is told, but the socket is still there."""

    def _gone(self, link: Link) -> None:
        """Now it is not."""


class Link:
    """One connection, from dialling to its end. Tells the client nothing once it was left."""

    def __init__(self, client: Owner) -> None:
        self._client: Owner | None = client
        self._wire = Wire(client.address)
        self._socket: Socket | None = None
        self._give_up: Callable[[], None] | None = None
        #: set by the front: stops dialling
        self.cancel: Callable[[], None] = lambda: None

    def connected(self, socket: Socket) -> None:
        """The transport is there."""
        self._socket = socket
        if self._client is None:
            socket.abort()
        else:
            self._flush()

    def data(self, data: bytes) -> None:
        """Bytes came."""
        for event in self._wire.feed(data):
            client = self._client
            if client is None:
                break
            if isinstance(event, Opened):
                client._opened()
            elif isinstance(event, Text):
                client._text(event.text)
            elif isinstance(event, Closed):
                self._client = None
                client._closed(event.code, event.reason)
                self._finish(client)
        self._flush()

    def lost(self, reason: str) -> None:
        """The transport is gone, or never came."""
        if self._give_up is not None:
            self._give_up()
        client, self._client = self._client, None
        self._socket = None
        if client is not None:
            client._closed(1006, reason)

    def send(self, frame: Frame) -> None:
        """Send one frame."""
        self._wire.send(msgspec.json.encode(frame).decode())
        self._flush()

    def leave(self, code: int, reason: str) -> None:
        """Close it, and tell the client nothing more."""
        client, self._client = self._client, None
        if client is None:
            return
        if self._socket is None:
            self.cancel()
        else:
            self._wire.close(code, reason)
            self._flush()
            self._finish(client)

    def _finish(self, client: Owner) -> None:
        """Wait for the other side to close, but not for ever."""
        socket = self._socket
        if socket is None:
            return
        self._flush()
        client._closing(self)
        cancel = client._later(CLOSING, socket.abort)

        def ended() -> None:
            cancel()
            client._gone(self)

        self._give_up = ended

    def _flush(self) -> None:
        if self._socket is not None and self._wire.outgoing:
            data = bytes(self._wire.outgoing)
            self._wire.outgoing.clear()
            self._socket.write(data)
