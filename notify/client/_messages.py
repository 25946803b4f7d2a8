"""Messages as they are published, and many of them in pieces that fit one frame or request."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from notify.client._publishing import BATCH, BATCH_BYTES
from notify.client.actions import Id

#: a subject and its payload
Message: TypeAlias = tuple[str, Mapping[str, Any]]


def chat_message(
    workspace_id: Id,
    chat_id: Id,
    sender_id: Id,
    content: str,
    message_id: Id | None = None,
    timestamp: int | None = None,
) -> Message:
    """A chat message; ``message_id`` is random and ``timestamp`` now where they are not given."""
    return f"workspace.{workspace_id}.chat.{chat_id}.messages", {
        "message_id": random_id() if message_id is None else message_id,
        "chat_id": chat_id,
        "workspace_id": workspace_id,
        "sender_id": sender_id,
        "content": content,
        "timestamp": int(time.time()) if timestamp is None else timestamp,
    }


def notification(
    workspace_id: Id,
    user_id: Id,
    kind: str,
    data: Any,
    notification_id: Id | None = None,
    timestamp: int | None = None,
) -> Message:
    """A notification; ``data`` is any JSON value."""
    return f"workspace.{workspace_id}.user.{user_id}.notifications", {
        "notification_id": random_id() if notification_id is None else notification_id,
        "workspace_id": workspace_id,
        "user_id": user_id,
        "kind": kind,
        "data": data,
        "timestamp": int(time.time()) if timestamp is None else timestamp,
    }


def random_id() -> int:
    """53 bits, which every language's number has."""
    return uuid.uuid4().int >> 75


def encode(subject: str, payload: Mapping[str, Any]) -> bytes:
    """A message as the HTTP API takes it. Raises ``TypeError`` and ``ValueError`` for what is no JSON."""
    return json.dumps({"subject": subject, "payload": payload}, separators=(",", ":")).encode()


class Batcher:
    """Cuts messages into pieces of some hundreds."""

    def __init__(self) -> None:
        self._batch: list[bytes] = []
        self._size = 0

    def add(self, subject: str, payload: Mapping[str, Any]) -> list[bytes]:
        """Take one more; gives those before it, where it does not fit behind them."""
        one, whole = encode(subject, payload), []
        if self._batch and (len(self._batch) == BATCH or self._size + len(one) > BATCH_BYTES):
            whole = self.rest()
        self._batch.append(one)
        self._size += len(one)
        return whole

    def rest(self) -> list[bytes]:
        """What is there, maybe nothing."""
        batch, self._batch, self._size = self._batch, [], 0
        return batch


def batches(messages: Iterable[Message]) -> Iterator[list[bytes]]:
    """The pieces of messages that are at hand."""
    batcher = Batcher()
    for subject, payload in messages:
        if batch := batcher.add(subject, payload):
            yield batch
    if batch := batcher.rest():
        yield batch
