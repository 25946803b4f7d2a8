"""Broker -> registry -> connections: one order for live messages and resumptions, each message encoded once.

A topic that someone here wants has a :class:`Feed`. Messages wait in it until the end of the reactor's turn, are
linked by ``prev``, encoded once an encoding and written once a member. ``prev`` names the message before that this
kind of receiver was sent: those without the feature ``events`` are not sent a chat's events. A connection that is still on its way in
is *catching up*: what comes live meanwhile is held for it and handed over behind what was replayed, so that it
sees every message after its position once and in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.core.live import Live
from notify.errors import HistoryLost, Unavailable
from notify.interfaces import IBroker, IConnection, IRegistry
from notify.messages import ChatEvent, Event, Followed, Message, Position
from notify.observe.metrics import Metrics
from notify.observe.tracing import NO_TRACER, Attributes, Span, Tracer
from notify.topics import Topic
from notify.wire.frames import Encoding, message_frame

log = Logger()


class Joined(Struct, frozen=True):
    """The answer to a subscription: the topic's newest position, and what the connection has missed.

    ``bodies`` are the encoded messages after the position that was asked for, empty unless ``recovered``. Live
    messages follow right behind them. ``read`` is how many messages were looked at for it, recovered or not.
    """

    position: Position
    recovered: bool
    bodies: list[bytes]
    read: int = 0


class _CatchingUp:
    """A connection on its way in: live messages are held for it, or skipped up to what it was replayed.

    ``prev`` is the ``seq`` of the last message that it was replayed, or that it said it has; 0: none.
    """

    __slots__ = ("held", "prev", "seen", "skip_to")

    def __init__(self, before: _CatchingUp | None) -> None:
        self.held: list[Message] = []
        self.skip_to: int | None = None
        # what it was replayed ahead of the deliveries when it asked before
        self.seen: int = 0 if before is None else before.skip_to or before.seen
        self.prev: int = 0 if before is None else before.prev


class _Sent:
    """The ``seq`` of the last message that each kind of receiver was sent; 0: not known, or none.

    ``everything`` is for those with the feature ``events``.
    """

    __slots__ = ("everything", "messages")

    def __init__(self) -> None:
        self.everything = self.messages = 0

    def add(self, event: Event | None, seq: int) -> None:
        """This was sent to whom it is for; None: to nobody."""
        if event is not None:
            self.everything = seq
            if not isinstance(event, ChatEvent):
                self.messages = seq

    def to(self, encoding: Encoding) -> int:
        """What a receiver with this encoding was sent last."""
        return self.everything if encoding.events else self.messages


class Feed:
    """A topic that this node follows, or is about to."""

    __slots__ = ("catching_up", "epoch", "last", "pending", "sent", "starting", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.epoch = ""
        self.last = 0  # the seq of the last message of any kind
        self.sent = _Sent()
        self.pending: list[Message] = []  # delivered in this turn
        self.catching_up: dict[IConnection, _CatchingUp] = {}
        self.starting: list[Deferred[None]] | None = []  # who waits for the broker; None: it follows


class Dispatcher:
    """Hands what the broker delivers to the connections that the registry names.

    ``soon`` calls a function at the end of the reactor's turn; ``seconds`` is the reactor's clock. One resumption is bound
    by the limits in force: by ``replay`` messages, and by what may wait for one client. A message that came with a trace
    gets a span of ``tracer``, from here to the last socket.
    """

    def __init__(
        self,
        broker: IBroker,
        registry: IRegistry,
        metrics: Metrics,
        live: Live,
        soon: Callable[[Callable[[], None]], object],
        seconds: Callable[[], float],
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.tracer = tracer
        self._broker = broker
        self._registry = registry
        self._metrics = metrics
        self._live = live
        self._soon = soon
        self._seconds = seconds
        self._feeds: dict[Topic, Feed] = {}
        self._due: list[Feed] = []
        self._counting = False
        self._received = self._delivered = 0

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

    def lost(self, topic: Topic) -> None:
        """A followed topic has a gap: its members must resume. Called by the broker, which follows it no more."""
        feed = self._feeds.pop(topic, None)
        if feed is None:
            return
        feed.pending = []
        self._metrics.topics.dec()
        log.warn("continuity lost in {topic}: its {count} connections must resume", topic=topic.subject,
                 count=len(self._registry.members(topic)))  # fmt: skip
        for connection in list(self._registry.members(topic)):
            connection.close(4004, "history lost")

    def _flush_due(self) -> None:
        due, self._due = self._due, []
        for feed in due:
            self._flush(feed)

    def _flush(self, feed: Feed) -> None:
        messages = feed.pending
        if not messages:
            return
        feed.pending = []
        frames: dict[Encoding, bytes] = {}
        feed.last = messages[-1].position.seq
        members = list(self._registry.members(feed.topic))
        spans = [self._span(message, len(members)) for message in messages if message.trace]
        if feed.catching_up:
            members = [one for one in members if not self._hold(feed, one, messages)]
        counts: dict[Encoding, int] = {}
        for connection in members:
            encoding = connection.encoding
            frame = frames.get(encoding)
            if frame is None:
                bodies, _ = _encode(encoding, messages, feed.sent.to(encoding))
                counts[encoding] = len(bodies)
                frame = frames[encoding] = encoding.pack(bodies) if bodies else b""
            if frame:
                connection.write(frame)
        for message in messages:
            feed.sent.add(message.event, message.position.seq)
        for span in spans:
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
        """Tell the metrics once a turn."""
        self._counting = False
        self._metrics.received.inc(self._received)
        self._metrics.delivered.inc(self._delivered)
        self._received = self._delivered = 0

    def _span(self, message: Message, members: int) -> Span:
        about: Attributes = {
            "notify.subject": message.topic.subject,
            "notify.seq": message.position.seq,
            "notify.members": members,
        }
        return self.tracer.span("deliver", message.trace, about)

    def _hold(self, feed: Feed, connection: IConnection, messages: list[Message]) -> bool:
        """Whether a member is not to be written to; what it needs later is kept, what it has is skipped."""
        state = feed.catching_up.get(connection)
        if state is None:
            return False
        if state.skip_to is None:
            state.held.extend(messages)
            return True
        newer = [message for message in messages if message.position.seq > state.skip_to]
        if newer or feed.last >= state.skip_to:
            del feed.catching_up[connection]
        if newer:
            encoding = connection.encoding
            bodies, _ = _encode(encoding, newer, state.prev)
            if bodies:
                connection.write(encoding.pack(bodies))
        return True

    # --- from the sessions ----------------------------------------------------------------------------------

    def subscribe(self, connection: IConnection, topic: Topic, since: Position | None) -> Deferred[Joined]:
        """Make a connection a member; fires when it is one.

        Its callbacks must write the answer at once: live messages are written from then on.
        Errback :class:`~notify.errors.Unavailable`: it is no member. Nothing fires once the connection left.
        """
        known = self._feeds.get(topic)
        feed = self._feeds[topic] = known or Feed(topic)
        self._flush(feed)
        state = feed.catching_up[connection] = _CatchingUp(feed.catching_up.get(connection))
        self._registry.join(connection, topic)
        joined: Deferred[Joined] = Deferred()

        def ready(_: object) -> None:
            if feed.catching_up.get(connection) is not state:
                return
            self._flush(feed)
            if since is None or since.epoch != feed.epoch:
                if since is not None:
                    self._metrics.replays.labels("lost").inc()
                self._go_live(feed, connection, joined)
            elif since.seq == feed.last:
                self._metrics.replays.labels("recovered").inc()
                self._go_live(feed, connection, joined, recovered=True)
            else:
                replay = self._broker.replay(topic, since, self._live.now.limits.replay + 1, 2**62)
                replay.addCallback(lambda found: replayed(found.messages, since)).addErrback(lost, since)
                replay.addErrback(failed)

        def replayed(messages: list[Message], since: Position) -> None:
            if feed.catching_up.get(connection) is state:
                self._hand_over(feed, connection, state, since, messages, joined)

        def lost(failure: Failure, since: Position) -> None:
            failure.trap(HistoryLost)  # type: ignore[no-untyped-call]
            if feed.catching_up.get(connection) is state:
                self._metrics.replays.labels("lost").inc()
                self._go_live(feed, connection, joined)

        def failed(failure: Failure) -> None:
            if feed.catching_up.get(connection) is not state:
                return
            if not isinstance(failure.value, Unavailable):
                log.failure("a subscription failed", failure)
            if since is not None:
                self._metrics.replays.labels("unavailable").inc()
            self.leave(connection, topic)
            joined.errback(Unavailable("the broker is away"))

        if feed.starting is None:
            ready(None)
        else:
            waiting: Deferred[None] = Deferred()
            waiting.addCallback(ready).addErrback(failed)
            feed.starting.append(waiting)
        if known is None:
            self._start(feed)
        return joined

    def leave(self, connection: IConnection, topic: Topic) -> None:
        """A connection wants no more of a topic. Harmless when it is no member."""
        feed = self._feeds.get(topic)
        if feed is not None:
            feed.catching_up.pop(connection, None)
        if self._registry.leave(connection, topic):
            self._stop([topic])

    def forget(self, connection: IConnection) -> None:
        """A connection is gone."""
        for topic in self._registry.topics(connection):
            feed = self._feeds.get(topic)
            if feed is not None:
                feed.catching_up.pop(connection, None)
        self._stop(self._registry.forget(connection))

    # --- one topic's life -----------------------------------------------------------------------------------

    def _start(self, feed: Feed) -> None:
        self._metrics.topics.inc()

        def following(followed: Followed) -> None:
            feed.epoch, feed.last = followed.position.epoch, followed.position.seq
            feed.sent.add(followed.event, feed.last)
            waiting, feed.starting = feed.starting or [], None
            for one in waiting:
                one.callback(None)
            if not self._registry.members(feed.topic):
                self._stop([feed.topic])

        def failed(failure: Failure) -> None:
            if not isinstance(failure.value, Unavailable):
                log.failure("the broker cannot follow {topic}", failure, topic=feed.topic.subject)
            waiting, feed.starting = feed.starting or [], None
            if self._feeds.pop(feed.topic, None) is not None:
                self._metrics.topics.dec()
            for one in waiting:
                one.errback(Unavailable("the broker is away"))

        try:
            started = self._broker.follow(feed.topic)
        except Exception:
            started = fail()
        started.addCallbacks(following, failed)
        started.addErrback(lambda failure: log.failure("a subscription failed", failure))

    def _stop(self, topics: Iterable[Topic]) -> None:
        """Nobody here wants these any more. One that is still starting is looked at again when it has."""
        for topic in topics:
            feed = self._feeds.get(topic)
            if feed is not None and feed.starting is None:
                feed.pending = []
                del self._feeds[topic]
                self._metrics.topics.dec()
                self._broker.unfollow(topic)

    def _hand_over(
        self,
        feed: Feed,
        connection: IConnection,
        state: _CatchingUp,
        since: Position,
        messages: list[Message],
        joined: Deferred[Joined],
    ) -> None:
        """Join what was replayed and what was held into one run without a gap, and go live behind it."""
        self._flush(feed)
        limits = self._live.now.limits
        reached = messages[-1].position.seq if messages else since.seq
        read = len(messages)
        if len(messages) <= limits.replay:
            held = [message for message in state.held if message.position.seq > reached]
            messages = messages + held
            reached = messages[-1].position.seq if messages else since.seq
            fits = len(messages) <= limits.replay
            bodies: list[bytes] = []
            prev = since.seq
            if fits:
                bodies, prev = _encode(connection.encoding, messages, since.seq)
            if fits and sum(map(len, bodies)) <= limits.send_queue:
                self._metrics.replays.labels("recovered").inc()
                if reached > feed.last:
                    # The broker's history was ahead of its deliveries, which will bring these again.
                    state.skip_to, state.prev = reached, prev
                    joined.callback(Joined(Position(feed.epoch, reached), True, bodies, read))
                else:
                    self._go_live(feed, connection, joined, True, bodies, read)
                return
        self._metrics.replays.labels("too_long").inc()
        self._go_live(feed, connection, joined, read=read)

    def _go_live(
        self,
        feed: Feed,
        connection: IConnection,
        joined: Deferred[Joined],
        recovered: bool = False,
        bodies: list[bytes] | None = None,
        read: int = 0,
    ) -> None:
        self._flush(feed)
        state = feed.catching_up[connection]
        newest = feed.last
        if state.seen > newest and not recovered:
            newest = state.skip_to = state.seen
        else:
            del feed.catching_up[connection]
        joined.callback(Joined(Position(feed.epoch, newest), recovered, bodies or [], read))


def _encode(encoding: Encoding, messages: list[Message], prev: int) -> tuple[list[bytes], int]:
    """The bodies of those messages that are for this kind of receiver, and the ``seq`` of the last one."""
    bodies = []
    for message in messages:
        if encoding.events or not isinstance(message.event, ChatEvent):
            bodies.append(encoding.encode(message_frame(message, prev)))
            prev = message.position.seq
    return bodies, prev


def end_of_turn(reactor: Any) -> Callable[[Callable[[], None]], object]:
    """A ``soon`` for the dispatcher: what it is given runs when the reactor has read what it can read now."""

    def soon(call: Callable[[], None]) -> object:
        return reactor.callLater(0, call)

    return soon
