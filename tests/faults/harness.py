"""Load, followers that behave like clients, and the verdict on what reached them.

The truth is what the stream holds at the end. Every follower must have got each message after its first position
once and in order, or have been told that history was lost.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.config import Duration
from notify.errors import HistoryLost, Unavailable, Unknown
from notify.messages import Message, Position
from notify.testing import chat_payload, make_context
from notify.topics import Topic, chat
from tests.support.natsd import pause, until

TABLE = (
    "scenario",
    "published",
    "acknowledged",
    "unknown",
    "refused",
    "stored",
    "delivered",
    "lost",
    "told lost",
    "duplicated",
    "out of order",
    "noticed s",
    "caught up s",
)
ROWS: list[tuple[Any, ...]] = []


def make_broker(urls: tuple[str, ...], node: str, **settings: Any) -> JetStreamBroker:
    """A broker with short intervals."""
    defaults: dict[str, Any] = {
        "servers": urls,
        "canary_interval": Duration(0.5),
        "check_interval": Duration(1),
        "request_timeout": Duration(1),
        "connect_timeout": Duration(1),
    }
    context = make_context(reactor, node=node, seed=hash(node) & 0xFFFF)
    return JetStreamBroker(JetStreamSettings(**(defaults | settings)), context)


class Got(NamedTuple):
    """A message that reached a client: its position, and its id, which is its number in the load."""

    position: Position
    number: Any


class Told(NamedTuple):
    """A client was told that history was lost: the position where it goes on, and the time (monotonic seconds)."""

    position: Position
    when: float


class Follower:
    """A node with one client per topic, each of which resumes from its position on ``lost``, as a real client does."""

    def __init__(self, broker: JetStreamBroker, topics: list[Topic]) -> None:
        self.broker = broker
        self.topics = topics
        self.begin: dict[Topic, int] = {}
        self.got: dict[Topic, list[tuple[str, int]]] = {topic: [] for topic in topics}
        #: what each client saw, in order: see ``promise.py``
        self.story: dict[Topic, list[Got | Told]] = {topic: [] for topic in topics}
        #: for each time a client was told to reload: its last position, and the position where it goes on
        self.told: dict[Topic, list[tuple[Position, Position]]] = {topic: [] for topic in topics}
        self.at: dict[Topic, Position] = {}
        self.live: dict[Topic, bool] = {}
        #: live messages that arrive while a replay is under way
        self.held: dict[Topic, list[Message]] = {}
        self._up = True
        self._connects = 1.0
        self.noticed: list[float] = []
        self._resuming: dict[Topic, Deferred[None]] = {}
        self._watch = LoopingCall(self._look)
        self.stopped = False

    async def start(self) -> Follower:
        """Start the broker and follow all topics."""
        await self.broker.start(self.deliver, self.lost)
        for topic in self.topics:
            position = (await self.broker.follow(topic)).position
            self.begin[topic] = position.seq
            self.at[topic] = position
            self.live[topic] = True
        self._watch.start(0.01)
        return self

    @property
    def connects(self) -> float:
        """How many times the broker has connected."""
        return self.broker._metrics.broker_connects._value.get()

    def _look(self) -> None:
        ready, connects = self.broker.status().ready, self.connects
        if (self._up and not ready) or connects > self._connects:
            self.noticed.append(time.monotonic())
        self._up, self._connects = ready, connects

    def deliver(self, message: Message) -> None:
        """Take a live message."""
        if message.topic in self.held:
            self.held[message.topic].append(message)
        elif self.live[message.topic]:
            self._got(message)

    def _got(self, message: Message) -> None:
        self.got[message.topic].append((message.position.epoch, message.position.seq))
        self.at[message.topic] = message.position
        self.story[message.topic].append(Got(message.position, message.event.message_id))

    def lost(self, topic: Topic) -> None:
        """Handle a loss of continuity: reconnect and resume."""
        self.live[topic] = False
        self.noticed.append(time.monotonic())
        if not self.stopped:
            # Cancel a resumption that is under way, as when a client's connection ends again. Two of them would
            # take held messages from each other, and would process live messages before the replayed ones.
            if topic in self._resuming:
                self._resuming.pop(topic).cancel()
            work = self._resuming[topic] = Deferred.fromCoroutine(self._resume(topic))
            work.addErrback(lambda failure: failure.trap(CancelledError))

    async def _resume(self, topic: Topic) -> None:
        while not self.stopped:
            try:
                position = (await self.broker.follow(topic)).position
                self.live[topic], self.held[topic] = True, []
                try:
                    messages = (await self.broker.replay(topic, self.at[topic], 100_000, 2**30)).messages
                except HistoryLost:
                    self.told[topic].append((self.at[topic], position))
                    self.story[topic].append(Told(position, time.monotonic()))
                    self.at[topic] = position
                    messages = []
                finally:
                    held = self.held.pop(topic)
                for message in [*messages, *held]:
                    at = self.at[topic]
                    if message.position.seq > at.seq or message.position.epoch != at.epoch:
                        self._got(message)
                return
            except Unavailable:
                self.broker.unfollow(topic)
                await pause(0.1)

    async def stop(self) -> None:
        """Stop the broker."""
        self.stopped = True
        if self._watch.running:
            self._watch.stop()
        for work in self._resuming.values():
            work.cancel()
        await self.broker.stop()


class Load:
    """Publishes to the topics in turn, ``rate`` messages per second altogether, each with its own key.

    ``together`` is the number of messages published to one topic in one turn of the reactor.
    """

    def __init__(self, broker: JetStreamBroker, topics: list[Topic], rate: int, together: int = 1) -> None:
        self.broker = broker
        self.topics = topics
        self.together = together
        self.published = 0
        self.acknowledged: dict[tuple[Topic, int], Position] = {}
        #: when the acknowledgement arrived, in monotonic seconds
        self.accepted_at: dict[tuple[Topic, int], float] = {}
        self.outcomes: Counter[str] = Counter()
        self.pending = 0
        self.content = "hello"
        self.failed_at: list[float] = []
        self._loop = LoopingCall.withCount(self._tick)
        self._step = 0.01
        self._each = rate * self._step
        self._debt = 0.0

    def start(self) -> Load:
        """Start publishing."""
        self._loop.start(self._step)
        return self

    def _tick(self, count: int) -> None:
        self._debt += self._each * min(count, 5)
        while self._debt >= self.together:
            self._debt -= self.together
            for _ in range(self.together):
                self.one()

    def one(self) -> None:
        """Publish one message."""
        number = self.published
        self.published += 1
        topic = self.topics[number // self.together % len(self.topics)]
        self.pending += 1
        answer = self.broker.publish(topic, chat_payload(topic, number, self.content), f"key {number}")
        answer.addCallbacks(self._accepted, self._failed, callbackArgs=(topic, number))

    def _accepted(self, position: Position, topic: Topic, number: int) -> None:
        self.pending -= 1
        self.outcomes["acknowledged"] += 1
        self.acknowledged[topic, number] = position
        self.accepted_at[topic, number] = time.monotonic()

    def _failed(self, failure: Any) -> None:
        self.pending -= 1
        kind = failure.trap(Unavailable, Unknown)
        self.outcomes["unknown" if kind is Unknown else "refused"] += 1
        self.failed_at.append(time.monotonic())

    async def stop(self) -> None:
        """Stop publishing, and wait until every outcome is known."""
        if self._loop.running:
            self._loop.stop()
        await until(lambda: not self.pending, 40, "publishes that are not settled")


def topics_of(workspaces: int, chats: int) -> list[Topic]:
    """Topics of ``chats`` chats in each of ``workspaces`` workspaces."""
    return [
        chat(workspace, number) for workspace in range(1, workspaces + 1) for number in range(1, chats + 1)
    ]


async def stored(broker: JetStreamBroker, topics: list[Topic]) -> dict[Topic, list[tuple[int, int]]]:
    """What the stream's leader holds: number and message id of each message, by topic."""
    held: dict[Topic, list[tuple[int, int]]] = {}
    for topic in topics:
        newest = await broker._reader.leader.newest(topic.subject)
        messages = []
        seq: int | None = None
        while True:
            page = await broker._reader.after(topic.subject, seq, at_least=newest)
            for one in page.stored:
                number = int(one.data.split(b'"message_id":')[1].split(b",")[0])
                messages.append((one.seq, number))
            if not page.pending:
                break
            seq = page.stored[-1].seq
        held[topic] = messages
    return held


class Verdict:
    """Compares what followers got with what the stream holds."""

    def __init__(self, name: str, load: Load, followers: list[Follower]) -> None:
        self.name = name
        self.load = load
        self.followers = followers
        self.delivered = self.lost = self.duplicated = self.disordered = self.told = self.stored = 0
        self.forgotten = 0
        #: whether limits let the stream discard messages that it has accepted
        self.limited = False
        self.details: list[str] = []

    async def wait(self, broker: JetStreamBroker, timeout: float, since: float) -> float:
        """Wait until every follower has what the stream holds; return the seconds since ``since``."""
        self.truth = await stored(broker, self.load.topics)
        epoch = broker._reader.epoch

        def complete() -> bool:
            for follower in self.followers:
                for topic in follower.topics:
                    held = self.truth[topic]
                    if held and held[-1][0] > follower.begin[topic]:
                        at = follower.at.get(topic)
                        if at is None or at.epoch != epoch or at.seq < held[-1][0]:
                            return False
            return True

        try:
            await until(complete, timeout)
        except AssertionError:
            self.details.append("did not catch up in time")
        self.epoch = epoch
        return time.monotonic() - since

    def judge(self, noticed: float, caught_up: float) -> Verdict:
        """Count the outcomes, and add a row to the table."""
        load = self.load
        for topic, messages in self.truth.items():
            self.stored += len(messages)
            ids = Counter(number for _, number in messages)
            self.duplicated += sum(count - 1 for count in ids.values())
            acknowledged = {
                (p.seq, n) for (t, n), p in load.acknowledged.items() if t == topic and p.epoch == self.epoch
            }
            self.forgotten += 0 if self.limited else len(acknowledged - set(messages))
            order = [number for _, number in messages]
            self.disordered += sum(1 for a, b in pairwise(order) if b < a)
        for follower in self.followers:
            for topic in follower.topics:
                self._one(follower, topic)
        ROWS.append(
            (
                self.name,
                load.published,
                load.outcomes["acknowledged"],
                load.outcomes["unknown"],
                load.outcomes["refused"],
                self.stored,
                self.delivered,
                self.lost + self.forgotten,
                self.told,
                self.duplicated,
                self.disordered,
                f"{noticed:.2f}",
                f"{caught_up:.2f}",
            )
        )
        show()
        return self

    def _one(self, follower: Follower, topic: Topic) -> None:
        got = [seq for epoch, seq in follower.got[topic] if epoch == self.epoch]
        self.delivered += len(follower.got[topic])
        self.duplicated += len(got) - len(set(got))
        self.disordered += sum(1 for a, b in pairwise(got) if b < a)
        told = follower.told[topic]
        self.told += len(told)
        excused = [
            (before.seq if before.epoch == self.epoch else 0, after.seq)
            for before, after in told
            if after.epoch == self.epoch
        ]
        begin = follower.begin[topic] if not any(b.epoch != self.epoch for b, _ in told) else 0
        have = set(got)
        for seq, _ in self.truth[topic]:
            if seq > begin and seq not in have and not any(a < seq <= b for a, b in excused):
                self.lost += 1
        foreign = have - {seq for seq, _ in self.truth[topic]}
        if foreign and not told:
            self.details.append(f"{topic}: delivered and not in the stream: {sorted(foreign)[:5]}")

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, duplicated or out of order."""
        return not (self.lost or self.forgotten or self.duplicated or self.disordered or self.details)

    def __str__(self) -> str:
        return (
            f"{self.name}: lost {self.lost}, acknowledged and gone {self.forgotten}, doubled {self.duplicated}, "
            f"out of order {self.disordered}; {'; '.join(self.details)}"
        )


class FaultCase(TestCase):
    """A fault scenario. Together they take minutes, and need the machine to themselves: ``make faults`` runs them."""

    skip = None if os.environ.get("FAULTS") else "fault scenarios run with FAULTS=1 (make faults)"

    async def finish(
        self,
        name: str,
        load: Load,
        followers: list[Follower],
        broke: float,
        healed: float,
        limited: bool = False,
    ) -> Verdict:
        """Call this after the fault is repaired: waits, counts, prints, and asserts that nothing is wrong."""
        brokers = [load.broker, *(follower.broker for follower in followers)]
        await until(lambda: all(b.status().ready for b in brokers), 40, "everybody is ready again")
        caught_up = await catch_up(load, followers, healed)
        await pause(0.5)
        await load.stop()
        await until(lambda: all(b.status().ready for b in brokers), 40, "everybody is ready still")
        verdict = Verdict(name, load, followers)
        verdict.limited = limited
        await verdict.wait(load.broker, 40, healed)
        verdict.judge(
            max(min((t for t in f.noticed if t >= broke), default=broke) - broke for f in followers),
            caught_up,
        )
        self.assertTrue(verdict.clean, str(verdict))
        self.assertGreater(verdict.delivered, 100)
        return verdict


async def catch_up(load: Load, followers: list[Follower], since: float) -> float:
    """The seconds from ``since`` until every follower has what the stream has now, while the load goes on."""
    newest: dict[Topic, int] = {}
    while len(newest) < len(load.topics):
        try:
            for topic in load.topics:
                newest[topic] = await load.broker._reader.leader.newest(topic.subject)
        except Unavailable:
            await pause(0.05)
    epoch = load.broker._reader.epoch

    def there() -> bool:
        return all(
            follower.at[topic].epoch == epoch and follower.at[topic].seq >= newest[topic]
            for follower in followers
            for topic in follower.topics
            if newest[topic]
        )

    await until(there, 40, "every follower has what there was")
    return time.monotonic() - since


def show() -> None:
    """Print the table's heading and newest row; if ``FAULT_TABLE`` names a file, write all rows to it."""
    rows = [TABLE, *ROWS]
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(TABLE))]
    lines = [
        " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
    sys.__stdout__.write("\n" + lines[0] + "\n" + lines[-1] + "\n")
    sys.__stdout__.flush()
    if path := os.environ.get("FAULT_TABLE"):
        with open(path, "a") as file:
            file.write(lines[-1] + "\n")
