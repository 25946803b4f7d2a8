"""Followed topics: where each one is, what comes next, and what to do when something is missing.

A source (:mod:`republish`, :mod:`consumer`) hands over what arrives, at most once and perhaps with holes. Each
message says which one came before it in its topic; where that is not the one that was delivered last, the topic is mended: what arrives is held back, what is missing is read from the stream, and then it goes on. The
same happens where a comparison with the stream shows that something has not come at all. Where the stream can
no longer show that nothing is missing, the topic is lost, and said to be.

No I/O of its own: reads come from a :class:`~notify.brokers.jetstream.reader.Reader`, time from the reactor.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.brokers.jetstream.followed import Held, State
from notify.brokers.jetstream.holes import Holes
from notify.brokers.jetstream.marks import Marks
from notify.brokers.jetstream.reader import LOOKUP
from notify.brokers.jetstream.stored import Newest, Page, Stored
from notify.errors import HistoryLost, Unavailable
from notify.messages import Followed, Message, Poison, Position, parse_event
from notify.nats import headers
from notify.observe.metrics import Metrics
from notify.topics import Topic

_HELD = 512  # messages held back for one topic; past it they are read from the stream instead
_HELD_BYTES = 32 * 2**20  # of all topics together
_BEHIND = 10_000  # messages that a topic may be behind; past it, it is lost
_MENDING = 32  # topics that are mended at once
_PAUSE = (0.05, 2.0)  # seconds before a read that failed is tried again: first, most
_GRACE = 0.25  # seconds that a message which the stream has may still be on its way


class Reads(Protocol):
    """The part of a reader that is used here."""

    epoch: str

    @property
    def holes(self) -> Holes: ...  # noqa: D102
    async def first(self) -> int: ...  # noqa: D102
    async def newest(self, subjects: list[str], since: int = 1, at_least: int = 0) -> Newest: ...  # noqa: D102
    async def after(  # noqa: D102
        self,
        subject: str,
        seq: int,
        *,
        checked: int = 0,
        at_least: int = 0,
        promised: int = 0,
        successor: int = 0,
    ) -> Page: ...


class Source(Protocol):
    """Where messages come from: told which topics are wanted."""

    def add(self, topic: Topic) -> None: ...  # noqa: D102
    def remove(self, topic: Topic) -> None: ...  # noqa: D102


class Tail:
    """See the module. ``suspect`` is called when what arrives makes no sense, as from a stream made anew."""

    log = Logger()

    def __init__(
        self,
        reader: Reads,
        reactor: Any,
        metrics: Metrics,
        poison: Callable[[Topic, Stored, str], None],
        suspect: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._reactor = reactor
        self._seconds = reactor.seconds
        self._metrics = metrics
        self._poison = poison
        self._suspect = suspect
        self._joining: list[State] = []
        self._looking_up = False
        self._places = DeferredSemaphore(_MENDING)
        self._online = False
        self._until_online: list[Deferred[None]] = []
        self._working: set[Deferred[Any]] = set()
        self._behind: list[tuple[State, int]] = []
        self._grace: Any = None
        self._held = 0  # bytes that are held back
        self._beginning: list[State] = []
        self._paused: list[State] = []
        self.source: Source
        self.deliver: Callable[[Message], None] = lambda message: None
        self.lost: Callable[[Topic], None] = lambda topic: None
        #: by subject
        self.states: dict[bytes, State] = {}
        #: the highest number in the stream that is known to exist
        self.highest = 0
        #: how far the stream was heard
        self.marks = Marks()

    # ------------------------------------------------------------------ follow and unfollow

    def follow(self, topic: Topic) -> Deferred[Followed]:
        """See :meth:`notify.interfaces.IBroker.follow`. Those that come together are looked up together."""
        state = State(topic)
        state.joining = Deferred(lambda _: self.unfollow(topic))
        self.states[state.subject.encode()] = state
        self.source.add(topic)
        self._joining.append(state)
        if not self._looking_up:
            self._looking_up = True
            self._work(self._look_up())
        return state.joining

    def unfollow(self, topic: Topic) -> None:
        """See :meth:`notify.interfaces.IBroker.unfollow`."""
        state = self.states.get(topic.subject.encode())
        if state is not None:
            self._drop(state)

    def position(self, topic: Topic) -> int | None:
        """The number of a followed topic's newest message as far as it is known; None for others."""
        state = self.states.get(topic.subject.encode())
        return (
            None
            if state is None or state.joining is not None
            else max(state.seq, state.wanted, state.accepted)
        )

    def accepted(self, topic: Topic, seq: int) -> None:
        """The stream has taken a message of this node's."""
        self.highest = max(self.highest, seq)
        state = self.states.get(topic.subject.encode())
        if state is not None:
            state.accepted = max(state.accepted, seq)

    def _drop(self, state: State) -> bool:
        key = state.subject.encode()
        if self.states.get(key) is not state:
            return False
        del self.states[key]
        self._release(state)
        self.source.remove(state.topic)
        return True

    def _current(self, state: State) -> bool:
        return self.states.get(state.subject.encode()) is state

    async def _look_up(self) -> None:
        await deferLater(self._reactor, 0, lambda: None)
        while self._joining:
            states, self._joining = self._joining[:LOOKUP], self._joining[LOOKUP:]
            try:
                newest = await self._reader.newest([s.subject for s in states], at_least=self.highest)
            except CancelledError:
                raise
            except Exception as error:
                if not isinstance(error, Unavailable):
                    self.log.failure("looking up positions failed")
                for state in states:
                    self._drop(state)
                    joining, state.joining = state.joining, None
                    if joining is not None and not joining.called:
                        joining.errback(Unavailable(str(error)))
                continue
            self.highest = max(self.highest, newest.up_to)
            self.marks.heard(*newest.seen)
            for state in states:
                state.seq = state.read = newest.found.get(state.subject, 0)
                state.checked = max(newest.up_to, state.seq)
                joining, state.joining = state.joining, None
                if joining is not None and not joining.called:
                    begin = newest.begin(state.subject, self._reader.holes)
                    joining.callback(Followed(Position(self._reader.epoch, begin), newest.event(state.topic)))
                if self._current(state):
                    self._settle(state)
        self._looking_up = False

    # ------------------------------------------------------------------ what arrives

    def arrived(
        self, state: State, seq: int, last: int, data: bytes, block: bytes, stamp: int | None = None
    ) -> None:
        """A message of a followed topic came. ``last`` is the number of the one before it in the topic.

        A source that cannot tell but misses nothing (or else calls :meth:`doubt`) gives -1. ``stamp``: when it was stored,
        in nanoseconds since 1970; None: the server has written that into ``block``.
        """
        position = state.seq
        stored = block if stamp is None else stamp
        if (last < position and last >= 0 and seq > state.read) or self.marks.younger(seq, stored):
            # What came before it is older than what was delivered, or it is itself: deleted, or numbers are used again.
            self.marks.keep()
            self._suspect()
        if seq > self.highest:
            self.highest = seq
        self.marks.heard(seq, stored)
        if not state.busy and position < seq <= state.checked:
            # The stream had nothing there. If it still is the same, the comparison finds this message; or the next one does,
            # which is not taken for the one behind what was delivered, whatever brings it.
            state.checked = position
            state.doubt = True
            self.marks.keep()
            self._suspect()
        elif not state.busy and seq > position and self._follows_on(state, last) and last:
            self._emit(state, seq, data, headers.trace(block), self._seconds())
        elif state.busy or seq > position:
            one = Held(seq, last, data, block, self._seconds())
            if len(state.held) >= _HELD or self._held + one.size > _HELD_BYTES:
                self._release(state)
            else:
                state.held.append(one)
                self._held += one.size
            state.wanted = max(state.wanted, seq)
            if not state.busy:
                if last == 0 == position:
                    self._begin_with(state)
                else:
                    self._mend(state)

    def _begin_with(self, state: State) -> None:
        """A topic's first message came, as it says: others may have come before it, and aged out, unheard.

        The stream's beginning tells, for all topics that begin in this moment.
        """
        state.busy = True
        self._beginning.append(state)
        if len(self._beginning) == 1:
            self._work(self._begin())

    async def _begin(self) -> None:
        try:
            first = await self._reader.first()
        except Unavailable:
            first = 0
        states, self._beginning = self._beginning, []
        for state in states:
            if self._current(state) and 0 < first <= state.checked + 1:
                self._settle(state, begun=True)
            elif self._current(state):
                self._mend(state)

    def _follows_on(self, state: State, last: int) -> bool:
        """Whether a message that is newer than what was delivered is the next one; ``last`` came before it."""
        return last == state.seq or (last < 0 and not state.doubt)

    def _release(self, state: State) -> None:
        """Hold nothing of a topic any more."""
        self._held -= sum(one.size for one in state.held)
        state.held = []

    def doubt(self) -> None:
        """The source may have missed messages of any topic."""
        for state in self.states.values():
            state.doubt = True

    def _emit(self, state: State, seq: int, data: bytes, trace: str, received: float) -> None:
        state.seq = seq
        try:
            event = parse_event(state.topic, data)
        except Poison as error:
            self._poison(state.topic, Stored(seq, data, trace), str(error))
        else:
            position = Position(self._reader.epoch, seq)
            self.deliver(Message(state.topic, position, event, received, trace, len(data)))

    # ------------------------------------------------------------------ mending

    def _settle(self, state: State, begun: bool = False) -> None:
        """Let go what was held back as far as it follows on; mend the topic where that is not enough.

        ``begun``: nothing came, unheard, before a message that says to be the topic's first.
        """
        first = next((one for one in state.held if one.seq > state.seq), None)
        if first is not None and first.last == 0 == state.seq and not begun:
            self._begin_with(state)
            return
        self._let_go(state)
        if not self._current(state):
            return
        if state.wanted > state.seq:
            self._mend(state)
        else:
            self._release(state)
            state.busy = False

    def _let_go(self, state: State) -> None:
        """Deliver what was held back, up to the first that does not follow on."""
        held = state.held
        self._release(state)
        follows = False
        for index, one in enumerate(held):
            if not self._current(state):
                return
            if one.seq > state.seq:
                # A source that cannot tell: what came behind another was held back behind it, too.
                if one.last != state.seq and (one.last >= 0 or state.doubt or not follows):
                    state.held = held[index:] + state.held
                    self._held += sum(one.size for one in held[index:])
                    return
                self._emit(state, one.seq, one.data, headers.trace(one.block), one.received)
            follows = True

    def _mend(self, state: State) -> None:
        state.busy = True
        self._metrics.broker_gaps.inc()
        self._work(self._mending(state))

    async def _mending(self, state: State) -> None:
        await self._places.acquire()
        try:
            await self._read(state)
        except CancelledError:
            raise
        except Exception:
            self.log.failure("mending a topic failed")
            self._lose(state)
        finally:
            self._places.release()

    def _work(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> None:
        """Run a coroutine that :meth:`stop` ends."""
        work = Deferred.fromCoroutine(coroutine)
        self._working.add(work)

        def done(outcome: Any) -> None:
            self._working.discard(work)
            if isinstance(outcome, Failure) and not isinstance(outcome.value, CancelledError):
                self.log.failure("work on followed topics failed", outcome)

        work.addBoth(done)

    async def _read(self, state: State) -> None:
        pause, promised = _PAUSE[0], 0
        while self._current(state):
            state.doubt = False
            successor = next((one.seq for one in state.held if 0 <= one.last <= state.seq < one.seq), 0)
            try:
                page = await self._reader.after(
                    state.subject,
                    state.seq,
                    checked=state.checked,
                    at_least=state.wanted,
                    promised=promised,
                    successor=successor,
                )
                promised = page.promised
                if page.pending > _BEHIND:
                    raise HistoryLost(f"{page.pending} messages behind")
            except HistoryLost as error:
                self.log.warn("lost {subject}: {reason}", subject=state.subject, reason=str(error))
                self._lose(state)
                return
            except Unavailable:
                await (deferLater(self._reactor, pause, lambda: None) if self._online else self._wait())
                pause = min(pause * 2, _PAUSE[1])
                continue
            for one in page.stored:
                if one.seq > state.seq and self._current(state):
                    self._metrics.broker_filled.inc()
                    self._emit(state, one.seq, one.data, one.trace, self._seconds())
            if not self._current(state):
                return
            state.read = max(state.read, state.seq)
            self._let_go(state)
            if self._current(state) and state.wanted <= state.seq and not page.pending:
                self._release(state)
                state.busy = False
                return
            # One page and no more a turn: those who receive it need theirs.
            await deferLater(self._reactor, 0, lambda: None)

    def _lose(self, state: State) -> None:
        if self._drop(state):
            self._metrics.broker_lost.inc()
            self.lost(state.topic)

    # ------------------------------------------------------------------ comparing with the stream

    async def check(self, grace: float = _GRACE, cut: bool = False) -> None:
        """Compare every followed topic with the stream, and mend those that are behind. Raises ``Unavailable``.

        ``grace``: seconds that messages which the stream has may still be on their way. ``cut``: nothing was heard for a
        while, so that a number which is missing from then may be of any topic.
        """
        states = [state for state in self.states.values() if state.joining is None]
        for start in range(0, len(states), LOOKUP):
            chunk = states[start : start + LOOKUP]
            since = min(state.checked for state in chunk) + 1
            newest = await self._reader.newest([s.subject for s in chunk], since, self.highest)
            self.marks.heard(*newest.seen)
            # Only now: what came and went since the last comparison is in neither.
            first = await self._reader.first()
            behind = []
            for state in chunk:
                seq = newest.found.get(state.subject, 0)
                known = max(state.checked, state.seq)
                if self._current(state) and not state.busy and seq <= state.seq and first > known + 1:
                    self.log.warn(
                        "lost {subject}: the stream has gone past what is known", subject=state.subject
                    )
                    self._lose(state)
                elif cut and self._current(state) and self._reader.holes.between(known):
                    self.log.warn("lost {subject}: a number is missing", subject=state.subject)
                    self._lose(state)
                elif seq > state.seq:
                    behind.append((state, seq))
                elif not state.busy:
                    state.checked = max(state.checked, newest.up_to)
            self._behind += behind
            if not grace:
                self._catch_up()
            elif self._behind and (self._grace is None or not self._grace.active()):
                self._grace = self._reactor.callLater(grace, self._catch_up)

    def _catch_up(self) -> None:
        behind, self._behind = self._behind, []
        for state, seq in behind:
            if self._current(state) and seq > state.seq:
                state.wanted = max(state.wanted, seq)
                if not state.busy:
                    self._mend(state)

    def forget_all(self) -> list[Topic]:
        """The history is another one: no topic is followed any more. Gives those that were, to be told of it."""
        self._paused = []
        self.highest, self.marks = 0, Marks()
        gone = []
        for state in list(self.states.values()):
            self._drop(state)
            self._metrics.broker_lost.inc()
            joining, state.joining = state.joining, None
            if joining is None:
                gone.append(state.topic)
            elif not joining.called:
                joining.errback(Unavailable("the history was made anew"))
        return gone

    def online(self, online: bool) -> None:
        """Whether reads can be expected to work."""
        self._online = online
        if not online:
            # What comes before the stream is known again may be of another history: it waits.
            for state in self.states.values():
                if not state.busy:
                    state.busy = True
                    self._paused.append(state)
        else:
            paused, self._paused = self._paused, []
            for state in paused:
                if self._current(state):
                    self._settle(state)
            waiting, self._until_online = self._until_online, []
            for one in waiting:
                one.callback(None)

    def stop(self) -> None:
        """Follow nothing any more, and say nothing."""
        self.deliver, self.lost = (lambda message: None), (lambda topic: None)
        self.forget_all()
        for work in list(self._working):
            work.cancel()
        if self._grace is not None and self._grace.active():
            self._grace.cancel()

    @property
    def busy(self) -> int:
        """How many topics are being looked up or mended."""
        return sum(1 for state in self.states.values() if state.busy)

    def _wait(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._until_online.append(waiting)
        return waiting
