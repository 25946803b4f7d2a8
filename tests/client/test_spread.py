"""A thousand clients that are cut at once come back spread over the backoff window, not in one spike."""

from __future__ import annotations

import resource
from collections import Counter
from functools import partial
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.trial.unittest import TestCase

from notify.client import Settings, State, TwistedClient
from notify.client.actions import Open, Send
from notify.client.machine import Machine
from tests.support.programs import need
from tests.support.running import LocalServer, token

CLIENTS = 1000
BUCKET = 0.1


def histogram(times: list[float], title: str) -> Counter[int]:
    """Print and count the times (seconds) by tenths."""
    counted = Counter(int(time / BUCKET) for time in times)
    print(f"\n{title}")
    for bucket in range(max(counted) + 1):
        print(f"  {bucket * BUCKET:4.1f} s {counted[bucket]:4} {'#' * (counted[bucket] // 3)}")
    return counted


class OneClient:
    """A machine on a fake clock, which records when it opens connections."""

    def __init__(self, random: Random) -> None:
        self.machine = Machine(Settings(), random.random, lambda: 0.0)
        self.opened: list[float] = []

    def at(self, now: float, event: str, *args: Any) -> None:
        getattr(self.machine, event)(*args, now)
        self.opened += [now for action in self.machine.actions if isinstance(action, Open)]
        self.machine.actions.clear()

    def connect(self, now: float) -> None:
        self.at(now, "opened")
        self.at(now, "received", {"type": "auth_result", "success": True, "user_id": 1})

    def retry(self) -> float:
        """Let the wait pass; return when the next connection was opened."""
        due = self.machine.deadline()
        assert due is not None
        self.at(due, "tick")
        return self.opened[-1]


class MovedClock(TestCase):
    def crowd(self) -> list[OneClient]:
        random = Random(1)
        clients = [OneClient(random) for _ in range(CLIENTS)]
        for client in clients:
            client.at(0, "start")
            client.machine.token(1, "T", 0)
            client.machine.actions.clear()
            client.connect(0)
            client.at(20, "closed", 1006, "")
        return clients

    def test_the_first_tries_fill_the_first_window_evenly(self) -> None:
        times = [client.retry() - 20 for client in self.crowd()]
        counted = histogram(times, f"{CLIENTS} clients, first try after a cut (moved clock)")
        self.assertGreaterEqual(min(times), 0.1)
        self.assertLessEqual(max(times), 2.0)
        self.assertGreater(min(counted[bucket] for bucket in range(1, 20)), 20)
        self.assertLess(max(counted.values()), 90)

    def test_while_the_server_is_away_the_tries_thin_out_to_the_cap(self) -> None:
        clients = self.crowd()
        tries = []
        for window in (2, 4, 8, 16, 30, 30):
            before = [client.machine.deadline() for client in clients]
            times = [client.retry() for client in clients]
            self.assertEqual(before, times)
            for client, time in zip(clients, times, strict=True):
                client.at(time, "closed", 1006, "")
            tries.append((window, times))
        last = [time - before for time, before in zip(tries[5][1], tries[4][1], strict=True)]
        self.assertTrue(all(0.1 <= wait <= 30 for wait in last))
        self.assertGreater(sum(last) / CLIENTS, 13)

    def test_a_drain_keeps_each_clients_own_slot(self) -> None:
        random = Random(2)
        clients = self.crowd()
        slots = []
        for client in clients:
            opened = client.retry()
            client.connect(opened)
            slot = random.randrange(500, 30_000)
            client.at(opened, "closed", 1012, f'{{"retry_after_ms": {slot}}}')
            slots.append((opened + slot / 1000, client))
        for at, client in slots:
            self.assertAlmostEqual(client.retry(), at, 6)


class RealSockets(TestCase):
    timeout = 300

    async def test_a_thousand_connections_cut_at_once(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * CLIENTS + 200
        need(hard == resource.RLIM_INFINITY or hard >= wanted, f"fewer than {wanted} files are allowed here")
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        from twisted.internet import reactor

        seconds = reactor.seconds  # type: ignore[attr-defined]
        server = await LocalServer().start(self)
        random, tried = Random(3), dict[int, float]()
        cut_at = 0.0
        away = set(range(CLIENTS))
        back: Deferred[None] = Deferred()

        def heard(index: int, state: State) -> None:
            if cut_at and state.name == "connecting":
                tried.setdefault(index, seconds() - cut_at)
            elif cut_at and state.name == "connected":
                away.discard(index)
                if not away and not back.called:
                    back.callback(None)

        clients = [
            TwistedClient(
                server.ws, token(1 + index % 50), on_state=partial(heard, index), random=random.random
            )
            for index in range(CLIENTS)
        ]
        for start in range(0, CLIENTS, 50):
            await DeferredList([ensureDeferred(client.start()) for client in clients[start : start + 50]])
        self.assertEqual({client.state.name for client in clients}, {"connected"})
        cut_at = seconds()
        for client in clients:
            client._link._socket.abort()  # type: ignore[union-attr]
        await back
        times = list(tried.values())
        counted = histogram(times, f"{CLIENTS} clients, first try after a cut (real sockets)")
        self.assertEqual(len(times), CLIENTS)
        # A busy machine is late with some timers, so the bounds are loose: the tests with a fake clock above are exact.
        self.assertLess(max(counted.values()), CLIENTS // 2)
        self.assertGreater(sum(time >= 1 for time in times), CLIENTS // 3)
        await DeferredList([ensureDeferred(client.close()) for client in clients])


class Pace(TestCase):
    def test_a_thousand_subscriptions_come_back_below_the_servers_rate_limit(self) -> None:
        """The server's defaults: 50 frames a second, 1,000 at once."""
        machine = Machine(Settings(), lambda: 0.5, lambda: 0.0)
        for chat in range(CLIENTS):
            machine.subscribe(chat, 0)
        machine.start(0)
        machine.token(1, "T", 0)
        machine.opened(0)
        machine.received({"type": "auth_result", "success": True, "user_id": 1}, 0)
        now, frames, allowance, at, live = 0.0, 0, 1000.0, 0.0, 0
        while live < CLIENTS:
            sent = [action.frame for action in machine.actions if isinstance(action, Send)]
            machine.actions.clear()
            for _ in sent:
                allowance, at = min(1000.0, allowance + (now - at) * 50) - 1, now
                self.assertGreaterEqual(allowance, 0, f"frame {frames} at {now}")
                frames += 1
            answers = [frame for frame in sent if frame["type"] == "subscribe"]
            for frame in answers:
                live += 1
                answer = {"type": "subscribed", "chat_id": frame["chat_id"], "epoch": "e", "seq": 0}
                machine.received({**answer, "recovered": False, "id": frame["id"]}, now)
            if not answers and not machine.actions:
                now = machine.deadline() or now
                machine.tick(now)
        self.assertGreaterEqual(frames, CLIENTS + 1)
        self.assertLess(now, 5)
