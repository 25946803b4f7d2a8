"""Messages of one topic that go out together: what is known of each, what they carry, and what the server answers.

Two ways in which none can overtake another. *Chained*: each names the one before it, and is stored directly behind that
one or not at all. *Batched*: the server stores all of them, one directly behind the other, or none. So both can say in
``Notify-After`` that the message with the number before is of their topic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred

from notify.errors import TooLarge, Unavailable
from notify.nats import headers
from notify.topics import Topic

#: as long as what ``Notify-After`` says can be: an epoch, a dot and a number
ROOM = "x" * 37
#: our own number for a refusal: there was nobody to take the message
NOBODY = -1
#: refusals that pass: the message is repeated
PASSING = frozenset({NOBODY, 10008, 10009, 10158})
#: the message before was not the last that was stored
NOT_BEHIND = 10070
#: a batch has more messages than the server takes
TOO_MANY = 10199
#: the stream takes no batches, or none with ids, or of so many
NO_BATCHES = frozenset({10174, 10177, TOO_MANY})
OVER_MAX_MSG_SIZE = 10054
SEALED = 10109
#: what ``Notify-After`` says of a topic's next message, or of one that is stored directly behind another of its topic
After = Callable[[Topic, bool], str]


class Error(Struct):
    """Why a message was not stored."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Ack(Struct):
    """The server's answer to a message, or to a batch of ``count``, of which ``seq`` is the last one's number."""

    seq: int = 0
    duplicate: bool = False
    count: int = 0
    error: Error | None = None


_decode = msgspec.json.Decoder(Ack).decode
_TO_A_TOPIC = re.compile(r'publish to "workspace\.[^"]+\.(?:messages|notifications)"')


def read(reply: Any) -> Ack | None:
    """What a reply says; None: nothing that is understood."""
    if headers.status(reply.block) == 503:
        return Ack(error=Error(err_code=NOBODY))
    try:
        ack = _decode(reply.data)
    except msgspec.DecodeError:
        return None
    return ack if ack.seq or ack.error is not None else None


def refusal(one: Outgoing, error: Error, stream: str) -> Exception:
    """What a refusal for good means."""
    if error.err_code == OVER_MAX_MSG_SIZE:
        needed = headers.size(one.payload, one.fields | {headers.AFTER: ROOM})
        return TooLarge(
            f"the message has {needed} bytes, headers included, over max_msg_size of the stream {stream}"
        )
    if error.err_code == SEALED:
        return Unavailable(f"the message was not stored: the stream {stream} is sealed, for good")
    return Unavailable(f"the message was not stored: {error.description}")


def denies(words: str, topic: Topic) -> bool:
    """Whether the server's words on a missing permission, which come in small letters, are about what is published to a topic."""
    return f'publish to "{topic.subject.lower()}"' in words


def denies_some_topic(words: str) -> bool:
    """Whether they are about what is published to any topic: it may have been given up meanwhile."""
    return _TO_A_TOPIC.search(words) is not None


class Outgoing:
    """One message on its way."""

    __slots__ = ("answer", "deadline", "fields", "open", "payload", "reply", "round", "token")

    def __init__(self, payload: bytes, fields: dict[str, str]) -> None:
        self.payload = payload
        self.fields = fields
        self.answer: Deferred[tuple[int, bool]] = Deferred(lambda _: None)
        self.deadline = 0.0
        #: an attempt was made whose outcome is not known
        self.open = False
        self.token = b""
        self.reply = ""
        self.round = -1

    @property
    def id(self) -> str:
        """By which the stream knows it."""
        return self.fields["Nats-Msg-Id"]


class Turn:
    """A place behind what was published before for each of several topics; who has reached it has all of them to itself.

    ``answer`` fires then, or errbacks where it is given up.
    """

    __slots__ = ("answer", "deadline", "had", "missing")

    def __init__(self, topics: Iterable[Topic], deadline: float) -> None:
        self.missing = set(topics)
        #: those that wait for it
        self.had: list[Topic] = []
        self.deadline = deadline
        self.answer: Deferred[None] = Deferred()

    def reach(self, topic: Topic) -> None:
        """It is the first of a topic."""
        self.missing.remove(topic)
        self.had.append(topic)
        if not self.missing:
            self.answer.callback(None)


class Flight:
    """Messages of one topic that go out together, in order, until all of them are settled."""

    __slots__ = (
        "alone",
        "batch",
        "broken",
        "call",
        "first",
        "heard",
        "messages",
        "paused",
        "sent",
        "several",
        "token",
        "topic",
    )

    def __init__(self, topic: Topic, messages: list[Outgoing]) -> None:
        self.topic = topic
        #: those that are not settled
        self.messages = messages
        self.clear()
        #: one by one from now on
        self.alone = False
        #: for the answer to a batch
        self.token = b""
        #: when the last attempt was made, or had an answer
        self.heard = 0.0
        self.call: Any = None

    def clear(self) -> None:
        """Nothing is known of an attempt."""
        #: what the last attempt has sent, and has no answer yet
        self.sent: list[Outgoing] = []
        #: the first of it: the only one that did not depend on another
        self.first: Outgoing | None = None
        #: the batch that it was
        self.batch: list[Outgoing] | None = None
        #: it was more than one message; others came in between; the server could not take it now
        self.several = self.broken = self.paused = False

    def doubt(self) -> None:
        """What was sent, and has no answer, may have been stored."""
        for one in self.sent:
            one.open = True


def chained(topic: Topic, messages: Sequence[Outgoing], after: After, most: int) -> list[dict[str, str]]:
    """The fields of the first of these messages, as many as have room within ``most`` bytes for what names the one before.

    Raises ``TooLarge``: the first has none even for itself.
    """
    packed: list[dict[str, str]] = []
    for number, one in enumerate(messages):
        fields = _fields(topic, one, number > 0, after)
        if number:
            fields["Nats-Expected-Last-Msg-Id"] = messages[number - 1].id
        try:
            headers.check_size(one.payload, fields, most)
        except TooLarge:
            if not number:
                raise
            break
        packed.append(fields)
    return packed


def batched(
    topic: Topic, messages: Sequence[Outgoing], after: After, most: int, name: str
) -> list[dict[str, str]]:
    """The fields of a batch of this name; empty where a message has no room for them."""
    packed = []
    for one, fields in zip(messages, as_batch([(topic, one) for one in messages], after, name), strict=True):
        try:
            headers.check_size(one.payload, fields, most)
        except TooLarge:
            return []
        packed.append(fields)
    return packed


def as_batch(messages: Sequence[tuple[Topic, Outgoing]], after: After, name: str) -> Iterator[dict[str, str]]:
    """The fields of a batch of this name, perhaps of several topics."""
    before: Topic | None = None
    for number, (topic, one) in enumerate(messages, start=1):
        fields = _fields(topic, one, topic == before, after)
        fields |= {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
        if number == len(messages):
            fields["Nats-Batch-Commit"] = "1"
        yield fields
        before = topic


def _fields(topic: Topic, one: Outgoing, behind: bool, after: After) -> dict[str, str]:
    # Only now: those before it in its topic have been settled, or go out with it.
    before = after(topic, behind)
    return one.fields | {headers.AFTER: before} if before else one.fields.copy()
