"""The memory broker: one process, no other software, and a history limited by count, age and bytes.

One counter numbers all messages, so the oldest message of all topics is always the first to be dropped. Each topic remembers the
number of its last dropped message: a resume from before that number is not recovered.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated

from msgspec import Meta
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from zope.interface import implementer

from notify.components import Context
from notify.config import Duration, Settings, Size
from notify.errors import AtFault, HistoryLost, Unavailable
from notify.findings import Finding, Question, span
from notify.interfaces import BrokerStatus, IAtomic, IBroker, IPages, ISignals
from notify.messages import (
    OVERHEAD,
    Draft,
    Earlier,
    Followed,
    Message,
    Poison,
    Position,
    Replayed,
    parse_event,
)
from notify.topics import Topic

#: idempotency keys that are remembered at most, whatever the window: some 300 bytes each
MAX_KEYS = 500_000


class MemorySettings(Settings, frozen=True):
    """``[broker.memory]``."""

    #: messages per topic
    history_size: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    history_age: Duration = Duration(7 * 86400)
    #: bytes of all topics together; each message counts as its payload plus half a KiB
    history_bytes: Size = Size(256 * 2**20)
    #: how long an idempotency key is remembered
    duplicate_window: Duration = Duration(120)


#: up to this many messages of a long history are picked by index
_FEW = 200


def _seq(message: Message) -> int:
    return message.position.seq


def _slice(kept: deque[Message], start: int, count: int) -> list[Message]:
    """``kept[start : start + count]`` without iterating over all of it: a page is a small part of a long history."""
    if count <= _FEW:
        return [kept[index] for index in range(start, start + count)]
    if 2 * start < len(kept):
        return list(islice(kept, start, start + count))
    behind = len(kept) - start - count
    return list(islice(reversed(kept), behind, behind + count))[::-1]


class _History:
    """The stored messages of one topic, oldest first, and the number of the last one dropped."""

    __slots__ = ("kept", "lost", "newest")

    def __init__(self, lost: int) -> None:
        self.kept: deque[Message] = deque()
        self.lost = lost
        self.newest = 0


@implementer(IAtomic, IBroker, IPages, ISignals)
class MemoryBroker:
    """See :class:`~notify.interfaces.IBroker`. Everything happens synchronously: every Deferred has already fired."""

    Settings = MemorySettings
    #: with several processes the first one runs the broker for all
    alone = True

    @staticmethod
    async def diagnose(settings: MemorySettings, question: Question) -> list[Finding]:
        """See ``notify/findings.py``."""
        mend = 'For more than one node, and for messages that outlive the process: [broker] plugin = "jetstream".'
        found = [Finding("note", "broker", "memory: one node, and a restart loses the history.", mend)]
        if settings.history_age < question.resume_window:
            text = f"messages are kept for {span(settings.history_age)}, but clients may be away for {span(question.resume_window)}."
            mend = "Raise [broker.memory] history_age, or ask with --resume-window."
            found.append(Finding("fault", "retention", text, mend))
        elif settings.history_size < question.replay:
            text = f"a chat keeps {settings.history_size} messages, fewer than one resumption may replay ({question.replay})."
            mend = "Raise [broker.memory] history_size."
            found.append(Finding("note", "retention", text, mend))
        else:
            text = f"a chat keeps {settings.history_size} messages for {span(settings.history_age)}."
            found.append(Finding("ok", "retention", text))
        return found

    def __init__(self, settings: MemorySettings, context: Context) -> None:
        self._settings = settings
        self._seconds = context.reactor.seconds
        self._metrics = context.metrics
        self._epoch = f"{context.random.getrandbits(64):016x}"
        self._seq = 0
        self._count = 0
        self._bytes = 0
        self._lost_everywhere = 0  # topics without a history may have lost messages up to here
        # (stored at, topic, seq) over all topics, oldest first; may name messages that are already dropped
        self._log: deque[tuple[float, Topic, int]] = deque()
        self._histories: dict[Topic, _History] = {}
        self._followed: set[Topic] = set()
        self._answers: dict[tuple[Topic, str], Position] = {}
        self._answered: deque[tuple[float, tuple[Topic, str]]] = deque()
        self._deliver: Callable[[Message], None] | None = None
        self._listened: set[Topic] = set()
        self._heard: Callable[[Topic, bytes], None] = lambda topic, payload: None

    def start(self, deliver: Callable[[Message], None], lost: Callable[[Topic], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IBroker`. The memory broker never loses continuity."""
        self._deliver = deliver
        return succeed(None)

    def publish(
        self, topic: Topic, payload: bytes, idempotency_key: str | None = None, trace: str = ""
    ) -> Deferred[Position]:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        now = self._seconds()
        self._expire(now)
        try:
            event = parse_event(topic, payload)
        except Poison as poison:
            return fail(poison)
        if idempotency_key is not None and (first := self._answers.get((topic, idempotency_key))):
            return succeed(first)
        self._seq += 1
        message = Message(topic, Position(self._epoch, self._seq), event, now, trace, len(payload))
        self._keep(message, now)
        if idempotency_key is not None:
            self._answers[topic, idempotency_key] = message.position
            self._answered.append((now, (topic, idempotency_key)))
        if topic in self._followed:
            self._deliver(message)
        return succeed(message.position)

    def publish_all(self, drafts: Sequence[Draft]) -> Deferred[list[Position]]:
        """See :class:`~notify.interfaces.IAtomic`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        for index, draft in enumerate(drafts):
            try:
                parse_event(draft.topic, draft.payload)
            except Poison as poison:
                return fail(AtFault(index, poison))
        # All drafts are valid, so all are stored at once.
        return gatherResults(
            [self.publish(one.topic, one.payload, one.idempotency_key, one.trace) for one in drafts]
        )

    def follow(self, topic: Topic) -> Deferred[Followed]:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        self._followed.add(topic)
        history, newest = self._histories.get(topic), self._newest(topic)
        kept = history.kept[-1] if history and history.kept else None
        event = kept.event if kept is not None and kept.position.seq == newest else None
        return succeed(Followed(Position(self._epoch, newest), event))

    def unfollow(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IBroker`."""
        self._followed.discard(topic)
        self._forget_empty(topic)

    def replay(
        self, topic: Topic, after: Position | None, limit: int, size: int, whole: bool = False
    ) -> Deferred[Replayed]:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        self._expire(self._seconds())
        history = self._histories.get(topic) or _History(self._lost_everywhere)
        if after is not None and after.epoch != self._epoch:
            return fail(HistoryLost("the position is of another epoch"))
        if after is not None and not history.lost <= after.seq <= self._seq:
            return fail(HistoryLost("the position is not within what is kept"))
        start = 0 if after is None else bisect_right(history.kept, after.seq, key=_seq)
        there = len(history.kept) - start
        if whole and there > limit:
            return succeed(Replayed([], True))
        newer = _slice(history.kept, start, min(there, limit))
        fit = 0
        for message in newer:
            size -= message.size
            if size < 0 and fit:
                break
            fit += 1
        more = fit < there
        return succeed(Replayed([] if more and whole else newer[:fit], more))

    def newest(self, topic: Topic) -> Deferred[Position]:
        """See :class:`~notify.interfaces.IPages`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        return succeed(Position(self._epoch, self._newest(topic)))

    def earlier(self, topic: Topic, before: Position | None, limit: int, size: int) -> Deferred[Earlier]:
        """See :class:`~notify.interfaces.IPages`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        self._expire(self._seconds())
        if before is not None and before.epoch != self._epoch:
            return fail(HistoryLost("the position is of another epoch"))
        history = self._histories.get(topic)
        kept = history.kept if history is not None else deque[Message]()
        there = len(kept) if before is None else bisect_left(kept, before.seq, key=_seq)
        older = _slice(kept, max(0, there - limit), min(there, limit))
        fit = 0
        for message in reversed(older):
            size -= message.size
            if size < 0 and fit:
                break
            fit += 1
        if not fit:
            return succeed(Earlier([], False, self._epoch))
        fitting = older[-fit:]
        first, last = fitting[0].position.seq, fitting[-1].position.seq
        return succeed(Earlier(fitting, fit < there, self._epoch, first, last))

    def status(self) -> BrokerStatus:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._deliver is None:
            return BrokerStatus(False, "not running")
        return BrokerStatus(True, f"{self._count} messages, {self._bytes} bytes in memory")

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IBroker`."""
        self._deliver = None
        return succeed(None)

    def _newest(self, topic: Topic) -> int:
        """The number of a topic's newest message. A topic without messages has nothing up to the newest number of all."""
        history = self._histories.get(topic)
        # Number 0 says the same only as long as nothing was dropped.
        return history.newest if history else self._seq if self._lost_everywhere else 0

    # --- signals ------------------------------------------------------------------------------------------

    def hear(self, heard: Callable[[Topic, bytes], None]) -> None:
        """See :class:`~notify.interfaces.ISignals`."""
        self._heard = heard

    def listen(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.ISignals`."""
        self._listened.add(topic)

    def unlisten(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.ISignals`."""
        self._listened.discard(topic)

    def signal(self, topic: Topic, payload: bytes) -> bool:
        """See :class:`~notify.interfaces.ISignals`."""
        if self._deliver is None:
            return False
        if topic in self._listened:
            self._heard(topic, payload)
        return True

    # --- history ------------------------------------------------------------------------------------------

    def _keep(self, message: Message, now: float) -> None:
        history = self._histories.get(message.topic)
        if history is None:
            history = self._histories[message.topic] = _History(self._lost_everywhere)
        history.kept.append(message)
        history.newest = message.position.seq
        self._log.append((now, message.topic, message.position.seq))
        self._count += 1
        self._bytes += message.size + OVERHEAD
        if len(history.kept) > self._settings.history_size:
            self._drop_first(history)
            self._forget_empty(message.topic)
        while self._bytes > self._settings.history_bytes:
            self._drop_oldest()
        if len(self._log) > 2 * self._count + 1000:
            self._log = deque(entry for entry in self._log if self._is_kept(*entry[1:]))

    def _expire(self, now: float) -> None:
        while self._log and self._log[0][0] <= now - self._settings.history_age:
            self._drop_oldest()
        window = now - self._settings.duplicate_window
        while self._answered and (self._answered[0][0] <= window or len(self._answered) > MAX_KEYS):
            del self._answers[self._answered.popleft()[1]]

    def _drop_oldest(self) -> None:
        _, topic, seq = self._log.popleft()
        history = self._histories.get(topic)
        if history is not None and history.kept and history.kept[0].position.seq == seq:
            self._drop_first(history)
            self._forget_empty(topic)

    def _is_kept(self, topic: Topic, seq: int) -> bool:
        history = self._histories.get(topic)
        return history is not None and history.lost < seq

    def _drop_first(self, history: _History) -> None:
        message = history.kept.popleft()
        history.lost = message.position.seq
        self._count -= 1
        self._bytes -= message.size + OVERHEAD

    def _forget_empty(self, topic: Topic) -> None:
        history = self._histories.get(topic)
        if history is not None and not history.kept and topic not in self._followed:
            self._lost_everywhere = max(self._lost_everywhere, history.lost)
            del self._histories[topic]
