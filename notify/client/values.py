"""What a client hands to its user, and what it raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct

from notify.client.actions import Position


class Token(Struct, frozen=True):
    """A token whose expiry (Unix seconds) the callback knows; a plain ``str`` does where it does not."""

    value: str
    expires_at: float | None = None


class ChatMessage(Struct, frozen=True):
    """A message of a chat. ``timestamp`` is Unix time in seconds, as the publisher gave it."""

    chat_id: int
    message_id: int
    sender_id: int
    content: str
    timestamp: int
    position: Position


class Notification(Struct, frozen=True):
    """A notification of the user; ``data`` is any JSON value."""

    notification_id: int
    user_id: int
    kind: str
    data: Any
    timestamp: int
    position: Position


class Presence(Struct, frozen=True):
    """One user who is in a chat, over all nodes."""

    user_id: int
    connections: int


class Loss(Struct, frozen=True):
    """The messages after ``before`` up to ``after`` cannot be had any more: reload them from the backend.

    ``chat_id`` None: the user's notifications.
    """

    chat_id: int | None
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
    user_id: int | None = None
    connection_id: str | None = None


class Store(Protocol):
    """Where positions outlive the process. One store is for one user: positions of two must not mix."""

    def load(self, key: str) -> Position | None:
        """The position kept under ``chat:ID`` or ``notifications``."""

    def save(self, positions: Mapping[str, Position]) -> None:
        """Keep these, beside what is kept already. Should not block for long."""


class ClientClosed(Exception):  # noqa: N818
    """The client has ended and will not reconnect: the server's close code says why (None: no token)."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"closed with {code}{f' ({reason})' if reason else ''}")
        self.code, self.reason = code, reason


class HistoryLost(Exception):  # noqa: N818
    """A reader without ``on_lost`` came to a place where messages are lost. Reload, then read on."""

    def __init__(self, loss: Loss) -> None:
        what = "the notifications" if loss.chat_id is None else f"chat {loss.chat_id}"
        super().__init__(f"messages of {what} were lost: reload what came after {loss.before.seq}")
        self.loss = loss


class Refused(Exception):  # noqa: N818
    """The server refused a subscription or a command. ``code`` is one of the protocol's error codes, or
    ``timeout``, ``busy`` (too many commands wait) or ``closed``.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
