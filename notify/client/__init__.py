"""Clients of a notify server that never lose their place: docs/client.md says how they behave.

``AsyncioClient`` and ``TwistedClient`` receive; ``Publisher`` publishes over HTTP from code that is neither.
"""

from notify.client._asyncio import AsyncioClient
from notify.client._stream import Chat, Stream
from notify.client._twisted import TwistedClient
from notify.client.actions import Position, Settings
from notify.client.publisher import Publisher, PublishFailed
from notify.client.store import FileStore
from notify.client.values import (
    ChatMessage,
    ClientClosed,
    HistoryLost,
    Loss,
    Notification,
    Presence,
    Refused,
    State,
    Store,
    Token,
)

__all__ = [
    "AsyncioClient",
    "Chat",
    "ChatMessage",
    "ClientClosed",
    "FileStore",
    "HistoryLost",
    "Loss",
    "Notification",
    "Position",
    "Presence",
    "PublishFailed",
    "Publisher",
    "Refused",
    "Settings",
    "State",
    "Store",
    "Stream",
    "Token",
    "TwistedClient",
]
