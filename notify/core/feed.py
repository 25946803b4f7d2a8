"""One followed topic: what was delivered, which connections wait to join, and which history must be read for them.

This module only decides; :mod:`notify.core.dispatcher` does the reading and answering. A resume is judged by what is
known: by the topic's tail, and by what reads of the history have shown. An empty topic may have had messages, so a
position before its first one needs a read. A connection for which the known part is not enough waits.

One read at a time serves all connections that wait, from the oldest position among them, and its messages are put in
front of the tail. A read that fails for one position fails for all older ones, so bisection finds which of the
waiting connections are too far back.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from twisted.internet.defer import Deferred

from notify.core.recent import Recents, Tail
from notify.interfaces import IConnection
from notify.messages import ChatEvent, Event, Message, Position, Replayed
from notify.observe.tracing import Span
from notify.topics import Topic
from notify.wire.frames import Encoding, Made, message_frame

#: consecutive reads that may be useless because the tail dropped messages faster than they could be read
ATTEMPTS = 3

#: seconds for which the feed remembers that a position is too far back
REMEMBER = 60.0

RECOVERED, LOST, TOO_LONG = "recovered", "lost", "too_long"


class Joined(Struct, frozen=True):
    """The answer to a subscription: the topic's newest position, and the messages that the connection has missed.

    ``bodies`` are the encoded messages after the requested position; empty unless ``recovered``. Live messages follow
    directly behind them. ``read`` is the number of messages that it costs, recovered or not.
    """

    position: Position
    recovered: bool
    bodies: list[bytes]
    read: int = 0


class Verdict(Struct, frozen=True):
    """How a resumption ends, and the messages that it gets. ``outcome`` is its name in the metrics."""

    outcome: str
    messages: list[Message] = []


class Waiting:
    """A connection that is joining. Nothing is written to it until ``joined`` fires."""

    __slots__ = ("asked", "connection", "joined", "refused", "since")

    def __init__(self, connection: IConnection, since: Position | None, joined: Deferred[Joined]) -> None:
        self.connection = connection
        self.since = since
        self.joined = joined
        self.asked = False  # the broker had to be asked for it
        self.refused = False  # its position is ahead of everything there is


class Read:
    """A read of the history in flight.

    ``after`` is where it begins, ``last`` the last message delivered when it began. With ``ahead``, it checks whether
    a position exists, for these connections; None: it reads the messages missing in front of the tail.
    """

    __slots__ = ("after", "ahead", "exact", "last", "running")

    def __init__(self, after: int, exact: bool, last: int, ahead: list[Waiting] | None = None) -> None:
        self.after = after
        self.exact = exact  # a connection waits with exactly this position
        self.last = last
        self.ahead = ahead
        self.running: Deferred[Replayed] | None = None


class Sent:
    """The ``seq`` of the last message that each kind of receiver was sent; 0: unknown, or none.

    ``everything`` is for clients with the feature ``events``.
    """

    __slots__ = ("everything", "messages")

    def __init__(self) -> None:
        self.everything = self.messages = 0

    def add(self, event: Event | None, seq: int) -> None:
        """This event was sent to its receivers; None: to nobody."""
        if event is not None:
            self.everything = seq
            if not isinstance(event, ChatEvent):
                self.messages = seq

    def to(self, encoding: Encoding) -> int:
        """The last ``seq`` that was sent to receivers with this encoding."""
        return self.everything if encoding.events else self.messages


def linked(encoding: Encoding, messages: list[Message], prev: int) -> list[bytes]:
    """The bodies of the messages that this kind of receiver is sent, linked behind ``prev``."""
    bodies = []
    for message in messages:
        if encoding.events or not isinstance(message.event, ChatEvent):
            bodies.append(encoding.encode(message_frame(message, prev)))
            prev = message.position.seq
    return bodies


class Outgoing(dict[Encoding, bytes]):
    """Messages of one topic on their way to its members, as they are written to each kind of receiver.

    They are encoded for a kind when it is first asked for, and linked behind what that kind was ``sent`` before; unless
    what is ``made`` already fits. ``apart`` has the frames of members that have seen some of the messages already.
    ``writing``: they are being written.
    """

    __slots__ = ("_made", "_sent", "apart", "counts", "members", "messages", "spans", "writing")

    def __init__(
        self,
        messages: list[Message],
        members: list[IConnection],
        apart: list[tuple[IConnection, bytes]],
        spans: Sequence[Span],
        sent: Sent,
        made: Made | None = None,
    ) -> None:
        self.messages, self.members, self.apart, self.spans = messages, members, apart, spans
        self._sent = sent
        self._made = made
        self.writing = False
        #: how many of the messages each kind is sent
        self.counts: dict[Encoding, int] = {}

    def fail(self, reason: str) -> None:
        """End the spans: the messages were not written, or not to all members."""
        for span in self.spans:
            span.fail(reason)
            span.end()

    def __missing__(self, encoding: Encoding) -> bytes:
        made, messages, prev = self._made, self.messages, self._sent.to(encoding)
        if made is not None and made.fits(encoding, prev):
            self.counts[encoding] = len(messages)
            self[encoding] = made.frame
            return made.frame
        bodies = linked(encoding, messages, prev)
        self.counts[encoding] = len(bodies)
        frame = self[encoding] = encoding.pack(bodies) if bodies else b""
        return frame


class Feed:
    """A topic that this node follows, or is about to follow (``starting``)."""

    __slots__ = (
        "_attempts",
        "_begun",
        "_bisecting",
        "_floor",
        "_hopeless",
        "_known",
        "ahead",
        "count",
        "epoch",
        "last",
        "made",
        "outgoing",
        "pending",
        "reading",
        "refusal",
        "sent",
        "settling",
        "starting",
        "tail",
        "topic",
        "unanswered",
        "waiting",
    )

    def __init__(self, topic: Topic, recents: Recents) -> None:
        self.topic = topic
        self.starting = True
        self.epoch = ""
        self.last = 0  # the seq of the last message of any kind
        self.count = 0  # messages that were delivered
        self.tail = Tail(recents, 0)
        self.sent = Sent()
        self.pending: list[Message] = []  # delivered in this turn
        self.made: Made | None = None  # their frames for plain JSON, if they came with them
        self.outgoing: Outgoing | None = None  # messages that are encoded and not written to all members yet
        self.waiting: dict[IConnection, Waiting] = {}
        self.ahead: dict[IConnection, int] = {}  # who has seen more than was delivered, up to where
        self.reading: Read | None = None
        self.refusal = ""  # why the connections that wait must be refused
        self.unanswered: list[Waiting] = []  # those of them that have yet to be answered from what is known
        self.settling = False  # the connections that wait are being answered
        self._begun = False  # a read has shown that nothing is gone from the beginning of the topic
        self._known = 0  # this position is known to exist, though it may not be delivered yet
        self._hopeless: tuple[int, str, float] | None = None  # cannot resume up to here, why, until when
        self._floor = -1  # a read from here failed: do not read ahead this far again
        self._bisecting = False
        self._attempts = 0

    def follow(self, position: Position, event: Event | None) -> None:
        """The broker delivers what comes after this position; ``event`` is the event at it."""
        self.starting = False
        self.epoch, self.last = position.epoch, position.seq
        self.tail.start = self.last
        self.sent.add(event, self.last)

    def leave(self, connection: IConnection) -> Read | None:
        """A connection no longer waits. Returns the read that now serves nobody, if there is one, to be cancelled."""
        self.ahead.pop(connection, None)
        if self.waiting.pop(connection, None) is None or self.waiting:
            return None
        given_up, self.reading = self.reading, None
        return given_up

    # --- resuming -------------------------------------------------------------------------------------------

    def judge(self, one: Waiting, most: int, size: int, now: float) -> Verdict | None:
        """How a resumption ends that may get ``most`` messages with ``size`` bytes of payload; None: not known yet.

        ``now`` is in seconds.
        """
        since = one.since
        if since is None or since.epoch != self.epoch or since.seq < 0:
            return Verdict(LOST)
        seq = since.seq
        if seq > self.last:
            return Verdict(RECOVERED) if seq <= self._known else Verdict(LOST) if one.refused else None
        if seq >= self.tail.start and (seq > 0 or self._begun):
            messages = self.tail.after(seq)
            fits = len(messages) <= most and sum(message.size for message in messages) <= size
            return Verdict(RECOVERED, messages) if fits else Verdict(TOO_LONG)
        if seq < self.tail.gone and len(self.tail) >= most:
            return Verdict(TOO_LONG)
        if self._hopeless is not None and seq <= self._hopeless[0] and now < self._hopeless[2]:
            return Verdict(self._hopeless[1])
        return None

    def since(self, seq: int) -> list[Message] | None:
        """All messages after a number, oldest first; None: this node does not have them all."""
        known = self.tail.start <= seq <= self.last and (seq > 0 or self._begun)
        return self.tail.after(seq) if known else None

    def admit(self, one: Waiting, recovered: bool) -> Position:
        """Stop waiting; returns the position after which the connection is sent live messages."""
        connection, last = one.connection, self.last
        del self.waiting[connection]
        if not self.waiting:
            self.waiting.clear()  # which frees its table
        reached = self.ahead.pop(connection, 0)
        if recovered and one.since is not None:
            reached = one.since.seq
        if reached <= last:
            return Position(self.epoch, last)
        self.ahead[connection] = reached
        return Position(self.epoch, reached)

    # --- reads ------------------------------------------------------------------------------------------------

    def next_read(self, reach: int) -> Read | None:
        """The next read for the connections that wait; None: there is none, or not now.

        It may begin further back than any of them asked, ``reach`` from the newest, so that later ones need no read.
        """
        if self.starting or self.reading is not None:
            return None
        positions = sorted({one.since.seq for one in self.waiting.values() if one.since is not None})
        if not positions:
            self._bisecting = False
            return None
        behind = [seq for seq in positions if seq <= self.last]
        if behind:
            after = behind[len(behind) // 2 if self._bisecting else 0]
            back = max(0, self.last - reach)
            if self._bisecting or not self._floor < back < after:
                back = after
            self.reading = Read(back, back == after, self.last)
        else:
            after = positions[len(positions) // 2 if self._bisecting else -1]
            self.reading = Read(after, True, self.last, list(self.waiting.values()))
        return self.reading

    def took(self, read: Read, replayed: Replayed, now: float) -> bool:
        """A read has brought this. False: give up, because the tail has dropped messages too fast too often."""
        self.reading = None
        if read.ahead is not None:
            self._known = max(self._known, read.after)
            return True
        if replayed.more:
            self.failed(read, TOO_LONG, now)
            return True
        messages = replayed.messages
        reached = max(read.last, messages[-1].position.seq if messages else 0)
        self._known = max(self._known, reached)
        start = self.tail.start
        if start > reached:
            self._attempts = (self._attempts + 1) % ATTEMPTS
            return self._attempts > 0
        self._attempts = 0
        self._begun = self._begun or read.after == 0
        if read.after < start:
            # Messages newer than the last delivered one are dropped: they are yet to be delivered.
            self.tail.extend_backwards(
                read.after, [message for message in messages if message.position.seq <= start]
            )
        return True

    def failed(self, read: Read, outcome: str, now: float) -> None:
        """The history after the start of a read is ``LOST``, or is more than one resumption may get."""
        self.reading = None
        self._bisecting = self._bisecting or read.exact
        if read.ahead is None:
            self._floor = read.after
            if read.exact or outcome == TOO_LONG:
                self._hopeless = (read.after, outcome, now + REMEMBER)
            return
        # Only the connections that waited when the read began: a later one may have seen what was published since.
        for one in read.ahead:
            if one.since is not None and one.since.seq >= read.after:
                one.refused = True
