"""A share of a node's clients is sent to other nodes, with a fake clock."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from msgspec import structs
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Drain, Duration
from notify.core.shed import STEP, Shed, send_away
from notify.testing import FakeConnection
from tests.support.world import Client, World


class Slots(SynchronousTestCase):
    def test_each_has_its_own_over_the_time_and_is_sent_elsewhere_only_when_it_is_said(self) -> None:
        for elsewhere, more in ((False, {}), (True, {"elsewhere": True})):
            connections: list[Any] = [FakeConnection(id=f"c{number}") for number in range(4)]
            send_away(connections, 2.0, elsewhere)
            self.assertEqual([one.closed[0] for one in connections], [1012] * 4)
            reasons = [one.closed[1] for one in connections]
            self.assertEqual(
                [json.loads(one) for one in reasons],
                [{"retry_after_ms": slot, **more} for slot in (0, 500, 1000, 1500)],
            )
            self.assertLess(max(map(len, reasons)), 123)
        send_away([], 2.0)


class Sheds(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.reload(Drain(duration=Duration(10)))
        self.shed = Shed(self.world.hub)
        self.clients: list[Client] = []
        self.closed: list[tuple[float, Client]] = []

    def reload(self, drain: Drain) -> None:
        self.world.live.now = structs.replace(self.world.live.now, drain=drain)

    def come(self, count: int) -> None:
        for _ in range(count):
            client = self.world.client(user_id=len(self.clients))
            close = client.connection.close

            def closes(code: int, reason: str = "", client: Client = client, close: Any = close) -> None:
                self.closed.append((self.world.clock.seconds(), client))
                close(code, reason)

            client.connection.close = closes  # type: ignore[method-assign]
            self.clients.append(client)

    def pass_time(self, seconds: float) -> None:
        self.world.clock.pump([0.125] * round(seconds * 8))

    def test_a_share_at_random_goes_over_its_part_of_the_drains_time(self) -> None:
        self.come(200)
        self.assertEqual(self.shed.begin(0.3), (60, 3.0))
        self.assertTrue(self.shed.running)
        first = len(self.closed)
        self.assertEqual(first, 10)
        self.pass_time(3.5)
        self.assertFalse(self.shed.running)
        self.assertEqual(len({client for _, client in self.closed}), len(self.closed))
        self.assertEqual(len(self.closed), 60)
        self.assertEqual(len(self.world.hub.connections), 140)
        times = sorted({at for at, _ in self.closed})
        self.assertLessEqual(times[-1], 3.0)
        # No step is much larger than another, however late the timers are.
        steps = [sum(at == each for at, _ in self.closed) for each in times]
        self.assertLessEqual(max(steps), 16, steps)
        self.assertLess(max(b - a for a, b in pairwise(times)), 2 * STEP)
        reasons = [json.loads(client.connection.closed[1]) for _, client in self.closed]  # type: ignore[index]
        self.assertEqual({reason["elsewhere"] for reason in reasons}, {True})
        self.assertLess(max(reason["retry_after_ms"] for reason in reasons), 1000 * STEP)
        # Clients that came one after the other do not go together.
        gone = {client.connection.id for _, client in self.closed}
        self.assertTrue(5 < sum(one.connection.id in gone for one in self.clients[:60]) < 40)
        self.pass_time(20)
        self.assertEqual(len(self.closed), 60)

    def test_never_more_than_the_share(self) -> None:
        for share, clients, going in (
            (0.3, 3, 0),
            (0.5, 3, 1),
            (0.29, 100, 29),
            (1, 7, 7),
            (1e-9, 9, 0),
            (0.3, 0, 0),
        ):
            self.setUp()
            self.come(clients)
            count, seconds = self.shed.begin(share)
            self.assertEqual(count, going)
            self.assertAlmostEqual(seconds, 10 * going / clients if clients else 0)
            self.pass_time(11)
            self.assertEqual((len(self.closed), self.shed.running), (going, False))

    def test_only_who_is_authenticated_and_still_here_counts(self) -> None:
        self.come(10)
        arriving = [self.world.connect() for _ in range(10)]
        for client in self.clients[:4]:
            client.connection.close(4003)
        self.closed.clear()
        self.reload(Drain(duration=Duration(2)))
        self.assertEqual(self.shed.begin(1)[0], 6)
        self.pass_time(3)
        self.assertEqual({client for _, client in self.closed}, set(self.clients[4:]))
        self.assertEqual([one.connection.closed for one in arriving], [None] * 10)

    def test_who_leaves_meanwhile_or_comes_is_left_alone(self) -> None:
        self.come(40)
        self.shed.begin(1)
        here = [one for one in self.clients if one.connection.closed is None]
        here[0].session.closed()
        self.come(5)
        self.pass_time(11)
        self.assertIsNone(here[0].connection.closed)
        self.assertEqual([one.connection.closed for one in self.clients[40:]], [None] * 5)
        self.assertEqual(len(self.closed), 39)

    def test_another_can_follow_when_it_is_over_and_without_a_time_all_go_at_once(self) -> None:
        self.come(10)
        self.shed.begin(0.5)
        self.pass_time(6)
        self.reload(Drain(duration=Duration(0)))
        self.assertEqual(self.shed.begin(1), (5, 0.0))
        self.assertEqual((len(self.closed), self.shed.running), (10, False))
