"""Builds messages for publishing, and cuts many of them into batches that fit one frame or request."""

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
#: a message, and the fields of its payload that were generated because the caller did not give them
Written: TypeAlias = tuple[Message, list[str]]


#: maximum nesting of a payload. Servers on every Python can parse this much; their actual limit depends on the interpreter
_LEVELS = 500


def chat_message(
    workspace_id: Id,
    chat_id: Id,
    sender_id: Id,
    content: str,
    message_id: Id | None = None,
    timestamp: int | None = None,
) -> Written:
    """A chat message. ``message_id`` defaults to a random id and ``timestamp`` to the current time."""
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
    """A chat event. ``refers_to`` is the ``message_id`` of the message that it is about."""
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
    """Fill in the fields that are None: a 53-bit id, which every language's number type can hold, and the current time."""
    made = [name for name in (its_id, "timestamp") if payload[name] is None]
    for name in made:
        payload[name] = int(time.time()) if name == "timestamp" else uuid.uuid4().int >> 75
    return (subject, payload), made


def encode(subject: str, payload: Mapping[str, Any]) -> bytes:
    """Return a message as the HTTP API takes it. Raises ``TypeError`` and ``ValueError`` for a payload that is not JSON.

    Also raises them for JSON that the server could not parse and that would fail all messages sent with it: an unpaired surrogate,
    or too many levels of nesting.
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
    """Return compact JSON. Raises ``TypeError`` and ``ValueError`` if ``value`` is not JSON.

    That includes an unpaired surrogate, as in text cut in the middle of an emoji. It cannot be encoded as UTF-8, and a server ends
    the stream for it.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


class Batcher:
    """Cuts messages into batches of some hundreds."""

    def __init__(self) -> None:
        self._batch: list[bytes] = []
        self._size = 0

    def add(self, subject: str, payload: Mapping[str, Any]) -> list[bytes]:
        """Add a message. Returns the batch before it if the message does not fit into that batch, otherwise nothing."""
        one, whole = encode(subject, payload), []
        if self._batch and (len(self._batch) == BATCH or self._size + len(one) > BATCH_BYTES):
            whole = self.rest()
        self._batch.append(one)
        self._size += len(one)
        return whole

    def rest(self) -> list[bytes]:
        """The last batch, which may be empty."""
        batch, self._batch, self._size = self._batch, [], 0
        return batch


def batches(messages: Iterable[Message]) -> Iterator[list[bytes]]:
    """Cut an iterable of messages into batches."""
    batcher = Batcher()
    for subject, payload in messages:
        if batch := batcher.add(subject, payload):
            yield batch
    if batch := batcher.rest():
        yield batch
