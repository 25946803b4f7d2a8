"""Lists that are stored as one: all of their messages, or none, as an atomic batch of NATS 2.12 (ADR-50).

A list has its topics to itself (:class:`~notify.brokers.jetstream.flight.Turn`), goes out as one batch, and is repeated under the same
ids until it is known what became of it. A batch in which one id is known already is refused as a whole. Then each message is sent
alone in such a way that it cannot be stored: where the stream has it, it says at which number, and otherwise it objects. What the
stream has not is the next batch. So a list that was stored, wholly or in part, by a try of which nothing was heard, by another
node, or by whoever repeats it, ends with all of it stored, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from notify.brokers.jetstream.fair import FairQueue
from notify.brokers.jetstream.flight import (
    NO_BATCHES,
    NOBODY,
    OVER_MAX_MSG_SIZE,
    PASSING,
    ROOM,
    TOO_MANY,
    Ack,
    After,
    Error,
    Outgoing,
    Turn,
    as_batch,
    denies,
    read,
    refusal,
)
from notify.brokers.jetstream.publisher import Publisher
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.errors import AtFault, TooLarge, Unavailable, Unknown, Unsupported
from notify.messages import Draft, Poison
from notify.nats import headers
from notify.nats.asking import NoResponders
from notify.topics import Topic

#: batches of a node that are open at a time: the server takes 50 a stream, of all nodes
_AT_ONCE = 4
_PAUSE = 0.1  # seconds before a batch is repeated that the server could not take
#: the stream has a message with one of the ids
_KNOWN = 10201
#: a part of the batch did not get there, or the leader has changed; as many batches are open as may be
_AGAIN = PASSING | {10176, 10210}
#: storage has ended, maybe in the middle: nats-server 2.12.8 says so where it has kept a part
_MIDWAY = frozenset((10002, 10023, 10028, 10047))
#: of these the server knows none: a message that has it is refused by any stream, but not before its id was looked up
_STORES_NOTHING = {"Nats-Rollup": "notify-asks"}
#: room for what a batch's messages have beside their own fields
_FIELDS = {
    headers.AFTER: ROOM,
    "Nats-Batch-Id": "x" * 16,
    "Nats-Batch-Sequence": "1000",
    "Nats-Batch-Commit": "1",
}
_UNSUPPORTED = (
    "the stream takes no list as one: that needs NATS 2.12 or later, and allow_atomic switched on "
    "(docs/jetstream.md, Lists); nothing was stored"
)


class _List:
    """Messages that are to be stored as one: each id once, and those of a topic together, so that each can name the one before it.

    ``places`` is of each id where it stands in the caller's list.
    """

    def __init__(self, topics: Sequence[Topic], outgoing: Sequence[Outgoing], deadline: float) -> None:
        messages, self.places = dict[str, tuple[Topic, Outgoing]](), dict[str, int]()
        for place, (topic, one) in enumerate(zip(topics, outgoing, strict=True)):
            messages.setdefault(one.id, (topic, one))
            self.places.setdefault(one.id, place)
        #: in the order in which they came up
        self.topics = {topic: rank for rank, topic in enumerate(dict.fromkeys(topics))}
        self.messages = sorted(messages.values(), key=lambda message: self.topics[message[0]])
        self.deadline = deadline
        #: the number of each id that is stored, and whether it was before
        self.known: dict[str, tuple[int, bool]] = {}
        #: a try was made whose outcome is not known
        self.doubt = False
        #: the stream has some of it, from before
        self.met = False
        #: for answers; and NATS said that it does not permit what they are waited for
        self.waiting: Deferred[Any] | None = None
        self.denied = False

    def rest(self) -> list[tuple[Topic, Outgoing]]:
        """What is not known to be stored."""
        return [message for message in self.messages if message[1].id not in self.known]

    def over(self, error: Exception) -> Exception:
        """What is to be raised for ``error``, by which nothing was stored in the last try."""
        if self.doubt:
            return Unknown("no answer in time: the list may have been stored")
        if self.met and isinstance(error, Unavailable | Unsupported):
            return Unknown("a part of the list is stored, maybe all of it, and the rest could not be")
        return error


class Atomic:
    """See the module. ``publish_all`` fires with the number of each message, and whether it was stored earlier."""

    def __init__(
        self,
        settings: JetStreamSettings,
        connection: Any,
        publisher: Publisher,
        reactor: Any,
        random: Random,
    ) -> None:
        self._settings, self._connection, self._publisher = settings, connection, publisher
        self._reactor, self._random = reactor, random
        most = settings.publish_window + settings.publish_queue
        self._slots: FairQueue[None] = FairQueue(_AT_ONCE, most + 1, _AT_ONCE)
        self._lists: dict[_List, None] = {}
        self._count = 0
        #: whether the stream takes batches; None: it cannot be used now
        self._takes: bool | None = None
        self._opening: list[Deferred[None]] = []
        #: as the publisher's
        self.after: After = lambda topic, behind: ""
        self.stored: Callable[[int, str], None] = lambda seq, message: None

    def open(self, takes: bool) -> None:
        """The stream can be used; ``takes``: it takes batches."""
        self._takes = takes
        opening, self._opening = self._opening, []
        for one in opening:
            one.callback(None)

    def close(self) -> None:
        """It cannot be used now. What is not settled is repeated once it can, within its patience."""
        self._takes = None

    def publish_all(self, drafts: Sequence[Draft]) -> Deferred[list[tuple[int, bool]]]:
        """See :meth:`notify.interfaces.IAtomic.publish_all`."""
        try:
            self._check(len(drafts))
            outgoing = self._outgoing(drafts)
            until = self._reactor.seconds() + self._settings.publish_patience
            one = _List([draft.topic for draft in drafts], outgoing, until)
            turn = self._publisher.turn(one.topics, until)
        except (AtFault, Unavailable, Unsupported):
            return fail()
        answer: Deferred[list[tuple[int, bool]]] = Deferred(lambda _: None)

        def over(outcome: Any) -> None:
            if not answer.called:
                answer.callback(outcome)  # a Failure makes it an errback

        storing = Deferred.fromCoroutine(self._store(one, turn))
        storing.addCallback(lambda _: [one.known[sent.id] for sent in outgoing]).addBoth(over)
        return answer

    def denied(self, words: str) -> bool:
        """See :meth:`~notify.brokers.jetstream.publisher.Publisher.denied`."""
        for one in self._lists:
            if one.waiting is not None and any(denies(words, topic) for topic in one.topics):
                one.denied = True
                one.waiting.cancel()
                return True
        return False

    def _check(self, count: int) -> None:
        if self._takes is False:
            raise Unsupported(_UNSUPPORTED)
        if self._count and self._count + count > self._settings.publish_window + self._settings.publish_queue:
            raise Unavailable("too many messages wait to be stored: nothing was stored")

    def _outgoing(self, drafts: Sequence[Draft]) -> list[Outgoing]:
        """Raises ``AtFault``."""
        made = []
        for place, draft in enumerate(drafts):
            try:
                one = self._publisher.outgoing(draft.topic, draft.payload, draft.idempotency_key, draft.trace)
                headers.check_size(one.payload, one.fields | _FIELDS, self._connection.max_payload)
            except (Poison, TooLarge) as reason:
                raise AtFault(place, reason) from None
            made.append(one)
        return made

    async def _store(self, one: _List, turn: Turn) -> None:
        self._lists[one] = None
        self._count += len(one.messages)
        tenant = one.messages[0][0].workspace_id
        try:
            await turn.answer
            while one.rest():
                await self._usable(one)
                await self._slots.do(tenant, lambda: Deferred.fromCoroutine(self._attempt(one)))
        finally:
            del self._lists[one]
            self._count -= len(one.messages)
            self._publisher.release(turn)

    async def _usable(self, one: _List) -> None:
        """Wait until the stream can be used. Raises what is to be said where it takes no batches, or there is no time left."""
        while self._takes is None or one.deadline <= self._reactor.seconds():
            left = one.deadline - self._reactor.seconds()
            if left <= 0:
                raise one.over(Unavailable("the list could not be stored in time: nothing was stored"))
            opened: Deferred[None] = Deferred()
            self._opening.append(opened)
            try:
                await opened.addTimeout(left, self._reactor)
            except Late:
                self._opening.remove(opened)
        if not self._takes:
            raise one.over(Unsupported(_UNSUPPORTED))

    async def _attempt(self, one: _List) -> None:
        """Send what is not known to be stored as one batch, and find out what became of it, or is to be raised for good."""
        if not self._takes or one.deadline <= self._reactor.seconds():
            return  # it was otherwise before this one waited for its turn
        rest = one.rest()
        name = f"{self._random.getrandbits(64):016x}"
        acks = await self._ask(one, rest, as_batch(rest, self.after, name))
        wrong = next(((place, ack.error) for place, ack in enumerate(acks) if ack and ack.error), None)
        if wrong is not None:
            await self._refused(one, rest, rest[wrong[0]][1], wrong[1])
            return
        last = acks[-1]
        if last is None:
            one.doubt = True
            await self._pause()
        elif last.count != len(rest):
            # A server that knows no batches has taken them one by one.
            one.doubt, self._takes = True, False
        else:
            for number, (_, sent) in enumerate(rest, start=last.seq - last.count + 1):
                self.stored(number, sent.id)
                one.known[sent.id] = number, False

    async def _refused(
        self, one: _List, rest: Sequence[tuple[Topic, Outgoing]], sent: Outgoing, error: Error
    ) -> None:
        if error.err_code == _KNOWN:
            one.met = True
            before = len(one.known)
            fields = [sent.fields | _STORES_NOTHING for _, sent in rest]
            for (_, sent), ack in zip(rest, await self._ask(one, rest, fields), strict=True):
                if ack is not None and ack.error is None:
                    self.stored(ack.seq, sent.id)
                    one.known[sent.id] = ack.seq, True
            if len(one.known) > before:
                return
        elif error.err_code == TOO_MANY:
            raise one.over(TooLarge(f"the list is too long: {error.description}"))
        elif error.err_code in NO_BATCHES:
            raise one.over(Unsupported(_UNSUPPORTED))
        elif error.err_code in _MIDWAY:
            one.doubt = True
            raise one.over(Unavailable(error.description))
        elif error.err_code not in _AGAIN:
            reason = refusal(sent, error, self._settings.stream)
            raise one.over(AtFault(one.places[sent.id], reason) if isinstance(reason, TooLarge) else reason)
        await self._pause()

    def _pause(self) -> Deferred[None]:
        return deferLater(self._reactor, _PAUSE, lambda: None)

    async def _ask(
        self, one: _List, messages: Sequence[tuple[Topic, Outgoing]], fields: Iterable[dict[str, str]]
    ) -> list[Ack | None]:
        """Send these, and give what is answered to each; None: nothing, or nothing that says anything. Only silence is waited for in vain."""
        left, silence = max(0.0, one.deadline - self._reactor.seconds()), self._settings.request_timeout
        replies = [
            self._connection.request(topic.subject, sent.payload, left, more)
            for (topic, sent), more in zip(messages, fields, strict=True)
        ]
        one.waiting = DeferredList(replies, consumeErrors=True)
        silent = self._reactor.callLater(silence, one.waiting.cancel)

        def heard(answer: Any) -> Any:
            if silent.active():
                silent.reset(silence)
            return answer

        for reply in replies:
            reply.addBoth(heard)
        try:
            answers = await one.waiting
        finally:
            one.waiting = None
            if silent.active():
                silent.cancel()
        if one.denied:
            raise one.over(Unavailable("NATS does not permit notify to publish there: nothing was stored"))
        return [_ack(answer) for _, answer in answers]


def _ack(answer: Any) -> Ack | None:
    if not isinstance(answer, Failure):
        return read(answer)
    if isinstance(answer.value, NoResponders):
        return Ack(error=Error(err_code=NOBODY))
    if isinstance(answer.value, TooLarge):  # this server takes less than the one before
        return Ack(error=Error(err_code=OVER_MAX_MSG_SIZE, description=answer.getErrorMessage()))
    return None
