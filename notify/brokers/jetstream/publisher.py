"""Publishing: many messages in flight within a window, each retried under the same id until its outcome is known.

Messages published for a topic while an earlier one is in flight are sent together if the stream supports it
(:class:`~notify.brokers.jetstream.stream.Together`). Otherwise each is sent once the one before it is settled, because a retry
could overtake it and change the caller's order. A single message is sent immediately; messages published within
:attr:`Publisher.gathering`, such as a list, are sent when that ends. An atomic list (:mod:`atomic`) waits for its turn in the same
queues. Otherwise topics do not wait for each other.

Each message can name an earlier one of its topic, by which a later reader of the history detects that the named one is missing
(:mod:`reader`). Every message has an id, so the server stores it once however often it is sent within the duplicate window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from hashlib import blake2b
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, fail

from notify.brokers.jetstream.fair import Places, Turns
from notify.brokers.jetstream.flight import (
    NO_BATCHES,
    NOT_BEHIND,
    PASSING,
    ROOM,
    After,
    Flight,
    Outgoing,
    Turn,
    batched,
    chained,
    denies,
    may_be_too_large,
    read,
    refusal,
    unsettled,
)
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.stream import Together
from notify.errors import TooLarge, Unavailable, Unknown
from notify.messages import parse_event
from notify.nats import headers
from notify.nats.connection import Gathering
from notify.topics import Topic

_SWEEP = 0.5  # seconds between checks for messages that have waited too long
_MOMENT = 1.0  # seconds within which messages of a topic count as published together
_PAUSE = 0.1  # seconds before a publish is retried that the server could not accept
#: messages of a topic that are sent together, and bytes of their payloads
_MOST = 100
_MOST_BYTES = 2**20
_DENIED = "NATS does not permit notify to publish there"


class _Behind(deque[Outgoing | Turn]):
    """The unsent messages of a topic that has something queued or in flight. ``until`` is the deadline of the last one."""

    until = 0.0


class Publisher:
    """See the module docstring. ``publish`` fires with the number in the stream, and whether the message was stored earlier."""

    def __init__(self, settings: JetStreamSettings, connection: Any, reactor: Any, random: Random) -> None:
        self._settings = settings
        self._connection = connection
        self._reactor = reactor
        self._random = random
        self._window = settings.publish_window
        self._behind: dict[Topic, _Behind] = {}
        #: the topics with something that can be sent
        self._waiting = Turns[Topic]()
        self._flying: dict[Flight, None] = {}
        self._flown = 0
        self._places = Places(settings.publish_window + settings.publish_queue)
        self._round = 0
        self._idle: list[Deferred[None]] = []
        self._sweeper: Any = None
        self._open = False
        self._sending = False
        self._most = _MOST
        #: see :meth:`notify.interfaces.ITogether.together`
        self.gathering = Gathering(self._fill)
        #: what the stream supports, as far as is known
        self.together = Together.NO
        #: how often the stream has shown that it does not support batches
        self.refusals = 0
        #: returns ``Notify-After`` for a topic's next message, or for one that is stored directly ``behind`` another of
        #: its topic; empty: none
        self.after: After = lambda topic, behind: ""
        #: called with the number and the id of each message that the stream has, whoever stored it
        self.stored: Callable[[int, str], None] = lambda seq, message: None

    @property
    def pending(self) -> int:
        """The number of unsettled messages."""
        return self._places.taken

    def publish(
        self, topic: Topic, payload: bytes, key: str | None, trace: str
    ) -> Deferred[tuple[int, bool]]:
        """Store one message. Raises ``Poison``; errbacks like :meth:`notify.interfaces.IBroker.publish`."""
        try:
            one = self.outgoing(topic, payload, key, trace)
            self._check(topic)
        except (TooLarge, Unavailable):
            return fail()
        self._line_up(topic, one, self._reactor.seconds() + self._settings.publish_patience)
        self._fill()
        return one.answer

    def outgoing(self, topic: Topic, payload: bytes, key: str | None, trace: str) -> Outgoing:
        """Build the message to send, with the id by which the stream deduplicates it. Raises ``Poison``, ``TooLarge``."""
        parse_event(topic, payload)
        fields = {"Nats-Expected-Stream": self._settings.stream, "Nats-Msg-Id": self._id(topic, key)}
        if trace:
            fields["traceparent"] = trace
        if may_be_too_large(payload, most := self._connection.max_payload):
            headers.check_size(payload, fields | {headers.AFTER: ROOM}, most)
        return Outgoing(payload, fields)

    def turn(self, topics: Collection[Topic], until: float) -> Turn:
        """Queue for these topics behind what was published before. Later messages wait until :meth:`release`. Raises ``Unavailable``."""
        for topic in topics:
            self._check(topic)
        turn = Turn(topics, until)
        for topic in topics:
            self._line_up(topic, turn, until)
        self._fill()
        return turn

    def release(self, turn: Turn) -> None:
        """Free the topics of a turn that was reached or given up."""
        for topic in turn.had:
            self._places.give_back(topic.workspace_id)
            self._free(topic)
        self._fill()
        self._rest()

    def _check(self, topic: Topic) -> None:
        if not self._open:
            raise Unavailable("the broker is away: nothing was stored")
        if not self._places.room(topic.workspace_id):
            raise Unavailable("too many messages wait to be stored: nothing was stored")

    def _line_up(self, topic: Topic, one: Outgoing | Turn, until: float) -> None:
        self._places.take(topic.workspace_id)
        behind = self._behind.get(topic)
        if behind is None:
            behind = self._behind[topic] = _Behind()
            self._waiting.add(topic.workspace_id, topic)
        if until - behind.until > _MOMENT:
            # (Otherwise they share a deadline: when a list is given up, its last messages must not be sent, and so be stored
            # before those in front of them are retried, just because they were queued a moment later.)
            behind.until = until
        if isinstance(one, Outgoing):
            one.deadline = behind.until
        behind.append(one)

    def open(self) -> None:
        """The connection is new: everything in flight is sent again, the oldest first."""
        self._open = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._round += 1
        self._sending = True  # room that is made meanwhile goes to waiting messages, after these
        try:
            for flight in list(self._flying):
                if flight in self._flying:
                    self._cancel(flight)
                    self._attempt(flight)
        finally:
            self._sending = False
        self._fill()

    def close(self) -> None:
        """The connection is lost. What was sent may be stored; what was not sent waits until its timeout."""
        self._open = False
        self._sweep()
        for flight in self._flying:
            flight.doubt()
            self._expire_later(flight)

    def drain(self) -> Deferred[None]:
        """Fires once nothing is in flight."""
        done: Deferred[None] = Deferred()
        self._idle.append(done)
        self._rest()
        return done

    def _id(self, topic: Topic, key: str | None) -> str:
        # The stream deduplicates ids across all its subjects, and an id is one line of text.
        if key is None:
            return f"{self._random.getrandbits(128):032x}"
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        return f"{topic.workspace_id}.{topic.kind}.{topic.id}.{digest}"

    def _fill(self) -> None:
        if self._sending or self.gathering.depth or not self._waiting:
            return
        self._sending = True
        try:
            with self._connection.gathering:
                self._send_waiting()
        finally:
            self._sending = False

    def _send_waiting(self) -> None:
        while self._open and self._waiting and self._flown < self._window:
            topic = self._waiting.next()
            first = self._behind[topic].popleft()
            if isinstance(first, Turn):
                first.reach(topic)
                continue
            flight = Flight(topic, self._take(first, self._behind[topic]))
            self._flying[flight] = None
            self._flown += len(flight.messages)
            self._attempt(flight)

    def _take(self, first: Outgoing, behind: _Behind) -> list[Outgoing]:
        """Take the first waiting messages of a topic: as many as are sent together."""
        most = 1 if self.together is Together.NO else min(self._most, self._window - self._flown)
        taken, size = [first], len(first.payload)
        while behind and len(taken) < most:
            one = behind[0]
            if isinstance(one, Turn) or size + len(one.payload) > _MOST_BYTES:
                break
            size += len(one.payload)
            taken.append(one)
            behind.popleft()
        return taken

    # ------------------------------------------------------------------ attempts

    def _attempt(self, flight: Flight) -> None:
        """Send the unsettled messages, or the first of them. Answers to earlier attempts are no longer waited for."""
        flight.call = None
        flight.clear()
        now = self._reactor.seconds()
        self._expire(flight, now)
        if not flight.messages:
            return
        first = flight.first = flight.messages[0]
        try:
            self._send(flight)
        except TooLarge as error:  # this server's limit is lower than the previous one's
            self._settle(flight, first, Unknown(str(error)) if first.open else error)
            self._go_on(flight)
            return
        flight.heard = now
        flight.call = self._reactor.callLater(
            min(first.deadline - now, self._settings.request_timeout), self._silent, flight
        )

    def _send(self, flight: Flight) -> None:
        """Send as many of a flight's first messages as can go together. Raises ``TooLarge`` if even one cannot be sent."""
        several = flight.messages[: self._most]
        in_batch = self.together is Together.BATCHED and len(several) > 1
        # The server refuses a batch in which one message is stored already: messages that may be stored are sent one by one.
        if flight.alone or self.together is Together.NO or (in_batch and any(one.open for one in several)):
            several, in_batch = several[:1], False
        topic, most = flight.topic, self._connection.max_payload
        packed: list[dict[str, str]] = []
        if in_batch:
            name = f"{self._random.getrandbits(64):016x}"
            packed = batched(topic, several, self.after, most, name)
        if packed:
            flight.batch, flight.alone = several, True  # one by one, should the batch fail
            self._connection.forget(flight.token)
            flight.token, reply = self._connection.expect(
                lambda answer: self._batch_replied(flight, several, answer)
            )
            replies = [*[""] * (len(several) - 1), reply]
        else:
            packed = chained(topic, several, self.after, most)
            replies = [self._reply(flight, one) for one in several[: len(packed)]]
        flight.sent, flight.several = several[: len(packed)], len(packed) > 1
        subject = topic.subject
        with self._connection.gathering:
            for one, fields, reply in zip(flight.sent, packed, replies, strict=True):
                self._connection.publish(subject, one.payload, reply, fields)

    def _reply(self, flight: Flight, one: Outgoing) -> str:
        if one.round != self._round:  # replies are routed by connection
            one.round = self._round
            one.token, one.reply = self._connection.expect(lambda reply: self._replied(flight, one, reply))
        return one.reply

    def _silent(self, flight: Flight) -> None:
        """The timeout has passed. It counts as a failure only if no answers came meanwhile."""
        now = self._reactor.seconds()
        again = flight.heard + self._settings.request_timeout
        if (left := min(again, flight.messages[0].deadline) - now) > 0:
            flight.call = self._reactor.callLater(left, self._silent, flight)
            return
        flight.doubt()
        self._attempt(flight)

    # ------------------------------------------------------------------ answers

    def _replied(self, flight: Flight, one: Outgoing, reply: Any) -> None:
        ack = read(reply)
        if ack is None or one not in flight.messages:
            return
        flight.heard = self._reactor.seconds()
        if ack.error is None:
            self.stored(ack.seq, one.id)
            self._settle(flight, one, (ack.seq, ack.duplicate))
        elif one in flight.sent and not (one is flight.first and ack.error.err_code == NOT_BEHIND):
            # (Otherwise it answers an attempt in which it was not the first.)
            flight.sent.remove(one)
            if one is not flight.first:
                # Not stored: its predecessor was not, or other messages came in between. It is retried when it is the first.
                flight.broken |= ack.error.err_code == NOT_BEHIND
            elif ack.error.err_code in PASSING:
                flight.paused = True
            else:
                self._settle(
                    flight,
                    one,
                    Unknown(ack.error.description)
                    if one.open or unsettled(ack.error)
                    else refusal(one, ack.error, self._settings.stream),
                )
        self._go_on(flight)

    def _batch_replied(self, flight: Flight, batch: list[Outgoing], reply: Any) -> None:
        ack = read(reply)
        if ack is None or flight.batch is not batch:
            return
        if ack.error is None and ack.count == len(batch) == len(flight.sent):
            for number, one in enumerate(batch, start=ack.seq - ack.count + 1):
                self.stored(number, one.id)
                self._settle(flight, one, (number, False))
        elif ack.error is None:
            # A server without support for batches has stored them one by one.
            flight.doubt()
            self._without_batches()
        elif ack.error.err_code in NO_BATCHES:
            self._without_batches()
        else:
            flight.paused = ack.error.err_code in PASSING
            if unsettled(ack.error):
                flight.doubt()
        flight.sent = []
        self._go_on(flight)

    def _without_batches(self) -> None:
        self.together = Together.NO
        self.refusals += 1

    def _go_on(self, flight: Flight) -> None:
        """A message was settled, answered or denied. Continue with the rest once no more answers are expected."""
        if flight.sent and flight.denied == len(flight.sent):
            for one in flight.sent[:]:
                self._settle(
                    flight,
                    one,
                    Unknown(_DENIED) if one.open else Unavailable(f"{_DENIED}: nothing was stored"),
                )
        if flight.sent or flight not in self._flying:
            return
        self._cancel(flight)
        if not flight.messages:
            self._end(flight)
        elif not self._open:
            self._expire_later(flight)
        elif flight.paused:
            flight.call = self._reactor.callLater(_PAUSE, self._attempt, flight)
        else:
            if flight.broken:
                # Many publishers are active: shorter chains are more likely to be stored.
                self._most = max(2, self._most // 2)
            self._attempt(flight)

    def _end(self, flight: Flight) -> None:
        if flight.several and not flight.broken:
            self._most = min(_MOST, 2 * self._most)
        self._connection.forget(flight.token)
        del self._flying[flight]
        self._free(flight.topic)
        self._fill()
        self._rest()

    def _free(self, topic: Topic) -> None:
        """Nothing of a topic is in flight any more."""
        if self._behind[topic]:
            self._waiting.add(topic.workspace_id, topic)
        else:
            del self._behind[topic]

    def _expire(self, flight: Flight, now: float) -> None:
        """Give up the messages whose timeout has passed: the oldest, which are in front."""
        while flight.messages and flight.messages[0].deadline <= now:
            self._give_up(flight, flight.messages[0])
        if not flight.messages and flight in self._flying:
            self._cancel(flight)
            self._end(flight)

    def _expire_later(self, flight: Flight) -> None:
        """While there is no connection: wait for their timeout."""
        self._cancel(flight)
        flight.sent = []
        now = self._reactor.seconds()
        flight.call = self._reactor.callLater(
            max(0.0, flight.messages[0].deadline - now), self._expire_away, flight
        )

    def _expire_away(self, flight: Flight) -> None:
        self._expire(flight, self._reactor.seconds())
        if flight.messages:
            self._expire_later(flight)

    def _give_up(self, flight: Flight, one: Outgoing) -> None:
        if one.open:
            self._settle(flight, one, Unknown("no answer in time: the message may have been stored"))
        else:
            self._settle(flight, one, Unavailable("the message could not be stored in time"))

    @staticmethod
    def _cancel(flight: Flight) -> None:
        if flight.call is not None and flight.call.active():
            flight.call.cancel()
        flight.call = None

    def _settle(self, flight: Flight, one: Outgoing, outcome: Any) -> None:
        flight.messages.remove(one)
        if one in flight.sent:
            flight.sent.remove(one)
        self._connection.forget(one.token)
        self._flown -= 1
        self._places.give_back(flight.topic.workspace_id)
        if not one.answer.called:
            if isinstance(outcome, Exception):
                one.answer.errback(outcome)
            else:
                one.answer.callback(outcome)

    def _rest(self) -> None:
        if not self._places.taken:
            idle, self._idle = self._idle, []
            for done in idle:
                done.callback(None)

    def _sweep(self) -> None:
        """While there is no connection: refuse messages that have waited too long."""
        self._sweeper = None
        if not self._open and self._refuse(self._reactor.seconds()):
            self._sweeper = self._reactor.callLater(_SWEEP, self._sweep)

    def _refuse(self, until: float) -> bool:
        """Give up unsent messages whose deadline is not after ``until``. Returns whether others still wait."""
        late: list[Outgoing | Turn] = []
        for topic, behind in self._behind.items():
            while behind and behind[0].deadline <= until:
                late.append(behind.popleft())
                self._places.give_back(topic.workspace_id)
        waiting, self._waiting = self._waiting, Turns()
        for topic in waiting:
            if self._behind[topic]:
                self._waiting.add(topic.workspace_id, topic)
            else:
                del self._behind[topic]
        for one in late:
            if not one.answer.called:
                one.answer.errback(Unavailable("the broker is away: nothing was stored"))
        if late:
            self._rest()
        return any(self._behind.values())

    def abort(self) -> None:
        """Give up all messages."""
        self._open = False
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._refuse(float("inf"))
        for flight in list(self._flying):
            for one in flight.messages:
                one.open = True
            self._expire(flight, float("inf"))

    def denied(self, words: str) -> bool:
        """Handle the server's words about a missing permission. Returns whether they concern a message in flight here.

        The server reports each message that it refuses.
        """
        for flight in self._flying:
            if flight.sent and denies(words, flight.topic):
                flight.denied += 1
                self._go_on(flight)
                return True
        return False
