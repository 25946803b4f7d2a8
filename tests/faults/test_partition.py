"""A server that is cut off from its cluster while its clients stay connected to it. Uses network namespaces."""

from __future__ import annotations

import os
import subprocess
import time

from tests.faults.harness import FaultCase, Follower, Load, make_broker, topics_of
from tests.support.natsd import NatsServer, pause, until
from tests.support.programs import need, program

PREFIX = f"nt{os.getpid() % 10000}"
BRIDGE = f"{PREFIX}b"


def ip(*words: str) -> None:
    """Run ``ip`` with these arguments."""
    subprocess.run([program("ip"), *words], check=True, capture_output=True, text=True)


def need_namespaces() -> None:
    """Skip the test if network namespaces cannot be created."""
    program("ip")
    try:
        ip("netns", "add", f"{PREFIX}probe")
        ip("netns", "delete", f"{PREFIX}probe")
        ip("link", "add", f"{PREFIX}p0", "type", "veth", "peer", "name", f"{PREFIX}p1")
        ip("link", "delete", f"{PREFIX}p0")
    except (OSError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", "") or str(error)
        need(False, f"network namespaces cannot be made here, only root may: {words.strip()}")


class IsolatedServer(FaultCase):
    timeout = 120

    def setUp(self) -> None:
        need_namespaces()
        self.net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        ip("link", "add", BRIDGE, "type", "bridge")
        self.addCleanup(ip, "link", "delete", BRIDGE)
        ip("addr", "add", f"{self.net}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        self.servers = []
        hosts = [f"{self.net}.{n}" for n in (11, 12, 13)]
        for n, host in enumerate(hosts, start=1):
            space, outer, inner = f"{PREFIX}s{n}", f"{PREFIX}o{n}", f"{PREFIX}i{n}"
            ip("netns", "add", space)
            self.addCleanup(ip, "netns", "delete", space)
            ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            self.addCleanup(ip, "link", "delete", outer)
            ip("link", "set", inner, "netns", space)
            ip("link", "set", outer, "master", BRIDGE, "up")
            ip("-n", space, "addr", "add", f"{host}/24", "dev", inner)
            ip("-n", space, "link", "set", inner, "up")
            ip("-n", space, "link", "set", "lo", "up")
            server = NatsServer(
                f"n{n}",
                host=host,
                cluster_port=6222,
                route_urls=tuple(f"nats-route://{other}:6222" for other in hosts),
                prefix=("ip", "netns", "exec", space),
            )
            self.addCleanup(server.remove)
            self.servers.append(server)

    def isolate(self, server: NatsServer, isolated: bool = True) -> None:
        """Cut a server off from the other servers only: their routes are blackholed in its own namespace."""
        verb = "add" if isolated else "delete"
        for other in self.servers:
            if other is not server:
                ip("-n", server.prefix[3], "route", verb, "blackhole", f"{other.host}/32")

    async def scenario(self, name: str, leader: bool) -> None:
        for server in self.servers:
            server.start()
        for server in self.servers:
            await server.up()
        urls = tuple(server.url for server in self.servers)
        topics = topics_of(2, 5)
        publisher = make_broker(urls, "publisher", replicas=3)
        self.addCleanup(publisher.stop)
        await publisher.start(lambda message: None, lambda topic: None)
        info = await publisher._streams.api("STREAM.INFO.MESSAGES")
        chosen = next(s for s in self.servers if (s.name == info["cluster"]["leader"]) == leader)
        followers = []
        for index, delivery in enumerate(("republish", "consumer")):
            # These clients are connected to the isolated server.
            broker = make_broker((chosen.url,), f"node-{index}", replicas=3, delivery=delivery)
            follower = Follower(broker, topics)
            self.addCleanup(follower.stop)
            followers.append(await follower.start())
        load = Load(publisher, topics, 300).start()
        await pause(1.0)
        for follower in followers:
            self.assertIn(chosen.host, follower.broker._connection.server)
        broke = time.monotonic()
        self.isolate(chosen)
        await until(lambda: all(f.connects >= 2 for f in followers), 30, "they have left the isolated server")
        self.assertTrue(chosen.listens(), "the isolated server is there, and takes connections")
        await until(
            lambda: all(
                f.broker.status().ready and chosen.host not in f.broker._connection.server for f in followers
            ),
            40,
            "they are ready elsewhere, while the server is still isolated",
        )
        verdict = await self.finish(name, load, followers, broke, time.monotonic())
        self.assertEqual(verdict.told, 0)
        self.isolate(chosen, False)

    async def test_a_follower_of_the_stream_is_isolated(self) -> None:
        await self.scenario("isolated server (follower)", False)

    async def test_the_leader_of_the_stream_is_isolated(self) -> None:
        await self.scenario("isolated server (leader)", True)
