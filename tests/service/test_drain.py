"""The drain, with fake clients and a clock that the test advances."""

import json
from collections.abc import Collection
from itertools import pairwise
from random import Random

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from notify.core.shed import STEP
from notify.interfaces import IConnection
from notify.service.drain import GRACE, HURRIED_SPREAD, Drain, Progress, Stage


@implementer(IConnection)
class Client:
    """Leaves when it is closed, unless it is deaf."""

    identity = peer = encoding = None
    opened = 0.0

    def __init__(self, server: "Server", id: str, deaf: bool = False) -> None:
        self.id = id
        self.server = server
        self.deaf = deaf
        self.closed: list[tuple[float, int, int]] = []

    def write(self, frame: bytes) -> None:
        raise AssertionError("a drain writes nothing")

    def close(self, code: int, reason: str = "") -> None:
        self.closed.append((self.server.clock.seconds(), code, json.loads(reason)["retry_after_ms"]))
        self.server.open.discard(self)
        if self.deaf:
            self.server.deaf += 1


class Server:
    def __init__(self, clients: int = 0) -> None:
        self.clock = Clock()
        self.open: set[Client] = set()
        self.deaf = 0
        self.clients = [self.connect(f"c{n:04}") for n in range(clients)]
        self.refused_at: float | None = None
        self.publishes: Deferred[None] = succeed(None)
        self.told: list[Progress] = []
        self.drain = Drain(
            self.clock,
            Random(7),
            self.connections,
            lambda: len(self.open) + self.deaf,
            self.refuse,
            self.finish,
            self.told.append,
        )

    def connections(self) -> Collection[IConnection]:
        return list(self.open)

    def connect(self, id: str, deaf: bool = False) -> Client:
        client = Client(self, id, deaf)
        self.open.add(client)
        return client

    def refuse(self) -> Deferred[None]:
        self.refused_at = self.clock.seconds()
        return succeed(None)

    def finish(self) -> Deferred[None]:
        return self.publishes

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([1 / 32] * round(seconds * 32))

    @property
    def stage(self) -> Stage:
        return self.drain.progress.stage


class DrainTests(TestCase):
    def test_without_clients_and_delay_it_is_over_at_once(self) -> None:
        server = Server()
        self.successResultOf(server.drain.start(0, 30))
        self.assertEqual(server.stage, Stage.DRAINED)

    def test_while_announced_it_still_accepts_and_closes_nobody(self) -> None:
        server = Server(10)
        server.drain.start(5, 30)
        server.pass_time(4.9)
        self.assertEqual(server.stage, Stage.ANNOUNCED)
        self.assertIsNone(server.refused_at)
        self.assertEqual(len(server.open), 10)
        server.pass_time(0.2)
        self.assertAlmostEqual(server.refused_at or 0, 5)
        self.assertEqual(server.stage, Stage.CLOSING)

    def test_each_client_is_closed_once_with_service_restart(self) -> None:
        server = Server(200)
        done = server.drain.start(0, 10)
        server.pass_time(11)
        self.successResultOf(done)
        self.assertEqual([len(c.closed) for c in server.clients], [1] * 200)
        self.assertEqual({c.closed[0][1] for c in server.clients}, {1012})

    def test_clients_return_at_an_even_rate_each_in_its_own_slot(self) -> None:
        server = Server(400)
        server.drain.start(0, 10)
        server.pass_time(11)
        back = sorted(c.closed[0][0] + c.closed[0][2] / 1000 for c in server.clients)
        self.assertEqual(len({round(at, 3) for at in back}), 400)
        gaps = [b - a for a, b in pairwise(back)]
        # 400 over 10 s is one every 25 ms; this test's clock advances by 31 ms.
        self.assertLess(max(gaps), 0.1)
        self.assertLessEqual(back[-1], 10.1)
        self.assertLess(max(c.closed[0][2] for c in server.clients), 1000 * STEP)

    def test_a_client_that_comes_late_is_sent_away_too(self) -> None:
        server = Server(100)
        done = server.drain.start(0, 5)
        server.pass_time(4.2)
        late = server.connect("late")
        server.pass_time(1)
        self.successResultOf(done)
        self.assertEqual(len(late.closed), 1)

    def test_the_last_leaves_in_the_time_given(self) -> None:
        server = Server(1000)
        done = server.drain.start(0, 5)
        server.pass_time(5.1)
        self.successResultOf(done)

    def test_deaf_clients_do_not_hold_it_up(self) -> None:
        server = Server()
        deaf = server.connect("deaf", deaf=True)
        done = server.drain.start(0, 1)
        server.pass_time(GRACE - 0.1)
        self.assertNoResult(done)
        server.pass_time(0.3)
        self.successResultOf(done)
        self.assertEqual(len(deaf.closed), 1)

    def test_it_waits_for_publishes_under_way(self) -> None:
        server = Server(1)
        server.publishes = Deferred()
        done = server.drain.start(0, 1)
        server.pass_time(5)
        self.assertNoResult(done)
        self.assertEqual(server.stage, Stage.FINISHING)
        server.publishes.callback(None)
        self.successResultOf(done)

    def test_hurried_while_announced_it_sends_everybody_away_at_once(self) -> None:
        server = Server(50)
        done = server.drain.start(60, 60)
        server.pass_time(1)
        server.drain.hurry()
        server.pass_time(0.2)
        self.successResultOf(done)
        slots = sorted(c.closed[0][2] for c in server.clients)
        self.assertEqual(len(set(slots)), 50)
        self.assertGreater(slots[-1], 900 * HURRIED_SPREAD)

    def test_hurried_while_closing_the_rest_goes_at_once(self) -> None:
        server = Server(100)
        done = server.drain.start(0, 60)
        server.pass_time(6)
        self.assertGreater(len(server.open), 80)
        server.drain.hurry()
        server.pass_time(0.2)
        self.successResultOf(done)
        self.assertEqual([len(c.closed) for c in server.clients], [1] * 100)

    def test_hurrying_before_it_started_changes_nothing(self) -> None:
        server = Server(2)
        server.drain.hurry()
        server.drain.start(5, 5)
        server.pass_time(4)
        self.assertEqual(len(server.open), 2)

    def test_a_second_start_is_the_same_drain(self) -> None:
        server = Server(10)
        first, second = server.drain.start(0, 2), server.drain.start(0, 90)
        server.pass_time(3)
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(server.drain.start(0, 0))
        self.assertEqual([len(c.closed) for c in server.clients], [1] * 10)

    def test_progress_counts_down_in_words(self) -> None:
        server = Server(100)
        server.drain.start(2, 10)
        server.pass_time(13)
        stages = list(dict.fromkeys(p.stage for p in server.told))
        self.assertEqual(stages, [Stage.ANNOUNCED, Stage.CLOSING, Stage.FINISHING, Stage.DRAINED])
        closing = [p for p in server.told if p.stage is Stage.CLOSING]
        self.assertEqual([p.left for p in closing], sorted((p.left for p in closing), reverse=True))
        self.assertEqual(str(closing[0]), "Draining: 100 of 100 clients left, 10 s to go.")
        self.assertEqual(
            str(server.told[0]), "Draining: not ready, 100 clients, still accepting; 12 s to go."
        )

    def test_if_it_breaks_off_the_process_can_still_leave(self) -> None:
        server = Server(1)
        server.drain._refuse = lambda: 1 / 0  # type: ignore[assignment,return-value]
        self.successResultOf(server.drain.start(0, 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
