"""The JetStream broker by itself: ``python -m benchmarks.jetstream [--quick]``.

Four questions, each answered by a node in a process of its own (the broker without clients), a real nats-server and a
publisher that writes to a plain socket, so that neither of them is what is measured:

- messages/s that one core takes through each way of delivery, beside a plain core subscription of nats-py;
- latency from ``publish`` to ``deliver``, one server and a cluster of three;
- replays/s of 50 messages out of 100,000, each of another topic, and all of the same one;
- the CPU of a node whose own workspace is quiet, while other workspaces are not.

A node's capacity is messages divided by the CPU seconds that its process spent on them: rates would only show how
fast the publisher was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from notify.chaos.processes import free_ports

SERVER = shutil.which("nats-server") or str(Path(sys.executable).parent / "nats-server")
PAYLOAD = (
    '{"message_id":%d,"chat_id":%d,"workspace_id":%d,"sender_id":7,"content":"%s","timestamp":1700000000}'
)
CONTENT = "x" * 100


class Nats:
    """One nats-server, or a cluster of them, for as long as the context lasts; ``config`` in NATS's own format."""

    def __init__(self, size: int = 1, config: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-nats-"))
        (self.folder / "nats.conf").write_text(config)
        self.ports = free_ports(size)
        routes = free_ports(size)
        self.processes = []
        for n, (client, route) in enumerate(zip(self.ports, routes, strict=True)):
            command = [SERVER, "-c", f"{self.folder}/nats.conf", "-js", "-sd", f"{self.folder}/{n}"]
            command += ["-a", "127.0.0.1", "-p", str(client)]
            if size > 1:
                urls = ",".join(f"nats://127.0.0.1:{r}" for r in routes)
                command += ["-n", f"n{n}", "-cluster_name", "bench", "-cluster", f"nats://127.0.0.1:{route}"]
                command += ["-routes", urls]
            with open(self.folder / f"{n}.log", "wb") as log:
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        for client in self.ports:
            deadline = time.monotonic() + 15
            while True:
                try:
                    socket.create_connection(("127.0.0.1", client), 1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    @property
    def urls(self) -> str:
        return ",".join(f"nats://127.0.0.1:{client}" for client in self.ports)

    def __enter__(self) -> Nats:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Publisher:
    """Writes PUB commands to a socket, and waits for the server's word on the last of each batch."""

    def __init__(self, client_port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", client_port))
        self.file = self.socket.makefile("rb")
        self.file.readline()
        self.socket.sendall(
            b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB ack 1\r\nPING\r\n'
        )
        while self.file.readline() != b"PONG\r\n":
            pass

    def send(self, messages: list[tuple[str, bytes]], stored: bool) -> None:
        parts = []
        for index, (subject, body) in enumerate(messages):
            reply = " ack" if stored and index == len(messages) - 1 else ""
            parts.append(f"PUB {subject}{reply} {len(body)}\r\n".encode() + body + b"\r\n")
        self.socket.sendall(b"".join(parts) + b"PING\r\n")
        waiting = 2 if stored else 1
        while waiting:
            line = self.file.readline()
            if line.startswith(b"MSG ack"):
                self.file.read(int(line.split()[-1]) + 2)
                waiting -= 1
            elif line == b"PONG\r\n":
                waiting -= 1
            elif line == b"PING\r\n":
                self.socket.sendall(b"PONG\r\n")


def batch(start: int, count: int, workspaces: range, chats: int, prefix: str = "") -> list[tuple[str, bytes]]:
    messages = []
    for n in range(start, start + count):
        workspace, chat = workspaces[n % len(workspaces)], n // len(workspaces) % chats + 1
        body = PAYLOAD % (n, chat, workspace, CONTENT)
        messages.append((f"{prefix}workspace.{workspace}.chat.{chat}.messages", body.encode()))
    return messages


# ---------------------------------------------------------------------- the node, in a process of its own


def node(task: str, urls: str, options: dict[str, Any]) -> None:
    """Runs in the child: does one task and prints one line of JSON for each thing that it has to say."""
    import asyncio

    from twisted.internet import asyncioreactor

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred, ensureDeferred

    from benchmarks import jetstream_node

    def say(**values: Any) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    def done(outcome: Any) -> None:
        if hasattr(outcome, "printTraceback"):
            outcome.printTraceback(sys.stderr)
        reactor.stop()

    def begin() -> None:
        work: Deferred[Any] = ensureDeferred(getattr(jetstream_node, task)(say, urls.split(","), **options))
        work.addBoth(done)

    reactor.callWhenRunning(lambda: reactor.callLater(0, begin))
    reactor.run()


class Child:
    """A node in a process of its own."""

    def __init__(self, task: str, urls: str, **options: Any) -> None:
        command = [sys.executable, "-m", "benchmarks.jetstream", "--node", task, urls, json.dumps(options)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError("the node ended without an answer")
        return dict(json.loads(line))

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


# ---------------------------------------------------------------------- the questions


def capacity(mode: str, count: int) -> tuple[float, float]:
    """Messages a CPU second of the node, and a second of the clock."""
    with Nats() as nats:
        child = Child("receive", nats.urls, mode=mode, count=count, chats=100)
        child.hear()
        publisher = Publisher(nats.ports[0])
        for start in range(0, count, 500):
            publisher.send(
                batch(start, 500, range(1, 2), 100, "plain." if mode == "core" else ""), mode != "core"
            )
        result = child.hear()
        child.end()
        return count / result["cpu"], count / result["seconds"]


def latency(mode: str, size: int, seconds: float) -> dict[str, Any]:
    with Nats(size) as nats:
        child = Child("latency", nats.urls, mode=mode, replicas=min(size, 3), rate=500, seconds=seconds)
        result = child.hear()
        child.end()
        return result


def replays(count: int, chats: int) -> dict[str, Any]:
    with Nats() as nats:
        child = Child("replays", nats.urls, count=count, chats=chats, messages=100_000)
        child.hear()
        publisher = Publisher(nats.ports[0])
        for start in range(0, 100_000, 500):
            publisher.send(batch(start, 500, range(1, 2), chats), True)
        child.process.send_signal(10)
        result = child.hear()
        child.end()
        return result


def foreign(mode: str, rate: int, seconds: float) -> float:
    """The node's CPU in percent of a core: its own workspace has 40 messages/s, 50 others ``rate`` together."""
    with Nats() as nats:
        child = Child("idle", nats.urls, mode=mode, seconds=seconds)
        child.hear()
        publisher = Publisher(nats.ports[0])
        begin, sent = time.monotonic(), 0
        while (now := time.monotonic()) - begin < seconds + 1:
            due = int((now - begin) * 20) - sent
            for _ in range(due):
                publisher.send(batch(sent * 5, 2, range(1, 2), 10), True)
                if rate:
                    publisher.send(batch(sent * 1000, rate // 20, range(2, 52), 10), True)
                sent += 1
            time.sleep(0.005)
        result = child.hear()
        child.end()
        return float(result["percent"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer messages, one round")
    parser.add_argument("--node", nargs=3, metavar=("TASK", "URLS", "OPTIONS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.node:
        task, urls, options = arguments.node
        node(task, urls, json.loads(options))
        return
    rounds, count, seconds = (1, 20_000, 3.0) if arguments.quick else (3, 100_000, 10.0)
    print("| way | messages/s a core | of the plain subscription |\n| --- | --- | --- |")
    plain = 0.0
    for mode in ("core", "republish", "consumer"):
        best = sorted(capacity(mode, count)[0] for _ in range(rounds))[rounds // 2]
        plain = plain or best
        print(f"| {mode} | {best:,.0f} | {best / plain:.2f} |", flush=True)
    print("\n| latency at 500 messages/s | p50 ms | p99 ms |\n| --- | --- | --- |")
    for mode, size in (("republish", 1), ("republish", 3), ("consumer", 1), ("consumer", 3)):
        r = latency(mode, size, seconds)
        print(
            f"| {mode}, {size} server{'s' * (size > 1)} | {r['p50'] * 1000:.2f} | {r['p99'] * 1000:.2f} |",
            flush=True,
        )
    print("\n| replays of 50 of 100,000 messages, in | each another, replays/s | all the same, replays/s |")
    print("| --- | --- | --- |")
    for chats in (10, 100, 1000):
        r = replays(1000 if arguments.quick else 4000, chats)
        print(f"| {chats:,} chats in turn | {r['different']:,.0f} | {r['same']:,.0f} |", flush=True)
    print("\n| traffic of other workspaces | republish, CPU % | consumer, CPU % |\n| --- | --- | --- |")
    for rate in (0, 2000, 10_000):
        figures = [foreign(mode, rate, seconds) for mode in ("republish", "consumer")]
        print(f"| {rate:,} messages/s | {figures[0]:.1f} | {figures[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
