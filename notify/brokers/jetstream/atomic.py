"""Atomic lists: either all messages are stored or none, using the atomic batches of NATS 2.12 (ADR-50).

A list waits until it has its topics to itself (:class:`~notify.brokers.jetstream.flight.Turn`). It is then sent as one batch and
retried under the same ids until its outcome is known. The server refuses a batch as a whole if it knows one of the ids. In that
case each message is sent alone in a way that cannot store it: if the stream has the message, the answer gives its number,
otherwise an error. The messages that the stream does not have are the next batch. So a list of which an attempt without an
answer, another node, or a repeated call has stored all or some messages ends with all of them stored, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from notify.brokers.jetstream.fair import FairQueue, Places
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
    unsettled,
)
from notify.brokers.jetstream.publisher import Publisher
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.errors import AtFault, TooLarge, Unavailable, Unknown, Unsupported
from notify.messages import Draft, Poison
from notify.nats import headers
from notify.nats.asking import NoResponders
from notify.topics import Topic

#: open batches of a node; the server allows 50 per stream for all nodes together
_AT_ONCE = 4
_PAUSE = 0.1  # seconds before a batch is retried that the server could not accept
#: the stream has a message with one of the ids
_KNOWN = 10201
#: a part of the batch was lost, or the leader has changed; too many batches are open
_AGAIN = PASSING | {10176, 10210}
#: storage failed, maybe halfway: nats-server 2.12.8 answers this when it has stored a part
_MIDWAY = frozenset((10002, 10023, 10028, 10047))
#: the number of a batch's message that follows on none: the server drops the batch
_GAP = "1000000"
#: The server knows no rollup of this name. Every stream refuses a message with this header, but only after it has looked up its id.
_STORES_NOTHING = {"Nats-Rollup": "notify-asks"}
#: room for the headers that a batch adds to a message's own
_FIELDS = {
    headers.AFTER: ROOM,
    "Nats-Batch-Id": "x" * 16,
    "Nats-Batch-Sequence": "1000",
    "Nats-Batch-Commit": "1",
}
_UNSUPPORTED = (
    "the stream takes no list as one: that needs allow_atomic = true in [broker.jetstream] "
    "(docs/jetstream.md, Lists); this request stored nothing"
)


class _List:
    """Messages that are to be stored together: each id once, and grouped by topic, so that each can name its predecessor.

    ``places`` maps each id to its index in the caller's list.
    """

    def __init__(self, topics: Sequence[Topic], outgoing: Sequence[Outgoing], deadline: float) -> None:
        messages, self.places = dict[str, tuple[Topic, Outgoing]](), dict[str, int]()
        for place, (topic, one) in enumerate(zip(topics, outgoing, strict=True)):
            messages.setdefault(one.id, (topic, one))
            self.places.setdefault(one.id, place)
        #: the topics, in order of first appearance
        self.topics = {topic: rank for rank, topic in enumerate(dict.fromkeys(topics))}
        self.messages = sorted(messages.values(), key=lambda message: self.topics[message[0]])
        self.deadline = deadline
        #: for each stored id its number, and whether it was stored before
        self.known: dict[str, tuple[int, bool]] = {}
        #: the outcome of an attempt is unknown
        self.doubt = False
        #: some of the list was already in the stream
        self.met = False
        #: fires with the answers to the messages sent
        self.waiting: Deferred[Any] | None = None
        #: how many of them have no answer, and how many NATS does not permit; it does not say which
        self.unanswered = self.denied = 0

    def rest(self) -> list[tuple[Topic, Outgoing]]:
        """The messages that are not known to be stored."""
        return [message for message in self.messages if message[1].id not in self.known]

    def go_on(self) -> None:
        """A message was answered or denied. Stop waiting once no more answers are expected.

        Not at the first report: the others would be taken for reports about what is published next.
        """
        if self.unanswered == self.denied:
            self.give_up()

    def give_up(self) -> None:
        """Wait for no more answers."""
        if self.waiting is not None:
            self.waiting.cancel()

    def over(self, error: Exception) -> Exception:
        """The exception to raise for ``error``, given that the last attempt stored nothing."""
        if self.doubt:
            return Unknown("no answer in time: the list may have been stored")
        if self.met and isinstance(error, Unavailable | Unsupported):
            return Unknown("a part of the list is stored, maybe all of it, and the rest could not be")
        return error


class Atomic:
    """See the module docstring. ``publish_all`` fires with the number of each message, and whether it was stored earlier."""

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
        self._places = Places(most)
        #: whether the stream supports batches; None: it cannot be used now
        self._takes: bool | None = None
        self._opening: list[Deferred[None]] = []
        #: as those of the publisher
        self.after: After = lambda topic, behind: ""
        self.stored: Callable[[int, str], None] = lambda seq, message: None

    def open(self, takes: bool) -> None:
        """The stream can be used; ``takes`` says whether it supports batches."""
        self._takes = takes
        opening, self._opening = self._opening, []
        for one in opening:
            one.callback(None)

    def close(self) -> None:
        """The stream cannot be used now. Unsettled lists are retried once it can be, until their timeout."""
        self._takes = None

    def publish_all(self, drafts: Sequence[Draft]) -> Deferred[list[tuple[int, bool]]]:
        """See :meth:`notify.interfaces.IAtomic.publish_all`."""
        try:
            self._check(drafts)
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
                one.denied += 1
                one.go_on()
                return True
        return False

    def _check(self, drafts: Sequence[Draft]) -> None:
        if self._takes is False:
            raise Unsupported(_UNSUPPORTED)
        counts = Counter(draft.topic.workspace_id for draft in drafts)
        # A list that is larger than all places is accepted where nothing else waits.
        if self._places.taken and not all(self._places.room(*each) for each in counts.items()):
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
        counts = Counter(topic.workspace_id for topic, _ in one.messages)
        for each in counts.items():
            self._places.take(*each)
        tenant = one.messages[0][0].workspace_id
        try:
            await turn.answer
            while one.rest():
                await self._usable(one)
                await self._slots.do(tenant, lambda: Deferred.fromCoroutine(self._attempt(one)))
        finally:
            del self._lists[one]
            for each in counts.items():
                self._places.give_back(*each)
            self._publisher.release(turn)

    async def _usable(self, one: _List) -> None:
        """Wait until the stream can be used. Raises if it does not support batches, or if no time is left."""
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
        """Send the messages not known to be stored as one batch, and record the outcome. Raises if a retry cannot help."""
        if not self._takes or one.deadline <= self._reactor.seconds():
            return  # this changed while the list waited for its turn
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
            # A server without support for batches has stored them one by one.
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
        elif error.err_code in _MIDWAY or unsettled(error):
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
        """Send these messages and return the answer to each; None if there was none or it makes no sense. Gives up after a time of silence."""
        left, silence = max(0.0, one.deadline - self._reactor.seconds()), self._settings.request_timeout
        fields = list(fields)
        replies = [
            self._connection.request(topic.subject, sent.payload, left, more)
            for (topic, sent), more in zip(messages, fields, strict=True)
        ]
        one.unanswered, one.denied = len(replies), 0
        silent = self._reactor.callLater(silence, one.give_up)

        def heard(answer: Any) -> Any:
            if silent.active():
                silent.reset(silence)
            one.unanswered -= 1
            one.go_on()
            return answer

        for reply in replies:
            reply.addBoth(heard)
        one.waiting = DeferredList(replies, consumeErrors=True)
        try:
            answers = await one.waiting
        finally:
            one.waiting = None
            if silent.active():
                silent.cancel()
        if one.denied:
            answered = [place for place, (came, _) in enumerate(answers) if came]
            if answered and answered[-1] < len(messages) - 1:
                self._drop(messages[answered[-1]][0], fields[answered[-1]])
            raise one.over(Unavailable("NATS does not permit notify to publish there: nothing was stored"))
        return [_ack(answer) for _, answer in answers]

    def _drop(self, topic: Topic, fields: dict[str, str]) -> None:
        """Let the server drop a batch without an end, one of whose messages has these headers. No server stores what this sends.

        It would stay open for 10 seconds, and while 50 are open the stream accepts no other.
        """
        if "Nats-Batch-Id" in fields:
            fields = fields | _STORES_NOTHING | {"Nats-Batch-Sequence": _GAP}
            self._connection.publish(topic.subject, b"", "", fields)


def _ack(answer: Any) -> Ack | None:
    if not isinstance(answer, Failure):
        return read(answer)
    if isinstance(answer.value, NoResponders):
        return Ack(error=Error(err_code=NOBODY))
    if isinstance(answer.value, TooLarge):  # this server's limit is lower than the previous one's
        return Ack(error=Error(err_code=OVER_MAX_MSG_SIZE, description=answer.getErrorMessage()))
    return None
