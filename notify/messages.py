"""The values that flow from broker to client: an event, its position, and the message that joins both."""

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


#: bytes that a kept message takes around its payload
OVERHEAD = 512

#: levels of nesting of a payload, itself included. How many Python reads hangs on how deep in a stack it is asked: a message that
#: was just accepted was no message any more where it was read later, out of the history
MOST_LEVELS = 500
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STEP = {bracket: 1 if bracket in b"[{" else -1 for bracket in b"[]{}"}
_NO_LEVELS = bytes(set(range(256)) - _STEP.keys())

#: bytes of a signal beside its data, at most: its names, three ids, and a kind of 64 characters, each of them escaped
SIGNAL_OVERHEAD = 1024


class Poison(ValueError):  # noqa: N818 - it is what the field calls such a message
    """A payload that does not parse, or whose ids are not those of its subject. Says why, without its content."""


class Position(Struct, frozen=True, gc=False):
    """A place in a topic's history.

    ``epoch`` names the history and changes when it is recreated; ``seq`` rises within a topic but is not dense.
    ``seq`` 0 is before the first message.
    """

    epoch: str
    seq: int


class ChatMessage(Struct, frozen=True, gc=False):
    """The payload of a chat message as its publisher gave it; ``timestamp`` is Unix time in seconds."""

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
    """The payload of what happened in a chat beside its messages: an edit, a deletion, a reaction, a new member.

    ``data`` is any JSON value, kept as the bytes that came; ``refers_to`` is the ``message_id`` of what it is about,
    absent or null where it is about none.
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
    """The payload of a user notification; ``data`` is any JSON value, kept as the bytes that came."""

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
    """What a user signals to the other members of a chat, as it goes from node to node: no message, and kept nowhere.

    ``data`` is any JSON value, kept as the bytes that came.
    """

    workspace_id: Id
    chat_id: Id
    user_id: Id
    kind: SignalKind
    data: Raw

    @property
    def topic(self) -> Topic:
        """The chat whose members it is for."""
        return Topic(self.workspace_id, "chat", self.chat_id)


Event: TypeAlias = ChatMessage | ChatEvent | Notification


class Message(Struct, frozen=True, gc=False):
    """One accepted message: what a broker delivers and replays.

    A message has a valid event: brokers skip poison. ``received`` is the reactor's time (seconds) at which this
    node first had the message, for the delivery latency. ``trace`` is a W3C ``traceparent`` that came with it,
    or empty. ``size`` is that of its payload in bytes.
    """

    topic: Topic
    position: Position
    event: Event
    received: float = 0.0
    trace: str = ""
    size: int = 0


class Draft(Struct, frozen=True):
    """A message that is to be stored; ``trace`` is a W3C traceparent, or empty."""

    topic: Topic
    payload: bytes
    idempotency_key: str | None = None
    trace: str = ""


class Followed(Struct, frozen=True):
    """From where a topic is followed: its newest position, and the event there.

    ``event`` is None where there is none, or where what there is is no message or cannot be told.
    """

    position: Position
    event: Event | None = None


class Replayed(Struct, frozen=True):
    """Messages that follow a position; ``more``: there are others behind them.

    ``reached``: up to here was looked, which is further than the messages; None: their last one says where to go on.
    """

    messages: list[Message]
    more: bool
    reached: Position | None = None


class Earlier(Struct, frozen=True):
    """A part of a topic's history as it is kept: every message whose number is from ``first`` to ``last``, oldest first.

    ``first`` and ``last`` are of what was looked at, which may be more than the messages; both 0: nothing was there.
    ``more``: something older is kept.
    """

    messages: list[Message]
    more: bool
    epoch: str
    first: int = 0
    last: int = 0


class _Told(Struct):
    """What tells a chat's events from its messages."""

    content: Raw | UnsetType = UNSET
    kind: Raw | UnsetType = UNSET


_chat_message = msgspec.json.Decoder(ChatMessage).decode
_chat_event = msgspec.json.Decoder(ChatEvent).decode
_notification = msgspec.json.Decoder(Notification).decode
_told = msgspec.json.Decoder(_Told).decode
_signal = msgspec.json.Decoder(Signal).decode


def _chat(payload: bytes) -> ChatMessage | ChatEvent:
    """Most are messages: what tells the two apart is looked for only where it is none."""
    try:
        return _chat_message(payload)
    except msgspec.ValidationError:
        told = _told(payload)
        if told.content is not UNSET or told.kind is UNSET:
            raise
        return _chat_event(payload)


def _check_levels(json: bytes) -> None:
    """Raise :class:`Poison` for more than :data:`MOST_LEVELS`. What has no more bytes than that need not be asked about."""
    if json.find(b"{", 1) < 0 and json.find(b"[") < 0:  # most messages: a tenth of the price of counting
        return
    if json.count(b"[") + json.count(b"{") <= MOST_LEVELS:
        return
    brackets = _TEXT.sub(b"", json).translate(None, _NO_LEVELS)
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MOST_LEVELS:
        raise Poison(f"the payload has more than {MOST_LEVELS} levels")


def parse_event(topic: Topic, payload: bytes) -> Event:
    """Parse what was published on ``topic``. Raises :class:`Poison`, whose text never quotes the payload."""
    if len(payload) > MOST_LEVELS:
        _check_levels(payload)
    try:
        event: Event = _chat(payload) if topic.kind == "chat" else _notification(payload)
        if not isinstance(event, ChatMessage):
            # Raw only skips over its bytes: decode them once for UTF-8 and number range.
            msgspec.json.decode(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # A text: an error in a variable would keep its traceback, and that the payload.
        reason = ids.explained(error) if isinstance(error, msgspec.ValidationError) else str(error)
        raise Poison(f"payload is not a valid {topic.kind} message: {reason}") from None
    if event.topic != topic:
        raise Poison("the ids in the payload are not those of the subject")
    return event


def check_data(data: Raw, most: int) -> None:
    """See that what stands for ``data`` is one JSON value of at most ``most`` bytes. Raises :class:`Poison`."""
    size = len(memoryview(data))
    if size > most:
        raise Poison(f"data may have at most {most} bytes")
    if size > MOST_LEVELS:
        _check_levels(bytes(data))
    try:
        # Raw only skips over its bytes: decode them once for UTF-8 and number range.
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Poison("data is not valid JSON") from None


def parse_signal(topic: Topic, payload: bytes, most: int) -> Signal:
    """Parse what came as a signal of ``topic``, whose ``data`` may have ``most`` bytes. Raises :class:`Poison`."""
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
