"""Test doubles that record how they are used."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import msgspec
from twisted.internet.task import Clock
from zope.interface import implementer

from notify.components import Context
from notify.config import Config
from notify.identity import Identity, Peer
from notify.ids import Id
from notify.interfaces import IConnection
from notify.observe.metrics import Metrics
from notify.topics import Topic
from notify.wire.frames import JSON, Encoding


def make_context(
    reactor: Any = None, config: Config | None = None, node: str = "node-1", seed: int = 1
) -> Context:
    """A context for a component under test, with a ``Clock`` if no reactor is given. A ``Clock`` also provides the time of day."""
    clock = reactor or Clock()
    now = clock.seconds if isinstance(clock, Clock) else time.time
    return Context(clock, Metrics(), Random(seed), node, config or Config(), now)  # noqa: S311


def chat_payload(topic: Topic, message_id: int = 1, content: str = "hello", sender_id: int = 1) -> bytes:
    """A valid payload for a chat's topic."""
    return msgspec.json.encode(
        {
            "message_id": message_id,
            "chat_id": topic.id,
            "workspace_id": topic.workspace_id,
            "sender_id": sender_id,
            "content": content,
            "timestamp": 1700000000,
        }
    )


def event_payload(
    topic: Topic, message_id: int = 1, kind: str = "edited", data: Any = None, **more: Any
) -> bytes:
    """A valid event payload for a chat's topic; ``more`` may contain ``refers_to``."""
    return msgspec.json.encode(
        {
            "message_id": message_id,
            "chat_id": topic.id,
            "workspace_id": topic.workspace_id,
            "sender_id": 1,
            "kind": kind,
            "data": data,
            "timestamp": 1_700_000_000,
            **more,
        }
    )


def notification_payload(
    topic: Topic, notification_id: int = 1, kind: str = "mention", data: Any = None
) -> bytes:
    """A valid payload for a user's topic."""
    return msgspec.json.encode(
        {
            "notification_id": notification_id,
            "workspace_id": topic.workspace_id,
            "user_id": topic.id,
            "kind": kind,
            "data": data,
            "timestamp": 1700000000,
        }
    )


@implementer(IConnection)
class FakeConnection:
    """A connection without a socket. ``frames`` holds the payloads of the WebSocket frames written to it."""

    def __init__(
        self, user_id: Id | None = None, workspace_id: Id = 1, id: str = "c1", encoding: Encoding = JSON
    ) -> None:
        self.id = id
        self.peer = Peer("127.0.0.1")
        self.identity = None if user_id is None else Identity(user_id, workspace_id)
        self.encoding = encoding
        self.opened = 0.0
        self.queued = 0
        self.blocked = False
        self.heard = 0.0
        self.frames: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.throttled = False

    def write(self, frame: bytes) -> None:
        """Record the payloads of the frames."""
        if self.closed is None:
            self.frames.extend(_payloads(frame))

    def throttle(self, on: bool) -> None:
        """Record whether reading from the client is throttled."""
        self.throttled = on

    def close(self, code: int, reason: str = "") -> None:
        """Record the first close."""
        if self.closed is None:
            self.closed = (code, reason)

    def take(self) -> list[Any]:
        """The JSON frames since the last call, decoded."""
        frames, self.frames = self.frames, []
        return [msgspec.json.decode(frame) for frame in frames]


def _payloads(data: bytes) -> list[bytes]:
    payloads = []
    while data:
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        payloads.append(data[start : start + length])
        data = data[start + length :]
    return payloads
