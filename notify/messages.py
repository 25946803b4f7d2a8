"""The values that flow from broker to client: an event, its position, and the message that combines both."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Annotated, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from notify import ids
from notify.ids import INT64_MAX, Id, Int64
from notify.topics import Topic

Seq: TypeAlias = Annotated[int, Meta(ge=0, le=INT64_MAX)]
Epoch: TypeAlias = Annotated[str, Meta(max_length=64)]
SignalKind: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]


#: bytes that a message in memory takes in addition to its payload
OVERHEAD = 512

#: levels of nesting that a payload may have, itself included. Without a limit of our own, the depth that Python can parse depends on the
#: depth of the call stack, so that a message could be accepted and later be unreadable when history is read
MOST_LEVELS = 500
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STEP = {bracket: 1 if bracket in b"[{" else -1 for bracket in b"[]{}"}
_NO_LEVELS = bytes(set(range(256)) - _STEP.keys())
_TOO_DEEP = f"the payload has more than {MOST_LEVELS} levels of nesting"

#: the most bytes that a signal takes in addition to its data: field names, three ids, and a kind of 64 characters,
#: all escaped
SIGNAL_OVERHEAD = 1024


class Poison(ValueError):  # noqa: N818 - it is what the field calls such a message
    """A payload that does not parse, or whose ids differ from those of its subject. Says why, without quoting it."""


class Position(Struct, frozen=True, gc=False):
    """A place in a topic's history.

    ``epoch`` names the history and changes when it is recreated. ``seq`` rises within a topic but is not dense;
    ``seq`` 0 is before the first message.
    """

    epoch: str
    seq: int


class ChatMessage(Struct, frozen=True, gc=False):
    """The payload of a chat message, as published. ``timestamp`` is Unix time in seconds."""

    message_id: Id
    chat_id: Id
    workspace_id: Id
    sender_id: Id
    content: str
    timestamp: Int64

    @property
    def topic(self) -> Topic:
        """The only topic that this payload may be published to."""
        return Topic(self.workspace_id, "chat", self.chat_id)


class ChatEvent(Struct, frozen=True, gc=False):
    """The payload of a change in a chat other than a message: an edit, a deletion, a reaction, a new member.

    ``data`` is any JSON value, kept as the bytes that arrived; ``refers_to`` is the ``message_id`` of the message that it is
    about, absent or null if it is about none.
    """

    message_id: Id
    chat_id: Id
    workspace_id: Id
    sender_id: Id
    kind: str
    data: Raw
    timestamp: Int64
    refers_to: Id | UnsetType | None = UNSET

    @property
    def topic(self) -> Topic:
        """The only topic that this payload may be published to."""
        return Topic(self.workspace_id, "chat", self.chat_id)


class Notification(Struct, frozen=True, gc=False):
    """The payload of a user notification; ``data`` is any JSON value, kept as the bytes that arrived."""

    notification_id: Id
    workspace_id: Id
    user_id: Id
    kind: str
    data: Raw
    timestamp: Int64

    @property
    def topic(self) -> Topic:
        """The only topic that this payload may be published to."""
        return Topic(self.workspace_id, "user", self.user_id)


class Signal(Struct, frozen=True, gc=False):
    """A user's signal to the other members of a chat, as nodes send it to each other.

    It is not a message and is not stored. ``data`` is any JSON value, kept byte for byte.
    """

    workspace_id: Id
    chat_id: Id
    user_id: Id
    kind: SignalKind
    data: Raw

    @property
    def topic(self) -> Topic:
        """The chat whose members receive it."""
        return Topic(self.workspace_id, "chat", self.chat_id)


Event: TypeAlias = ChatMessage | ChatEvent | Notification


class Message(Struct, frozen=True, array_like=True, gc=False):
    """An accepted message, as a broker delivers and replays it.

    Its event is always valid: brokers skip poison. ``received`` is the reactor's time (seconds) at which this node
    first had the message, for the delivery latency. ``trace`` is the W3C ``traceparent`` that came with it, or empty.
    ``size`` is the size of its payload in bytes.
    """

    topic: Topic
    position: Position
    event: Event
    received: float = 0.0
    trace: str = ""
    size: int = 0


class Draft(Struct, frozen=True):
    """A message to be stored. ``trace`` is a W3C traceparent, or empty."""

    topic: Topic
    payload: bytes
    idempotency_key: str | None = None
    trace: str = ""


class Followed(Struct, frozen=True):
    """Where a topic is followed from: its newest position, and the event there.

    ``event`` is None if the topic is empty, or if what is stored there is not a message or cannot be read.
    """

    position: Position
    event: Event | None = None


class Replayed(Struct, frozen=True):
    """Messages that follow a position. ``more``: others come after them.

    ``reached`` is the position up to which the broker has looked, beyond the last message. None: go on after the last
    message.
    """

    messages: list[Message]
    more: bool
    reached: Position | None = None


class Earlier(Struct, frozen=True):
    """A part of a topic's stored history: every message with a number from ``first`` to ``last``, oldest first.

    ``first`` and ``last`` bound what was searched, which may be more than the messages cover; both are 0 if nothing
    was there. ``more``: older messages are stored.
    """

    messages: list[Message]
    more: bool
    epoch: str
    first: int = 0
    last: int = 0


class _Told(Struct):
    """The field that distinguishes a chat's events from its messages."""

    content: Raw | UnsetType = UNSET
    kind: Raw | UnsetType = UNSET


_chat_message = msgspec.json.Decoder(ChatMessage).decode
_chat_event = msgspec.json.Decoder(ChatEvent).decode
_notification = msgspec.json.Decoder(Notification).decode
_told = msgspec.json.Decoder(_Told).decode
_signal = msgspec.json.Decoder(Signal).decode


def _chat(payload: bytes) -> ChatMessage | ChatEvent:
    """Parse a chat's payload. It is tried as a message first, because most payloads are one."""
    try:
        return _chat_message(payload)
    except msgspec.ValidationError:
        told = _told(payload)
        if told.content is not UNSET or told.kind is UNSET:
            raise
        return _chat_event(payload)


def _check_levels(json: bytes) -> None:
    """Raise :class:`Poison` for valid JSON with more than :data:`MOST_LEVELS`."""
    if len(json) <= MOST_LEVELS or (json.find(b"{", 1) < 0 and json.find(b"[") < 0):  # most messages
        return
    if json.count(b"[") + json.count(b"{") <= MOST_LEVELS:
        return
    brackets = _TEXT.sub(b"", json).translate(None, _NO_LEVELS)
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MOST_LEVELS:
        raise Poison(_TOO_DEEP)


def parse_event(topic: Topic, payload: bytes) -> Event:
    """Parse the payload of a message on ``topic``. Raises :class:`Poison`, whose text never quotes the payload."""
    try:
        event: Event = _chat(payload) if topic.kind == "chat" else _notification(payload)
        if not isinstance(event, ChatMessage):
            # Raw only skips over its bytes. Decode them once to check UTF-8 and number range.
            msgspec.json.decode(event.data)
    except RecursionError:
        raise Poison(_TOO_DEEP) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Keep only the text: an error in a variable would keep its traceback alive, and with it the payload.
        reason = ids.explained(error) if isinstance(error, msgspec.ValidationError) else str(error)
        raise Poison(f"payload is not a valid {topic.kind} message: {reason}") from None
    _check_levels(payload)  # not before: strings that do not end would make it slow
    if event.topic != topic:
        raise Poison("the ids in the payload are not those of the subject")
    return event


def check_data(data: Raw, most: int) -> None:
    """Check that ``data`` is one JSON value of at most ``most`` bytes. Raises :class:`Poison`."""
    size = len(memoryview(data))
    if size > most:
        raise Poison(f"data may have at most {most} bytes")
    try:
        # Raw only skips over its bytes. Decode them once to check UTF-8 and number range.
        msgspec.json.decode(data)
    except RecursionError:
        raise Poison(_TOO_DEEP) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Poison("data is not valid JSON") from None
    if size > MOST_LEVELS:
        _check_levels(bytes(data))


def parse_signal(topic: Topic, payload: bytes, most: int) -> Signal:
    """Parse the payload of a signal on ``topic``, with at most ``most`` bytes of ``data``. Raises :class:`Poison`."""
    if len(payload) > most + SIGNAL_OVERHEAD:
        raise Poison("a signal that is too large")
    try:
        signal = _signal(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = ids.explained(error) if isinstance(error, msgspec.ValidationError) else str(error)
        raise Poison(f"not a valid signal: {reason}") from None
    check_data(signal.data, most)
    if signal.topic != topic:
        raise Poison("the ids in the payload are not those of the subject")
    return signal
