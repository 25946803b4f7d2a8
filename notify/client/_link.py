"""One connection of a client, from dialling to its end, independent of the transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from notify.client._wire import Address, Closed, Opened, Text, Wire
from notify.client.actions import Frame

#: seconds to wait for the server's close frame after sending ours
CLOSING = 2.0


class Socket(Protocol):
    """What a link needs of its transport."""

    def write(self, data: bytes) -> None:
        """Send ``data``."""

    def close(self) -> None:
        """Close once all data is sent."""

    def abort(self) -> None:
        """Close immediately."""


class Owner(Protocol):
    """What a link needs of its client."""

    @property
    def address(self) -> Address:
        """The server's address."""

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after ``delay`` seconds, unless the returned function is called first."""

    def _opened(self) -> None:
        """The connection is open."""

    def _text(self, text: str) -> None:
        """A text message arrived."""

    def _closed(self, code: int, reason: str) -> None:
        """The connection ended or could not be opened."""

    def _closing(self, link: Link) -> None:
        """The client has left this link, but the socket is still open."""

    def _gone(self, link: Link) -> None:
        """The socket is closed."""


class Link:
    """One connection, from dialling to its end. Once left, it reports nothing more to the client."""

    def __init__(self, client: Owner) -> None:
        self._client: Owner | None = client
        self._wire = Wire(client.address)
        self._socket: Socket | None = None
        self._give_up: Callable[[], None] | None = None
        #: set by the front end: stops dialling
        self.cancel: Callable[[], None] = lambda: None

    def connected(self, socket: Socket) -> None:
        """The transport is connected."""
        self._socket = socket
        if self._client is None:
            socket.abort()
        else:
            self._flush()

    def data(self, data: bytes) -> None:
        """Bytes arrived."""
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
        """The transport was lost, or could not be connected."""
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
        """Close the connection and report nothing more to the client."""
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
