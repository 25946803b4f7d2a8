"""The works: what clients there are, what is published, and what is measured meanwhile."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import process
from benchmarks.load import Clients, Publisher
from benchmarks.requests import CONNECTIONS, RATE, publish, publish_alone
from benchmarks.rounds import BUSY, lateness, spoilt
from benchmarks.servers import Server

EVERYONE = (
    "floor",
    "notify",
    "Nchan",
    "Centrifugo",
    "Node ws",
    "NATS WebSocket",
    "Socket.IO",
    "Autobahn",
    "python-socketio",
    "picows",
    "websockets",
    "uWebSockets",
)
STORED = ("floor", "notify", "notify (JetStream)", *EVERYONE[2:])
#: by what part of the median latency the generator may be in the way
LAG = 0.25


@dataclass(frozen=True)
class Work:
    """One kind of work. ``run`` gives the figures of one round of one server."""

    name: str
    title: str
    servers: Sequence[str]
    run: Callable[[Server, float], dict[str, Any]]
    #: the most rounds that are worth their time
    rounds: int = 99
    #: whether clients come over TLS
    tls: bool = False


@dataclass(frozen=True)
class FanOut:
    """Clients in chats, and messages at a steady pace: ``batch`` at once, ``per_second`` times a second.

    ``chats_of`` gives the chats of a client; messages go to chats 1 to ``chats`` in turns. With ``slow_every`` each
    so-manieth client stops reading once it is subscribed.
    """

    clients: int
    chats: int
    chats_of: Callable[[int], Sequence[int]]
    batch: int
    per_second: float
    size: int = 100
    slow_every: int = 0
    seconds: float = 1.0

    def __call__(self, server: Server, seconds: float) -> dict[str, Any]:
        seconds *= self.seconds
        members = [0] * (self.chats + 1)
        for user in range(self.clients):
            if not (self.slow_every and user % self.slow_every == 0):
                for chat in self.chats_of(user):
                    members[chat] += 1
        clients = server.clients(
            [server.plan(user + 1, self.chats_of(user)) for user in range(self.clients)],
            slow_every=self.slow_every,
        )
        publisher = None
        try:
            opened = clients.open()
            if opened["failed"]:
                return {"error": f"{opened['failed']} of {self.clients} clients were refused"}
            # Not before: some servers close a connection that is quiet for ten seconds.
            publisher = server.publisher()
            turns = itertools.cycle(range(1, self.chats + 1))
            pace(publisher, turns, self.batch, self.per_second, 0.5, self.size)
            time.sleep(0.5)
            return self._measure(server, clients, publisher, turns, members, seconds)
        finally:
            if publisher is not None:
                publisher.close()
            clients.close()

    def _measure(
        self,
        server: Server,
        clients: Clients,
        publisher: Publisher,
        turns: Iterator[int],
        members: Sequence[int],
        seconds: float,
    ) -> dict[str, Any]:
        clients.reset()
        memory = process.memory(server.pid)
        cpu, waited, stored = process.cpu(server.pid), process.waited(server.pid), server.store_cpu()
        began = time.monotonic()
        paced = pace(publisher, turns, self.batch, self.per_second, seconds, self.size)
        sent = paced.sent
        offered = time.monotonic() - began
        expected = sum(members[chat] for chat in sent)
        figures = clients.stats()
        moved, seen = time.monotonic(), figures["deliveries"]
        while figures["deliveries"] < expected and time.monotonic() - moved < (4 if seen else 15):
            if time.monotonic() - began > 4 * seconds + 10:
                break
            time.sleep(0.1)
            figures = clients.stats()
            if figures["deliveries"] > seen:
                moved, seen = time.monotonic(), figures["deliveries"]
        cpu, waited = process.cpu(server.pid) - cpu, process.waited(server.pid) - waited
        stored = server.store_cpu() - stored
        publisher.drain()
        took = max(offered, moved - began)
        if not figures["deliveries"]:
            return {"error": f"delivered nothing within {time.monotonic() - began:.0f} s"}
        measured = {
            "deliveries": figures["deliveries"],
            "expected": expected,
            "missing": expected - figures["deliveries"],
            "refused": publisher.refused,
            "cpu_us": cpu / max(1, figures["deliveries"]) * 1e6,
            "message_us": cpu / len(sent) * 1e6,
            "cpu_share": cpu / took,
            **({"store_us": stored / figures["deliveries"] * 1e6} if server.store else {}),
            **({"store_message_us": stored / len(sent) * 1e6} if server.store else {}),
            "throughput": figures["deliveries"] / took,
            "offered": expected / seconds,
            "p50_ms": figures["latency"]["p50"] / 1000,
            "p99_ms": figures["latency"]["p99"] / 1000,
            "max_ms": figures["latency"]["max"] / 1000,
            "waited_share": waited / took,
            "frames_per_delivery": figures["frames"] / max(1, figures["deliveries"]),
            "bytes_per_delivery": figures["bytes"] / max(1, figures["deliveries"]),
            "memory_growth": process.memory(server.pid) - memory,
            "publisher_late_share": paced.late,
            "publisher_cpu_share": paced.busy,
            **generator(figures),
        }
        return {**measured, "spoilt": spoilt(measured)}


#: seconds after which a history is full
FILLED = 12


def never_reads(server: Server, _: float) -> dict[str, Any]:
    """A minute of traffic, 400 KiB/s to each of ten clients, of which one never reads: the server's memory meanwhile."""
    work = FanOut(10, 1, one_chat, batch=5, per_second=20, size=4096, slow_every=10)
    samples: list[int] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(1):
            samples.append(process.memory(server.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        figures = work(server, 60)
    finally:
        over.set()
        sampler.join()
    if "error" in figures:
        return figures
    # In the first seconds a history of 1,000 messages fills up (4 MiB here), where a server keeps one.
    return {
        **figures,
        "memory_peak_growth": max(samples[FILLED:]) - samples[FILLED],
        "memory_samples_mib": [round(each / 2**20, 2) for each in samples],
    }


@dataclass(frozen=True)
class Paced:
    """The chats published to; the share of publishes that were late (``rounds.lateness``); the publisher's share of a core."""

    sent: list[int]
    late: float
    busy: float


def pace(
    publisher: Publisher, turns: Iterator[int], batch: int, per_second: float, seconds: float, size: int
) -> Paced:
    """Publish at a steady pace, catching up where a publish blocked."""
    sent: list[int] = []
    due: list[float] = []
    started: list[float] = []
    took: list[float] = []
    began, cpu = time.monotonic(), time.thread_time()
    for tick in range(max(1, round(seconds * per_second))):
        delay = began + tick / per_second - time.monotonic()
        if delay > 0:
            time.sleep(delay)
        elif -delay > 2 * seconds:
            break  # hopelessly behind: measure what came so far
        chats = list(itertools.islice(turns, batch))
        due.append(began + tick / per_second)
        moment, lasted = publisher.publish(chats, size)
        started.append(moment)
        took.append(lasted)
        publisher.drain()
        sent += chats
    busy = (time.thread_time() - cpu) / (time.monotonic() - began)
    return Paced(sent, lateness(due, started, took, 1 / per_second), busy)


def generator(figures: dict[str, Any]) -> dict[str, Any]:
    """How busy and how late the load generator was, and whether that was too much for the figures to hold."""
    busy = figures["cpu"] / figures["seconds"]
    lag = figures["lag"]["p99"] / 1000
    latency = figures["latency"]["p50"] / 1000
    return {
        "generator_cpu_share": busy,
        "generator_lag_ms": lag,
        "generator_waited_share": figures["waited"] / figures["seconds"],
        "generator_in_the_way": busy > BUSY or (latency > 0 and lag > max(1.0, LAG * latency)),
    }


def in_tens(server: Server, count: int) -> tuple[Clients, Clients]:
    """Clients in chats of ten: 200 first, who pay for what is made once, and ``count`` behind them, who are measured."""
    plan = [server.plan(user + 1, [user // 10 + 1]) for user in range(count + 200)]
    return server.clients(plan[:200]), server.clients(plan[200:])


def idle(count: int) -> Callable[[Server, float], dict[str, Any]]:
    """``count`` clients connect, show a token, subscribe to a chat of ten, and then do nothing."""

    def run(server: Server, seconds: float) -> dict[str, Any]:
        first, rest = in_tens(server, count)
        try:
            first.open()
            time.sleep(1)
            memory, cpu = process.memory(server.pid), process.cpu(server.pid)
            opened = rest.open()
            cpu = process.cpu(server.pid) - cpu
            time.sleep(min(3, seconds))
            memory = process.memory(server.pid) - memory
            served = opened["ready"]
            if served < count:
                return {"error": f"{count - served} of {count} clients were refused"}
            return {
                "accept_us": cpu / served * 1e6,
                "accepted_per_second": served / opened["connect_seconds"],
                "memory": memory / served,
                "admission_p50_ms": opened["admission"]["p50"] / 1000,
                "admission_p99_ms": opened["admission"]["p99"] / 1000,
                **generator(opened),
            }
        finally:
            first.close()
            rest.close()

    return run


#: seconds between two pings of a client
PING_INTERVAL = 25


def pinged(count: int) -> Callable[[Server, float], dict[str, Any]]:
    """``count`` clients have each subscribed to a chat of ten, and nothing is published: only pings go around.

    What they cost is measured over whole intervals: one, and one more for each 8 s that a round has. Before it, two
    intervals pass, since notify does not ping a client within an interval in which it has heard from it.
    """

    def run(server: Server, seconds: float) -> dict[str, Any]:
        first, rest = in_tens(server, count)
        try:
            first.open()
            time.sleep(1)
            memory = process.memory(server.pid)
            opened = rest.open(120)
            if opened["ready"] < count:
                return {"error": f"{count - opened['ready']} of {count} clients were refused"}
            time.sleep(min(3, seconds))
            memory = process.memory(server.pid) - memory
            time.sleep(2 * PING_INTERVAL)
            rest.reset()
            cpu, began = process.cpu(server.pid), time.monotonic()
            time.sleep(PING_INTERVAL * (1 + int(seconds / 8)))
            took, figures = time.monotonic() - began, rest.stats()
            cpu = process.cpu(server.pid) - cpu
            if figures["closed"]:
                return {"error": f"{figures['closed']} of {count} clients were sent away"}
            if not figures["frames"]:
                return {"error": "nobody was pinged"}
            return {
                "memory": memory / count,
                "idle_us": cpu / took / (count + 200) * 1e6,
                "pings": figures["frames"] / took,
            }
        finally:
            first.close()
            rest.close()

    return run


def storm(count: int, live: int) -> Callable[[Server, float], dict[str, Any]]:
    """``count`` clients come at once and resume ten messages back, while ``live`` others have traffic."""

    def run(server: Server, seconds: float) -> dict[str, Any]:
        publisher = server.publisher()
        watchers = server.clients([server.plan(user + 1, [1]) for user in range(live)])
        crowd = None
        try:
            watchers.open()
            since = server.position(publisher.ask([2], 100)) if server.resumes else None
            for _ in range(10):
                publisher.publish([2], 100)
                publisher.drain()
            time.sleep(0.5)
            watchers.reset()
            turns = itertools.repeat(1)
            pace(publisher, turns, 1, 20, 2, 100)
            calm = watchers.stats()
            crowd = server.clients(
                [server.plan(live + user + 1, [2], since) for user in range(count)],
                concurrency=count,
                retry=True,
            )
            watchers.reset()
            cpu, stored, began = process.cpu(server.pid), server.store_cpu(), time.monotonic()
            crowd.start()
            while not crowd.answered() and time.monotonic() - began < 90:
                pace(publisher, turns, 1, 20, 0.25, 100)
            opened = crowd.answer(1)
            cpu, stored = process.cpu(server.pid) - cpu, server.store_cpu() - stored
            time.sleep(0.5)
            stormy, replayed = watchers.stats(), crowd.stats()
            return {
                "served": opened["ready"],
                "failed": opened["failed"],
                "retries": opened["retries"],
                "took_s": opened["connect_seconds"],
                "admission_p50_ms": opened["admission"]["p50"] / 1000,
                "admission_p99_ms": opened["admission"]["p99"] / 1000,
                "replayed_each": replayed["replayed"] / max(1, opened["ready"]),
                "cpu_us": cpu / max(1, opened["ready"]) * 1e6,
                **({"store_us": stored / max(1, opened["ready"]) * 1e6} if server.store else {}),
                "calm_p99_ms": calm["latency"]["p99"] / 1000,
                "p50_ms": stormy["latency"]["p50"] / 1000,
                "p99_ms": stormy["latency"]["p99"] / 1000,
                "max_ms": stormy["latency"]["max"] / 1000,
                **generator(replayed),
            }
        finally:
            publisher.close()
            watchers.close()
            if crowd is not None:
                crowd.close()

    return run


def one_chat(_: int) -> Sequence[int]:
    return (1,)


ENCODINGS = (
    "notify",
    "notify (batch)",
    "notify (protobuf)",
    "notify (deflate)",
    "notify (batch, deflate)",
    "Node ws",
    "Node ws (deflate)",
)

WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        Work(
            "publish",
            f"Publishes of one message to a chat without members, {CONNECTIONS} connections kept busy",
            ("uvicorn", "notify", "notify (JetStream)"),
            publish,
        ),
        Work(
            "publish-alone",
            f"Publishes of one message to a chat without members, {RATE:,} a second, one by one",
            ("uvicorn", "notify", "notify (JetStream)"),
            publish_alone,
        ),
        Work(
            "chat-1000",
            "One chat of 1,000, 20 messages/s",
            EVERYONE,
            FanOut(1000, 1, one_chat, batch=1, per_second=20),
        ),
        Work(
            "chat-10000",
            "One chat of 10,000, 2 messages/s",
            EVERYONE,
            FanOut(10_000, 1, one_chat, batch=1, per_second=2),
            rounds=2,
        ),
        Work(
            "bursts",
            "Bursts: one chat of 500, 500 messages/s, 50 at once",
            STORED,
            FanOut(500, 1, one_chat, batch=50, per_second=10),
        ),
        Work(
            "tens",
            "5,000 clients in 500 chats of ten, 1,000 messages/s, 20 at once",
            STORED,
            FanOut(5000, 500, lambda user: (user // 10 + 1,), batch=20, per_second=50),
        ),
        Work(
            "pairs",
            "100 chats of two, 1,000 messages/s, one by one",
            STORED,
            FanOut(200, 100, lambda user: (user // 2 + 1,), batch=1, per_second=1000),
        ),
        Work(
            "tens-tls",
            "Over TLS: 5,000 clients in 500 chats of ten, 1,000 messages/s, 20 at once",
            ("notify", "Nchan", "Centrifugo", "Node ws", "NATS WebSocket", "picows", "websockets"),
            FanOut(5000, 500, lambda user: (user // 10 + 1,), batch=20, per_second=50),
            tls=True,
        ),
        Work(
            "fifty",
            "1,000 users in 50 of 200 chats each, 80 messages/s, 4 at once",
            EVERYONE,
            FanOut(
                1000,
                200,
                lambda user: tuple((user * 7 + step * 4) % 200 + 1 for step in range(50)),
                batch=4,
                per_second=20,
            ),
        ),
        Work(
            "slow",
            "One chat of 500, 40 messages/s of 4 KiB, 1 % of the clients never read",
            EVERYONE,
            FanOut(500, 1, one_chat, batch=2, per_second=20, size=4096, slow_every=100),
        ),
        Work(
            "encodings",
            "Encodings: one chat of 1,000, 20 messages/s",
            ENCODINGS,
            FanOut(1000, 1, one_chat, batch=1, per_second=20),
        ),
        Work(
            "encodings-bursts",
            "Encodings in bursts: one chat of 500, 500 messages/s, 50 at once",
            ENCODINGS,
            FanOut(500, 1, one_chat, batch=50, per_second=10),
        ),
        Work(
            "never-reads",
            "A minute of 100 messages/s of 4 KiB to ten clients, one of which never reads",
            ("notify", "Node ws"),
            never_reads,
            rounds=1,
        ),
        Work(
            "idle",
            "5,000 clients connect, authenticate, subscribe and stay idle",
            (*EVERYONE, "Autobahn (handshake)"),
            idle(5000),
        ),
        Work(
            "pings",
            f"10,000 idle clients, each pinged every {PING_INTERVAL} s",
            EVERYONE,
            pinged(10_000),
            rounds=2,
        ),
        Work(
            "storm",
            "10,000 clients connect at once and resume, 500 others have 20 messages/s",
            (
                "notify",
                "notify (JetStream)",
                "Nchan",
                "Centrifugo",
                "Node ws",
                "NATS WebSocket",
                "Socket.IO",
                "Autobahn",
            ),
            storm(10_000, 500),
            rounds=2,
        ),
    )
}
