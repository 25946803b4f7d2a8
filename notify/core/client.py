"""A client, as seen by the code that answers its frames. The implementation is :mod:`notify.core.session`."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import UNSET
from twisted.python.failure import Failure

from notify.core.hub import Hub
from notify.ids import Id
from notify.interfaces import IConnection
from notify.messages import Position
from notify.wire.frames import InvalidFrame, RequestId, ServerFrame, Since

#: the states of a client, in this order; it may be closed from any of them
NEW, AUTHENTICATING, OPEN, CLOSED = "new", "authenticating", "open", "closed"


class Client(Protocol):
    """The client that sent a frame. One frame is answered at a time, so only a close can happen in between."""

    #: one of the four states above; code that answers later must first check whether the client has closed meanwhile
    state: str
    #: the chats that it is subscribed to
    chats: set[Id]
    #: the chat that it has asked for and is not told of yet; None also if it must not get in
    joining: Id | None

    @property
    def connection(self) -> IConnection:
        """The connection that answers are written to."""

    @property
    def hub(self) -> Hub:
        """The hub of the client's server."""

    def send(self, frame: ServerFrame, bodies: list[bytes] | None = None) -> None:
        """Send a frame, directly followed by frames that are already encoded."""

    def error(
        self, code: str, message: str, id: RequestId | None, retry: bool = False, chat_id: Id | None = None
    ) -> None:
        """Send an error (docs/protocol.md, Errors)."""

    def refuse(self, fault: InvalidFrame) -> None:
        """Send the error for an invalid frame, and count it: a client that sends too many is closed."""

    def failed(self, failure: Failure, id: RequestId | None) -> None:
        """Send the error for a failure: ``unavailable``, or ``internal`` for a fault of the server."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection (docs/protocol.md, Close codes)."""

    def owe(self, items: int) -> None:
        """Charge the client for messages or users that a frame cost: past a bound its next frames wait."""

    def settled(self, chat_id: Id) -> None:
        """The client has just joined or left a chat. While it is in one, the authenticator is asked about it again."""

    def review(self) -> None:
        """Ask about its chats again, because it has presented a new token."""

    def bar(self, chat_id: Id) -> bool:
        """See :class:`~notify.core.hub.Subscriber`."""

    def renew(self) -> None:
        """Another authenticator is in force, and its interval for asking again applies."""

    def expect(self, seconds: float | None) -> None:
        """Close it unless it moves on within this time, which replaces the previous one. None: it need not."""


def position(since: Since | None) -> Position | None:
    """The position that a frame asks to resume from."""
    return None if since is None else Position(since.epoch, since.seq)


def given(value: Any) -> Any:
    """The value of a frame's field, which is left out if there is nothing to say."""
    return UNSET if value is None else value
