"""A client, as those see it who answer its frames. What stands behind it is a :mod:`notify.core.session`."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import UNSET
from twisted.python.failure import Failure

from notify.core.hub import Hub
from notify.ids import Id
from notify.interfaces import IConnection
from notify.messages import Position
from notify.wire.frames import InvalidFrame, RequestId, ServerFrame, Since

#: the states of a client, in this order; it may be closed out of each
NEW, AUTHENTICATING, OPEN, CLOSED = "new", "authenticating", "open", "closed"


class Client(Protocol):
    """Who asked. One frame is answered at a time, so nothing but a close comes in between."""

    #: one of the four above; who answers later looks first whether it is closed meanwhile
    state: str
    #: the chats that it is subscribed to
    chats: set[Id]
    #: the chat that it has asked for and is not told of yet; None also when it is not to get in
    joining: Id | None

    @property
    def connection(self) -> IConnection:
        """Where answers go."""

    @property
    def hub(self) -> Hub:
        """The server that it is a client of."""

    def send(self, frame: ServerFrame, bodies: list[bytes] | None = None) -> None:
        """Send a frame, and encoded ones right behind it."""

    def error(
        self, code: str, message: str, id: RequestId | None, retry: bool = False, chat_id: Id | None = None
    ) -> None:
        """Send an error (docs/protocol.md, Errors)."""

    def refuse(self, fault: InvalidFrame) -> None:
        """Send the error for what is no valid frame, and count it: who sends too many is closed."""

    def failed(self, failure: Failure, id: RequestId | None) -> None:
        """Send the error for a failure: ``unavailable``, or ``internal`` for one that is ours to mend."""

    def close(self, code: int, reason: str) -> None:
        """Send it away (docs/protocol.md, Close codes)."""

    def owe(self, items: int) -> None:
        """A frame cost so many messages or users: past a bound the next frames wait."""

    def settled(self, chat_id: Id) -> None:
        """It has just joined a chat, or left it; while it is in one, the authenticator is asked about it again."""

    def review(self) -> None:
        """Ask about its chats again: it has shown a new token."""

    def bar(self, chat_id: Id) -> bool:
        """See :class:`~notify.core.hub.Subscriber`."""

    def renew(self) -> None:
        """Another authenticator is in force, which wants to be asked about its chats within its own time."""

    def expect(self, seconds: float | None) -> None:
        """Close it unless it moves on within this time, which replaces the one before; None: it need not."""


def position(since: Since | None) -> Position | None:
    """The position that a frame asks to go on from."""
    return None if since is None else Position(since.epoch, since.seq)


def given(value: Any) -> Any:
    """A field of a frame that is left out where there is nothing to say."""
    return UNSET if value is None else value
