"""Reads of the history: newest positions, and the messages after a position, proven to be without a gap.

Any replica answers direct gets, from its own copy. That is fast, but the copy may be stale, or unable to read one of its messages.
So a read is repeated if its answer is behind what is known to exist, or has fewer messages than the copy itself has counted. In
the end the leader is asked, whose answer is authoritative. While :class:`~notify.brokers.jetstream.audit.Audit` does not trust the
copies, only the leader is asked.

Three conditions prove that nothing is missing after a position:

- A message may name an earlier one of its subject. No message that is named in this way is absent.
- Nothing after the position has aged out. The oldest messages are always removed first, so this is true as long as the message at
  the position is there, or the stream begins before it.
- There is no hole in the stream in between, because nobody can tell any more to which topic its message belonged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from notify.brokers.jetstream.audit import Audit
from notify.brokers.jetstream.fair import FairQueue
from notify.brokers.jetstream.holes import Holes
from notify.brokers.jetstream.leader import Leader
from notify.brokers.jetstream.stored import Newest, Page, Stored
from notify.brokers.jetstream.stream import Streams, StreamState
from notify.errors import HistoryLost, Unavailable
from notify.messages import Message, Poison, Position, Replayed, parse_event
from notify.nats import headers
from notify.nats.asking import Reply
from notify.nats.bridge import gather
from notify.nats.connection import Connection
from notify.topics import Topic

#: subjects in one lookup of newest positions; one more place is for the witness
LOOKUP = 1023
#: messages in one batched read, and their total bytes
PAGE = 512
PAGE_BYTES = 2**20
#: invalid messages (poison) that one replay may skip
POISON = 1000
_FRAMING = 64  # bytes per message that the server may count beyond subject, headers and payload
_ATTEMPTS = 3  # on any replica, before the leader is asked
_LEADER_ATTEMPTS = 2
_DELAY = 0.02  # seconds before the second attempt; doubles
_QUEUE = 100_000  # reads that may wait
_NEWEST_BYTES = 8 * 2**20  # bytes of payloads of the newest messages that one lookup keeps
_LEADER_READS = 16  # concurrent reads of single messages from the leader, each of any size


class Reader:
    """See the module docstring. ``poison`` is called for a message that cannot be parsed, with its topic, what is stored, and the reason."""

    def __init__(
        self,
        connection: Connection,
        streams: Streams,
        audit: Audit,
        reactor: Any,
        reads: int,
        poison: Callable[[Topic, Stored, str], None],
    ) -> None:
        self._connection = connection
        self._streams = streams
        self._audit = audit
        self._direct = f"$JS.API.DIRECT.GET.{streams.name}"
        self.leader = Leader(streams)
        self._reactor = reactor
        self._poison = poison
        self._queue: FairQueue[Replayed] = FairQueue(reads, _QUEUE)
        self._witness = ""
        #: the epoch of the history, and the creation time of the stream
        self.epoch = self.created = ""

    @property
    def holes(self) -> Holes:
        """The missing numbers inside the stream."""
        return self._audit.holes

    async def first(self) -> int:
        """The lowest number now in the stream. Raises ``Unavailable``."""
        return (await self._streams.info()).first_seq

    async def newest(self, subjects: Sequence[str], since: int = 1, at_least: int = 0) -> Newest:
        """The newest numbers of up to ``LOOKUP`` subjects, as far as they are at least ``since``.

        The answer reaches at least to number ``at_least`` of the stream. Raises ``Unavailable``.
        """
        problem = self._audit.problem
        for attempt in range(_ATTEMPTS if self._audit.trusted else 0):
            if attempt:
                await self._pause(attempt)
            try:
                newest = await self._newest(subjects, since)
            except Unavailable as error:
                problem = str(error)
                continue
            if newest.up_to and newest.up_to >= at_least:
                return newest
            problem = "a replica is behind"
            if not newest.up_to:
                # An empty answer does not say how far it reaches. Ask again together with a subject that surely has messages.
                state = await self._streams.info()
                if state.first_seq > state.last_seq:
                    return Newest({}, state.last_seq)
                try:
                    self._witness, _ = await self.leader.at(state.last_seq)
                except HistoryLost:
                    continue  # the message is gone meanwhile
        # The leader returns only whole messages: all at once could exceed what the server buffers for a client.
        numbers: list[int] = []
        try:
            # The leader decides how far the answer reaches: a number received from elsewhere may be forged.
            state = await self._streams.info()
            for start in range(0, len(subjects), _LEADER_READS):
                few = subjects[start : start + _LEADER_READS]
                numbers += await gather(self.leader.newest(subject, since) for subject in few)
            # A leader elected in between may not yet have what the previous leader reported.
            after = await self._streams.info()
            if after.cluster != state.cluster or after.last_seq < state.last_seq:
                raise Unavailable("the leader has just changed")
        except Unavailable:
            raise Unavailable(f"newest positions cannot be read: {problem}") from None
        found = {s: n for s, n in zip(subjects, numbers, strict=True) if n >= since}
        return Newest(found, state.last_seq, seen=(state.last_seq, state.stamp))

    async def _newest(self, subjects: Sequence[str], since: int) -> Newest:
        """As :meth:`newest`, from the copy that answers, however far that copy reaches."""
        found: dict[str, int] = {}
        payloads: dict[str, bytes] = {}
        reached, room = 0, _NEWEST_BYTES
        seen: tuple[int, int | bytes] = (0, 0)
        while True:
            rest = [subject for subject in subjects if subject not in found]
            # A subject that surely has messages makes the server say how far its answer reaches.
            asked = [*rest, self._witness] if self._witness else rest
            request = {"multi_last": asked, "seq": since, "max_bytes": self._page_bytes(PAGE_BYTES)}
            *replies, end = await self._ask(request)
            if headers.status(end.block) not in (204, 404):
                raise Unavailable(headers.description(end.block) or f"status {headers.status(end.block)}")
            up_to = headers.number(end.block, headers.UP_TO_SEQUENCE)
            reached = min(reached, up_to) if reached else up_to
            last = _check_linked(replies, end)
            if last > seen[0]:
                seen = last, replies[-1].block
            answers = {headers.text(reply.block, headers.SUBJECT): reply for reply in replies}
            if answers:
                self._witness = next(iter(answers))
            new = {subject: answers[subject] for subject in rest if subject in answers}
            found |= {
                subject: headers.number(reply.block, headers.SEQUENCE) for subject, reply in new.items()
            }
            for subject, reply in new.items():
                room -= len(reply.data)
                if room >= 0:
                    payloads[subject] = reply.data
            if not headers.number(end.block, headers.NUM_PENDING):
                return Newest(found, reached, payloads, seen)
            if not new:
                raise Unavailable("the answer does not get on")

    async def after(
        self,
        subject: str,
        seq: int | None,
        *,
        checked: int = 0,
        at_least: int = 0,
        promised: int = 0,
        successor: int = 0,
        limit: int = PAGE,
        size: int = PAGE_BYTES,
        start: int = 0,
    ) -> Page:
        """The first messages of a subject after ``seq``: about ``limit``, of about ``size`` bytes in total, but at least one if there is one.

        - ``seq`` None: from the oldest stored message.
        - ``checked``: up to this number nothing came after ``seq``.
        - ``at_least``: if no messages follow them, the returned ones are complete up to this number.
        - ``promised``: the previous page showed that at least this many messages exist.
        - ``successor``: a message that was stored when the subject had nothing newer than ``seq``. What is missing in between was
          therefore deleted.
        - ``start``, with ``seq`` None: return what is stored from this number on.

        Raises ``HistoryLost`` if the messages cannot be proven complete, ``Unavailable``.
        """
        last = max(seq or 0, start - 1)
        problem: Exception = Unavailable("history cannot be read")
        for attempt in range(0 if self._audit.trusted else _ATTEMPTS, _ATTEMPTS + _LEADER_ATTEMPTS):
            if attempt % _ATTEMPTS:
                await self._pause(attempt)
            leads = attempt >= _ATTEMPTS
            try:
                read = self._page_of_leader if leads else self._page
                page = await read(subject, last, limit + 1, size)
            except Unavailable as error:
                problem = error
                continue
            fresh = [message for message in page.stored if message.seq > last]
            reached = fresh[-1].seq if fresh else last
            promised = max(promised, page.counted)
            if (
                (page.pending and not fresh)
                or len(fresh) + page.pending < promised
                or (seq is not None and _missing(fresh, last, successor))
                or (start and not await self._deleted(_missing(fresh[1:], fresh[0].seq if fresh else 0)))
            ):
                problem = HistoryLost("a message that was stored cannot be read")
            elif not page.pending and reached < at_least:
                problem = HistoryLost("a message that was stored is gone")
            else:
                if seq is not None:
                    there = bool(page.stored) and page.stored[0].seq == last
                    begin = successor if fresh and fresh[0].seq == successor else 0
                    end = max(reached, 0 if page.pending else at_least)
                    await self._prove(there, max(last, checked), begin, end)
                return Page(fresh, page.pending, page.counted)
        if isinstance(problem, HistoryLost) and self._audit.changing:
            problem = Unavailable("the leader has just changed, and may be behind what a copy has")
        try:
            raise problem
        finally:
            del problem  # or it would keep this frame alive, and with it the last page

    def replay(
        self,
        topic: Topic,
        seq: int | None,
        limit: int,
        size: int,
        whole: bool,
        newest: Callable[[], int | None],
    ) -> Deferred[Replayed]:
        """See :meth:`notify.interfaces.IBroker.replay`. ``newest()`` is the topic's newest number, or None if unknown."""
        work = lambda: Deferred.fromCoroutine(self._replay(topic, seq, limit, size, whole, newest))  # noqa: E731
        return self._queue.do(topic.workspace_id, work)

    def stop(self) -> None:
        """Give up all replays."""
        self._queue.stop()

    @property
    def changing(self) -> bool:
        """Whether the leader may lack messages that another copy has."""
        return self._audit.changing

    @property
    def waiting(self) -> int:
        """The number of replays that wait for their turn."""
        return self._queue.waiting

    async def _replay(
        self,
        topic: Topic,
        seq: int | None,
        limit: int,
        size: int,
        whole: bool,
        newest: Callable[[], int | None],
    ) -> Replayed:
        subject = topic.subject
        # Ask only now that the read begins: callers that share this answer may know of newer messages than when it was queued.
        reach = newest()
        if reach is None or (seq or 0) > reach:
            reach = await self.leader.newest(subject)
        if seq is not None and seq > reach:
            await self._prove_silent(seq)
            return Replayed([], False)
        messages: list[Message] = []
        looked = taken = promised = 0
        place = seq
        while True:
            # Poison counts towards the limit for callers that want all or nothing, as skipping it would otherwise be unbounded.
            room = max(limit - (looked if whole else len(messages)), 1)
            page = await self.after(
                subject,
                place,
                at_least=reach,
                promised=promised,
                limit=min(room, PAGE),
                size=min(max(size - taken, 0), PAGE_BYTES),
            )
            promised = page.promised
            if whole and looked + len(page.stored) + page.pending > limit:
                return Replayed([], True)
            for one in page.stored:
                if messages and (len(messages) == limit or taken + len(one.data) > size):
                    return Replayed([] if whole else messages, True)
                looked += 1
                taken += len(one.data)
                if message := self.parse(topic, one):
                    messages.append(message)
            if not page.pending:
                break
            place = page.stored[-1].seq
            if len(messages) == limit:
                return Replayed(messages, True)
            if looked >= limit + POISON:
                return Replayed(messages, True, Position(self.epoch, place))
        end = page.stored[-1].seq if page.stored else place
        if seq is not None and self.holes.between(end or 0):
            # The missing message may have been the topic's newest.
            raise HistoryLost("messages are missing inside the stream after the position")
        return Replayed(messages, False)

    def parse(self, topic: Topic, one: Stored) -> Message | None:
        """Return the message. None if it is poison, which is reported."""
        try:
            event = parse_event(topic, one.data)
        except Poison as error:
            self._poison(topic, one, str(error))
            return None
        return Message(topic, Position(self.epoch, one.seq), event, 0.0, one.trace, len(one.data))

    async def look(self, subject: str, start: int) -> tuple[int, int]:
        """How many messages a subject has from a number on, and the number of the first; 0, 0 if none. From any copy, so only a hint.

        Raises ``Unavailable``.
        """
        page = await self._page(subject, start, 1, 0)
        return (len(page.stored) + page.pending, page.stored[0].seq) if page.stored else (0, 0)

    async def prove_same(self) -> None:
        """Check that the stream still holds the known history. Raises ``HistoryLost`` if the stream was recreated, ``Unavailable``."""
        await self._state()

    async def _deleted(self, numbers: Sequence[int]) -> bool:
        """Whether all messages with these numbers were deleted: the leader has nothing there."""
        if numbers and any(not self.holes.between(number - 1, number) for number in numbers):
            await self._state()
        return all(self.holes.between(number - 1, number) for number in numbers)

    async def _prove(self, there: bool, known: int, begin: int, end: int) -> None:
        """Prove that nothing has aged out after ``known``, and that nothing is missing between it, or ``begin``, and ``end``.

        ``there``: a message that is not newer than ``known`` is still stored.
        """
        if not there:
            state = await self._state()
            if state.first_seq > known + 1:
                raise HistoryLost("messages after the position are gone")
        if self.holes.between(max(known, begin), end):
            raise HistoryLost("messages are missing inside the stream after the position")

    async def _prove_silent(self, seq: int) -> None:
        """Prove that there was nothing after ``seq``, whose message is gone or never existed."""
        state = await self._state()
        if seq > state.last_seq:
            raise HistoryLost("the position is newer than the newest")
        if state.first_seq > seq + 1 or self.holes.between(seq):
            raise HistoryLost("messages after the position may be gone")

    async def _state(self) -> StreamState:
        state = await self._streams.info()
        if state.created != self.created:
            raise HistoryLost("the history was made anew")
        await self._audit.learn(state)
        return state

    def _page_bytes(self, size: int) -> int:
        """The byte limit of one batch, with room for the largest message: the server sends nothing if the first one exceeds it."""
        return int(max(size, 2 * self._connection.max_payload + 4096))

    async def _page(self, subject: str, last: int, count: int, size: int) -> Page:
        """Up to ``count`` messages from number ``last`` on, oldest first, of about ``size`` bytes in total."""
        bound = self._page_bytes(size)
        request = {"batch": count, "max_bytes": bound, "seq": max(last, 1), "next_by_subj": subject}
        *replies, end = await self._ask(request)
        status = headers.status(end.block)
        if status == 404:
            return Page([], 0)
        if status != 204:
            raise Unavailable(f"history cannot be read: {headers.description(end.block) or status}")
        _check_linked(replies, end)
        page, taken = list[Stored](), 0
        for reply in replies:
            seq = headers.number(reply.block, headers.SEQUENCE)
            page.append(Stored.of(seq, reply.data, reply.block, self.epoch))
            taken += len(reply.data) + len(reply.block) + len(subject) + _FRAMING
        pending = headers.number(end.block, headers.NUM_PENDING)
        counted = sum(1 for one in page if one.seq > last) + pending
        if len(page) < count and taken + self._connection.max_payload < bound:
            # Neither limit ended the answer: this copy can read no more, whatever it has counted.
            pending = 0
        return Page(page, pending, counted)

    async def _page_of_leader(self, subject: str, last: int, count: int, size: int) -> Page:
        """Like :meth:`_page`, but message by message from the leader.

        A copy's answer tells which messages to request at once. If the leader has others, they are requested one by one. The leader
        does not say how many there are, so the copy's count is used.
        """
        try:
            guess = await self._page(subject, last, count, size)
        except Unavailable:
            guess = Page([], 0)
        starts = [max(last, 1), *(one.seq + 1 for one in guess.stored)]
        # All at once: together they are as large as the copy's answer, which was limited.
        answers = await gather(self.leader.next(subject, start, self.epoch) for start in starts)
        given = dict(zip(starts, answers, strict=True))
        page: list[Stored] = []
        start, taken = starts[0], 0
        while len(page) < count and (taken <= size or len(page) < 2):
            one = given[start] if start in given else await self.leader.next(subject, start, self.epoch)
            if one is None:
                return Page(page, 0, guess.counted)
            page.append(one)
            start = one.seq + 1
            taken += len(one.data)
        # A copy that is behind does not show what follows here, and a reader that finds no more would be told of a loss.
        if (given[start] if start in given else await self.leader.next(subject, start, self.epoch)) is None:
            return Page(page, 0, guess.counted)
        return Page(page, max(1, guess.counted - sum(1 for one in page if one.seq > last)), guess.counted)

    def _ask(self, request: dict[str, Any]) -> Deferred[list[Reply]]:
        """A direct get from any copy. An answer with more than was requested is rejected."""
        limit = 2 * request.get("max_bytes", self._page_bytes(PAGE_BYTES))
        return self._connection.gather(self._direct, msgspec.json.encode(request), limit=limit)

    async def _pause(self, attempt: int) -> None:
        await deferLater(self._reactor, _DELAY * 2 ** (attempt - 1), lambda: None)


def _check_linked(replies: Sequence[Reply], end: Reply) -> int:
    """Check that each message of a batch, and its end, names the message before. Returns the last number.

    Raises ``Unavailable`` if a message is missing.
    """
    previous = 0
    for reply in replies:
        if headers.number(reply.block, headers.LAST_SEQUENCE) != previous:
            raise Unavailable("a part of the answer was lost")
        previous = headers.number(reply.block, headers.SEQUENCE)
    if headers.number(end.block, headers.LAST_SEQUENCE) != previous:
        raise Unavailable("the end of the answer was lost")
    return previous


def _missing(messages: list[Stored], last: int, successor: int = 0) -> list[int]:
    """The numbers after ``last`` that messages name as earlier ones but that are absent. What ``successor`` names is not checked."""
    missing = []
    for one in messages:
        if last < one.after < one.seq != successor:
            missing.append(one.after)
        last = one.seq
    return missing
