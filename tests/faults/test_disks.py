"""Disks that go back in time, lose a block or flip a bit, and servers that are removed.

Each client must get everything or be told of the loss. In some scenarios NATS holds less than it acknowledged, so
the truth here is what publishers were answered; see ``promise.py``. The tests resume many times, because chance
decides which of the copies answers a resumption.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import disks
from tests.faults.harness import ROWS, FaultCase, Follower, Load, make_broker, show, topics_of
from tests.faults.promise import Resumed, broken, resume_everywhere
from tests.support.natsd import Cluster, NatsServer, pause, until

RESUMPTIONS = 60


class DiskCase(FaultCase):
    """A load, followers, and the check of the promise at the end."""

    timeout = 150

    async def begin(self, urls: tuple[str, ...], deliveries: tuple[str, ...], rate: int, **s: object) -> None:
        self.topics = topics_of(2, 5)
        self.publisher = make_broker(urls, "publisher", **s)
        self.addCleanup(self.publisher.stop)
        await self.publisher.start(lambda message: None, lambda topic: None)
        self.followers = []
        for index, delivery in enumerate(deliveries):
            follower = Follower(make_broker(urls, f"node-{index}", delivery=delivery, **s), self.topics)
            self.addCleanup(follower.stop)
            self.followers.append(await follower.start())
        self.load = Load(self.publisher, self.topics, rate).start()
        await pause(1.0)

    @property
    def told(self) -> int:
        return sum(len(told) for follower in self.followers for told in follower.told.values())

    async def settled(self, seconds: float = 60) -> None:
        """Wait until every node is ready."""
        brokers = [self.publisher, *(follower.broker for follower in self.followers)]
        await until(lambda: all(b.status().ready for b in brokers), seconds, "everybody is ready again")

    async def promised(self, name: str, broke: float, healed: float) -> Resumed:
        """Stop the load when all nodes are ready, check the followers, resume from everywhere, and add a row."""
        await self.settled()
        await pause(1.5)
        await self.load.stop()
        try:
            await until(lambda: not broken(self.load, self.followers), 30)
        except AssertionError:
            pass
        caught_up = time.monotonic() - healed
        wrong = broken(self.load, self.followers)
        nodes = [follower.broker for follower in self.followers]
        resumed = await resume_everywhere(nodes, self.load, RESUMPTIONS, seed=11, broke=broke)
        noticed = max(
            min((t for t in f.noticed if t >= broke), default=broke) - broke for f in self.followers
        )
        outcomes = self.load.outcomes
        ROWS.append(
            (
                name,
                self.load.published,
                *(outcomes[each] for each in ("acknowledged", "unknown", "refused")),
                "-",
                sum(len(got) for follower in self.followers for got in follower.got.values()),
                len(wrong) + len(resumed.wrong),
                self.told,
                "-",
                "-",
                f"{noticed:.2f}",
                f"{caught_up:.2f}",
            )
        )
        show()
        self.assertEqual(
            [], wrong[:5] + resumed.wrong[:5], f"{len(wrong)} live, {len(resumed.wrong)} resumed: {name}"
        )
        self.assertGreater(outcomes["acknowledged"], 100)
        return resumed


class PowerLoss(DiskCase):
    """One server, whose disk goes back to its last sync."""

    async def begin_alone(self) -> tuple[NatsServer, Path]:
        server = NatsServer().start()
        self.addCleanup(server.remove)
        await server.up()
        await self.begin((server.url,), ("republish", "consumer"), 200)
        synced = disks.remember(server)
        await pause(1.5)
        return server, synced

    async def test_the_server_goes_back_while_notify_stays(self) -> None:
        server, synced = await self.begin_alone()
        broke = time.monotonic()
        server.kill(signal.SIGKILL)
        disks.put_back(server, synced)
        await server.start().up()
        await self.promised("power loss, single server", broke, time.monotonic())
        self.assertGreater(self.told, 0)

    async def test_the_server_goes_back_and_nobody_publishes_until_long_after(self) -> None:
        """Connected clients must be told even though their chats are silent."""
        server, synced = await self.begin_alone()
        await self.load.stop()
        broke = time.monotonic()
        server.kill(signal.SIGKILL)
        disks.put_back(server, synced)
        await server.start().up()
        healed = time.monotonic()
        await self.settled()
        await until(lambda: all(all(f.told.values()) for f in self.followers), 30, "every topic told")
        self.load.start()
        await self.promised("power loss, silent afterwards", broke, healed)

    async def test_a_second_loss_is_told_as_well(self) -> None:
        server, synced = await self.begin_alone()
        broke = time.monotonic()
        for _ in range(2):
            server.kill(signal.SIGKILL)
            disks.put_back(server, synced)
            await server.start().up()
            await self.settled()
            await pause(2.0)
        await self.promised("power loss, twice", broke, time.monotonic())
        self.assertGreaterEqual(self.told, 2 * len(self.topics) * len(self.followers))


class Copies(DiskCase):
    """Three servers with a copy each; one copy is damaged while its server is stopped."""

    async def begin_three(self, rate: int = 150, size: int = 3, **s: object) -> None:
        self.cluster = Cluster(size=size)
        self.addCleanup(self.cluster.remove)
        await self.cluster.up()
        await self.begin(self.cluster.urls, ("republish", "republish", "consumer"), rate, replicas=3, **s)

    async def info(self) -> Any:
        return await self.publisher._streams.api("STREAM.INFO.MESSAGES")

    async def leader(self) -> NatsServer:
        return self.cluster.named((await self.info())["cluster"]["leader"])

    async def a_follower(self) -> NatsServer:
        return self.cluster.named((await self.info())["cluster"]["replicas"][0]["name"])

    async def leads(self, server: NatsServer) -> None:
        """Make this server the stream's leader."""
        for _ in range(20):
            if await self.leader() is server:
                return
            placement = {"placement": {"preferred": server.name}}
            await self.publisher._streams.api("STREAM.LEADER.STEPDOWN.MESSAGES", placement)
            await pause(1.0)
        self.fail(f"{server.name} does not come to lead")

    async def damaged(self, name: str, stop: int, damage: Callable[[NatsServer], None]) -> NatsServer:
        """Stop a follower, damage its copy and start it. Check the promise, and again with that copy as the leader."""
        server = await self.a_follower()
        broke = time.monotonic()
        server.kill(stop)
        damage(server)
        await server.start().up()
        # A copy answers reads only some seconds after its server is up.
        await pause(4.0)
        resumed = await self.promised(name, broke, time.monotonic())
        self.assertGreater(resumed.whole, resumed.told, "the leader has everything")
        await self.leads(server)
        self.load.start()
        await pause(2.0)
        await self.promised(f"{name}, and then in the lead", broke, time.monotonic())
        return server

    def middle(self) -> bytes:
        """Part of the payload of a message in the middle of what was published."""
        numbers = sorted(number for _, number in self.load.acknowledged)
        return b'"message_id":%d,' % numbers[len(numbers) // 2]

    async def test_an_older_copy_catches_up(self) -> None:
        await self.begin_three()
        server = await self.a_follower()
        synced = disks.remember(server)
        await pause(1.5)
        broke = time.monotonic()
        server.kill(signal.SIGKILL)
        disks.put_back(server, synced)
        await server.start().up()
        await pause(2.0)
        resumed = await self.promised("older copy of 3", broke, time.monotonic())
        self.assertEqual((resumed.told, self.told), (0, 0))

    async def test_two_go_back_and_the_third_keeps_another_history(self) -> None:
        """Two servers lose power and elect a leader while the third is away; what only the third has is lost."""
        await self.begin_three()
        third = await self.a_follower()
        two = [server for server in self.cluster.servers if server is not third]
        synced = {server.name: disks.remember(server) for server in two}
        await pause(1.5)
        broke = time.monotonic()
        third.kill(signal.SIGKILL)
        for server in two:
            server.kill(signal.SIGKILL)
            disks.put_back(server, synced[server.name])
        for server in two:
            server.start()
        for server in two:
            await server.up()
        await self.settled()
        await pause(3.0)
        await third.start().up()
        await pause(4.0)
        await self.promised("power loss of 2 of 3, the third diverged", broke, time.monotonic())
        self.assertGreater(self.told, 0)

    async def test_the_oldest_block_of_a_copy_is_gone(self) -> None:
        await self.begin_three(max_bytes=2**24)
        await self.fill()
        await self.damaged("oldest block of a copy gone", signal.SIGKILL, lambda s: disks.lose_block(s, 0))

    async def test_a_block_in_the_middle_of_a_copy_is_gone(self) -> None:
        await self.begin_three(max_bytes=2**24)
        await self.fill()
        await self.damaged("middle block of a copy gone", signal.SIGTERM, lambda s: disks.lose_block(s, 1))

    async def test_a_bit_flips_in_a_copy_whose_server_was_killed(self) -> None:
        await self.begin_three()
        await self.damaged("bit of a copy flipped", signal.SIGKILL, lambda s: disks.flip(s, self.middle()))

    async def test_a_bit_flips_in_a_copy_whose_server_was_stopped(self) -> None:
        await self.begin_three()
        await self.damaged(
            "bit of a copy flipped, believed", signal.SIGTERM, lambda s: disks.flip(s, self.middle())
        )

    async def fill(self) -> None:
        """Publish enough for several blocks, but less than ``max_bytes``."""
        self.load.content = "x" * 20_000
        start = self.load.outcomes["acknowledged"]
        await until(lambda: self.load.outcomes["acknowledged"] > start + 600, 30, "blocks are filled")
        self.load.content = "hello"

    async def test_peers_are_removed_under_load(self) -> None:
        await self.begin_three(size=4)
        broke = time.monotonic()
        for which in (self.a_follower, self.leader):
            gone = await which()
            await self.publisher._streams.api("STREAM.PEER.REMOVE.MESSAGES", {"peer": gone.name})
            await until(lambda: all(f.broker.status().ready for f in self.followers), 30)
            await self.full(without=gone)
        resumed = await self.promised("peers of 3 removed", broke, time.monotonic())
        self.assertEqual((resumed.told, self.told), (0, 0))

    async def full(self, without: NatsServer) -> None:
        """Wait until three servers have a copy, all current, and none of them is ``without``."""
        for _ in range(150):
            try:
                cluster = (await self.info())["cluster"]
            except Exception:
                cluster = {}
            replicas = cluster.get("replicas") or []
            names = [each["name"] for each in replicas if each.get("current")] + [cluster.get("leader")]
            if len(names) == 3 and all(names) and without.name not in names:
                return
            await pause(0.2)
        self.fail(f"{without.name} is not replaced")

    async def test_copies_are_taken_away_and_given_back(self) -> None:
        await self.begin_three()
        broke = time.monotonic()
        config = (await self.info())["config"]
        for copies in (1, 3):
            await self.publisher._streams.api("STREAM.UPDATE.MESSAGES", config | {"num_replicas": copies})
            await pause(2.0)
        resumed = await self.promised("from 3 copies to 1 and back", broke, time.monotonic())
        self.assertEqual((resumed.told, self.told), (0, 0))
