"""Followed topics: the position of each, the next message, and what to do if something is missing.

A source (:mod:`republish`, :mod:`consumer`) passes on what arrives, at most once and perhaps with holes. Each message names its
predecessor in its topic. If that is not the message delivered last, the topic is repaired: messages that arrive are held back, the
missing ones are read from the stream, and then delivery continues. The same happens if a comparison with the stream shows that a
message did not arrive. If the stream can no longer prove that nothing is missing, the topic is reported as lost.

This module does no I/O itself: reads go through a :class:`~notify.brokers.jetstream.reader.Reader`, time comes from the reactor.
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

_HELD = 512  # messages held back for one topic; beyond that they are read from the stream
_HELD_BYTES = 32 * 2**20  # for all topics together
_BEHIND = 10_000  # messages that a topic may be behind; beyond that it is lost
_MENDING = 32  # topics that are repaired at once
_PAUSE = (0.05, 2.0)  # seconds before a failed read is retried: the first, the longest
_GRACE = 0.25  # seconds that a message which is in the stream may still be in flight


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
    """The source of messages, which is told the topics to follow."""

    def add(self, topic: Topic) -> None: ...  # noqa: D102
    def remove(self, topic: Topic) -> None: ...  # noqa: D102


class Tail:
    """See the module docstring. ``suspect`` is called when what arrives is inconsistent, as from a recreated stream."""

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
        self._held = 0  # bytes held back
        self._beginning: list[State] = []
        self._paused: list[State] = []
        self.source: Source
        self.deliver: Callable[[Message], None] = lambda message: None
        self.lost: Callable[[Topic], None] = lambda topic: None
        #: by subject
        self.states: dict[bytes, State] = {}
        #: the highest number in the stream known to exist
        self.highest = 0
        #: how far the stream was received
        self.marks = Marks()

    # ------------------------------------------------------------------ follow and unfollow

    def follow(self, topic: Topic) -> Deferred[Followed]:
        """See :meth:`notify.interfaces.IBroker.follow`. Topics followed at the same time share one lookup."""
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
        """The number of a followed topic's newest message, as far as it is known; None for other topics."""
        state = self.states.get(topic.subject.encode())
        return (
            None
            if state is None or state.joining is not None
            else max(state.seq, state.wanted, state.accepted)
        )

    def accepted(self, topic: Topic, seq: int) -> None:
        """The stream has stored a message of this node."""
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
        """A message of a followed topic arrived. ``last`` is the number of its predecessor in the topic.

        A source that does not know it but misses nothing (or else calls :meth:`doubt`) passes -1. ``stamp`` is when the message was
        stored, in nanoseconds since 1970; None: the server has written that into ``block``.
        """
        position = state.seq
        stored = block if stamp is None else stamp
        if (last < position and last >= 0 and seq > state.read) or self.marks.younger(seq, stored):
            # Its predecessor is older than what was delivered, or it is older itself: messages were deleted, or numbers are reused.
            self.marks.keep()
            self._suspect()
        if seq > self.highest:
            self.highest = seq
        self.marks.heard(seq, stored)
        if not state.busy and position < seq <= state.checked:
            # The stream had nothing there. If it is still the same stream, the comparison finds this message. So does the next message:
            # it is then not taken for the successor of what was delivered, whichever source brings it.
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
        """A message claims to be the topic's first. Others may have come before it and aged out without being received.

        The stream's first number tells, in one request for all topics that begin at this moment.
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
        """Whether a message that is newer than what was delivered is the next one; ``last`` is its predecessor."""
        return last == state.seq or (last < 0 and not state.doubt)

    def _release(self, state: State) -> None:
        """Drop what is held back for a topic."""
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

    # ------------------------------------------------------------------ repairing

    def _settle(self, state: State, begun: bool = False) -> None:
        """Deliver the messages held back as far as they are consecutive, and repair the topic if that is not enough.

        ``begun``: it is known that nothing came before a message that claims to be the topic's first.
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
        """Deliver the messages held back, up to the first that is not consecutive."""
        held = state.held
        self._release(state)
        follows = False
        for index, one in enumerate(held):
            if not self._current(state):
                return
            if one.seq > state.seq:
                # If the source does not know predecessors: messages were held back in the order in which they came.
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
        """Run a coroutine that :meth:`stop` cancels."""
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
            # At most one page per turn of the reactor: the recipients need their turns.
            await deferLater(self._reactor, 0, lambda: None)

    def _lose(self, state: State) -> None:
        if self._drop(state):
            self._metrics.broker_lost.inc()
            self.lost(state.topic)

    # ------------------------------------------------------------------ comparing with the stream

    async def check(self, grace: float = _GRACE, cut: bool = False) -> None:
        """Compare every followed topic with the stream, and repair those that are behind. Raises ``Unavailable``.

        ``grace``: seconds for which messages that are in the stream may still be in flight. ``cut``: nothing was received for
        a while, so a hole from that time may belong to any topic.
        """
        states = [state for state in self.states.values() if state.joining is None]
        for start in range(0, len(states), LOOKUP):
            chunk = states[start : start + LOOKUP]
            since = min(state.checked for state in chunk) + 1
            newest = await self._reader.newest([s.subject for s in chunk], since, self.highest)
            self.marks.heard(*newest.seen)
            # Read only now: messages that came and went since the last comparison appear in neither answer.
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
        """The stream holds another history: stop following all topics, and return them so that their followers can be told."""
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
        """Set whether reads can be expected to work."""
        self._online = online
        if not online:
            # What arrives before the stream is known again may belong to another history: hold it back.
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
        """Follow nothing any more, and report nothing."""
        self.deliver, self.lost = (lambda message: None), (lambda topic: None)
        self.forget_all()
        for work in list(self._working):
            work.cancel()
        if self._grace is not None and self._grace.active():
            self._grace.cancel()

    @property
    def busy(self) -> int:
        """The number of topics being looked up or repaired."""
        return sum(1 for state in self.states.values() if state.busy)

    def _wait(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._until_online.append(waiting)
        return waiting
