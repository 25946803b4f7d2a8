"""Delivery by a durable consumer of this node's own: every message of the stream, acknowledged after dispatch.

Pulled continuously: there is always a request for more at the server, and what it sends comes to a callback.
The consumer numbers its deliveries; while these and the stream's numbers come without a hole nothing is missing, in whatever
topic.
After a hole every topic's next message is checked against the stream, which also puts redelivered messages in
their place: they are older than what has been read meanwhile.

The consumer's name is the node's. It outlives connections and servers, but not this process: without clients
there is nobody to catch up for, so a new process begins with a new consumer at the stream's end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.stream import SUBJECTS, Streams
from notify.brokers.jetstream.tail import Tail
from notify.errors import StartError, Unavailable
from notify.nats import headers
from notify.nats.connection import Connection, Subscription
from notify.nats.jetstream import STREAM_NOT_FOUND, ApiError
from notify.topics import Topic

_BATCH = 1000  # messages asked for at once; asked again when half of them have come
_EXPIRES = 30.0  # seconds that a request for messages lives
_HEARTBEAT = 2.0  # seconds of silence after which the server says that it is there
_NANO = 10**9


class Consumer:
    """The source of ``delivery = "consumer"``.

    ``dead`` is told of a message that was delivered ``max_deliver`` times without being acknowledged.
    """

    log = Logger()

    def __init__(
        self,
        settings: JetStreamSettings,
        connection: Connection,
        streams: Streams,
        tail: Tail,
        reactor: Any,
        node: str,
        dead: Callable[[int, str], None],
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._streams = streams
        self._tail = tail
        self._reactor = reactor
        self._dead = dead
        self.name = "notify-" + re.sub(r"[^A-Za-z0-9_-]", "_", node)
        self._made = False
        self._next = 0
        self._seq = 0  # in the stream, of the last delivery
        self._asked = 0
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._watch: Any = None
        self._advisory: Subscription | None = None
        self._repairing = False
        self._repair_work: Deferred[None] | None = None
        self._stopped = False

    def add(self, topic: Topic) -> None:
        """A topic is followed: the consumer has it anyway."""

    def remove(self, topic: Topic) -> None:
        """A topic is followed no more: it is dropped on arrival."""

    def use(self, live: str) -> None:
        """Where messages are sent on does not matter here."""

    async def ready(self) -> None:
        """The connection is new: find or make the consumer and go on. Raises ``Unavailable``, ``StartError``."""
        s = self._settings
        if self._advisory is None:
            self._advisory = self._connection.subscribe(
                f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{s.stream}.{self.name}", self._advised
            )
        if not self._made:
            try:
                await self._streams.api(f"CONSUMER.DELETE.{s.stream}.{self.name}")
            except ApiError as error:
                if error.code != 404:
                    raise Unavailable(f"consumer {self.name}: {error}") from None
        await self._make()
        self._made = True
        self._begin()

    async def _make(self) -> None:
        s = self._settings
        config = {
            "name": self.name,
            "durable_name": self.name,
            "deliver_policy": "new",
            "ack_policy": "explicit",
            "ack_wait": round(s.ack_wait * _NANO),
            "max_deliver": s.max_deliver,
            "max_ack_pending": 10 * _BATCH,
            "filter_subjects": list(SUBJECTS),
            "inactive_threshold": round(s.inactive_threshold * _NANO),
            "replay_policy": "instant",
        }
        call = f"CONSUMER.CREATE.{s.stream}.{self.name}"
        try:
            answer = await self._streams.api(call, {"stream_name": s.stream, "config": config})
        except ApiError as error:
            if error.code >= 500 or error.number == STREAM_NOT_FOUND:
                raise Unavailable(f"consumer {self.name}: {error}") from None
            raise StartError(f"consumer {self.name} cannot be made: NATS says: {error}.") from None
        # The number of the next delivery: one that does not come first shows that others were missed.
        self._next = int((answer.get("delivered") or {}).get("consumer_seq", 0)) + 1
        have = answer["config"]
        for key in ("ack_policy", "ack_wait", "max_deliver", "filter_subjects", "inactive_threshold"):
            if have.get(key) != config[key]:
                raise StartError(
                    f"consumer {self.name} is not as it was asked for: {key} is {have.get(key)!r}, not {config[key]!r}."
                )

    def _begin(self) -> None:
        """Ask for messages on a new reply subject; what was under way to the old one comes again."""
        if self._subscription is not None:
            self._connection.unsubscribe(self._subscription)
        self._inbox = self._connection.inbox()
        self._subscription = self._connection.subscribe(self._inbox, self._arrived)
        self._asked = 0
        # Deliveries between the last one that came and the first one to come may have been lost on the way.
        self._tail.doubt()
        self._ask(_BATCH)
        self._heard()

    def _ask(self, count: int) -> None:
        self._asked += count
        body = {
            "batch": count,
            "expires": round(_EXPIRES * _NANO),
            "idle_heartbeat": round(_HEARTBEAT * _NANO),
        }
        self._connection.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.stream}.{self.name}",
            msgspec.json.encode(body),
            self._inbox,
        )

    def _heard(self) -> None:
        if self._stopped:
            return  # what was under way when it was told to stop
        if self._watch is not None and self._watch.active():
            self._watch.reset(3 * _HEARTBEAT)
        else:
            self._watch = self._reactor.callLater(3 * _HEARTBEAT, self._repair, "the consumer is silent")

    def _arrived(self, subject: bytes, ack: str, data: bytes, block: bytes) -> None:
        self._heard()
        if not ack:
            self._status(block)
            return
        parts = ack.split(".")
        try:
            first = 5 if len(parts) == 9 else 7
            seq, number, stamp = (int(part) for part in parts[first : first + 3])
        except ValueError:
            return
        # All that the stream has is delivered, in its order: what was removed before its turn leaves a hole in its numbers alone.
        if number != self._next or (self._seq and seq > self._seq + 1):
            self._tail.doubt()
        self._next, self._seq = number + 1, max(self._seq, seq)
        self._asked -= 1
        if self._asked <= _BATCH // 2:
            self._ask(_BATCH // 2)
        tail = self._tail
        if seq > tail.highest:
            tail.highest = seq
        state = tail.states.get(subject)
        if state is not None:
            tail.arrived(state, seq, -1, data, block, stamp)  # the headers are all its publisher's
        self._connection.publish(ack, b"+ACK")

    def _status(self, block: bytes) -> None:
        status, words = headers.status(block), headers.description(block)
        if status == 100:
            return
        if status == 408 or (status == 409 and words.startswith(("Batch Completed", "Message Size"))):
            self._asked -= headers.number(block, b"\r\nNats-Pending-Messages: ")
            if self._asked <= _BATCH // 2:
                self._ask(_BATCH // 2)
        else:
            self._repair(words or f"status {status}")

    def _repair(self, reason: str) -> None:
        if not self._repairing and not self._stopped and self._connection.connected:
            self._repairing = True
            self.log.warn("the consumer is made again: {reason}", reason=reason)
            self._repair_work = Deferred.fromCoroutine(self._repaired())
            self._repair_work.addErrback(self._repair_failed)

    def _repair_failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self.log.failure("the consumer could not be made again", failure)

    async def _repaired(self) -> None:
        pause = 0.1
        try:
            while self._connection.connected and not self._stopped:
                try:
                    await self._make()
                    self._begin()
                    await self._tail.check(0.0)
                    return
                except (Unavailable, StartError) as error:
                    self.log.info("the consumer is not there yet: {reason}", reason=str(error))
                    await deferLater(self._reactor, pause, lambda: None)
                    pause = min(2 * pause, 2.0)
        finally:
            self._repairing = False

    def _advised(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        try:
            advice = msgspec.json.decode(data)
            seq, times = int(advice["stream_seq"]), int(advice.get("deliveries", 0))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            return
        self._dead(seq, f"delivered {times} times without being acknowledged by {self.name}")

    async def stop(self) -> None:
        """No more messages; the server forgets the consumer."""
        self._stopped = True
        if self._repair_work is not None:
            self._repair_work.cancel()
        if self._watch is not None and self._watch.active():
            self._watch.cancel()
        for subscription in (self._subscription, self._advisory):
            if subscription is not None:
                self._connection.unsubscribe(subscription)
        if self._connection.connected and self._made:
            try:
                await self._streams.api(f"CONSUMER.DELETE.{self._settings.stream}.{self.name}", timeout=0.5)
            except (ApiError, Unavailable):
                pass
