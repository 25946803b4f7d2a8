"""A keep-alive connection for requests to the HTTP API, one at a time, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import h11
from msgspec import Struct

from notify.client._link import Socket

#: the maximum size of a response, in bytes
MAX_ANSWER = 16 * 2**20


class Request(Struct, frozen=True):
    """One POST request."""

    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes


class Response(Struct, frozen=True):
    """The response. ``advice`` is the wait in seconds that the server asks for."""

    status: int
    body: bytes
    advice: float | None


class Owner(Protocol):
    """The user of a connection."""

    def post_answered(self, post: Post, response: Response) -> None:
        """The request was answered. :attr:`Post.over` tells whether the connection takes no further request."""

    def post_ended(self, post: Post, reason: str) -> None:
        """The connection has ended. :attr:`Post.sent` tells whether the server may have received the unanswered request."""

    def end_gone(self, end: object) -> None:
        """The socket is closed as well."""


class Post:
    """One connection. The front end calls :meth:`connected`, :meth:`data` and :meth:`lost`."""

    def __init__(self, owner: Owner, host: str) -> None:
        self._owner = owner
        self._host = host
        self._http = h11.Connection(h11.CLIENT)
        self._socket: Socket | None = None
        self._early = b""
        self._response: h11.Response | None = None
        self._body = bytearray()
        self.sent = self.over = False
        #: set by the front end: stops dialling
        self.cancel: Callable[[], None] = lambda: None

    def ask(self, request: Request) -> None:
        """Send a request, now or once connected. Allowed only if none is in flight."""
        fields = [("Host", self._host), ("Content-Length", str(len(request.body))), *request.headers]
        head = self._http.send(h11.Request(method="POST", target=request.path, headers=fields))
        body = self._http.send(h11.Data(data=request.body))
        end = self._http.send(h11.EndOfMessage())
        self._early = b"".join(part for part in (head, body, end) if part)
        self._flush()

    def connected(self, socket: Socket) -> None:
        """The transport is connected."""
        if self.over:
            socket.abort()
            return
        self._socket = socket
        self._flush()

    def data(self, data: bytes) -> None:
        """Bytes arrived; empty: end of input."""
        if self.over:
            return
        try:
            self._http.receive_data(data)
            while self._take(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            self._end(f"the server's answer is no HTTP: {error}")
            self.drop()

    def lost(self, reason: str) -> None:
        """The transport was lost, or could not be connected."""
        if self._response is not None:
            self.data(b"")  # a response may end with the end of the connection
        self._socket = None
        self._end(reason)
        self._owner.end_gone(self)

    def drop(self) -> None:
        """Close the connection. After this only the closing of the socket is reported."""
        self.over = True
        if self._socket is not None:
            self._socket.abort()
        else:
            self.cancel()

    def _flush(self) -> None:
        if self._socket is not None and self._early:
            early, self._early = self._early, b""
            self.sent = True
            self._socket.write(early)

    def _take(self, event: object) -> bool:
        """Handle an event. Returns whether there may be more."""
        if isinstance(event, h11.Response):
            self._response = event
        elif isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) > MAX_ANSWER:
                raise h11.RemoteProtocolError("it is too long")
        elif isinstance(event, h11.EndOfMessage) and self._response is not None:
            self._answered(self._response)
            return not self.over
        elif isinstance(event, h11.ConnectionClosed):
            self._end("the server closed the connection")
            self.drop()
            return False
        return event is not h11.NEED_DATA and event is not h11.PAUSED

    def _answered(self, response: h11.Response) -> None:
        advice = dict(response.headers).get(b"retry-after", b"").decode("latin-1")
        body, self._body = bytes(self._body), bytearray()
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.drop()
        wait = float(advice) if advice.isascii() and advice.isdecimal() else None
        self._owner.post_answered(self, Response(response.status_code, body, wait))

    def _end(self, reason: str) -> None:
        if not self.over:
            self.over = True
            self._owner.post_ended(self, reason)
