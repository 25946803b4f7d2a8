"""Publishing: many at once within a window, each retried under the same id until its outcome is known.

Within one topic the next goes out when the one before it is settled: a retry could otherwise overtake, and a
caller's order be lost. So each can name one that was there before it: whoever reads the history later finds out by that
where one is missing (:mod:`reader`). Topics do not wait for each other. Every message has an id, so that the server stores it
once however often it is sent within the duplicate window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Any

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred, fail

from notify.brokers.jetstream.settings import JetStreamSettings
from notify.errors import TooLarge, Unavailable, Unknown
from notify.messages import parse_event
from notify.nats import headers
from notify.topics import Topic

_ROOM = "x" * 37  # for an epoch, a dot and a number
_SWEEP = 0.5  # seconds between looks at what has waited for too long
_MOMENT = 1.0  # seconds: who has less left than this has no time of its own behind one that was given up
_PAUSE = 0.1  # seconds before a publish is repeated that the server could not take
#: refusals that pass: the message is repeated. Others are answered at once: nothing was stored.
_PASSING = frozenset({10008, 10009, 10158})
_OVER_MAX_MSG_SIZE = 10054
_SEALED = 10109


class _Error(Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(Struct):
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_ack = msgspec.json.Decoder(_Ack)


class _Publish:
    """One message on its way."""

    __slots__ = (
        "answer",
        "call",
        "deadline",
        "fields",
        "open",
        "payload",
        "reply",
        "round",
        "token",
        "topic",
    )

    def __init__(self, topic: Topic, payload: bytes, fields: dict[str, str]) -> None:
        self.topic = topic
        self.payload = payload
        self.fields = fields
        self.answer: Deferred[tuple[int, bool]] = Deferred(lambda _: None)
        self.deadline = 0.0
        #: an attempt was made whose outcome is not known
        self.open = False
        self.call: Any = None
        self.token = b""
        self.reply = ""
        self.round = -1


class Publisher:
    """See the module. ``publish`` fires with the number in the stream, and whether it was stored earlier."""

    def __init__(self, settings: JetStreamSettings, connection: Any, reactor: Any, random: Random) -> None:
        self._settings = settings
        self._connection = connection
        self._reactor = reactor
        self._random = random
        self._window = settings.publish_window
        self._waiting: deque[_Publish] = deque()
        self._behind: dict[Topic, deque[_Publish]] = {}
        self._flying: dict[_Publish, None] = {}
        self._count = 0
        self._round = 0
        self._idle: list[Deferred[None]] = []
        self._sweeper: Any = None
        self._open = False
        self._sending = False
        #: what ``Notify-After`` says of a topic's next message; empty: nothing
        self.after: Callable[[Topic], str] = lambda topic: ""
        #: told the number and the id of each message that the stream has, whoever stored it
        self.stored: Callable[[int, str], None] = lambda seq, message: None

    @property
    def pending(self) -> int:
        """How many are not settled."""
        return self._count

    def publish(
        self, topic: Topic, payload: bytes, key: str | None, trace: str
    ) -> Deferred[tuple[int, bool]]:
        """Store one message. Raises ``Poison``; errbacks like :meth:`notify.interfaces.IBroker.publish`."""
        parse_event(topic, payload)
        if not self._open:
            return fail(Unavailable("the broker is away: nothing was stored"))
        if self._count >= self._window + self._settings.publish_queue:
            return fail(Unavailable("too many messages wait to be stored: nothing was stored"))
        fields = {"Nats-Expected-Stream": self._settings.stream, "Nats-Msg-Id": self._id(topic, key)}
        if trace:
            fields["traceparent"] = trace
        fields[headers.AFTER] = _ROOM
        try:
            headers.check_size(payload, fields, self._connection.max_payload)
        except TooLarge:
            return fail()
        one = _Publish(topic, payload, fields)
        one.deadline = self._reactor.seconds() + self._settings.publish_patience
        self._count += 1
        if topic in self._behind:
            self._behind[topic].append(one)
        else:
            self._behind[topic] = deque()
            self._waiting.append(one)
            self._fill()
        return one.answer

    def open(self) -> None:
        """There is a new client: everything on its way is sent again, the oldest first."""
        self._open = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._round += 1
        self._sending = True  # what is settled meanwhile makes room for what waits: that goes out behind
        try:
            for one in list(self._flying):
                if one in self._flying:
                    self._cancel(one)
                    self._attempt(one)
        finally:
            self._sending = False
        self._fill()

    def close(self) -> None:
        """There is no client. What was sent may have been stored; what was not waits, within its patience."""
        self._open = False
        self._sweep()
        for one in self._flying:
            one.open = True
            self._cancel(one)
            one.call = self._reactor.callLater(
                max(0.0, one.deadline - self._reactor.seconds()), self._give_up, one
            )

    def drain(self) -> Deferred[None]:
        """Fires once nothing is on its way."""
        done: Deferred[None] = Deferred()
        self._idle.append(done)
        self._rest()
        return done

    def _id(self, topic: Topic, key: str | None) -> str:
        # The stream knows ids across all its subjects, and an id is one line of text.
        if key is None:
            return f"{self._random.getrandbits(128):032x}"
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        return f"{topic.workspace_id}.{topic.kind}.{topic.id}.{digest}"

    def _fill(self) -> None:
        if self._sending:
            return
        self._sending = True
        try:
            while self._open and self._waiting and len(self._flying) < self._window:
                one = self._waiting.popleft()
                self._flying[one] = None
                self._attempt(one)
        finally:
            self._sending = False

    def _attempt(self, one: _Publish) -> None:
        one.call = None
        left = one.deadline - self._reactor.seconds()
        if left <= 0:
            self._give_up(one)
            return
        if one.round < 0:
            # Only now: those before it in its topic have been settled.
            if after := self.after(one.topic):
                one.fields[headers.AFTER] = after
            else:
                del one.fields[headers.AFTER]
        if one.round != self._round:  # replies find their way by connection
            one.round = self._round
            one.token, one.reply = self._connection.expect(lambda reply: self._replied(one, reply))
        try:
            self._connection.publish(one.topic.subject, one.payload, one.reply, one.fields)
        except TooLarge as error:  # this server takes less than the one before
            self._settle(one, Unknown(str(error)) if one.open else error)
            return
        one.call = self._reactor.callLater(min(left, self._settings.request_timeout), self._timed_out, one)

    def _timed_out(self, one: _Publish) -> None:
        one.open = True
        if self._open:
            self._attempt(one)
        else:
            self._give_up(one)

    def _replied(self, one: _Publish, reply: Any) -> None:
        if one not in self._flying:
            return
        if headers.status(reply.block) == 503:
            self._again(one)
            return
        try:
            ack = _ack.decode(reply.data)
        except msgspec.DecodeError:
            return
        if ack.error is None and ack.seq:
            self.stored(ack.seq, one.fields["Nats-Msg-Id"])
            self._settle(one, (ack.seq, ack.duplicate))
        elif ack.error is not None and ack.error.err_code in _PASSING:
            self._again(one)
        elif ack.error is not None:
            self._settle(one, Unknown(ack.error.description) if one.open else self._refused(one, ack.error))

    def _refused(self, one: _Publish, error: _Error) -> Exception:
        stream = self._settings.stream
        if error.err_code == _OVER_MAX_MSG_SIZE:
            needed = headers.size(one.payload, one.fields)
            return TooLarge(
                f"the message has {needed} bytes, headers included, over max_msg_size of the stream {stream}"
            )
        if error.err_code == _SEALED:
            return Unavailable(f"the message was not stored: the stream {stream} is sealed, for good")
        return Unavailable(f"the message was not stored: {error.description}")

    def _again(self, one: _Publish) -> None:
        self._cancel(one)
        one.call = self._reactor.callLater(_PAUSE, self._attempt, one)

    def _give_up(self, one: _Publish) -> None:
        one.call = None
        # Those of a list came moments later, and would be sent for these: stored, perhaps, before the first is repeated.
        behind, until, late = self._behind[one.topic], self._reactor.seconds() + _MOMENT, list[_Publish]()
        while behind and behind[0].deadline <= until:
            late.append(behind.popleft())
        self._count -= len(late)
        if one.open:
            self._settle(one, Unknown("no answer in time: the message may have been stored"))
        else:
            self._settle(one, Unavailable("the message could not be stored in time"))
        for each in late:
            if not each.answer.called:
                each.answer.errback(Unavailable("the message could not be stored in time"))
        if late:
            self._rest()

    def _cancel(self, one: _Publish) -> None:
        if one.call is not None and one.call.active():
            one.call.cancel()
        one.call = None

    def _settle(self, one: _Publish, outcome: Any) -> None:
        self._cancel(one)
        self._connection.forget(one.token)
        del self._flying[one]
        self._count -= 1
        behind = self._behind[one.topic]
        if behind:
            self._waiting.append(behind.popleft())
        else:
            del self._behind[one.topic]
        if not one.answer.called:
            if isinstance(outcome, Exception):
                one.answer.errback(outcome)
            else:
                one.answer.callback(outcome)
        self._fill()
        self._rest()

    def _rest(self) -> None:
        if not self._count:
            idle, self._idle = self._idle, []
            for done in idle:
                done.callback(None)

    def _sweep(self) -> None:
        """While there is no client: refuse what has waited for too long."""
        self._sweeper = None
        if not self._open and self._refuse(self._reactor.seconds()):
            self._sweeper = self._reactor.callLater(_SWEEP, self._sweep)

    def _refuse(self, until: float) -> bool:
        """Give up what was never sent and has its deadline by then; whether others still wait."""
        late = [one for one in self._waiting if one.deadline <= until]
        for behind in self._behind.values():
            while behind and behind[0].deadline <= until:
                late.append(behind.popleft())
        for one in late:
            self._count -= 1
            if one in self._waiting:
                self._waiting.remove(one)
                if behind := self._behind[one.topic]:
                    self._waiting.append(behind.popleft())
                else:
                    del self._behind[one.topic]
        for one in late:
            if not one.answer.called:
                one.answer.errback(Unavailable("the broker is away: nothing was stored"))
        if late:
            self._rest()
        return bool(self._waiting) or any(self._behind.values())

    def abort(self) -> None:
        """Give up everything."""
        self._open = False
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._refuse(float("inf"))
        for one in list(self._flying):
            one.open = True
            self._cancel(one)
            self._give_up(one)

    def denied(self, words: str) -> bool:
        """The server's words on a missing permission: whether they are about messages on their way here."""
        for one in list(self._flying):
            if f'publish to "{one.topic.subject}"' in words:
                self._settle(
                    one, Unavailable("NATS does not permit notify to publish there: nothing was stored")
                )
                return True
        return False
