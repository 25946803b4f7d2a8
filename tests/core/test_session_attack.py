"""Clients do anything at any time, while broker and authenticator answer late, early or not at all.

What they receive is compared with what was published: each message of a subscribed chat once, in order and
without a gap, from the position that the answer named; and nothing of another tenant's.
"""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from notify.config import Duration, Limits
from notify.testing import chat_payload
from notify.topics import Topic, chat
from tests.support.world import Client, World

WORKSPACES, CHATS = (1, 2), (1, 2, 3)


class Reader:
    """A client that knows by itself what it must be sent."""

    def __init__(self, attack: Attack, workspace: int) -> None:
        self.attack = attack
        self.workspace = workspace
        self.client: Client = attack.world.client(attack.random.randrange(3), workspace)
        self.reached: dict[int, int] = {}  # the last seq of each chat that it is subscribed to
        self.asked: dict[int, dict[str, Any]] = {}
        self.unknown: set[int] = (
            set()
        )  # subscribing again failed: the old subscription may or may not still exist
        self.seen = 0

    def ask(self, **frame: Any) -> None:
        number = len(self.asked)
        self.asked[number] = frame
        self.client.send(**frame, id=number)

    def look(self) -> None:
        """Check the frames that came."""
        for frame in self.client.take():
            kind, request = frame["type"], self.asked.get(frame.get("id", -1), {})
            if kind == "chat_message":
                self.message(frame)
            elif kind == "subscribed":
                chat_id = frame["chat_id"]
                start = request["since"]["seq"] if frame["recovered"] else frame["seq"]
                if "since" not in request:
                    self.attack.case.assertGreaterEqual(start, self.reached.get(chat_id, 0), "goes back")
                self.reached[chat_id] = start
                self.unknown.discard(chat_id)
            elif kind == "ok":
                self.reached.pop(request["chat_id"], None)
                self.unknown.discard(request["chat_id"])
            elif kind == "history":
                self.page(frame, request)
            elif kind == "error":
                codes = ("unavailable", "forbidden")
                if request["type"] == "history":
                    codes += ("history_unavailable",)
                self.attack.case.assertIn(frame["code"], codes, frame)
                if request["type"] == "subscribe" and request["chat_id"] in self.reached:
                    self.unknown.add(request["chat_id"])
                    del self.reached[request["chat_id"]]
            else:
                self.attack.case.assertEqual(kind, "presence")

    def page(self, frame: dict[str, Any], request: dict[str, Any]) -> None:
        """A page is a part of what was published, without gaps and from the right place."""
        case, published = self.attack.case, self.attack.published[chat(self.workspace, frame["chat_id"])]
        got = [one["seq"] for one in frame["messages"]]
        case.assertLessEqual(len(got), request["limit"])
        case.assertLessEqual({one["content"] for one in frame["messages"]}, {f"of {self.workspace}"})
        if not got:
            return
        start = published.index(got[0])
        case.assertEqual(got, published[start : start + len(got)], "not a part of the history")
        if request.get("before", {"seq": 0})["seq"] in published:
            newest = [one for one in published if one < request["before"]["seq"]]
            case.assertEqual(got[-1], newest[-1], "not next to where it was asked for")
        elif "after" in request:
            case.assertEqual(got[0], next(one for one in published if one > request["after"]["seq"]))
            case.assertEqual(frame["seq"], got[-1])
        else:
            case.assertEqual(frame["seq"], got[-1])  # where to go on

    def message(self, frame: dict[str, Any]) -> None:
        case, chat_id, seq = self.attack.case, frame["chat_id"], frame["seq"]
        case.assertEqual(frame["content"], f"of {self.workspace}", "another tenant's")
        if chat_id in self.unknown:
            return
        case.assertIn(chat_id, self.reached, "not subscribed")
        case.assertEqual(frame["prev"], self.reached[chat_id], "a gap or a repetition")
        published = self.attack.published[chat(self.workspace, chat_id)]
        between = [one for one in published if frame["prev"] < one < seq]
        case.assertEqual(between, [], "messages are missing")
        self.reached[chat_id] = seq
        self.seen += 1


class Attack:
    """One run with one seed."""

    def __init__(self, case: SynchronousTestCase, seed: int) -> None:
        self.case = case
        self.random = Random(seed)
        self.world = World(
            Limits(
                frames_per_second=0,
                replay=self.random.choice((3, 1000)),
                recent_messages=self.random.choice((3, 1000)),
                linger=Duration(self.random.choice((0, 1, 60))),
            ),
            history_size=self.random.choice((4, 1000)),
        )
        self.published: dict[Topic, list[int]] = {
            chat(workspace, chat_id): [] for workspace in WORKSPACES for chat_id in CHATS
        }
        self.readers: list[Reader] = []
        self.seen = 0
        unfollow, broker = self.world.broker.unfollow, self.world.broker

        def forget(topic: Topic) -> None:
            unfollow(topic)
            if broker.undelivered is not None:
                broker.undelivered = [message for message in broker.undelivered if message.topic != topic]

        broker.unfollow = forget  # type: ignore[method-assign]

    def run(self, steps: int) -> None:
        actions = (
            *([self.publish] * 6), *([self.subscribe] * 5), *([self.turn] * 4), self.resubscribe, self.resubscribe,
            self.unsubscribe, self.connect, self.connect, self.connect, self.leave, self.presence, self.hold, self.release,
            self.release, self.delay, self.deliver, self.deliver, self.away, self.back, self.back, self.wait,
            self.page, self.page, self.page,
        )  # fmt: skip
        for _ in range(steps):
            self.random.choice(actions)()
        self.settle()
        for reader in self.readers:
            for chat_id, reached in reader.reached.items():
                newest = self.published[chat(reader.workspace, chat_id)][-1:] or [0]
                self.case.assertEqual(reached, newest[0], "the last messages are missing")
            self.seen += reader.seen
            reader.client.leave()
        self.settle()
        self.world.clock.advance(61)
        world = self.world
        self.case.assertEqual((world.hub.connections, world.hub.arriving), ({}, 0))
        self.case.assertEqual((world.registry._members, world.registry._topics), ({}, {}))
        self.case.assertEqual((world.dispatcher._feeds, world.broker._followed), ({}, set()))
        self.case.assertEqual((world.dispatcher._recents.count, world.dispatcher._recents.bytes), (0, 0))
        self.case.assertEqual((world.hub.presence._watchers, world.registry._watched), ({}, {}))
        self.case.assertEqual(world.wheel._slots, {})
        for gauge in ("connections", "subscriptions", "topics"):
            self.case.assertEqual(world.sample(f"notify_{gauge}"), 0, gauge)

    def settle(self) -> None:
        self.back()
        for _ in range(20):
            self.release()
            self.deliver()
            self.world.clock.pump([0.25] * 4)
        for reader in self.readers:
            reader.look()

    def reader(self) -> Reader | None:
        return self.random.choice(self.readers) if self.readers else None

    def topic(self) -> Topic:
        return chat(self.random.choice(WORKSPACES), self.random.choice(CHATS))

    def publish(self) -> None:
        topic = self.topic()
        payload = chat_payload(topic, 1, f"of {topic.workspace_id}")
        self.published[topic].append(self.world.publish(topic, payload))

    def connect(self) -> None:
        broker, authenticator = self.world.broker, self.world.authenticator
        held = authenticator.held is not None or broker.held is not None
        if len(self.readers) < 5 and not (held or broker.away or authenticator.away):
            self.readers.append(Reader(self, self.random.choice(WORKSPACES)))

    def leave(self) -> None:
        if reader := self.reader():
            reader.client.leave()
            reader.look()
            self.seen += reader.seen
            self.readers.remove(reader)

    def subscribe(self) -> None:
        if reader := self.reader():
            chat_id = self.random.choice(CHATS)
            known = self.published[chat(reader.workspace, chat_id)][-6:]
            seq = self.random.choice((*known, 0, 10**9, -1))
            epoch = self.random.choice((self.world.broker._epoch,) * 5 + ("", "other"))
            watch = self.random.random() < 0.3
            since = {"epoch": epoch, "seq": seq}
            reader.ask(type="subscribe", chat_id=chat_id, since=since, watch_presence=watch)
            self.maybe_look()

    def resubscribe(self) -> None:
        if reader := self.reader():
            reader.ask(type="subscribe", chat_id=self.random.choice(CHATS))
            self.maybe_look()

    def unsubscribe(self) -> None:
        if reader := self.reader():
            reader.ask(type="unsubscribe", chat_id=self.random.choice(CHATS))
            self.maybe_look()

    def presence(self) -> None:
        if reader := self.reader():
            reader.ask(type="presence", chat_id=self.random.choice(CHATS))

    def page(self) -> None:
        if reader := self.reader():
            chat_id = self.random.choice(CHATS)
            seq = self.random.choice((*self.published[chat(reader.workspace, chat_id)][-6:], 0, 10**9, -1))
            epoch = self.random.choice((self.world.broker._epoch,) * 5 + ("", "other"))
            place = self.random.choice(
                ({}, {"before": {"epoch": epoch, "seq": seq}}, {"after": {"epoch": epoch, "seq": seq}})
            )
            reader.ask(type="history", chat_id=chat_id, limit=self.random.randrange(1, 6), **place)
            self.maybe_look()

    def maybe_look(self) -> None:
        if (reader := self.reader()) and self.random.random() < 0.5:
            reader.look()

    def turn(self) -> None:
        self.world.turn()

    def wait(self) -> None:
        self.world.clock.pump([0.25] * 2)

    def hold(self) -> None:
        held = self.random.choice((self.world.broker, self.world.authenticator))
        if held.held is None:
            held.held = []

    def release(self) -> None:
        self.world.broker.release()
        self.world.authenticator.release()

    def delay(self) -> None:
        if self.world.broker.undelivered is None:
            self.world.broker.undelivered = []

    def deliver(self) -> None:
        if self.world.broker.undelivered is not None:
            self.world.broker.catch_up()

    def away(self) -> None:
        self.world.broker.away = self.random.random() < 0.5
        self.world.authenticator.away = self.random.random() < 0.5

    def back(self) -> None:
        self.world.broker.away = self.world.authenticator.away = False


class Attacks(SynchronousTestCase):
    def test_each_sees_its_own_once_in_order_without_a_gap_and_nothing_is_left(self) -> None:
        seen = 0
        for seed in range(400):
            try:
                attack = Attack(self, seed)
                attack.run(250)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            seen += attack.seen
        self.assertGreater(seen, 3000)
