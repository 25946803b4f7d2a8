"""Clients come, go and come back while anything happens in any order; compared with a list of what was published."""

from __future__ import annotations

from random import Random
from typing import Any

from msgspec.structs import replace
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Duration, Limits, Size
from notify.core import dispatcher
from notify.core.feed import Joined
from notify.errors import Unavailable
from notify.messages import Position
from notify.testing import FakeConnection, chat_payload, event_payload
from notify.wire.encodings import encoding, featured
from tests.support.member import TOPIC
from tests.support.world import World

POISON, MESSAGE, EVENT = "", "chat_message", "chat_event"


class Client:
    """One connection. Every frame that it is sent is compared at once with what it may be sent."""

    def __init__(self, model: Model, id: str, events: bool) -> None:
        self.model = model
        made = featured(encoding("notify.v1.json"), frozenset(("events",) if events else ()))
        self.connection = FakeConnection(1, id=id, encoding=made)
        self.connection.close = self.closed  # type: ignore[method-assign]
        self.wanted = {MESSAGE, EVENT} if events else {MESSAGE}
        self.waits = self.member = self.valid = False
        self.reached = 0  # the last seq that it was sent, or that an answer named

    def subscribe(self, since: Position | None) -> None:
        model, self.waits = self.model, True
        self.valid = since is not None and since.epoch == model.epoch and since.seq in model.places()
        joining = self.model.world.dispatcher.subscribe(self.connection, TOPIC, since)
        self.look()  # what was due before it asked
        self.member = False
        joining.addCallbacks(self.joined, self.failed, (since,)).addErrback(model.wrong.append)

    def joined(self, joined: Joined, since: Position | None) -> None:
        model = self.model
        model.case.assertEqual(self.connection.frames, [], "written to before it was answered")
        self.waits, self.member = False, True
        model.outcomes.add("recovered" if joined.recovered else "not recovered")
        if joined.bodies:
            self.connection.write(self.connection.encoding.pack(joined.bodies))
        if joined.recovered:
            model.case.assertEqual(since.epoch, model.epoch)
            model.case.assertTrue(0 <= since.seq < len(model.kinds), "recovered from nowhere")
            self.reached = since.seq
        else:
            model.case.assertEqual(joined.bodies, [])
            model.case.assertFalse(model.generous and self.valid, "told lost for nothing")
            self.reached = joined.position.seq
        self.look()
        missing = [seq for seq in self.between(joined.position.seq) if seq <= joined.position.seq]
        model.case.assertEqual(missing, [], "the answer names a position that was not reached")
        self.reached = joined.position.seq

    def failed(self, failure: Any) -> None:
        failure.trap(Unavailable)
        self.model.outcomes.add("unavailable")
        self.waits = self.member = False

    def between(self, seq: int) -> list[int]:
        kinds = self.model.kinds
        return [n for n in range(self.reached + 1, seq + 1) if kinds[n] in self.wanted]

    def look(self) -> None:
        """Assert that each frame that came is the next one, and is linked to what the client knows."""
        case, kinds = self.model.case, self.model.kinds
        for frame in self.connection.take():
            case.assertTrue(self.member, "sent to one who is none")
            case.assertEqual(
                (self.between(frame["seq"]), frame["type"]), ([frame["seq"]], kinds[frame["seq"]])
            )
            case.assertLessEqual(frame["prev"], self.reached)
            case.assertTrue(
                frame["prev"] == 0 or kinds[frame["prev"]] in self.wanted or frame["prev"] == self.reached
            )
            self.reached = frame["seq"]

    def leave(self) -> None:
        self.look()
        self.waits = self.member = False
        self.model.clients.remove(self)
        self.model.world.dispatcher.forget(self.connection)

    def closed(self, code: int, reason: str = "") -> None:
        self.model.case.assertEqual(code, 4004)
        self.leave()


class Model:
    def __init__(self, case: SynchronousTestCase, seed: int) -> None:
        self.case = case
        self.random = random = Random(seed)
        #: whether everything is kept, and may be replayed
        self.generous = generous = random.random() < 0.5
        self.world = World(
            Limits(
                replay=1000 if generous else random.choice((0, 2, 5, 1000)),
                send_queue=Size(2**20 if generous else random.choice((400, 2**20))),
                recent_messages=random.choice((0, 1, 4, 1000)),
                recent_bytes=Size(random.choice((2000, 2**20))),
                linger=Duration(random.choice((0, 5))),
            ),
            history_size=1000 if generous else random.choice((3, 1000)),
        )
        case.patch(dispatcher, "A_TURN", random.choice((0, 5000)))
        self.epoch = self.world.broker._epoch
        self.kinds = [POISON]
        self.clients: list[Client] = []
        self.count = 0
        self.outcomes: set[str] = set()
        self.wrong: list[Failure] = []

    def run(self, steps: int) -> None:
        actions = (
            *([self.publish] * 6), *([self.turn] * 4), *([self.come] * 6), self.again, self.again, self.leave, self.hold,
            self.release, self.release, self.lag, self.catch_up, self.catch_up, self.away, self.back, self.back, self.wait,
            self.lose, self.reload,
        )  # fmt: skip
        for _ in range(steps):
            self.random.choice(actions)()
            for failure in self.wrong:
                failure.raiseException()
            if self.random.random() < 0.3:
                self.look()
        world = self.world
        self.back()
        while world.broker.held is not None:
            self.release()
        self.catch_up()
        self.publish(MESSAGE)
        self.turn()
        self.look()
        for client in self.clients:
            self.case.assertFalse(client.waits, "never answered")
            if client.member:
                self.case.assertEqual(client.between(len(self.kinds) - 1), [], "the newest are missing")
        recents, feeds = world.dispatcher._recents, world.dispatcher._feeds.values()
        self.case.assertEqual(recents.count, sum(len(feed.tail) for feed in feeds))
        for feed in feeds:
            self.case.assertEqual((feed.waiting, feed.reading, feed.ahead), ({}, None, {}))
        for client in list(self.clients):
            client.leave()
        world.clock.advance(61)
        self.case.assertEqual((world.dispatcher._feeds, world.broker._followed), ({}, set()))
        self.case.assertEqual((recents.count, recents.bytes, len(world.dispatcher._lingering)), (0, 0, 0))

    def look(self) -> None:
        for client in self.clients:
            client.look()

    def publish(self, kind: str | None = None) -> None:
        kind = self.random.choice((MESSAGE, MESSAGE, MESSAGE, EVENT, POISON)) if kind is None else kind
        self.kinds.append(kind)
        if kind == POISON:
            self.world.broker.poison(TOPIC)
        else:
            payload = chat_payload(TOPIC) if kind == MESSAGE else event_payload(TOPIC)
            self.case.assertEqual(self.world.publish(TOPIC, payload), len(self.kinds) - 1)

    def places(self) -> list[int]:
        """Where a client may be: at the beginning, or at a message."""
        return [0, *(seq for seq, kind in enumerate(self.kinds) if kind != POISON)]

    def since(self) -> Position | None:
        newest = len(self.kinds) - 1
        seq = self.random.choice((newest, newest, newest - 1, self.random.randint(-1, newest + 2), 0))
        return self.random.choice((None, Position("another", seq), *[Position(self.epoch, seq)] * 8))

    def come(self) -> None:
        if len(self.clients) < 12:
            self.count += 1
            client = Client(self, f"c{self.count}", self.random.random() < 0.5)
            self.clients.append(client)
            client.subscribe(self.since())

    def again(self) -> None:
        here = [client for client in self.clients if not client.waits]
        if here:
            client = self.random.choice(here)
            client.look()
            client.subscribe(self.random.choice((self.since(), Position(self.epoch, client.reached))))

    def leave(self) -> None:
        if self.clients:
            self.random.choice(self.clients).leave()

    def turn(self) -> None:
        self.world.turn()

    def wait(self) -> None:
        self.world.clock.advance(self.random.choice((0.5, 6, 61)))

    def hold(self) -> None:
        self.world.broker.early = self.random.random() < 0.7
        if self.world.broker.held is None:
            self.world.broker.held = []

    def release(self) -> None:
        self.world.broker.release()

    def lag(self) -> None:
        if self.world.broker.undelivered is None:
            self.world.broker.undelivered = []

    def catch_up(self) -> None:
        self.world.broker.catch_up()

    def away(self) -> None:
        self.world.broker.away = True

    def back(self) -> None:
        self.world.broker.away = False

    def lose(self) -> None:
        if (
            self.random.random() < 0.2
            and TOPIC in self.world.broker._followed
            and self.world.broker.held is None
        ):
            self.world.broker.unfollow(TOPIC)
            self.world.dispatcher.lost(TOPIC)

    def reload(self) -> None:
        replay = 1000 if self.generous else self.random.choice((0, 3, 1000))
        self.world.reload(limits=replace(self.world.live.now.limits, replay=replay))


class Models(SynchronousTestCase):
    def test_each_sees_everything_after_its_position_once_in_order_or_is_told(self) -> None:
        outcomes: set[str] = set()
        for seed in range(500):
            model = Model(self, seed)
            try:
                model.run(120)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            outcomes |= model.outcomes
        self.assertEqual(outcomes, {"recovered", "not recovered", "unavailable"})
