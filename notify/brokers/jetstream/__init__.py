"""The JetStream broker: a history that outlives processes, and any number of nodes.

ARCHITECTURE.md lists the modules of this package from the bottom up and says what each does; they use those of ``notify/nats``.
Calls go down; events come up through callables that are passed in. This module wires them together and holds the one state
they share: whether the broker can be used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from zope.interface import implementer

from notify.brokers.jetstream.atomic import Atomic
from notify.brokers.jetstream.audit import Audit
from notify.brokers.jetstream.consumer import Consumer
from notify.brokers.jetstream.deadletter import DeadLetters
from notify.brokers.jetstream.diagnose import diagnose
from notify.brokers.jetstream.epoch import new_epoch
from notify.brokers.jetstream.flight import denies_some_topic
from notify.brokers.jetstream.health import Health
from notify.brokers.jetstream.history import History, Memory, Record, place
from notify.brokers.jetstream.pages import Pages
from notify.brokers.jetstream.positions import Positions
from notify.brokers.jetstream.publisher import Publisher
from notify.brokers.jetstream.reader import Reader
from notify.brokers.jetstream.republish import Republish
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.signals import Signals
from notify.brokers.jetstream.stored import Stored
from notify.brokers.jetstream.stream import Mark, Streams, StreamState, Together
from notify.brokers.jetstream.tail import Tail
from notify.components import Context
from notify.errors import HistoryLost, StartError, Unavailable, Unknown
from notify.interfaces import BrokerStatus, IAtomic, IBroker, IPages, IPatient, ISignals, ITogether
from notify.messages import Draft, Earlier, Followed, Message, Poison, Position, Replayed
from notify.nats import headers
from notify.nats.connection import Connection, Hooks
from notify.nats.jetstream import ApiError
from notify.topics import Topic

_PAUSE = (0.1, 1.0)  # seconds between attempts to set up: the first, the longest
_PATIENCE = 5  # attempts with one server before another is tried
_DOUBTS = 4  # attempts for which a stream reported as deleted counts as gone, even if it is still listed
_OPERATOR = 5.0  # seconds between attempts while only an operator can help
_NEWEST = 65_536  # topics whose newest number is remembered although this node does not follow them
_REMEMBER = 0.25  # seconds between writes of the highest number seen to this node's own record
_FIRST = 5.0  # timeout in seconds for what must happen first (see `after`)
_SURE = 1.0  # seconds before a stream that seems to have gone back is checked again
_LOOKS = 5  # such checks, if the stream has several copies


@implementer(IAtomic, IBroker, IPages, IPatient, ISignals, ITogether)
class JetStreamBroker:
    """See :class:`~notify.interfaces.IBroker`."""

    Settings = JetStreamSettings
    #: the control that is used with this broker if the configuration names none
    control = "nats"
    diagnose = staticmethod(diagnose)
    new_epoch = staticmethod(new_epoch)
    log = Logger()

    def __init__(self, settings: JetStreamSettings, context: Context) -> None:
        settings.check()
        self._settings = settings
        self._reactor = context.reactor
        self._metrics = context.metrics
        connect = context.connect or Connection
        self._connection = connect(
            settings, context.reactor, context.random, f"notify {context.node}".strip()
        )
        self._signals = Signals(self._connection, context.reactor)
        self._connection.hooks = Hooks(
            self._up, self._down, self._denied, self._dropped, self._changed, self._signals.denied
        )
        self._streams = Streams(settings, self._connection, context.random, lambda: self._connection.version)
        self._dead = DeadLetters(self._connection, self._streams.plan.dead_subject, context.metrics)
        memory = Memory(place(settings.state_directory, settings.stream, context.part), context.reactor)
        self._lasts = memory.lasts
        self._remembering = LoopingCall(self._remember_on)
        self._remembering.clock = context.reactor
        self._history = History(
            self._streams,
            self._connection,
            settings.dead_letter_stream,
            context.random,
            memory,
            context.metrics,
        )
        self._audit = Audit(self._connection, self._streams, context.reactor, context.metrics)
        self._reader = Reader(
            self._connection,
            self._streams,
            self._audit,
            context.reactor,
            settings.replay_reads,
            self._poisoned,
        )
        self._tail = Tail(self._reader, context.reactor, context.metrics, self._poisoned, self._suspect)
        self._pages = Pages(self._reader, settings.replay_reads)
        self._positions = Positions(self._reader, context.reactor, lambda: self._tail.highest)
        self._source: Republish | Consumer
        if settings.delivery == "consumer":
            self._source = Consumer(
                settings,
                self._connection,
                self._streams,
                self._tail,
                context.reactor,
                context.node,
                self._exhausted,
            )
        else:
            self._source = Republish(self._connection, self._tail)
        self._tail.source = self._source
        self._publisher = Publisher(settings, self._connection, context.reactor, context.random)
        self._publisher.after = self._after
        self._publisher.stored = lambda seq, message: self._tail.marks.stored(seq, message)
        self._atomic = Atomic(settings, self._connection, self._publisher, context.reactor, context.random)
        self._atomic.after, self._atomic.stored = self._after, self._publisher.stored
        self._health = Health(
            settings,
            self._connection,
            self._streams.plan.canary_subject(context.node),
            context.reactor,
            compare=self._compare,
            sick=self._sick,
        )
        self._started: Deferred[None] | None = None
        self._setting_up: Deferred[None] | None = None
        self._stopped = False
        self._first: Callable[[], Deferred[None]] | None = None
        self._ready = False
        self._detail = "not started"
        self._refused = ""
        self._faults: tuple[str, ...] = ()
        #: the stream has given a number that was seen to another message
        self._reused = False
        #: numbers of this node's own publishes, the latest last
        self._newest: OrderedDict[Topic, int] = OrderedDict()
        self._doomed, self._doubts = "", 0
        self._dating = False

    # ------------------------------------------------------------------ IBroker

    def start(self, deliver: Callable[[Message], None], lost: Callable[[Topic], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IBroker`."""
        self._tail.deliver, self._tail.lost = deliver, lost
        self._detail = "connecting to NATS"
        self._started = Deferred()
        advisory = f"$JS.EVENT.ADVISORY.STREAM.{{}}.{self._settings.stream}"
        self._connection.subscribe(advisory.format("DELETED"), self._deleted)
        self._connection.subscribe(advisory.format("LEADER_ELECTED"), self._elected)
        self._connection.start().addErrback(self._failed)
        return self._started

    def publish(
        self, topic: Topic, payload: bytes, idempotency_key: str | None = None, trace: str = ""
    ) -> Deferred[Position]:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._stopped:
            return fail(Unavailable("the broker has stopped"))
        try:
            accepted = self._publisher.publish(topic, payload, idempotency_key, trace)
        except Poison as error:
            return fail(error)
        return accepted.addCallback(self._accepted, topic, self._tail.highest, self._reader.epoch)

    def together(self) -> AbstractContextManager[None]:
        """See :class:`~notify.interfaces.ITogether`."""
        return self._publisher.gathering

    def publish_all(self, drafts: Sequence[Draft]) -> Deferred[list[Position]]:
        """See :class:`~notify.interfaces.IAtomic`."""
        if self._stopped:
            return fail(Unavailable("the broker has stopped"))
        highest, epoch = self._tail.highest, self._reader.epoch

        async def positions(stored: list[tuple[int, bool]]) -> list[Position]:
            return [
                await maybeDeferred(self._accepted, outcome, draft.topic, highest, epoch)
                for draft, outcome in zip(drafts, stored, strict=True)
            ]

        return self._atomic.publish_all(drafts).addCallback(
            lambda stored: Deferred.fromCoroutine(positions(stored))
        )

    def follow(self, topic: Topic) -> Deferred[Followed]:
        """See :class:`~notify.interfaces.IBroker`."""
        if not self._ready:
            return fail(Unavailable(self._detail))
        return self._tail.follow(topic)

    def unfollow(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IBroker`."""
        self._tail.unfollow(topic)

    def replay(
        self, topic: Topic, after: Position | None, limit: int, size: int, whole: bool = False
    ) -> Deferred[Replayed]:
        """See :class:`~notify.interfaces.IBroker`."""
        if not self._ready:
            return fail(Unavailable(self._detail))
        if after is not None and (after.epoch != self._reader.epoch or after.seq < 0):
            return fail(HistoryLost("the position is of another history"))
        seq = None if after is None else after.seq
        return self._reader.replay(topic, seq, limit, size, whole, lambda: self._tail.position(topic))

    def newest(self, topic: Topic) -> Deferred[Position]:
        """See :class:`~notify.interfaces.IPages`."""
        if not self._ready:
            return fail(Unavailable(self._detail))
        return self._positions.ask(topic)

    def earlier(self, topic: Topic, before: Position | None, limit: int, size: int) -> Deferred[Earlier]:
        """See :class:`~notify.interfaces.IPages`."""
        if not self._ready:
            return fail(Unavailable(self._detail))
        if before is not None and before.epoch != self._reader.epoch:
            return fail(HistoryLost("the position is of another history"))
        seq = None if before is None else before.seq
        return self._pages.earlier(topic, seq, limit, size, lambda: self._tail.position(topic))

    def status(self) -> BrokerStatus:
        """See :class:`~notify.interfaces.IBroker`."""
        troubles = [*self._faults, self._audit.problem, self._source.problem]
        if self._health.shared:
            troubles.append("another node has the name of this one")
        if self._ready and self._signals.problem:
            troubles.append(f"signals are not sent: {self._signals.problem}")
        return BrokerStatus(self._ready, "; ".join([self._detail, *filter(None, troubles)]))

    async def _stop(self, ready: bool) -> None:
        if self._publisher.pending:
            await self._publisher.drain()
        if ready:
            self._remember()
        self._end()
        if self._remembering.running:
            self._remembering.stop()
        self._detail = "stopped"
        self._signals.stop()
        self._tail.stop()
        self._pages.stop()
        self._positions.stop()
        self._reader.stop()
        await self._source.stop()
        await self._connection.stop()
        self._publisher.abort()
        if self._started is not None and not self._started.called:
            self._started.errback(Unavailable("stopped before it was ready"))

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._stopped:
            return succeed(None)
        ready, self._stopped, self._ready = self._ready, True, False
        return Deferred.fromCoroutine(self._stop(ready))

    # ------------------------------------------------------------------ ISignals

    def hear(self, heard: Callable[[Topic, bytes], None]) -> None:
        """See :class:`~notify.interfaces.ISignals`."""
        self._signals.heard = heard

    def listen(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.ISignals`."""
        self._signals.listen(topic)

    def unlisten(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.ISignals`."""
        self._signals.unlisten(topic)

    def signal(self, topic: Topic, payload: bytes) -> bool:
        """See :class:`~notify.interfaces.ISignals`."""
        return self._signals.signal(topic, payload)

    def after(self, first: Callable[[], Deferred[None]]) -> None:
        """See :class:`~notify.interfaces.IPatient`."""
        self._first = first

    # ------------------------------------------------------------------ coming up and going down

    def _up(self) -> None:
        self._metrics.broker_connects.inc()
        # Publishes may wait, up to their timeout, until the set-up is done.
        self._publisher.open()
        self._set_up("setting up the streams")

    def _set_up(self, detail: str) -> None:
        """Set up the streams and the source (again), then become ready."""
        if self._stopped or not self._connection.connected:
            return
        self._end()
        self._detail = detail
        self._setting_up = Deferred.fromCoroutine(self._establish())
        self._setting_up.addErrback(self._failed)

    async def _establish(self) -> None:
        pause, failures = _PAUSE[0], 0
        if self._doubts == _DOUBTS:
            # A stream created while the server still deletes the old one stores messages but does not answer publishes.
            await deferLater(self._reactor, pause, lambda: None)
        while True:
            self._refused = ""
            try:
                state = await self._streams.ensure()
                if state.created == self._doomed and self._doubts:
                    self._doubts -= 1
                    raise Unavailable("the stream is being deleted")
                self._source.use(state.live)
                await self._source.ready()
                await self._health.sing()
                if self._refused:
                    raise StartError(self._missing())
                await self._let_pass()
                state, record, shown = await self._recognised()
                await self._audit.compare(state)
            except (StartError, Unavailable, ApiError) as error:
                problem: Exception = error
                if self._refused:
                    problem = StartError(self._missing())
                if isinstance(problem, StartError) and self._started is not None and not self._started.called:
                    raise problem from None
                self._detail = str(problem)
                self.log.warn("the broker cannot be used yet: {reason}", reason=self._detail)
                await deferLater(
                    self._reactor, _OPERATOR if isinstance(problem, StartError) else pause, lambda: None
                )
                pause = min(2 * pause, _PAUSE[1])
                failures += 1
                if failures >= _PATIENCE or self._refused:
                    # The server has dropped a refused subscription, which is not requested again on this connection. And a server
                    # that is cut off from its cluster accepts connections, but never becomes usable.
                    self._reactor.callLater(0, self._connection.abandon, self._detail)
                    return
                continue
            break
        self._begin(state, record, shown)

    async def _let_pass(self) -> None:
        """Wait for what must happen first (see `after`), if clients are connected already."""
        if self._first is not None and self._started is not None and self._started.called:
            with suppress(Late):
                await self._first().addTimeout(_FIRST, self._reactor)

    async def _recognised(self) -> tuple[StreamState, Record, bool]:
        """Return the stream's state, the record of its history, and whether it still has the newest message received, as proof of continuity.

        Raises ``Unavailable``.
        """
        marks = self._seen()
        state = await self._streams.info()
        looks = _LOOKS if state.copies > 1 else 1
        while looks and await self._history.went_back(state, marks):
            # A leader that was cut off or just elected may report an old state for a moment.
            looks -= 1
            await deferLater(self._reactor, _SURE, lambda: None)
            await self._health.sing()
            state = await self._streams.info()
        # Messages received since the connection was opened may belong to another history, and prove nothing.
        mine, kept = self._history.record, [mark.seq for mark in self._tail.marks.kept]
        known = [*kept, mine.seen if mine is not None else 0]
        oldest = min(state.first_seq, state.last_seq)
        shown = max(known) == 0 or (max(known) >= oldest and min(kept, default=oldest) >= oldest)
        state, record = await self._history.recognise(marks, reused=self._reused)
        self._tail.marks.confirm(marks)
        self._reused = False
        if record.epoch != self._reader.epoch:
            self._audit.forget()
        return state, record, shown

    def _begin(self, state: StreamState, record: Record, shown: bool) -> None:
        anew = bool(self._reader.epoch) and record.epoch != self._reader.epoch
        self._doomed, self._doubts = "", 0
        self._ready, self._detail = True, f"connected to {self._connection.server}"
        self._signals.use(state.keeps_signals)
        self._metrics.broker_up.set(1)
        self._setting_up = None
        gone: list[Topic] = []
        if anew:
            self.log.error(
                "the stream {name} holds another history: clients are told", name=self._settings.stream
            )
            gone = self._tail.forget_all()
            self._newest.clear()
            self._reused = False
        elif not shown:
            # The newest message has aged out, and so has everything that followers had: nothing can prove that the stream did not go back.
            gone = self._tail.forget_all()
        self._reader.epoch, self._reader.created = record.epoch, state.created
        self._publisher.together = state.together
        self._atomic.open(state.atomic)
        self._tail.highest = max(self._tail.highest, state.last_seq)
        self._tail.online(True)
        self._health.watch()
        if self._lasts and not self._remembering.running:
            self._remembering.start(_REMEMBER)
        for topic in gone:
            self._tail.lost(topic)
        if self._started is not None and not self._started.called:
            self._started.callback(None)

    def _end(self) -> None:
        """Stop being ready, whatever the reason."""
        if self._ready:
            self._tail.marks.keep()
            self._remember()
        self._ready = False
        # The stream may be reconfigured before its state is read again.
        self._publisher.together = Together.NO
        self._atomic.close()
        self._metrics.broker_up.set(0)
        self._health.rest()
        self._tail.online(False)
        if self._setting_up is not None:
            setting_up, self._setting_up = self._setting_up, None
            setting_up.cancel()

    def _down(self, reason: str) -> None:
        self._end()
        self._publisher.close()
        self._detail = f"NATS is away: {reason}"

    def _failed(self, failure: Any) -> None:
        """Waiting does not help, or there is a bug."""
        if failure.check(CancelledError):
            return
        self._end()
        self._detail = failure.getErrorMessage()
        if self._started is not None and not self._started.called:
            self._started.errback(failure)
        else:
            self.log.failure("the broker failed", failure)

    def _missing(self) -> str:
        return f"NATS does not permit what notify needs: {self._refused}; grant it (docs/jetstream.md, Permissions)."

    # ------------------------------------------------------------------ events from the modules below

    async def _compare(self) -> bool:
        """Check that the history is the same and sound, and that followed topics are up to date. Returns whether to check again soon.

        Raises ``Unavailable``.
        """
        marks, refusals = self._seen(), self._publisher.refusals
        state = await self._streams.info()
        republishes = self._settings.delivery == "republish"
        if not await self._history.current(state, marks):
            # Not directly: setting up ends this comparison.
            self._reactor.callLater(0, self._set_up, "the stream holds another history")
            return False
        if republishes and not state.live and self._settings.manage_stream:
            self._reactor.callLater(0, self._set_up, "the stream does not send messages on any more")
            return False
        self._tail.marks.confirm(marks)
        if self._publisher.refusals == refusals:  # otherwise the state is older than what a refusal has shown
            self._publisher.together = state.together
        self._atomic.open(state.atomic)
        self._complain(state.faults)
        await self._audit.compare(state)
        self._source.use(state.live)
        self._signals.use(state.keeps_signals)
        first = self._health.first
        await self._tail.check(0.0 if first else 0.25, cut=first)
        return not self._audit.trusted

    def _seen(self) -> list[Mark]:
        """The messages known to have been in the stream."""
        return [*self._tail.marks.all(), Mark(self._tail.highest)]

    def _remember(self) -> None:
        self._history.remember(self._seen())

    def _remember_on(self) -> None:
        if self._ready:
            self._remember()
            mark = self._tail.marks.undated
            if mark is not None and not self._dating:
                self._dating = True
                Deferred.fromCoroutine(self._date(mark))

    async def _date(self, mark: Mark) -> None:
        """Learn when a message of this node was stored: no follower here has received it, so the time is unknown."""
        try:
            self._tail.marks.dated(await self._streams.mark(mark.seq))
        except Unavailable:
            pass  # it is asked for again
        finally:
            self._dating = False

    def _complain(self, faults: tuple[str, ...]) -> None:
        """Tell the operator once that somebody has changed the stream."""
        if faults != self._faults:
            for fault in faults:
                self.log.error("stream {name}: {fault}", name=self._settings.stream, fault=fault)
            self._faults = faults
            self._metrics.broker_faults.set(len(faults))

    def _deleted(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        # For a moment the server may still describe the stream as if it existed.
        self._doomed, self._doubts = self._reader.created, _DOUBTS
        self._set_up("the stream was deleted")

    def _elected(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        # The new leader may lack messages that the old one had, and give their numbers to other messages.
        self._tail.marks.keep()
        self._health.compare_soon()

    def _suspect(self) -> None:
        self._health.compare_soon()

    def _dropped(self) -> None:
        self._tail.doubt()
        self._health.compare_soon()

    def _changed(self) -> None:
        self._audit.unsettle()
        self._health.compare_soon()

    def _sick(self, reason: str, isolated: bool) -> None:
        """The server is reachable but does not work. ``isolated``: another server may."""
        self.log.warn("NATS at {server}: {reason}", server=self._connection.server, reason=reason)
        if isolated:
            self._connection.abandon(reason)
        else:
            self._set_up(reason)

    def _denied(self, words: str) -> None:
        # NATS reports this for each message sent, also for one that was given up meanwhile.
        if not (
            self._publisher.denied(words)
            or self._atomic.denied(words)
            or denies_some_topic(words)
            or self._source.denied(words)
        ):
            self._refused = words
            if self._ready:
                # Only a new connection requests refused subscriptions again.
                self._connection.abandon(self._missing())

    def _poisoned(self, topic: Topic, stored: Stored, reason: str) -> None:
        self._dead.keep(self._reader.epoch, topic.subject, stored.seq, stored.data, reason)

    def _exhausted(self, seq: int, reason: str) -> None:
        Deferred.fromCoroutine(self._keep_exhausted(seq, reason))

    async def _keep_exhausted(self, seq: int, reason: str) -> None:
        try:
            subject, data = await self._reader.leader.at(seq)
        except (Unavailable, HistoryLost):
            subject, data = "", b""
        self._dead.keep(self._reader.epoch, subject, seq, data, reason)

    async def _accepted_where(self, seq: int) -> Position:
        """The message may be in another history: wait until that is known, for as long as a publish may take."""
        patience = self._reactor.seconds() + self._settings.publish_patience
        while not self._ready:
            if self._stopped or self._reactor.seconds() > patience:
                raise Unknown("it was stored, and the stream went away before it said where")
            await deferLater(self._reactor, _PAUSE[0], lambda: None)
        return Position(self._reader.epoch, seq)

    def _after(self, topic: Topic, directly: bool) -> str:
        """``Notify-After`` for a topic's next message, as far as this node knows. ``directly``: its predecessor has the number before."""
        if directly:
            return f"{self._reader.epoch}.{headers.DIRECTLY}" if self._reader.epoch else ""
        seq = max(self._newest.get(topic, 0), self._tail.position(topic) or 0)
        return f"{self._reader.epoch}.{seq}" if seq else ""

    def _accepted(self, outcome: tuple[int, bool], topic: Topic, highest: int, epoch: str) -> Any:
        """``highest`` was known to exist, in the history of ``epoch``, when the message was handed over."""
        seq, duplicate = outcome
        if not duplicate and seq <= highest and epoch == self._reader.epoch:
            # Its number was given before, which alone proves that the stream has gone back. Do not wait for the comparison:
            # by then the stream may have grown past its old end.
            self._reused = True
            if self._ready:
                self._set_up("the stream has gone back")
        if not self._ready:
            return Deferred.fromCoroutine(self._accepted_where(seq))
        if not duplicate:
            self._tail.accepted(topic, seq)
            self._newest[topic] = seq
            self._newest.move_to_end(topic)
            if len(self._newest) > _NEWEST:
                self._newest.popitem(last=False)
        return Position(self._reader.epoch, seq)


def _bounded(messages: list[Message], limit: int, size: int) -> Replayed:
    fit = 0
    for message in messages[:limit]:
        size -= message.size
        if size < 0 and fit:
            break
        fit += 1
    return Replayed(messages[:fit], fit < len(messages))
