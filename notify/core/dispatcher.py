"""Broker -> registry -> connections: one order for live messages and resumptions, each message encoded once.

Each topic that a client of this node wants has a :class:`~notify.core.feed.Feed`. Messages wait there until the end
of the reactor's turn. Then they are linked by ``prev``, encoded once per encoding and written once per member.
``prev`` names the previous message that this kind of receiver was sent: clients without the feature ``events`` are
not sent a chat's events.

Nothing is written to a connection that is still joining. Messages that arrive meanwhile are in the topic's tail, and
the connection is answered from there, so it sees every message after its position once and in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.core.feed import LOST, RECOVERED, TOO_LONG, Feed, Joined, Outgoing, Read, Waiting, linked
from notify.core.linger import Lingering
from notify.core.live import Live
from notify.core.pages import Pages
from notify.core.recent import Reach, Recents
from notify.core.witness import Witness
from notify.errors import HistoryLost, Unavailable
from notify.interfaces import IBroker, IConnection, IRegistry
from notify.messages import ChatEvent, Followed, Message, Position, Replayed
from notify.observe.metrics import Metrics
from notify.observe.tracing import NO_TRACER, Attributes, Span, Tracer
from notify.topics import Topic
from notify.wire.frames import Encoding, Made

log = Logger()

#: messages sent to connections that join one topic in one turn of the reactor; then other topics have their turn
A_TURN = 5000

#: topics whose messages are encoded before the first is written. Encoding and writing then each find their data in
#: the processor's caches; alternating between them costs a tenth more for chats of ten members
TOGETHER = 64

#: writes to each of these connections, in this order, the frame of its encoding; an empty frame is not written
FanOut = Callable[[list[IConnection], Mapping[Encoding, bytes]], None]


def one_by_one(connections: list[IConnection], frames: Mapping[Encoding, bytes]) -> None:
    """The plain :data:`FanOut`. A C version (notify/transport/fanout.py) does the same."""
    for connection in connections:
        frame = frames[connection.encoding]
        if frame:
            connection.write(frame)


class Dispatcher:
    """Hands what the broker delivers to the connections that the registry names.

    ``soon`` calls a function at the end of the reactor's turn, ``later`` after some seconds (the timer wheel's
    ``after``); ``seconds`` is the reactor's clock. ``fan_out`` writes to the members. The limits in force bound each
    resumption: to ``replay`` messages, and to the bytes that may be queued for one client. A message that came with a
    trace gets a span of ``tracer``, from here to the last socket.
    """

    def __init__(
        self,
        broker: IBroker,
        registry: IRegistry,
        metrics: Metrics,
        live: Live,
        soon: Callable[[Callable[[], None]], object],
        later: Callable[[float, Callable[[], None]], object],
        seconds: Callable[[], float],
        tracer: Tracer = NO_TRACER,
        fan_out: FanOut = one_by_one,
    ) -> None:
        self.tracer = tracer
        self._fan_out = fan_out
        self._broker = broker
        self._registry = registry
        self._metrics = metrics
        self._live = live
        self._soon = soon
        self._seconds = seconds
        self._feeds: dict[Topic, Feed] = {}
        self._recents = Recents()
        self._reach = Reach()
        self._lingering = Lingering(self._unfollow, lambda: live.now.limits.linger, later, seconds)
        self._leaving = False
        self._due: list[Feed] = []
        self._counting = False
        self._received = self._delivered = 0
        self._replayed = 0  # messages to clients that resumed
        #: the histories of chats, page by page
        self.pages = Pages(broker, metrics, live, soon, self._recent)
        #: told of deliveries while somebody traces them
        self.witness: Witness | None = None

    # --- from the broker ------------------------------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        """A followed topic has a message. Called by the broker."""
        feed = self._feeds.get(message.topic)
        if feed is None:
            return
        if not self._due:
            self._soon(self._flush_due)
        if not feed.pending:
            self._due.append(feed)
        feed.pending.append(message)
        feed.made = None

    def deliver_together(self, topic: Topic, messages: list[Message], made: Made | None) -> None:
        """The same for messages of one topic, one or more, whose frames may be made already."""
        feed = self._feeds.get(topic)
        if feed is None:
            return
        if not self._due:
            self._soon(self._flush_due)
        if not feed.pending:
            self._due.append(feed)
            feed.pending, feed.made = messages, made
        else:
            feed.pending += messages
            feed.made = feed.made and made and feed.made.then(made)

    def lost(self, topic: Topic) -> None:
        """A followed topic has a gap, so its members must resume. Called by the broker, which has stopped following it."""
        feed = self._feeds.get(topic)
        if feed is None:
            return
        self._drop(feed)
        feed.waiting.clear()
        members = list(self._registry.members(topic))
        if members:
            log.warn("continuity lost in {topic}: its {count} connections must resume", topic=topic.subject,
                     count=len(members))  # fmt: skip
        for connection in members:
            connection.close(4004, "history lost")

    def _flush_due(self) -> None:
        due, self._due = self._due, []
        self._counting = True  # not in a turn of its own, which would cost as much as a message
        for begin in range(0, len(due), TOGETHER):
            some = due[begin : begin + TOGETHER]
            for step in (self._prepare, self._hand_out):
                for feed in some:
                    try:
                        step(feed)
                    except Exception:
                        log.failure("messages of {topic} could not be delivered", topic=feed.topic.subject)
                        self._broken(feed)
        self._count()

    def _broken(self, feed: Feed) -> None:
        """It is unknown which member was sent what: the members of this topic must resume. Other topics go on."""
        if self._feeds.get(feed.topic) is feed:
            self._broker.unfollow(feed.topic)
            self.lost(feed.topic)

    def _flush(self, feed: Feed) -> None:
        """Write what is prepared and what is pending. If this is called while the topic is written, the latter is left for later."""
        self._hand_out(feed)
        self._prepare(feed)
        self._hand_out(feed)

    def _prepare(self, feed: Feed) -> None:
        """Determine the receivers of the pending messages, and encode the messages.

        What was prepared before must be written first: until then the messages stay pending. Nothing is written here, so
        nothing else happens in between.
        """
        messages = feed.pending
        if not messages:
            return
        if feed.outgoing is not None:
            if not self._due:
                self._soon(self._flush_due)
            self._due.append(feed)
            return
        made, feed.made = feed.made, None
        feed.pending = []
        feed.last = messages[-1].position.seq
        feed.count += len(messages)
        feed.tail.add(messages, self._live.now.limits.replay)
        members: list[IConnection] = list(self._registry.members(feed.topic))
        if self.witness is not None:
            self.witness.delivered(feed.topic, messages, members)
        among = len(members)
        if feed.waiting:
            members = [one for one in members if one not in feed.waiting]
        apart: list[tuple[IConnection, bytes]] = []
        if feed.ahead:
            members = [one for one in members if not self._skip(feed, one, messages, apart)]
        spans: Sequence[Span] = ()
        if self.tracer is not NO_TRACER:
            # Last, because from here on the spans are ended whatever happens.
            spans = [self._span(message, among) for message in messages if message.trace]
        feed.outgoing = outgoing = Outgoing(messages, members, apart, spans, feed.sent, made)
        if members:
            outgoing[members[0].encoding]  # nearly always that of all: encoded now

    def _hand_out(self, feed: Feed) -> None:
        """Write the prepared messages to their receivers. Does nothing while that is being done already."""
        outgoing = feed.outgoing
        if outgoing is None or outgoing.writing:
            return
        outgoing.writing = True
        messages, members, counts = outgoing.messages, outgoing.members, outgoing.counts
        try:
            for connection, frame in outgoing.apart:
                connection.write(frame)
            self._fan_out(members, outgoing)
            for message in messages:
                feed.sent.add(message.event, message.position.seq)
        except Exception as error:
            outgoing.fail(type(error).__name__)
            raise
        finally:
            feed.outgoing = None
        for span in outgoing.spans:
            span.end()
        now, observe = self._seconds(), self._metrics.delivery_seconds.observe
        self._received += len(messages)
        if len(counts) == 1:
            self._delivered += next(iter(counts.values())) * len(members)
        else:
            self._delivered += sum(counts[connection.encoding] for connection in members)
        if not self._counting:
            self._counting = True
            self._soon(self._count)
        for message in messages:
            observe(now - message.received)

    def _count(self) -> None:
        """Once a turn: update the metrics, and keep the recent messages within their bounds."""
        self._bound()
        self._counting = False
        self._metrics.received.inc(self._received)
        self._metrics.delivered.inc(self._delivered)
        self._received = self._delivered = 0

    def _bound(self) -> None:
        limits = self._live.now.limits
        self._recents.bound(limits.recent_messages, limits.recent_bytes)

    def _span(self, message: Message, members: int) -> Span:
        about: Attributes = {
            "notify.subject": message.topic.subject,
            "notify.seq": message.position.seq,
            "notify.members": members,
        }
        return self.tracer.span("deliver", message.trace, about)

    @staticmethod
    def _skip(
        feed: Feed, connection: IConnection, messages: list[Message], apart: list[tuple[IConnection, bytes]]
    ) -> bool:
        """Whether a member has already seen some of these messages; what is to be written to it is then added to ``apart``."""
        reached = feed.ahead.get(connection)
        if reached is None:
            return False
        if messages[-1].position.seq >= reached:
            del feed.ahead[connection]
        encoding, prev, newer = connection.encoding, feed.sent.to(connection.encoding), []
        for message in messages:
            if message.position.seq > reached:
                newer.append(message)
            elif encoding.events or not isinstance(message.event, ChatEvent):
                prev = message.position.seq
        if bodies := linked(encoding, newer, prev):
            apart.append((connection, encoding.pack(bodies)))
        return True

    # --- from the sessions ----------------------------------------------------------------------------------

    def subscribe(self, connection: IConnection, topic: Topic, since: Position | None) -> Deferred[Joined]:
        """Make a connection a member; fires when it is one.

        The callbacks must write the answer immediately, since live messages are written from then on. Nothing fires
        once the connection has left.

        Errback :class:`~notify.errors.Unavailable`: it is not a member.
        """
        known = self._feeds.get(topic)
        feed = self._feeds[topic] = known or Feed(topic, self._recents)
        self._flush(feed)
        self._lingering.discard(topic)
        one = feed.waiting[connection] = Waiting(connection, since, Deferred())
        self._registry.join(connection, topic)
        if known is None:
            self._start(feed)
        elif not feed.starting and not self._answer(feed, one) and feed.reading is None:
            self._settle(feed)
        return one.joined

    def leave(self, connection: IConnection, topic: Topic) -> None:
        """A connection leaves a topic. Does nothing if it is not a member."""
        feed = self._feeds.get(topic)
        if feed is not None:
            self._give_up(feed.leave(connection))
        if self._registry.leave(connection, topic):
            self._stop([topic])

    def forget(self, connection: IConnection) -> None:
        """A connection is gone."""
        self.pages.forget(connection)
        for topic in self._registry.topics(connection):
            feed = self._feeds.get(topic)
            if feed is not None:
                self._give_up(feed.leave(connection))
        self._stop(self._registry.forget(connection))

    # --- joining --------------------------------------------------------------------------------------------

    def _settle(self, feed: Feed) -> None:
        """Answer the connections that wait, and read history for the others, until a read is in flight or none waits.

        This is a loop because a client may ask again as soon as it is answered, and a broker may answer immediately;
        calls would nest.
        """
        if feed.settling:
            return
        feed.settling, paused = True, False
        try:
            while feed.reading is None:
                refusal, feed.refusal = feed.refusal, ""
                if refusal:
                    self._refuse_all(feed, refusal)
                else:
                    paused = not self._answer_all(feed)
                if paused or not self._read(feed):
                    break
        finally:
            feed.settling = paused
        if paused:
            self._soon(lambda: self._go_on(feed))

    def _go_on(self, feed: Feed) -> None:
        feed.settling = False
        self._settle(feed)

    def _answer_all(self, feed: Feed) -> bool:
        """Admit connections for which enough is known. False: one turn's share is used up, and others still wait."""
        self._flush(feed)
        if not feed.unanswered:
            feed.unanswered = list(feed.waiting.values())[::-1]
        most = self._replayed + A_TURN
        while feed.unanswered:
            if self._replayed > most:
                return False
            one = feed.unanswered.pop()
            if feed.waiting.get(one.connection) is one:
                self._answer(feed, one)
        feed.tail.bound(self._live.now.limits.replay)
        self._bound()
        return True

    def _answer(self, feed: Feed, one: Waiting) -> bool:
        """Admit a connection if what it has missed, if anything, is known now. Returns whether it was admitted."""
        self._flush(feed)
        limits, since, encoding = self._live.now.limits, one.since, one.connection.encoding
        verdict = feed.judge(one, limits.replay, limits.send_queue, self._seconds())
        if since is not None and since.epoch == feed.epoch and not one.asked:
            self._reach.note(feed.last - since.seq)
        if verdict is None:
            one.asked = True
            return False
        outcome, bodies, read = verdict.outcome, [], len(verdict.messages)
        if outcome == RECOVERED and since is not None:
            bodies = linked(encoding, verdict.messages, since.seq)
            if sum(map(len, bodies)) > limits.send_queue:
                outcome, bodies = TOO_LONG, []
        elif outcome == TOO_LONG:
            read = limits.replay + 1
        if since is not None:
            self._metrics.replays.labels(outcome).inc()
            if outcome == RECOVERED and not one.asked:
                self._metrics.replays_from_memory.inc()
        self._replayed += len(bodies)
        position = feed.admit(one, outcome == RECOVERED)
        one.joined.callback(Joined(position, outcome == RECOVERED, bodies, read))
        return True

    def _read(self, feed: Feed) -> bool:
        """Read the history that the waiting connections need; returns whether they need any."""
        read = feed.next_read(self._reach.usual())
        if read is None:
            return False
        limits, after = self._live.now.limits, Position(feed.epoch, read.after)
        self._metrics.replay_reads.inc()
        try:
            if read.ahead is None:
                most = max(1, limits.replay)
                asked = self._broker.replay(feed.topic, after, most, limits.send_queue, whole=True)
            else:
                asked = self._broker.replay(feed.topic, after, 1, 1)
        except Exception:
            asked = fail()
        read.running = asked
        asked.addCallbacks(self._took, self._failed, (feed, read), {}, (feed, read))
        asked.addErrback(lambda failure: log.failure("a resumption failed", failure))
        return True

    def _took(self, replayed: Replayed, feed: Feed, read: Read) -> None:
        if feed.reading is not read:
            return
        if not feed.took(read, replayed, self._seconds()):
            feed.refusal = "what is recent goes faster than history is read"
        self._settle(feed)

    def _failed(self, failure: Failure, feed: Feed, read: Read) -> None:
        if feed.reading is not read:
            return
        if isinstance(failure.value, HistoryLost):
            feed.failed(read, LOST, self._seconds())
        else:
            if not isinstance(failure.value, Unavailable):
                log.failure("the history of {topic} cannot be read", failure, topic=feed.topic.subject)
            feed.reading, feed.refusal = None, "the broker is away"
        self._settle(feed)

    def _refuse_all(self, feed: Feed, reason: str) -> None:
        """Refuse the connections that wait, since nothing is known; they may try again."""
        for one in list(feed.waiting.values()):
            if feed.waiting.get(one.connection) is one:
                del feed.waiting[one.connection]
                if one.since is not None:
                    self._metrics.replays.labels("unavailable").inc()
                self.leave(one.connection, feed.topic)
                one.joined.errback(Unavailable(reason))

    def _give_up(self, read: Read | None) -> None:
        if read is not None and read.running is not None:
            read.running.cancel()

    # --- one topic's life -----------------------------------------------------------------------------------

    def _start(self, feed: Feed) -> None:
        self._metrics.topics.inc()

        def following(followed: Followed) -> None:
            feed.follow(followed.position, followed.event)
            self._settle(feed)
            if not self._registry.members(feed.topic):
                self._stop([feed.topic])

        def failed(failure: Failure) -> None:
            if not isinstance(failure.value, Unavailable):
                log.failure("the broker cannot follow {topic}", failure, topic=feed.topic.subject)
            if self._feeds.get(feed.topic) is feed:
                self._drop(feed)
            self._refuse_all(feed, "the broker is away")

        try:
            started = self._broker.follow(feed.topic)
        except Exception:
            started = fail()
        started.addCallbacks(following, failed)
        started.addErrback(lambda failure: log.failure("a subscription failed", failure))

    def _stop(self, topics: Iterable[Topic]) -> None:
        """No client of this node wants these topics any more.

        One that is still starting is checked again once it has started.
        """
        for topic in topics:
            feed = self._feeds.get(topic)
            if feed is None or feed.starting:
                continue
            if self._live.now.limits.linger and not self._leaving:
                self._lingering.add(topic)
            else:
                self._unfollow(topic)

    def _recent(self, topic: Topic) -> Feed | None:
        """A followed topic, with all that was delivered of it."""
        feed = self._feeds.get(topic)
        if feed is None or feed.starting:
            return None
        self._flush(feed)
        return feed if self._feeds.get(topic) is feed else None

    def counts(self) -> dict[Topic, int]:
        """The number of messages that each topic has had since this node follows it."""
        return {topic: feed.count for topic, feed in self._feeds.items()}

    def wind_down(self) -> None:
        """The server is shutting down: from now on, unfollow topics without members immediately."""
        self._leaving = True
        self._lingering.clear()

    def _unfollow(self, topic: Topic) -> None:
        feed = self._feeds.get(topic)
        if feed is not None:
            self._drop(feed)
            self._broker.unfollow(topic)

    def _drop(self, feed: Feed) -> None:
        """A topic is no longer followed: forget everything about it."""
        del self._feeds[feed.topic]
        self._lingering.discard(feed.topic)
        self._metrics.topics.dec()
        outgoing, feed.outgoing, feed.pending = feed.outgoing, None, []
        if outgoing is not None and not outgoing.writing:
            outgoing.fail("the topic is no longer followed")
        feed.tail.clear()
        read, feed.reading = feed.reading, None
        self._give_up(read)


def end_of_turn(reactor: Any) -> Callable[[Callable[[], None]], object]:
    """A ``soon`` for the dispatcher: it runs a function once the reactor has read what it can read now.

    All functions of one turn share one reactor call, since a reactor call costs as much as such a function.
    """
    due: list[Callable[[], None]] = []

    def run() -> None:
        calls = due[:]
        due.clear()
        for call in calls:
            try:
                call()
            except Exception:
                log.failure("what was to be done at the end of a turn failed")

    def soon(call: Callable[[], None]) -> None:
        if not due:
            reactor.callLater(0, run)
        due.append(call)

    return soon
