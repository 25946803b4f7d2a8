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
#: one, and the fields of its payload that its caller did not give
Written: TypeAlias = tuple[Message, list[str]]


#: levels of nesting of a payload: what a server on any Python reads, with room to spare; how many one can read is its interpreter's
_LEVELS = 500


def chat_message(
    workspace_id: Id,
    chat_id: Id,
    sender_id: Id,
    content: str,
    message_id: Id | None = None,
    timestamp: int | None = None,
) -> Written:
    """A chat message; ``message_id`` is random and ``timestamp`` now where they are not given."""
    payload = {
        "message_id": message_id,
        "chat_id": chat_id,
        "workspace_id": workspace_id,
        "sender_id": sender_id,
        "content": content,
        "timestamp": timestamp,
    }
    return _written(f"workspace.{workspace_id}.chat.{chat_id}.messages", payload, "message_id")


def chat_event(
    workspace_id: Id,
    chat_id: Id,
    sender_id: Id,
    kind: str,
    data: Any,
    refers_to: Id | None = None,
    message_id: Id | None = None,
    timestamp: int | None = None,
) -> Written:
    """What happened in a chat beside its messages; ``refers_to`` is the ``message_id`` of what it is about."""
    payload = {
        "message_id": message_id,
        "chat_id": chat_id,
        "workspace_id": workspace_id,
        "sender_id": sender_id,
        "kind": kind,
        "data": data,
        "timestamp": timestamp,
        **({} if refers_to is None else {"refers_to": refers_to}),
    }
    return _written(f"workspace.{workspace_id}.chat.{chat_id}.messages", payload, "message_id")


def notification(
    workspace_id: Id,
    user_id: Id,
    kind: str,
    data: Any,
    notification_id: Id | None = None,
    timestamp: int | None = None,
) -> Written:
    """A notification; ``data`` is any JSON value."""
    payload = {
        "notification_id": notification_id,
        "workspace_id": workspace_id,
        "user_id": user_id,
        "kind": kind,
        "data": data,
        "timestamp": timestamp,
    }
    return _written(f"workspace.{workspace_id}.user.{user_id}.notifications", payload, "notification_id")


def _written(subject: str, payload: dict[str, Any], its_id: str) -> Written:
    """Fill in what is None: an id of 53 bits, which every language's number has, and the time."""
    made = [name for name in (its_id, "timestamp") if payload[name] is None]
    for name in made:
        payload[name] = int(time.time()) if name == "timestamp" else uuid.uuid4().int >> 75
    return (subject, payload), made


def encode(subject: str, payload: Mapping[str, Any]) -> bytes:
    """A message as the HTTP API takes it. Raises ``TypeError`` and ``ValueError`` for what is no JSON.

    So does what the server could not read, and nothing with it that goes out together: half of a surrogate pair, or too many levels.
    """
    try:
        body = dump({"subject": subject, "payload": payload})
    except RecursionError:
        body = None
    if body is None or (body.count(b"[") + body.count(b"{") > _LEVELS and _is_deep(payload)):
        raise ValueError(f"more than {_LEVELS} levels: not every reader of JSON takes this")
    return body


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_LEVELS):
        level = [
            child
            for one in level
            if isinstance(one, (Mapping, list, tuple))
            for child in (one.values() if isinstance(one, Mapping) else one)
        ]
        if not level:
            return False
    return True


def dump(value: Any) -> bytes:
    """JSON in as few bytes as may be. Raises ``TypeError`` and ``ValueError`` for what is none.

    Half a surrogate pair, as in text that was cut in the middle of an emoji, is no UTF-8: a server ends the stream for it.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


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
