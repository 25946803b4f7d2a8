"""Reads of the history: newest positions, and what came after a position, proven to be without a gap.

Direct gets are answered by any replica, from its own copy: quick, and perhaps stale. So an answer that is
behind what is known to exist is asked for again, and in the end the leader is asked, whose answer counts.

That nothing is missing after a position is shown in one of two ways. The message at the position is still
there: the oldest always go first, so all after it are, too. Or the stream still has every number after it.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from notify.brokers.jetstream.fair import FairQueue
from notify.brokers.jetstream.stream import Streams
from notify.errors import HistoryLost, Unavailable
from notify.messages import Event, Message, Poison, Position, parse_event
from notify.nats import headers
from notify.nats.bridge import gather
from notify.nats.jetstream import NO_MESSAGE, ApiError
from notify.topics import Topic

#: subjects in one lookup of newest positions; one place is for the witness
LOOKUP = 1023
_PAGE = 256  # messages in one batched read
_PAGE_BYTES = 4 * 2**20
_LEADER_PAGE = 32
_ATTEMPTS = 3  # with any replica, before the leader is asked
_LEADER_ATTEMPTS = 2
_DELAY = 0.02  # seconds before the second attempt; doubles
_QUEUE = 100_000  # reads that may wait


class Stored(NamedTuple):
    """One message as the stream has it; ``trace`` is its traceparent or empty."""

    seq: int
    data: bytes
    trace: str


class Newest(NamedTuple):
    """The newest number of each subject that has messages, and how far into the stream the answer reaches.

    ``payloads`` are those of the messages that have these numbers, where they came along.
    """

    found: dict[str, int]
    up_to: int
    payloads: Mapping[str, bytes] = {}

    def event(self, topic: Topic) -> Event | None:
        """A topic's newest event; None: there is none, it is poison, or it did not come along."""
        payload = self.payloads.get(topic.subject)
        if payload is None:
            return None
        try:
            return parse_event(topic, payload)
        except Poison:
            return None


class Reader:
    """See the module. ``poison`` is told of what cannot be parsed: topic, what is stored, and why."""

    def __init__(
        self,
        connection: Any,
        streams: Streams,
        stream: str,
        reactor: Any,
        reads: int,
        poison: Callable[[Topic, Stored, str], None],
    ) -> None:
        self._connection = connection
        self._streams = streams
        self._direct = f"$JS.API.DIRECT.GET.{stream}"
        self._leader = f"STREAM.MSG.GET.{stream}"
        self._reactor = reactor
        self._poison = poison
        self._queue: FairQueue[list[Message]] = FairQueue(reads, _QUEUE)
        self._witness = ""
        self.epoch = ""

    async def newest(self, subjects: Sequence[str], since: int = 1, at_least: int = 0) -> Newest:
        """The newest numbers of up to ``LOOKUP`` subjects, of those that are ``since`` or more.

        The answer reaches to number ``at_least`` of the stream. Raises ``Unavailable``.
        """
        # A subject that surely has messages makes the server say how far its answer reaches.
        asked = [*subjects, self._witness] if self._witness else list(subjects)
        body = msgspec.json.encode({"multi_last": asked, "seq": since})
        problem = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                await self._pause(attempt)
            try:
                *replies, end = await self._connection.gather(self._direct, body)
            except Unavailable as error:
                problem = str(error)
                continue
            status = headers.status(end.block)
            up_to = headers.number(end.block, headers.UP_TO_SEQUENCE)
            if status not in (204, 404):
                problem = headers.description(end.block) or f"status {status}"
            elif up_to and up_to < at_least:
                problem = "a replica is behind"
            else:
                answers = {headers.text(reply.block, headers.SUBJECT): reply for reply in replies}
                if answers:
                    self._witness = next(iter(answers))
                known = {subject: answers[subject] for subject in subjects if subject in answers}
                return Newest(
                    {one: headers.number(reply.block, headers.SEQUENCE) for one, reply in known.items()},
                    up_to,
                    {one: reply.data for one, reply in known.items()},
                )
        try:
            numbers = await gather(self.newest_at_leader(subject) for subject in subjects)
        except Unavailable:
            raise Unavailable(f"newest positions cannot be read: {problem}") from None
        return Newest({s: n for s, n in zip(subjects, numbers, strict=True) if n >= since}, at_least)

    async def newest_at_leader(self, subject: str) -> int:
        """The newest number of one subject, 0 for none, as the stream's leader has it. Raises ``Unavailable``."""
        try:
            answer = await self._streams.api(self._leader, {"last_by_subj": subject})
        except ApiError as error:
            if error.code == 404 and error.number == NO_MESSAGE:
                return 0
            raise Unavailable(f"stream: {error}") from None
        return int(answer["message"]["seq"])

    async def after(
        self,
        subject: str,
        seq: int | None,
        *,
        checked: int = 0,
        at_least: int = 0,
        limit: int = 0,
        successor: int = 0,
    ) -> list[Stored]:
        """All messages of a subject after ``seq``, or the first ``limit``, complete up to number ``at_least``.

        ``seq`` None: from the oldest that is kept. ``checked``: up to here nothing came after ``seq``.
        ``successor``: a message before which, when it was stored, the subject had nothing newer than ``seq``. Raises
        ``HistoryLost`` where that cannot be shown to be all, ``Unavailable``.
        """
        stored: list[Stored] = []
        last, attempt = seq or 0, 0
        proven = seq is None
        while True:
            if attempt:
                await self._pause(attempt)
            leads = attempt >= _ATTEMPTS
            try:
                wanted = min(_PAGE, limit - len(stored) + 1) if limit else _PAGE
                read = self._page_of_leader if leads else self._page
                page, more = await read(subject, max(last, 1), wanted)
            except Unavailable:
                attempt += 1
                if attempt >= _ATTEMPTS + _LEADER_ATTEMPTS:
                    raise
                continue
            if not proven and not (page and page[0].seq == last):
                # A lower number stands before the successor where the message at ``seq`` was deleted.
                await self._prove(max(last, checked), whole=bool(page) and page[0].seq == successor)
            fresh = [message for message in page if message.seq > last]
            if fresh:
                stored += fresh
                last, proven = fresh[-1].seq, False
            if limit and len(stored) >= limit:
                return stored[:limit]
            if more:
                continue
            if last >= at_least:
                return stored
            if leads:
                raise HistoryLost("a message that was stored is gone")
            attempt += 1

    def replay(
        self, topic: Topic, seq: int | None, limit: int, newest: int | None
    ) -> Deferred[list[Message]]:
        """See :meth:`notify.interfaces.IBroker.replay`. ``newest``: the topic's newest number, where it is known."""
        work = lambda: Deferred.fromCoroutine(self._replay(topic, seq, limit, newest))  # noqa: E731
        return self._queue.do(topic.workspace_id, (topic, seq, limit), work)

    async def at(self, seq: int) -> tuple[str, bytes]:
        """Subject and payload of one message of the stream. Raises ``HistoryLost``, ``Unavailable``."""
        try:
            answer = await self._streams.api(self._leader, {"seq": seq})
        except ApiError as error:
            raise HistoryLost(f"number {seq}: {error}") from None
        return answer["message"]["subject"], b64decode(answer["message"].get("data", ""))

    def stop(self) -> None:
        """Give up all replays."""
        self._queue.stop()

    @property
    def waiting(self) -> int:
        """How many replays wait for their turn."""
        return self._queue.waiting

    async def _replay(self, topic: Topic, seq: int | None, limit: int, newest: int | None) -> list[Message]:
        subject = topic.subject
        if newest is None or (seq or 0) > newest:
            newest = await self.newest_at_leader(subject)
        if seq is not None and not 0 <= seq <= newest:
            raise HistoryLost("the position is newer than the newest, or its message is gone")
        messages: list[Message] = []
        while True:
            wanted = max(limit - len(messages), 1)
            stored = await self.after(subject, seq, at_least=newest, limit=wanted)
            for one in stored:
                try:
                    event = parse_event(topic, one.data)
                except Poison as error:
                    self._poison(topic, one, str(error))
                else:
                    messages.append(
                        Message(topic, Position(self.epoch, one.seq), event, 0.0, one.trace, len(one.data))
                    )
            if len(stored) < wanted or len(messages) >= limit:
                return messages[:limit]
            seq = stored[-1].seq

    async def _prove(self, known: int, whole: bool) -> None:
        """Nothing is missing up to ``known``; ``whole``: and from there on nothing can be but what aged out."""
        state = await self._streams.info()
        if state.epoch != self.epoch:
            raise HistoryLost("the history was made anew")
        if not (whole or state.whole) or state.first_seq > known + 1:
            raise HistoryLost("messages after the position are gone")

    async def _page(self, subject: str, start: int, count: int) -> tuple[list[Stored], bool]:
        """Up to ``count`` messages from a number on, oldest first, and whether there are more behind them."""
        request = {"batch": count, "max_bytes": _PAGE_BYTES, "seq": start, "next_by_subj": subject}
        *replies, end = await self._connection.gather(self._direct, msgspec.json.encode(request))
        status = headers.status(end.block)
        if status == 404:
            return [], False
        if status != 204:
            raise Unavailable(f"history cannot be read: {headers.description(end.block) or status}")
        page, previous = [], 0
        for reply in replies:
            if headers.number(reply.block, headers.LAST_SEQUENCE) != previous:
                raise Unavailable("a part of the answer was lost")
            previous = headers.number(reply.block, headers.SEQUENCE)
            page.append(Stored(previous, reply.data, headers.trace(reply.block)))
        if headers.number(end.block, headers.LAST_SEQUENCE) != previous:
            raise Unavailable("the end of the answer was lost")
        return page, headers.number(end.block, headers.NUM_PENDING) > 0

    async def _page_of_leader(self, subject: str, start: int, count: int) -> tuple[list[Stored], bool]:
        """Like :meth:`_page`, one by one, from the leader."""
        page: list[Stored] = []
        while len(page) < min(count, _LEADER_PAGE):
            try:
                answer = await self._streams.api(self._leader, {"seq": start, "next_by_subj": subject})
            except ApiError as error:
                if error.code == 404 and error.number == NO_MESSAGE:
                    return page, False
                raise Unavailable(f"history cannot be read: {error}") from None
            message = answer["message"]
            block = b64decode(message.get("hdrs", ""))
            page.append(Stored(message["seq"], b64decode(message.get("data", "")), headers.trace(block)))
            start = message["seq"] + 1
        return page, True

    async def _pause(self, attempt: int) -> None:
        await deferLater(self._reactor, _DELAY * 2 ** (attempt - 1), lambda: None)
