"""One server: killed and restarted, its stream deleted and created again, connections cut, no room left."""

from __future__ import annotations

import signal
import time

from tests.faults.harness import FaultCase, Follower, Load, make_broker, topics_of
from tests.support.natsd import NatsServer, pause, until
from tests.support.proxy import Proxy


class SingleServer(FaultCase):
    timeout = 90

    async def begin(
        self,
        server: NatsServer,
        rate: int = 400,
        deliveries: tuple[str, ...] = ("republish", "consumer"),
        through: str = "",
        user: str = "",
        together: int = 1,
        **s: object,
    ) -> tuple[Load, list[Follower]]:
        self.topics = topics_of(2, 5)
        url = server.url.replace("//", f"//{user}:pw@") if user else server.url
        publisher = make_broker((url,), "publisher", **s)
        self.addCleanup(publisher.stop)
        await publisher.start(lambda message: None, lambda topic: None)
        followers = []
        for index, delivery in enumerate(deliveries):
            follower = Follower(
                make_broker((through or server.url,), f"node-{index}", delivery=delivery, **s), self.topics
            )
            self.addCleanup(follower.stop)
            followers.append(await follower.start())
        return Load(publisher, self.topics, rate, together).start(), followers

    async def server(self, accounts: str = "") -> NatsServer:
        server = NatsServer(accounts=accounts).start()
        self.addCleanup(server.remove)
        return await server.up()

    async def test_killed_with_9_and_started_again(self) -> None:
        await self.killed("single server kill -9", 1)

    async def test_killed_with_9_under_lists(self) -> None:
        await self.killed("single server kill -9, lists", 20)

    async def killed(self, name: str, together: int) -> None:
        server = await self.server()
        load, followers = await self.begin(server, together=together)
        await pause(1.5)
        broke = time.monotonic()
        server.kill(signal.SIGKILL)
        await pause(1.0)
        self.assertFalse(followers[0].broker.status().ready)
        await server.start().up()
        healed = time.monotonic()
        verdict = await self.finish(name, load, followers, broke, healed)
        self.assertEqual(verdict.told, 0)

    async def test_stream_deleted_and_made_anew(self) -> None:
        server = await self.server()
        load, followers = await self.begin(server)
        await pause(1.0)
        broke = time.monotonic()
        await load.broker._streams.api("STREAM.DELETE.MESSAGES")
        healed = time.monotonic()
        await until(lambda: all(all(f.told.values()) for f in followers), 30, "every topic told")
        verdict = await self.finish("stream deleted and made anew", load, followers, broke, healed)
        self.assertEqual(verdict.told, 2 * len(self.topics))

    async def test_connections_cut_by_a_proxy(self) -> None:
        server = await self.server()
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        load, followers = await self.begin(server, rate=800, through=proxy.url)
        await pause(0.5)
        broke = time.monotonic()
        for _ in range(4):
            before = [f.connects for f in followers]
            self.assertEqual(proxy.cut(), 2)
            await until(
                lambda before=before: all(f.connects > b for f, b in zip(followers, before, strict=True)), 10
            )
            await until(lambda: all(f.broker.status().ready for f in followers), 10)
            await pause(0.4)
        healed = time.monotonic()
        verdict = await self.finish("connections cut 4 times", load, followers, broke, healed)
        self.assertEqual(verdict.told, 0)

    async def test_a_connection_that_goes_dead_without_a_word(self) -> None:
        server = await self.server()
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        load, followers = await self.begin(server, through=proxy.url)
        await pause(0.5)
        broke = time.monotonic()
        proxy.stall()
        await until(lambda: not any(f.broker.status().ready for f in followers), 10, "noticed")
        proxy.stall(False)
        healed = time.monotonic()
        await until(lambda: all(f.broker.status().ready for f in followers), 10)
        verdict = await self.finish("connections stalled", load, followers, broke, healed)
        self.assertEqual(verdict.told, 0)

    async def test_an_error_that_the_client_does_not_know(self) -> None:
        server = await self.server()
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        load, followers = await self.begin(server, through=proxy.url)
        await pause(0.5)
        broke = time.monotonic()
        proxy.say(b"-ERR 'Something Entirely New'\r\n")
        await until(lambda: all(f.connects == 2 for f in followers), 10, "noticed")
        healed = time.monotonic()
        await until(lambda: all(f.broker.status().ready for f in followers), 10)
        await self.finish("unknown -ERR", load, followers, broke, healed)

    async def test_no_room_left_on_disk(self) -> None:
        server = await self.server()
        load, followers = await self.begin(server, rate=100)
        await pause(0.5)
        await load.stop()
        roomy = server.config.read_text()
        server.kill(signal.SIGTERM)
        server.write(roomy.replace("max_file: 1GB", "max_file: 400KB"))
        await server.start().up()
        await until(
            lambda: all(f.broker.status().ready for f in followers) and load.broker.status().ready, 20
        )
        broke = time.monotonic()
        load.content, load._each = "x" * 4000, 2.0
        load.start()
        await until(lambda: load.outcomes["refused"] > 20, 20, "publishes are refused")
        await until(lambda: not followers[0].broker.status().ready, 20, "not ready without room")
        self.assertIn("cannot store", followers[0].broker.status().detail)
        await load.stop()
        healed = time.monotonic()
        server.kill(signal.SIGTERM)
        server.write(roomy)
        await server.start().up()
        await until(lambda: all(f.broker.status().ready for f in followers), 20, "ready with room again")
        await until(lambda: load.broker.status().ready, 20)
        load.content = "hello"
        load.start()
        await pause(0.5)
        await self.finish("no room left", load, followers, broke, healed)

    async def test_what_a_full_stream_threw_away_is_said_to_be_lost(self) -> None:
        server = await self.server()
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        load, followers = await self.begin(server, through=proxy.url, max_messages=300)
        await pause(0.5)
        broke = time.monotonic()
        proxy.cut()
        await proxy.stop()
        await until(lambda: load.published > 1500, 20)
        again = Proxy(server.port, port=proxy.port)
        self.addCleanup(again.stop)
        healed = time.monotonic()
        await until(lambda: all(f.broker.status().ready for f in followers), 10)
        await until(lambda: all(all(f.told.values()) for f in followers), 30, "every topic told")
        verdict = await self.finish("a full stream threw away", load, followers, broke, healed, limited=True)
        self.assertEqual(verdict.told, 2 * len(self.topics))

    async def test_a_permission_taken_away_and_given_back(self) -> None:
        def users(denied: str) -> str:
            deny = (
                f'permissions: {{ publish: {{ deny: ["{denied}"] }}, subscribe: {{ deny: ["{denied}"] }} }}'
            )
            return f"authorization {{ users: [{{user: notify, password: pw, {deny}}}, {{user: back, password: pw}}] }}"

        server = await self.server(users("nothing"))
        url = server.url.replace("//", "//notify:pw@")
        load, followers = await self.begin(server, deliveries=("republish",), through=url, user="back")
        await pause(0.5)
        broke = time.monotonic()
        text = server.config.read_text()
        server.reload(text.replace("nothing", "live.>"))
        status = followers[0].broker.status
        await until(lambda: not status().ready and "does not permit" in status().detail, 20, "it says why")
        await pause(0.5)
        server.reload(text)
        healed = time.monotonic()
        verdict = await self.finish("permission taken away", load, followers, broke, healed)
        self.assertGreaterEqual(followers[0].connects, 3)
        filled = followers[0].broker._metrics.broker_filled._value.get()
        self.assertLess(filled, verdict.delivered, "what came afterwards came live")
