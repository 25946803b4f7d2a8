"""The messages between the first process and its workers: a length, then MessagePack; without I/O.

Both ends run the same version on the same machine, so nothing here has to stay compatible with another release.
Chat messages are decoded as they are. Other events hold JSON, so they travel as JSON, which the worker parses as it
would parse what a broker stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import msgspec
from msgspec import Raw, Struct

from notify.identity import Presence
from notify.ids import Id
from notify.messages import ChatMessage, Earlier, Followed, Message, Position, Replayed, parse_event
from notify.topics import Topic
from notify.wire.frames import Made

#: the most bytes of one message: an answer with the longest possible replay, and some more
MOST = 2**30

_LENGTH = 4


class Said(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """The base of all messages."""


# --- of messages --------------------------------------------------------------------------------------------


class Told(Struct, frozen=True, array_like=True, gc=False):
    """A :class:`~notify.messages.Message`; ``event`` is JSON."""

    topic: Topic
    epoch: str
    seq: int
    event: bytes
    received: float
    trace: str
    size: int

    @classmethod
    def of(cls, message: Message) -> Told:
        """Convert a message for sending."""
        at, event = message.position, msgspec.json.encode(message.event)
        return cls(message.topic, at.epoch, at.seq, event, message.received, message.trace, message.size)

    def message(self) -> Message:
        """The message that was sent."""
        at, event = Position(self.epoch, self.seq), parse_event(self.topic, self.event)
        return Message(self.topic, at, event, self.received, self.trace, self.size)


class Spoken(Message, frozen=True, array_like=True, gc=False):
    """A message whose event is a chat message. With one kind of event, msgspec decodes it without help."""

    event: ChatMessage


class Batch(Struct, frozen=True, array_like=True, gc=False):
    """Messages of one topic, one or more, oldest first: all in ``spoken``, or all in ``told``.

    ``made`` are their frames for most clients; None: the worker makes them.
    """

    spoken: list[Spoken]
    told: list[Told]
    made: Made | None

    def messages(self) -> list[Message]:
        """The messages."""
        return [*self.spoken] or [told.message() for told in self.told]


# --- questions and answers ----------------------------------------------------------------------------------


class Follow(Said, frozen=True):
    """``IBroker.follow``."""

    topic: Topic


class Replay(Said, frozen=True):
    """``IBroker.replay``."""

    topic: Topic
    after: Position | None
    limit: int
    size: int
    whole: bool


class Newest(Said, frozen=True):
    """``IPages.newest``."""

    topic: Topic


class Before(Said, frozen=True):
    """``IPages.earlier``."""

    topic: Topic
    before: Position | None
    limit: int
    size: int


class Publish(Said, frozen=True):
    """``IBroker.publish``."""

    topic: Topic
    payload: bytes
    key: str | None
    trace: str


class Present(Said, frozen=True):
    """``IRegistry.presence``."""

    topic: Topic


class Room(Said, frozen=True):
    """``IPlaces.room``."""

    topic: Topic
    most: int


class Ask(Said, frozen=True):
    """``IControl.ask``."""

    command: str
    argument: bytes
    node: str


class Do(Said, frozen=True):
    """Run this command, on this node alone."""

    command: str
    argument: bytes


class Keep(Said, frozen=True):
    """``IControl.keep``: replace the record ``there`` by this one; None: there was none."""

    key: str
    there: bytes | None
    record: bytes
    until: float


class Remember(Said, frozen=True):
    """Send the kept records, in pages; ``again`` asks for the next page.

    Records kept after the first question are also sent as they are kept.
    """

    again: bool


class Identify(Said, frozen=True):
    """A socket that was handed over turns out to be of this address."""

    socket: int
    address: str


class Scrape(Said, frozen=True):
    """Send the worker's metrics."""


class Reload(Said, frozen=True):
    """Put another configuration in force, as JSON."""

    config: bytes


class Shed(Said, frozen=True):
    """Shed this share of the worker's clients. The answer is that of the control's command, as JSON."""

    share: float


class Nothing(Said, frozen=True):
    """Done; there is nothing else to say."""


class At(Said, frozen=True):
    """A position."""

    epoch: str
    seq: int


class From(Said, frozen=True):
    """Where a topic is followed from."""

    epoch: str
    seq: int
    event: bytes | None

    @classmethod
    def of(cls, followed: Followed | Message) -> From:
        """Convert for sending."""
        event = None if followed.event is None else msgspec.json.encode(followed.event)
        return cls(followed.position.epoch, followed.position.seq, event)

    def followed(self, topic: Topic) -> Followed:
        """Convert back."""
        event = None if self.event is None else parse_event(topic, self.event)
        return Followed(Position(self.epoch, self.seq), event)


class History(Said, frozen=True):
    """Messages that follow a position."""

    messages: list[Told]
    more: bool
    reached: Position | None

    @classmethod
    def of(cls, replayed: Replayed) -> History:
        """Convert for sending."""
        return cls([Told.of(message) for message in replayed.messages], replayed.more, replayed.reached)

    def replayed(self) -> Replayed:
        """Convert back."""
        return Replayed([told.message() for told in self.messages], self.more, self.reached)


class Part(Said, frozen=True):
    """A part of a topic's history: :class:`~notify.messages.Earlier`."""

    messages: list[Told]
    more: bool
    epoch: str
    first: int
    last: int

    @classmethod
    def of(cls, earlier: Earlier) -> Part:
        """Convert for sending."""
        told = [Told.of(message) for message in earlier.messages]
        return cls(told, earlier.more, earlier.epoch, earlier.first, earlier.last)

    def earlier(self) -> Earlier:
        """Convert back."""
        messages = [told.message() for told in self.messages]
        return Earlier(messages, self.more, self.epoch, self.first, self.last)


class Users(Said, frozen=True):
    """Who is present."""

    users: list[Presence]


class Yes(Said, frozen=True):
    """Yes, or no."""

    yes: bool


class Verdict(Said, frozen=True):
    """Why a socket is refused; empty: it is admitted."""

    reason: str


class Answers(Said, frozen=True):
    """The answers of nodes: :class:`~notify.interfaces.Gathered`."""

    answers: list[tuple[str, bytes]]
    missing: list[str]
    detail: str


class Other(Said, frozen=True):
    """Nothing was kept, because another record is there, or none."""

    there: bytes | None


class Records(Said, frozen=True):
    """Some of the kept records, by key; ``more``: others follow."""

    records: list[tuple[str, bytes]]
    more: bool


class Document(Said, frozen=True):
    """Bytes in a format that the asker knows."""

    data: bytes


Asked: TypeAlias = (
    Follow
    | Replay
    | Newest
    | Before
    | Publish
    | Present
    | Room
    | Ask
    | Do
    | Keep
    | Remember
    | Identify
    | Scrape
    | Reload
    | Shed
)
Answered: TypeAlias = (
    Nothing | At | From | History | Part | Users | Yes | Verdict | Answers | Other | Records | Document
)


class Call(Said, frozen=True):
    """A question, with the number that its answer repeats."""

    number: int
    asked: Asked


class Reply(Said, frozen=True):
    """The answer to a question."""

    number: int
    answered: Answered


class Fault(Said, frozen=True):
    """No answer: the name of the exception that was raised, and its text."""

    number: int
    name: str
    text: str


class Cancel(Said, frozen=True):
    """The asker has no interest in the answer any more."""

    number: int


# --- one-way messages ---------------------------------------------------------------------------------------


class Delivered(Said, frozen=True):
    """What followed topics got in one turn of the first process."""

    batches: list[Batch]


class Unfollow(Said, frozen=True):
    """``IBroker.unfollow``."""

    topic: Topic


class Listen(Said, frozen=True):
    """``ISignals.listen``, or ``unlisten``."""

    topic: Topic
    on: bool


class Signalled(Said, frozen=True):
    """``ISignals.signal``, and a signal that was received."""

    topic: Topic
    payload: bytes


class Lost(Said, frozen=True):
    """A followed topic has a gap."""

    topic: Topic


class Members(Said, frozen=True):
    """The number of connections that users have in topics on a worker, where it has changed since the last report."""

    changes: list[tuple[Topic, Id, int]]


class Watch(Said, frozen=True):
    """``IRegistry.watch``, or ``unwatch``."""

    topic: Topic
    on: bool


class Changed(Said, frozen=True):
    """The presence of a watched topic may have changed."""

    topic: Topic


class Kept(Said, frozen=True):
    """A record is kept from now on, and replaces the one under its key."""

    key: str
    record: bytes


class Sockets(Said, frozen=True):
    """What became of sockets that were handed over.

    The numbers of those whose opening handshake is complete, whose client has presented a valid token, and that are
    gone.
    """

    opened: list[int]
    arrived: list[int]
    left: list[int]


class Begin(Said, frozen=True):
    """The first message to a worker: its configuration as JSON, its node's name, its number, and the number of workers."""

    config: bytes
    node: str
    number: int
    workers: int


class Ready(Said, frozen=True):
    """The worker is serving."""


class Failed(Said, frozen=True):
    """The worker cannot run with this setup; one sentence says why."""

    text: str


class Announce(Said, frozen=True):
    """The server is about to shut down: report not ready from now on."""


class Leave(Said, frozen=True):
    """Disconnect all clients over this many seconds, and end."""

    seconds: float


class Hurry(Said, frozen=True):
    """Finish immediately."""


class Left(Said, frozen=True):
    """A draining worker has disconnected some of its clients."""


class Wanted(Said, frozen=True):
    """A worker was told to reload, or to drain: the whole server must do it."""

    what: str


class Ping(Said, frozen=True):
    """Is the worker's reactor running?"""


class Pong(Said, frozen=True):
    """It is running."""


class Line(Said, frozen=True):
    """A log line: its origin, its level, and the text with its plain fields as JSON."""

    namespace: str
    level: str
    text: str
    fields: bytes


Frame: TypeAlias = (
    Delivered
    | Call
    | Reply
    | Fault
    | Cancel
    | Unfollow
    | Listen
    | Signalled
    | Lost
    | Members
    | Watch
    | Changed
    | Kept
    | Sockets
    | Begin
    | Ready
    | Failed
    | Announce
    | Leave
    | Hurry
    | Left
    | Wanted
    | Ping
    | Pong
    | Line
)


def _plain(value: object) -> float | int:
    """Convert durations and sizes to numbers."""
    return float(value) if isinstance(value, float) else int(value)  # type: ignore[call-overload]


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def pack(frame: Frame) -> bytes:
    """The bytes of a message."""
    body = _encode(frame)
    return len(body).to_bytes(_LENGTH, "big") + body


def pack_batch(messages: Sequence[Message], made: Made | None) -> Raw:
    """Pack a :class:`Batch`, which several workers may be sent in a :class:`Delivered`."""
    for message in messages:
        if not isinstance(message.event, ChatMessage):
            return Raw(_encode(Batch([], [Told.of(each) for each in messages], made)))
    return Raw(_encode(Batch(cast("list[Spoken]", messages), [], made)))


def pack_delivered(batches: Sequence[Raw]) -> bytes:
    """The bytes of a :class:`Delivered` with these batches."""
    return pack(Delivered(cast("list[Batch]", batches)))


class Splitter:
    """Splits a byte stream into messages."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._needed = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The messages that are complete by now. Raises ``ValueError`` for an invalid one."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size < self._needed:  # joining a long message anew with each piece would copy it as often
            return []
        if len(self._pieces) > 1:
            data = b"".join(self._pieces)
        view, at, found, self._needed = memoryview(data), 0, [], 0
        while (start := at + _LENGTH) <= len(data):
            length = int.from_bytes(view[at:start], "big")
            if length > MOST:
                raise ValueError("a message of the other process is too long")
            if start + length > len(data):
                self._needed = length + _LENGTH
                break
            at = start + length
            found.append(_decode(view[start:at]))
        self._pieces, self._size = [data[at:]] if at < len(data) else [], len(data) - at
        return found
