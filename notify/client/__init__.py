"""Clients of a notify server that never lose their place; docs/client.md describes their behaviour.

``AsyncioClient`` and ``TwistedClient`` receive. ``AsyncioPublisher`` and ``TwistedPublisher`` publish; ``Publisher`` does so from
blocking code.
The package needs only h11, msgspec and wsproto. Twisted is imported on first use of a class named after it.
"""

from typing import TYPE_CHECKING, Any

from notify.client._asyncio import AsyncioClient
from notify.client._publish_asyncio import AsyncioPublisher
from notify.client._stream import Chat, Stream
from notify.client.actions import Position, Settings
from notify.client.publisher import Publisher, PublishFailed
from notify.client.store import FileStore
from notify.client.values import (
    ChatEvent,
    ChatMessage,
    ClientClosed,
    HistoryLost,
    Loss,
    Notification,
    Page,
    Presence,
    Refused,
    Signal,
    State,
    Store,
    Token,
)

if TYPE_CHECKING:
    from notify.client._publish_twisted import TwistedPublisher
    from notify.client._twisted import TwistedClient
else:  # hidden from type checkers, so that a misspelt name stays a type error

    def __getattr__(name: str) -> Any:
        if name == "TwistedClient":
            from notify.client._twisted import TwistedClient

            return TwistedClient
        if name == "TwistedPublisher":
            from notify.client._publish_twisted import TwistedPublisher

            return TwistedPublisher
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AsyncioClient",
    "AsyncioPublisher",
    "Chat",
    "ChatEvent",
    "ChatMessage",
    "ClientClosed",
    "FileStore",
    "HistoryLost",
    "Loss",
    "Notification",
    "Page",
    "Position",
    "Presence",
    "PublishFailed",
    "Publisher",
    "Refused",
    "Settings",
    "Signal",
    "State",
    "Store",
    "Stream",
    "Token",
    "TwistedClient",
    "TwistedPublisher",
]
