"""A node dies and its clients come back to the others: ``python -m benchmarks.resume [--quick]``.

10,000 clients with positions of their own, in 1,000 chats, on three nodes; one of them dies, and all are taken in by
the two that are left, at the rate at which a node takes them in over sockets (docs/performance.md). Everything but
sockets and tokens runs: dispatcher, registry, broker, and a real nats-server. Three runs: on the memory broker, which
is the measure; on JetStream where the nodes that are left follow the chats (*warm*); and where they do not (*cold*).

What it prints: how long until the last client has what it missed, that beside the memory broker, and the reads of
history beside the chats that were cold: those that dispatchers asked brokers for, and the requests that NATS was sent
for them. Each client is checked to have got what it missed, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from twisted.internet import asyncioreactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from benchmarks.jetstream import Nats
from notify.brokers.jetstream import JetStreamBroker
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.memory import MemoryBroker, MemorySettings
from notify.components import Context
from notify.config import Config, Limits
from notify.core.dispatcher import Dispatcher, end_of_turn
from notify.core.live import InForce, Live
from notify.core.timers import Wheel
from notify.observe.metrics import Metrics
from notify.registries.memory import MemoryRegistry
from notify.registries.memory import MemorySettings as RegistrySettings
from notify.testing import chat_payload
from notify.topics import chat
from notify.wire.frames import JSON

#: messages in a chat, and the clients of one that come back; each missed another number of them
MESSAGES, CLIENTS = 20, 10
#: clients that come in one turn of the reactor
A_TURN = 50


class Client:
    """A connection without a socket, in one chat."""

    def __init__(self, chat: int, missed: int) -> None:
        self.encoding = JSON
        self.chat = chat
        self.missed = missed
        self.got = -1

    def write(self, frame: bytes) -> None:
        """What comes live; nothing does."""

    def joined(self, joined: Any) -> None:
        if not joined.recovered:
            raise AssertionError("not recovered")
        self.got = len(joined.bodies)


class Node:
    """A server without its listeners."""

    def __init__(self, reactor: Any, make: Callable[[Any], Any], name: str) -> None:
        self.metrics = Metrics()
        context = Context(reactor, self.metrics, Random(1), name, Config())
        self.broker = make(context)
        self.wheel = Wheel(reactor)
        live = Live(InForce(None, Limits()))  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(
            self.broker,
            MemoryRegistry(RegistrySettings(), context),
            self.metrics,
            live,
            end_of_turn(reactor),
            self.wheel.after,
            reactor.seconds,
        )

    async def start(self) -> Node:
        await self.broker.start(self.dispatcher.deliver, self.dispatcher.lost)
        self.wheel.start()
        return self

    def reads(self) -> int:
        return int(self.metrics.registry.get_sample_value("notify_replay_reads_total") or 0)

    def count_requests(self) -> list[bytes]:
        """Gives a list to which each page of history is added that the broker asks NATS for."""
        asked: list[bytes] = []
        gather = self.broker._connection.gather

        def counted(subject: str, body: bytes, *more: Any, **options: Any) -> Any:
            if b"next_by_subj" in body:
                asked.append(body)
            return gather(subject, body, *more, **options)

        self.broker._connection.gather = counted
        return asked

    async def stop(self) -> None:
        self.wheel.stop()
        await self.broker.stop()


async def storm(
    reactor: Any, nodes: Sequence[Node], left: Sequence[Node], chats: int, warm: bool, rate: int
) -> float:
    """Fill the chats, end the nodes that are not ``left``, have all clients come back; the seconds that it took."""

    topics = [chat(1, n) for n in range(chats)]
    homes = left if warm else [node for node in nodes if node not in left]
    for node in homes:
        await gatherResults([node.dispatcher.subscribe(Client(0, 0), topic, None) for topic in topics])
    sent: list[list[Any]] = []
    for number in range(MESSAGES):
        payloads = [(topic, chat_payload(topic, number, "x" * 100)) for topic in topics]
        sent.append(await gatherResults([left[0].broker.publish(*one) for one in payloads]))
    await deferLater(reactor, 1, lambda: None)  # until all of it is delivered
    for node in nodes:
        if node not in left:
            await node.stop()
    clients = [Client(n, 1 + missed) for n in range(chats) for missed in range(CLIENTS)]
    Random(1).shuffle(clients)
    begin = time.monotonic()
    coming: list[Deferred[None]] = []
    for number, client in enumerate(clients):
        since = sent[MESSAGES - 1 - client.missed][client.chat]
        home = left[number % len(left)]
        coming.append(
            home.dispatcher.subscribe(client, topics[client.chat], since).addCallback(client.joined)
        )
        if number % A_TURN == 0:
            await deferLater(reactor, max(0.0, begin + number / rate - time.monotonic()), lambda: None)
    await gatherResults(coming)
    took = time.monotonic() - begin
    if any(client.got != client.missed for client in clients):
        raise AssertionError("a client did not get what it missed")
    return took


async def compare(reactor: Any, chats: int, servers: int, rate: int) -> None:

    node = await Node(reactor, partial(MemoryBroker, MemorySettings()), "memory").start()
    memory = await storm(reactor, [node], [node], chats, False, rate)
    await node.stop()
    print(
        f"{chats * CLIENTS} clients at {CLIENTS} positions in each of {chats} chats, {rate} a second, {servers} nats-servers\n"
    )
    print(
        "| | s | against memory | reads | requests to NATS | cold chats, of both nodes |\n| --- | --- | --- | --- | --- | --- |"
    )
    print(f"| memory | {memory:.2f} | | {node.reads()} | | |")
    for warm in (True, False):
        with Nats(servers) as nats:
            settings = JetStreamSettings(servers=tuple(nats.urls.split(",")), replicas=servers)
            make = partial(JetStreamBroker, settings)
            nodes = [await Node(reactor, make, f"n{n}").start() for n in range(3)]
            left = nodes[1:]
            requests = [node.count_requests() for node in left]
            took = await storm(reactor, nodes, left, chats, warm, rate)
            reads = sum(node.reads() for node in left)
            cold = 0 if warm else chats * len(left)
            name = "warm" if warm else "cold"
            print(
                f"| JetStream, {name} | {took:.2f} | {took / memory:.2f} | {reads} | {sum(map(len, requests))} | {cold} |"
            )
            for node in left:
                await node.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.resume", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the chats")
    parser.add_argument("--servers", type=int, default=1, help="nats-servers: 1, or a cluster of 3")
    parser.add_argument("--rate", type=int, default=4000, help="clients that come in a second")
    arguments = parser.parse_args()
    asyncioreactor.install(asyncio.new_event_loop())
    from twisted.internet import reactor

    failed: list[Any] = []

    def begin() -> None:
        chats = 100 if arguments.quick else 1000
        work = Deferred.fromCoroutine(compare(reactor, chats, arguments.servers, arguments.rate))
        work.addErrback(failed.append)
        work.addBoth(lambda _: reactor.stop())  # type: ignore[attr-defined]

    reactor.callWhenRunning(begin)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]
    if failed:
        failed[0].printTraceback()
        sys.exit(1)


if __name__ == "__main__":
    main()
