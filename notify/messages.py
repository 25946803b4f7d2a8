"""The values that flow from broker to client: an event, its position, and the message that joins both."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from notify.topics import INT64_MAX, INT64_MIN, Topic

Int64: TypeAlias = Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)]
Seq: TypeAlias = Annotated[int, Meta(ge=0, le=INT64_MAX)]
Epoch: TypeAlias = Annotated[str, Meta(max_length=64)]


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

    message_id: Int64
    chat_id: Int64
    workspace_id: Int64
    sender_id: Int64
    content: str
    timestamp: Int64

    @property
    def topic(self) -> Topic:
        """The only topic that this payload may be published to."""
        return Topic(self.workspace_id, "chat", self.chat_id)


class Notification(Struct, frozen=True, gc=False):
    """The payload of a user notification; ``data`` is any JSON value, kept as the bytes that came."""

    notification_id: Int64
    workspace_id: Int64
    user_id: Int64
    kind: str
    data: Raw
    timestamp: Int64

    @property
    def topic(self) -> Topic:
        """The only topic that this payload may be published to."""
        return Topic(self.workspace_id, "user", self.user_id)


Event: TypeAlias = ChatMessage | Notification


class Message(Struct, frozen=True, gc=False):
    """One accepted message: what a broker delivers and replays.

    A message has a valid event: brokers skip poison. ``received`` is the reactor's time (seconds) at which this
    node first had the message, for the delivery latency. ``trace`` is a W3C ``traceparent`` that came with it,
    or empty.
    """

    topic: Topic
    position: Position
    event: Event
    received: float = 0.0
    trace: str = ""


_DECODERS: dict[str, msgspec.json.Decoder[ChatMessage] | msgspec.json.Decoder[Notification]] = {
    "chat": msgspec.json.Decoder(ChatMessage),
    "user": msgspec.json.Decoder(Notification),
}


def parse_event(topic: Topic, payload: bytes) -> Event:
    """Parse what was published on ``topic``. Raises :class:`Poison`, whose text never quotes the payload."""
    try:
        event: Event = _DECODERS[topic.kind].decode(payload)
        if isinstance(event, Notification):
            # Raw only skips over its bytes: decode them once for UTF-8, number range and depth of nesting.
            msgspec.json.decode(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Poison(f"payload is not a valid {topic.kind} message: {error}") from None
    if event.topic != topic:
        raise Poison("the ids in the payload are not those of the subject")
    return event
