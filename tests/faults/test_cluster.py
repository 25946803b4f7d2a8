"""Three servers under load: the stream's leader is killed, paused or stepped down, or two of the three are gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from notify.brokers.jetstream.stream import Together
from tests.faults.harness import FaultCase, Follower, Load, make_broker, topics_of
from tests.support.natsd import Cluster, NatsServer, pause, until


class ThreeServers(FaultCase):
    timeout = 120

    async def begin(self, rate: int = 300, together: int = 1) -> None:
        self.cluster = Cluster()
        self.addCleanup(self.cluster.remove)
        await self.cluster.up()
        self.topics = topics_of(2, 5)
        self.publisher = make_broker(self.cluster.urls, "publisher", replicas=3)
        self.addCleanup(self.publisher.stop)
        await self.publisher.start(lambda message: None, lambda topic: None)
        if together > 1:
            # As an operator enables it.
            config = (await self.publisher._streams.api("STREAM.INFO.MESSAGES"))["config"]
            await self.publisher._streams.api("STREAM.UPDATE.MESSAGES", config | {"allow_atomic": True})
            await until(lambda: self.publisher._publisher.together is Together.BATCHED)
        self.followers = []
        for index, delivery in enumerate(("republish", "republish", "consumer")):
            broker = make_broker(self.cluster.urls, f"node-{index}", replicas=3, delivery=delivery)
            follower = Follower(broker, self.topics)
            self.addCleanup(follower.stop)
            self.followers.append(await follower.start())
        self.load = Load(self.publisher, self.topics, rate, together).start()
        await pause(1.0)

    async def leader(self) -> NatsServer:
        info = await self.publisher._streams.api("STREAM.INFO.MESSAGES")
        return self.cluster.named(info["cluster"]["leader"])

    async def fault(
        self, name: str, breaks: Callable[[NatsServer], Awaitable[Any]], together: int = 1
    ) -> None:
        await self.begin(together=together)
        leader = await self.leader()
        broke = time.monotonic()
        await breaks(leader)
        verdict = await self.finish(name, self.load, self.followers, broke, time.monotonic())
        self.assertEqual(verdict.told, 0)

    async def killed(self, leader: NatsServer) -> None:
        leader.kill(signal.SIGKILL)
        await pause(4.0)
        await leader.start().up()

    async def test_leader_killed(self) -> None:
        await self.fault("leader of 3 kill -9", self.killed)

    async def test_leader_killed_under_batches(self) -> None:
        await self.fault("leader of 3 kill -9, batches", self.killed, together=20)

    async def test_leader_paused(self) -> None:
        async def breaks(leader: NatsServer) -> None:
            leader.pause()
            self.addCleanup(leader.resume)
            await pause(6.0)
            leader.resume()

        await self.fault("leader of 3 paused 6 s", breaks)

    async def test_leader_stepped_down(self) -> None:
        heard: list[bytes] = []

        async def breaks(leader: NatsServer) -> None:
            self.publisher._connection.subscribe(
                "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.MESSAGES", lambda *told: heard.append(told[0])
            )
            for _ in range(3):
                await self.publisher._streams.api("STREAM.LEADER.STEPDOWN.MESSAGES")
                await pause(1.0)

        await self.fault("leader of 3 stepped down 3 times", breaks)
        # This event makes a broker check whether the new leader has all that the old one had.
        self.assertGreaterEqual(len(heard), 3)

    async def test_leader_in_lame_duck_mode(self) -> None:
        async def breaks(leader: NatsServer) -> None:
            leader.send(signal.SIGUSR2)
            await pause(4.0)
            leader.kill(signal.SIGKILL)
            await leader.start().up()

        await self.fault("leader of 3 lame duck", breaks)

    async def test_majority_gone_for_a_while(self) -> None:
        async def breaks(leader: NatsServer) -> None:
            others = [server for server in self.cluster.servers if server is not leader]
            for server in others:
                server.kill(signal.SIGKILL)
            await until(lambda: not any(f.broker.status().ready for f in self.followers), 15, "noticed")
            for server in others:
                server.start()
            for server in others:
                await server.up()

        await self.fault("2 of 3 kill -9", breaks)
