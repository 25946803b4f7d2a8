"""What a client hands to its user, and what it raises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct

from notify.client._reasons import ended
from notify.client.actions import Id, Position


class Token(Struct, frozen=True):
    """A token whose expiry (Unix seconds) the callback knows; a plain ``str`` does where it does not."""

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
    """What happened in a chat beside its messages; ``data`` is any JSON value.

    ``refers_to`` is the ``message_id`` of what it is about, where it is about a message.
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
    """A part of a chat's history, oldest first; events are in it where the client asked for them.

    ``more``: there are more in the direction that was asked for, also where this page has none: go on ``before=page.start``
    or ``after=page.position``. Of the newest page ``position`` is the chat's newest. None: nothing says.
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
    """What another member of a chat signals now, as that they type; ``data`` is any JSON value. Nobody keeps it."""

    chat_id: Id
    user_id: Id
    kind: str
    data: Any


class Presence(Struct, frozen=True):
    """One user who is in a chat, over all nodes."""

    user_id: Id
    connections: int


class Loss(Struct, frozen=True):
    """The messages after ``before`` up to ``after`` cannot be had any more: reload them from the backend.

    ``chat_id`` None: the user's notifications.
    """

    chat_id: Id | None
    before: Position
    after: Position


class State(Struct, frozen=True):
    """The connection's state, in the words of docs/client.md.

    ``delay`` (seconds) with ``waiting``; ``code`` and ``reason`` tell why the connection before it ended.
    """

    name: str = "idle"
    delay: float | None = None
    code: int | None = None
    reason: str = ""
    user_id: Id | None = None
    connection_id: str | None = None


def identifier(given: Id) -> Id:
    """An id as the server knows it: text that spells a canonical integer is that integer.

    Raises ``ValueError`` for what is none.
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
    """Where positions outlive the process. One store is for one user: positions of two must not mix.

    Where it has a method ``close()`` the client calls that when the program closes it.
    """

    def load(self, key: str) -> Position | None:
        """The position kept under ``chat:ID`` or ``notifications``."""

    def save(self, positions: Mapping[str, Position]) -> None:
        """Keep these, beside what is kept already. Should not block for long."""


class ClientClosed(Exception):  # noqa: N818
    """The client has ended and will not reconnect: the server's close code says why (None: no token)."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(ended(code, reason))
        self.code, self.reason = code, reason


class HistoryLost(Exception):  # noqa: N818
    """A reader without ``on_lost`` came to a place where messages are lost. Reload, then read on."""

    def __init__(self, loss: Loss) -> None:
        what = "the notifications" if loss.chat_id is None else f"chat {loss.chat_id}"
        super().__init__(f"messages of {what} were lost: reload what came after {loss.before.seq}")
        self.loss = loss


class Refused(Exception):  # noqa: N818
    """The server refused a subscription or a command. ``code`` is one of the protocol's error codes, or
    ``timeout``, ``busy`` (too many commands wait), ``closed``, or ``unsupported`` (the server cannot do that).
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
