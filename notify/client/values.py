"""The values that a client hands to the application, and the exceptions that it raises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct

from notify.client._reasons import ended
from notify.client.actions import Id, Position


class Token(Struct, frozen=True):
    """A token whose expiry (Unix seconds) the callback knows. If it does not, it may return a plain ``str``."""

    value: str
    expires_at: float | None = None


class ChatMessage(Struct, frozen=True):
    """A message of a chat. ``timestamp`` is Unix time in seconds, as the publisher gave it."""

    chat_id: Id
    message_id: Id
    sender_id: Id
    content: str
    timestamp: int
    position: Position


class ChatEvent(Struct, frozen=True):
    """An event in a chat other than a message; ``data`` is any JSON value.

    ``refers_to`` is the ``message_id`` of the message that the event is about, if it is about one.
    """

    chat_id: Id
    message_id: Id
    sender_id: Id
    kind: str
    data: Any
    timestamp: int
    position: Position
    refers_to: Id | None = None


class Page(Struct, frozen=True):
    """A page of a chat's history, oldest first. It contains events if the client asked for them.

    ``more`` says that there are further messages in the direction asked for, even if this page is empty: continue with
    ``before=page.start`` or ``after=page.position``. On the newest page ``position`` is the newest position of the chat.
    ``start`` and ``position`` are None if the server does not give them.
    """

    messages: list[ChatMessage | ChatEvent]
    more: bool
    start: Position | None = None
    position: Position | None = None


class Notification(Struct, frozen=True):
    """A notification of the user; ``data`` is any JSON value."""

    notification_id: Id
    user_id: Id
    kind: str
    data: Any
    timestamp: int
    position: Position


class Signal(Struct, frozen=True):
    """A transient signal from another member of a chat, such as a typing indicator. ``data`` is any JSON value. Signals are not stored."""

    chat_id: Id
    user_id: Id
    kind: str
    data: Any


class Presence(Struct, frozen=True):
    """One user who is present in a chat, and that user's number of connections on all nodes."""

    user_id: Id
    connections: int


class Loss(Struct, frozen=True):
    """The messages after ``before`` up to and including ``after`` are no longer available: reload them from the backend.

    ``chat_id`` is None for the user's notifications.
    """

    chat_id: Id | None
    before: Position
    after: Position


class State(Struct, frozen=True):
    """The state of the connection; docs/client.md names the states.

    ``delay`` (seconds until the next attempt) is set in the state ``waiting``. ``code`` and ``reason`` say why the previous connection ended.
    """

    name: str = "idle"
    delay: float | None = None
    code: int | None = None
    reason: str = ""
    user_id: Id | None = None
    connection_id: str | None = None


def identifier(given: Id) -> Id:
    """Return an id in the server's form: text that spells a canonical integer becomes that integer.

    Raises ``ValueError`` if it is not a valid id.
    """
    if isinstance(given, str) and _INTEGER.fullmatch(given):
        number = int(given)
        if str(number) == given:
            given = number
    if isinstance(given, bool) or not (
        -(2**63) <= given < 2**63
        if isinstance(given, int)
        else _TEXT.fullmatch(given) and not _INTEGER.fullmatch(given)
    ):
        raise ValueError(
            "an id is a 64-bit integer, or text of 1 to 64 of A-Z a-z 0-9 _ - that does not look like one"
        )
    return given


_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
_TEXT = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Store(Protocol):
    """Keeps positions beyond the end of the process. A store belongs to one user: the positions of two users must not mix.

    If it has a method ``close()``, the client calls it when the program closes the client.
    """

    def load(self, key: str) -> Position | None:
        """Return the position stored under ``chat:ID`` or ``notifications``, or None."""

    def save(self, positions: Mapping[str, Position]) -> None:
        """Store these positions and keep those stored under other keys. Should not block for long."""


class ClientClosed(Exception):  # noqa: N818
    """The client has ended and will not reconnect. ``code`` is the server's close code; None means that there was no token."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(ended(code, reason))
        self.code, self.reason = code, reason


class HistoryLost(Exception):  # noqa: N818
    """A reader without ``on_lost`` reached a gap whose messages are lost. Reload them from the backend, then continue to read."""

    def __init__(self, loss: Loss) -> None:
        what = "the notifications" if loss.chat_id is None else f"chat {loss.chat_id}"
        super().__init__(f"messages of {what} were lost: reload what came after {loss.before.seq}")
        self.loss = loss


class Refused(Exception):  # noqa: N818
    """The server refused a subscription or a command, or could not be asked.

    ``code`` is one of the protocol's error codes, or ``timeout``, ``busy`` (too many commands are waiting), ``closed``, or
    ``unsupported`` (the server does not have this command).
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
