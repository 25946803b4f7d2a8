"""Delivery by a durable consumer of this node: it gets every message of the stream and acknowledges it after dispatch.

Messages are pulled continuously: a pull request is always pending at the server, and messages arrive in a callback.
The consumer numbers its deliveries. As long as these numbers and the stream's have no hole, nothing is missing in any topic.
After a hole the next message of every topic is checked against the stream. This also orders redelivered messages, which are
older than what has been read meanwhile.

The consumer has the node's name. It outlives connections and servers, but not this process: a new process has no clients that
would have to catch up, so it begins with a new consumer at the stream's end.
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

_BATCH = 1000  # messages per pull request; the next one is sent when half of them have come
_EXPIRES = 30.0  # lifetime of a pull request in seconds
_HEARTBEAT = 2.0  # seconds of silence after which the server sends a heartbeat
_NANO = 10**9


class Consumer:
    """The source for ``delivery = "consumer"``.

    ``dead`` is called for a message that was delivered ``max_deliver`` times without being acknowledged.
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
        self._seq = 0  # the stream's number of the last delivery
        self._asked = 0
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._watch: Any = None
        self._advisory: Subscription | None = None
        self._repairing = False
        self._repair_work: Deferred[None] | None = None
        self._stopped = False
        #: see :class:`~notify.brokers.jetstream.republish.Republish`
        self.problem = ""

    def add(self, topic: Topic) -> None:
        """A topic is followed. Nothing to do: the consumer gets all topics."""

    def remove(self, topic: Topic) -> None:
        """A topic is no longer followed: its messages are dropped on arrival."""

    def use(self, live: str) -> None:
        """The subject prefix of republished messages. Not used here."""

    def denied(self, words: str) -> bool:
        """A missing permission. There is no subscription that the consumer can do without."""
        return False

    async def ready(self) -> None:
        """The connection is new: find or create the consumer and continue. Raises ``Unavailable``, ``StartError``."""
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
        # The number of the next delivery: if another comes first, deliveries were missed.
        self._next = int((answer.get("delivered") or {}).get("consumer_seq", 0)) + 1
        have = answer["config"]
        for key in ("ack_policy", "ack_wait", "max_deliver", "filter_subjects", "inactive_threshold"):
            if have.get(key) != config[key]:
                raise StartError(
                    f"consumer {self.name} is not as it was asked for: {key} is {have.get(key)!r}, not {config[key]!r}."
                )

    def _begin(self) -> None:
        """Ask for messages on a new reply subject. Messages in flight to the old one are redelivered."""
        if self._subscription is not None:
            self._connection.unsubscribe(self._subscription)
        self._inbox = self._connection.inbox()
        self._subscription = self._connection.subscribe(self._inbox, self._arrived)
        self._asked = 0
        # Deliveries between the last one received and the next may have been lost in flight.
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
            return  # messages that were in flight when it was stopped
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
        # Everything in the stream is delivered in order. A message deleted before its delivery leaves a hole only in the stream's numbers.
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
            tail.arrived(state, seq, -1, data, block, stamp)  # all headers are the publisher's
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
        """Stop receiving; the server deletes the consumer."""
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
