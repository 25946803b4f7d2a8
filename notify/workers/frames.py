"""What the first process and its workers say to each other: a length, and a message in MessagePack; without I/O.

Both are of one version and on one machine, and nobody else is at either end: nothing here has to be understood by another
release. A message of a topic carries its event as JSON, which the worker reads as it would read what a broker stores.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from notify.identity import Presence
from notify.ids import Id
from notify.messages import Earlier, Followed, Message, Position, Replayed, parse_event
from notify.topics import Topic

#: bytes of one message: an answer with the longest replay that there can be, and some
MOST = 2**30

_LENGTH = 4


class Said(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """The base of all that is said."""


# --- of messages --------------------------------------------------------------------------------------------


class Told(Said, frozen=True):
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
        """A message as it is said."""
        at, event = message.position, msgspec.json.encode(message.event)
        return cls(message.topic, at.epoch, at.seq, event, message.received, message.trace, message.size)

    def message(self) -> Message:
        """The message that was said."""
        at, event = Position(self.epoch, self.seq), parse_event(self.topic, self.event)
        return Message(self.topic, at, event, self.received, self.trace, self.size)


# --- asked, and answered ------------------------------------------------------------------------------------


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
    """The node that is asked is to do this."""

    command: str
    argument: bytes


class Keep(Said, frozen=True):
    """``IControl.keep``: the record in place of ``there``, None where there is none."""

    key: str
    there: bytes | None
    record: bytes
    until: float


class Remember(Said, frozen=True):
    """What is kept, in parts: ``again`` asks for the next of them. What is kept from the first question on is told besides."""

    again: bool


class Identify(Said, frozen=True):
    """A socket that was handed over turns out to be of this address."""

    socket: int
    address: str


class Scrape(Said, frozen=True):
    """What the worker has counted."""


class Reload(Said, frozen=True):
    """Another configuration is to be in force, as JSON."""

    config: bytes


class Shed(Said, frozen=True):
    """The worker is to send this share of its clients away; the answer is that of the control's command, as JSON."""

    share: float


class Nothing(Said, frozen=True):
    """No answer but that it is done."""


class At(Said, frozen=True):
    """A position."""

    epoch: str
    seq: int


class From(Said, frozen=True):
    """From where a topic is followed."""

    epoch: str
    seq: int
    event: bytes | None

    @classmethod
    def of(cls, followed: Followed) -> From:
        """As it is said."""
        event = None if followed.event is None else msgspec.json.encode(followed.event)
        return cls(followed.position.epoch, followed.position.seq, event)

    def followed(self, topic: Topic) -> Followed:
        """As it was said."""
        event = None if self.event is None else parse_event(topic, self.event)
        return Followed(Position(self.epoch, self.seq), event)


class History(Said, frozen=True):
    """Messages that follow a position."""

    messages: list[Told]
    more: bool
    reached: Position | None

    @classmethod
    def of(cls, replayed: Replayed) -> History:
        """As it is said."""
        return cls([Told.of(message) for message in replayed.messages], replayed.more, replayed.reached)

    def replayed(self) -> Replayed:
        """As it was said."""
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
        """As it is said."""
        told = [Told.of(message) for message in earlier.messages]
        return cls(told, earlier.more, earlier.epoch, earlier.first, earlier.last)

    def earlier(self) -> Earlier:
        """As it was said."""
        messages = [told.message() for told in self.messages]
        return Earlier(messages, self.more, self.epoch, self.first, self.last)


class Users(Said, frozen=True):
    """Who is present."""

    users: list[Presence]


class Yes(Said, frozen=True):
    """Yes, or no."""

    yes: bool


class Verdict(Said, frozen=True):
    """Why a socket is refused; empty: it is not."""

    reason: str


class Answers(Said, frozen=True):
    """What nodes answered: :class:`~notify.interfaces.Gathered`."""

    answers: list[tuple[str, bytes]]
    missing: list[str]
    detail: str


class Other(Said, frozen=True):
    """It was not kept: something else is there, or nothing."""

    there: bytes | None


class Records(Said, frozen=True):
    """Some of what is kept, by key; ``more``: there are others."""

    records: list[tuple[str, bytes]]
    more: bool


class Document(Said, frozen=True):
    """Bytes that who asked knows how to read."""

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
    """A question, with the number that its answer has."""

    number: int
    asked: Asked


class Reply(Said, frozen=True):
    """The answer."""

    number: int
    answered: Answered


class Fault(Said, frozen=True):
    """None: the name of what was raised, and its text."""

    number: int
    name: str
    text: str


class Cancel(Said, frozen=True):
    """Who asked has no interest any more."""

    number: int


# --- said without an answer ---------------------------------------------------------------------------------


class Unfollow(Said, frozen=True):
    """``IBroker.unfollow``."""

    topic: Topic


class Listen(Said, frozen=True):
    """``ISignals.listen``, or ``unlisten``."""

    topic: Topic
    on: bool


class Signalled(Said, frozen=True):
    """``ISignals.signal``, and what comes of it."""

    topic: Topic
    payload: bytes


class Lost(Said, frozen=True):
    """A followed topic has lost its continuity."""

    topic: Topic


class Members(Said, frozen=True):
    """How many connections of a user a worker has in a topic: what has changed since it said so last."""

    changes: list[tuple[Topic, Id, int]]


class Watch(Said, frozen=True):
    """``IRegistry.watch``, or ``unwatch``."""

    topic: Topic
    on: bool


class Changed(Said, frozen=True):
    """The presence of a watched topic may have changed."""

    topic: Topic


class Kept(Said, frozen=True):
    """A record is kept from now on, in place of what was under its key."""

    key: str
    record: bytes


class Sockets(Said, frozen=True):
    """What became of sockets that were handed over: numbers of those whose opening handshake is done, whose client has shown
    a good token, and that are gone.
    """

    opened: list[int]
    arrived: list[int]
    left: list[int]


class Begin(Said, frozen=True):
    """The first word to a worker: its configuration as JSON, its node's name, its number, and how many there are."""

    config: bytes
    node: str
    number: int
    workers: int


class Ready(Said, frozen=True):
    """The worker serves."""


class Failed(Said, frozen=True):
    """The worker cannot run like this, in one sentence."""

    text: str


class Announce(Said, frozen=True):
    """The server will leave: it is not ready from now on."""


class Leave(Said, frozen=True):
    """Send all clients away over so many seconds, and end."""

    seconds: float


class Hurry(Said, frozen=True):
    """At once."""


class Left(Said, frozen=True):
    """A worker that leaves has sent some of its clients away."""


class Wanted(Said, frozen=True):
    """A worker was told to reload, or to drain: it is the whole server that does."""

    what: str


class Ping(Said, frozen=True):
    """Does the worker's reactor turn?"""


class Pong(Said, frozen=True):
    """It does."""


class Line(Said, frozen=True):
    """A line of the log: where it was said, how important it is, and the text with its plain fields as JSON."""

    namespace: str
    level: str
    text: str
    fields: bytes


Frame: TypeAlias = (
    Told
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
    """Durations and sizes are numbers."""
    return float(value) if isinstance(value, float) else int(value)  # type: ignore[call-overload]


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def pack(frame: Frame) -> bytes:
    """The bytes of a message."""
    body = _encode(frame)
    return len(body).to_bytes(_LENGTH, "big") + body


class Splitter:
    """Finds the messages in what comes, in whatever pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The messages that are whole by now. Raises ``ValueError`` for what is none."""
        data = self._rest + data if self._rest else data
        view, at, found = memoryview(data), 0, []
        while (start := at + _LENGTH) <= len(data):
            length = int.from_bytes(view[at:start], "big")
            if length > MOST:
                raise ValueError("a message of the other process is too long")
            if start + length > len(data):
                break
            at = start + length
            found.append(_decode(view[start:at]))
        self._rest = data[at:]
        return found
