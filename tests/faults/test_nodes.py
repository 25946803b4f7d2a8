"""Three notify processes behind HAProxy, over a cluster of three NATS servers; a node is killed under load."""

from __future__ import annotations

import signal
import time
from collections import Counter
from itertools import pairwise
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread

from notify.client import TwistedClient
from notify.topics import chat
from tests.faults.harness import ROWS, FaultCase, Load, make_broker, show, topics_of
from tests.support.haproxy import HAProxy
from tests.support.natsd import Cluster, pause, until
from tests.support.process import Server, token
from tests.support.programs import program

CLIENTS = 24


class Reader:
    """A client behind the balancer that reads a chat, and records what it received."""

    def __init__(self, url: str, user: int, workspace: int, chat_id: int) -> None:
        self.chat_id, self.workspace_id = chat_id, workspace
        self.got: list[int] = []
        self.losses = 0
        self.states: list[tuple[float, str]] = []
        self.client = TwistedClient(
            f"{url}?client_id=user-{user}", token(user, workspace), on_state=self._state
        )
        self._reading: Deferred[None] | None = None

    def _state(self, state: Any) -> None:
        self.states.append((time.monotonic(), state.name))

    async def start(self) -> Reader:
        """Connect and start to read."""
        await self.client.start()
        stream = self.client.chat(self.chat_id, on_lost=self._lost)
        self._reading = Deferred.fromCoroutine(self._read(stream))
        self._reading.addErrback(lambda failure: failure.trap(CancelledError))
        await self.client.ping()
        return self

    def _lost(self, *_: Any) -> None:
        self.losses += 1

    async def _read(self, stream: Any) -> None:
        async for message in stream:
            self.got.append(message.message_id)

    async def stop(self) -> None:
        """Close the client."""
        await self.client.close()

    def lost_connection(self, since: float) -> float | None:
        """The first time at or after ``since`` when it noticed that its connection was gone."""
        return min((at for at, name in self.states if at >= since and name != "connected"), default=None)


class Nodes(FaultCase):
    timeout = 120

    async def test_a_node_killed_with_9_while_its_clients_resume_elsewhere(self) -> None:
        program("haproxy")
        cluster = Cluster()
        self.addCleanup(cluster.remove)
        await cluster.up()
        urls = ", ".join(f'"{url}"' for url in cluster.urls)
        extra = (
            f'[broker]\nplugin = "jetstream"\n[broker.jetstream]\nservers = [{urls}]\nreplicas = 3\n'
            'canary_interval = "500ms"\n[registry]\nplugin = "jetstream_kv"\n[registry.jetstream_kv]\nlease = "3s"\n'
        )
        servers = []
        for n in range(3):
            server = Server(f'{extra}[server]\nnode = "node-{n}"\n')
            self.addCleanup(server.__exit__, None, None, None)
            await deferToThread(server.__enter__)
            servers.append(server)
        haproxy = HAProxy([server.public for server in servers])
        self.addCleanup(haproxy.remove)
        await haproxy.start()

        topics = topics_of(2, 4)
        backend = make_broker(cluster.urls, "backend", replicas=3)
        self.addCleanup(backend.stop)
        await backend.start(lambda message: None, lambda topic: None)
        readers = []
        for user in range(CLIENTS):
            topic = topics[user % len(topics)]
            reader = Reader(f"ws://127.0.0.1:{haproxy.port}/ws", user, topic.workspace_id, topic.id)
            self.addCleanup(reader.stop)
            readers.append(await reader.start())
        connections = [await deferToThread(server.metric, "notify_connections") for server in servers]
        self.assertEqual(sum(connections), CLIENTS)
        self.assertGreater(min(connections), 0)

        async def present(count: int) -> None:
            path = "/v1/presence?workspace_id=1&chat_id=1"
            for _ in range(100):
                status, body = await deferToThread(servers[1].http, "GET", path)
                self.assertEqual(status, 200, body)
                if sum(user["connections"] for user in body["users"]) == count:
                    return
                await pause(0.1)
            self.fail(f"not {count} present: {body}")

        expected = sum(1 for r in readers if (r.workspace_id, r.chat_id) == (1, 1))
        await present(expected)

        load = Load(backend, topics, 300).start()
        await pause(2.0)
        broke = time.monotonic()
        servers[0].process.send_signal(signal.SIGKILL)
        await until(
            lambda: (
                all(reader.client.state.name == "connected" for reader in readers)
                and sum(1 for reader in readers if reader.lost_connection(broke)) == connections[0]
            ),
            30,
            "every client is connected again",
        )
        healed = time.monotonic()
        newest = load.published
        await until(lambda: load.outcomes["acknowledged"] >= newest, 10)
        seen = {
            reader: max(n for n in range(newest) if topics[n % len(topics)] == self.topic(reader))
            for reader in readers
        }
        await until(lambda: all(reader.got and max(reader.got) >= n for reader, n in seen.items()), 30)
        caught_up = time.monotonic() - healed
        await pause(1.0)
        await load.stop()
        published = {topic: [] for topic in topics}  # type: ignore[var-annotated]
        for (topic, number), position in load.acknowledged.items():
            published[topic].append((position.seq, number))
        wanted = {topic: [number for _, number in sorted(each)] for topic, each in published.items()}

        def complete() -> bool:
            return all(len(r.got) >= len(wanted[self.topic(r)]) for r in readers)

        try:
            await until(complete, 30)
        except AssertionError:
            pass
        lost = sum(len(set(wanted[self.topic(r)]) - set(r.got)) for r in readers)
        doubled = sum(sum(n - 1 for n in Counter(r.got).values()) for r in readers)
        disordered = sum(sum(1 for a, b in pairwise(r.got) if b < a) for r in readers)
        noticed = max(at - broke for r in readers if (at := r.lost_connection(broke)) is not None)
        ROWS.append(
            (
                "node of notify kill -9",
                load.published,
                load.outcomes["acknowledged"],
                load.outcomes["unknown"],
                load.outcomes["refused"],
                sum(map(len, wanted.values())),
                sum(len(r.got) for r in readers),
                lost,
                sum(r.losses for r in readers),
                doubled,
                disordered,
                f"{noticed:.2f}",
                f"{caught_up:.2f}",
            )
        )
        show()
        self.assertEqual((lost, doubled, disordered, sum(r.losses for r in readers)), (0, 0, 0, 0))
        self.assertGreater(load.outcomes["acknowledged"], 1000)
        # The dead node's own clients are counted on the nodes they moved to, once its lease has expired.
        await present(expected)

    @staticmethod
    def topic(reader: Reader) -> Any:
        return chat(reader.workspace_id, reader.chat_id)
