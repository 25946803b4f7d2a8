"""The client's side of one WebSocket (RFC 6455): bytes in, bytes out, on any transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

from msgspec import Struct, structs
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from notify.client._reasons import answered

SUBPROTOCOLS = ["notify.v1.json.batch", "notify.v1.json"]
#: the maximum size of a message in bytes: it must hold a whole replay in one batch
MAX_MESSAGE = 128 * 2**20
_CLIENT_ID = "client_id="


class Address(Struct, frozen=True):
    """The address of a WebSocket."""

    secure: bool
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse a ``ws://`` or ``wss://`` URL. Raises ``ValueError`` for any other."""
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError("the address of a server is like ws://host:8080/ws or wss://host/ws")
        secure = parts.scheme == "wss"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(secure, parts.hostname, parts.port or (443 if secure else 80), target)

    @property
    def client_id(self) -> str | None:
        """The ``client_id`` in the query, or None."""
        return next((one[len(_CLIENT_ID) :] for one in self._query() if one.startswith(_CLIENT_ID)), None)

    def under(self, client_id: str) -> Address:
        """The same address with this ``client_id`` in the query."""
        others = [one for one in self._query() if not one.startswith(_CLIENT_ID)]
        query = "&".join((*others, _CLIENT_ID + client_id))
        return structs.replace(self, target=f"{self.target.partition('?')[0]}?{query}")

    def _query(self) -> list[str]:
        return [one for one in self.target.partition("?")[2].split("&") if one]

    @property
    def host_header(self) -> str:
        """The value of the Host header: with the port unless it is the scheme's default, and with brackets around IPv6."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class Opened(Struct, frozen=True):
    """The handshake succeeded."""


class Text(Struct, frozen=True):
    """One complete text message."""

    text: str


class Closed(Struct, frozen=True):
    """The server ended the connection; no event follows. 1006 means without a close frame."""

    code: int
    reason: str


Event: TypeAlias = Opened | Text | Closed


class Wire:
    """One connection. Bytes to send collect in :attr:`outgoing`; the owner sends them and empties it.

    ``headers`` are sent with the opening handshake in addition to its own.
    """

    def __init__(
        self,
        address: Address,
        subprotocols: Sequence[str] = SUBPROTOCOLS,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self.outgoing = bytearray()
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._parts: list[str] = []
        self._size = 0
        self._done = False
        self._send(
            Request(
                host=address.host_header,
                target=address.target,
                subprotocols=list(subprotocols),
                extra_headers=list(headers),
            )
        )

    def send(self, text: str) -> None:
        """Send a text message. It is dropped if the connection is not open."""
        self._send(TextMessage(text))

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake."""
        self._send(CloseConnection(code, reason))
        self._done = True

    def feed(self, data: bytes) -> list[Event]:
        """Process received bytes. Returns the resulting events; ``Closed`` occurs at most once, as the last one."""
        events: list[Event] = []
        if self._done:
            return events
        try:
            self._connection.receive_data(data)
            for event in self._connection.events():
                if isinstance(event, AcceptConnection):
                    events.append(Opened())
                elif isinstance(event, RejectConnection):
                    return self._end(events, 1006, answered(event.status_code, event.headers))
                elif isinstance(event, TextMessage):
                    self._size += len(event.data)
                    if self._size > MAX_MESSAGE:
                        self._send(CloseConnection(1009, "too big"))
                        return self._end(events, 1009, "a message of the server is too big")
                    self._parts.append(event.data)
                    if event.message_finished:
                        events.append(Text("".join(self._parts)))
                        self._parts, self._size = [], 0
                elif isinstance(event, BytesMessage):
                    self._send(CloseConnection(1003, "text only"))
                    return self._end(events, 1003, "the server sent a binary message")
                elif isinstance(event, Ping):
                    self._send(event.response())
                elif isinstance(event, CloseConnection):
                    self._send(event.response())
                    return self._end(events, int(event.code), event.reason or "")
        except RemoteProtocolError as error:
            self._send(CloseConnection(1002, ""))
            return self._end(events, 1002, f"the server broke the WebSocket protocol: {error}")
        return events

    def _end(self, events: list[Event], code: int, reason: str) -> list[Event]:
        self._done = True
        events.append(Closed(code, reason))
        return events

    def _send(self, event: Request | TextMessage | CloseConnection | Pong) -> None:
        try:
            self.outgoing += self._connection.send(event)
        except LocalProtocolError:
            pass  # the connection is closing or not open yet, so the message is dropped
