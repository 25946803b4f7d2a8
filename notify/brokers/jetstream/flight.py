"""Messages of one topic that are sent together: what is known of each, their headers, and the server's answers.

There are two ways to keep one from overtaking another. *Chained*: each message names its predecessor, and is stored directly
after it or not at all. *Batched*: the server stores all of them, one directly after the other, or none. Both can therefore say
in ``Notify-After`` that the message with the number before belongs to their topic.
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

#: placeholder of the maximum length of ``Notify-After``: an epoch, a dot and a number
ROOM = "x" * 37
#: more bytes than the headers of a message have
_HEADERS = 4096
#: our own error number: nobody received the message
NOBODY = -1
#: temporary refusals: the message is retried
PASSING = frozenset({NOBODY, 10008, 10009, 10158})
#: the predecessor was not the last message stored
NOT_BEHIND = 10070
#: a batch has more messages than the server accepts
TOO_MANY = 10199
#: the stream does not accept batches, or not with ids, or not that many messages in one
NO_BATCHES = frozenset({10174, 10177, TOO_MANY})
OVER_MAX_MSG_SIZE = 10054
STORE_FAILED = 10077
SEALED = 10109
#: what a server says with STORE_FAILED if the stream is full by its own limits, or the message is too large
_FULL = (
    "maximum messages exceeded",
    "maximum bytes exceeded",
    "maximum messages per subject exceeded",
    "message to large",
)
#: returns ``Notify-After`` for a topic's next message, or for one that is stored directly after another of its topic
After = Callable[[Topic, bool], str]


class Error(Struct):
    """Why a message was not stored."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Ack(Struct):
    """The server's answer to a message, or to a batch of ``count`` messages, in which case ``seq`` is the number of the last."""

    seq: int = 0
    duplicate: bool = False
    count: int = 0
    error: Error | None = None


_decode = msgspec.json.Decoder(Ack).decode
_TO_A_TOPIC = re.compile(r'publish to "workspace\.[^"]+\.(?:messages|notifications)"')


def read(reply: Any) -> Ack | None:
    """Parse a reply. None if it makes no sense."""
    if headers.status(reply.block) == 503:
        return Ack(error=Error(err_code=NOBODY))
    try:
        ack = _decode(reply.data)
    except msgspec.DecodeError:
        return None
    return ack if ack.seq or ack.error is not None else None


def refusal(one: Outgoing, error: Error, stream: str) -> Exception:
    """The exception for a permanent refusal."""
    if error.err_code == OVER_MAX_MSG_SIZE:
        needed = headers.size(one.payload, one.fields | {headers.AFTER: ROOM})
        return TooLarge(
            f"the message has {needed} bytes, headers included, over max_msg_size of the stream {stream}"
        )
    if error.err_code == SEALED:
        return Unavailable(f"the message was not stored: the stream {stream} is sealed, for good")
    return Unavailable(f"the message was not stored: {error.description}")


def unsettled(error: Error) -> bool:
    """Whether a message or batch may be stored although the server says that it failed to store it.

    It could not write to its disk, and the other copies of the stream may have the message, or its own a part of the batch
    (nats-server 2.12.8; newer ones do not answer at all).
    """
    return error.err_code == STORE_FAILED and error.description not in _FULL


def denies(words: str, topic: Topic) -> bool:
    """Whether the server's words about a missing permission concern publishing to this topic."""
    return f'publish to "{topic.subject}"' in words


def denies_some_topic(words: str) -> bool:
    """Whether they concern publishing to any topic; that message may have been given up meanwhile."""
    return _TO_A_TOPIC.search(words) is not None


class Outgoing:
    """One message in flight."""

    __slots__ = ("answer", "deadline", "fields", "open", "payload", "reply", "round", "token")

    def __init__(self, payload: bytes, fields: dict[str, str]) -> None:
        self.payload = payload
        self.fields = fields
        self.answer: Deferred[tuple[int, bool]] = Deferred(lambda _: None)
        self.deadline = 0.0
        #: an attempt was made whose outcome is unknown
        self.open = False
        self.token = b""
        self.reply = ""
        self.round = -1

    @property
    def id(self) -> str:
        """The id by which the stream deduplicates it."""
        return self.fields["Nats-Msg-Id"]


class Turn:
    """A place in the queues of several topics, behind what was published before. Once reached, its owner has the topics to itself.

    ``answer`` fires when it is reached in all of them, or errbacks if it is given up.
    """

    __slots__ = ("answer", "deadline", "had", "missing")

    def __init__(self, topics: Iterable[Topic], deadline: float) -> None:
        self.missing = set(topics)
        #: the topics in which it is first
        self.had: list[Topic] = []
        self.deadline = deadline
        self.answer: Deferred[None] = Deferred()

    def reach(self, topic: Topic) -> None:
        """It has become first in a topic."""
        self.missing.remove(topic)
        self.had.append(topic)
        if not self.missing:
            self.answer.callback(None)


class Flight:
    """Messages of one topic that are sent together, in order, until all of them are settled."""

    __slots__ = (
        "alone",
        "batch",
        "broken",
        "call",
        "denied",
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
        #: the unsettled messages
        self.messages = messages
        self.clear()
        #: send one by one from now on
        self.alone = False
        #: identifies the answer to a batch
        self.token = b""
        #: when the last attempt was made or last answered
        self.heard = 0.0
        self.call: Any = None

    def clear(self) -> None:
        """Forget the last attempt."""
        #: the messages of the last attempt without an answer so far
        self.sent: list[Outgoing] = []
        #: the first of them: the only one that does not depend on another
        self.first: Outgoing | None = None
        #: how many of them NATS does not permit; it does not say which, and answers those that it permitted later
        self.denied = 0
        #: the batch, if it was one
        self.batch: list[Outgoing] | None = None
        #: it had several messages; other messages came between them; the server could not accept it now
        self.several = self.broken = self.paused = False

    def doubt(self) -> None:
        """The unanswered messages may have been stored."""
        for one in self.sent:
            one.open = True


def may_be_too_large(payload: bytes, most: int) -> bool:
    """Whether a message's exact size must be compared with ``most`` bytes, because it is not obviously smaller."""
    return 0 < most < len(payload) + _HEADERS


def chained(topic: Topic, messages: Sequence[Outgoing], after: After, most: int) -> list[dict[str, str]]:
    """The headers of as many of these messages as have room within ``most`` bytes for the header that names the predecessor.

    Raises ``TooLarge`` if even the first message does not fit.
    """
    packed: list[dict[str, str]] = []
    for number, one in enumerate(messages):
        fields = _fields(topic, one, number > 0, after)
        if number:
            fields["Nats-Expected-Last-Msg-Id"] = messages[number - 1].id
        if may_be_too_large(one.payload, most):
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
    """The headers of a batch of this name; empty if a message has no room for them."""
    packed = []
    for one, fields in zip(messages, as_batch([(topic, one) for one in messages], after, name), strict=True):
        if may_be_too_large(one.payload, most):
            try:
                headers.check_size(one.payload, fields, most)
            except TooLarge:
                return []
        packed.append(fields)
    return packed


def as_batch(messages: Sequence[tuple[Topic, Outgoing]], after: After, name: str) -> Iterator[dict[str, str]]:
    """The headers of a batch of this name, which may have several topics."""
    before: Topic | None = None
    for number, (topic, one) in enumerate(messages, start=1):
        fields = _fields(topic, one, topic == before, after)
        fields |= {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
        if number == len(messages):
            fields["Nats-Batch-Commit"] = "1"
        yield fields
        before = topic


def _fields(topic: Topic, one: Outgoing, behind: bool, after: After) -> dict[str, str]:
    # Not earlier: by now its predecessors in the topic are settled, or part of the same request.
    before = after(topic, behind)
    return one.fields | {headers.AFTER: before} if before else one.fields.copy()
