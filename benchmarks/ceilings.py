"""Where a cluster meets its next ceiling: ``python -m benchmarks.ceilings [--seconds 5] [--rounds 3]``.

Three measures that docs/scale.md reckons with. What one message costs the server that leads the stream, with one copy and with
three, sent on to one subscriber, published without waiting by one connection. What a followed chat costs a node and NATS while
nothing is published, beside the memory broker. What a client costs that comes and is present in the bucket all nodes share.
Figures are medians over the rounds, of CPU: what a core of this machine holds is a million divided by the microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import nats

from benchmarks import process
from benchmarks.__main__ import machine
from benchmarks.jetstream import CONTENT, PAYLOAD, Nats
from benchmarks.load import Unmeasurable, compile_generator
from benchmarks.servers import Notify, NotifyJetStream
from benchmarks.sync import create

#: messages on their way at once
WINDOW = 500
#: chats that are followed, one by each of as many clients
CHATS = 5000


class _Peer:
    """A plain connection to a nats-server."""

    def __init__(self, url: str, *begin: bytes) -> None:
        host, port = url.removeprefix("nats://").split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n' + b"".join(begin) + b"PING\r\n")
        rest = b""
        while b"PONG" not in rest:
            rest += self.socket.recv(65536)


def _window() -> bytes:
    """So many publishes, each with a place for its answer."""
    lines = []
    for number in range(WINDOW):
        chat = number % 100 + 1
        payload = (PAYLOAD % (number, chat, 1, CONTENT)).encode()
        lines.append(b"PUB workspace.1.chat.%d.messages inbox.1 %d\r\n%b\r\n" % (chat, len(payload), payload))
    return b"".join(lines)


async def _stream(servers: Nats, copies: int) -> str:
    """Make the stream, with what notify has sent on; gives the address of the server that leads it."""
    client = await nats.connect(servers.urls.split(","))
    await create(client, copies)
    config: dict[str, Any] = {
        "name": "BENCH",
        "subjects": ["workspace.>"],
        "num_replicas": copies,
        "storage": "file",
        "republish": {"src": "workspace.>", "dest": "live.workspace.>"},
    }
    answer = await client.request("$JS.API.STREAM.UPDATE.BENCH", json.dumps(config).encode(), timeout=5)
    told = json.loads(answer.data)
    if "error" in told:
        raise Unmeasurable(str(told["error"]))
    leader = told.get("cluster", {}).get("leader", "n0")
    await client.close()
    return servers.urls.split(",")[int(leader[1:])]


def leader(copies: int, seconds: float) -> dict[str, float]:
    """CPU of the leader, and of all servers, for one message; and how many there were a second."""
    with Nats(copies) as servers:
        url = asyncio.run(_stream(servers, copies))
        publisher, node = _Peer(url, b"SUB inbox.1 1\r\n"), _Peer(url, b"SUB live.> 1\r\n")
        node.socket.setblocking(False)
        window, count, rest = _window(), 0, b""
        pids = [one.pid for one in servers.processes]
        mine = pids[servers.urls.split(",").index(url)]

        def go(until: float) -> int:
            nonlocal rest
            sent = 0
            while time.monotonic() < until:
                publisher.socket.sendall(window)
                answered = 0
                while answered < WINDOW:
                    data = rest + publisher.socket.recv(2**18)
                    answered += data.count(b'"seq"')
                    rest = data[-4:]
                    if b'"error"' in data:
                        raise Unmeasurable(data.decode(errors="replace")[:300])
                sent += answered
                try:
                    while node.socket.recv(2**20):
                        pass
                except BlockingIOError:
                    pass
            return sent

        go(time.monotonic() + 1)
        before, all_before, began = process.cpu(mine), sum(map(process.cpu, pids)), time.monotonic()
        count = go(began + seconds)
        took = time.monotonic() - began
        return {
            "leader": (process.cpu(mine) - before) / count * 1e6,
            "all": (sum(map(process.cpu, pids)) - all_before) / count * 1e6,
            "rate": count / took,
        }


class Kept(NotifyJetStream):
    """notify on JetStream, whose clients are present in the bucket that all nodes share."""

    name = "notify (JetStream, presence of all nodes)"

    def __init__(self) -> None:
        super().__init__()
        self.extra += '[registry]\nplugin = "jetstream_kv"\n'


def clients(make: Callable[[], Notify], seconds: float) -> dict[str, float]:
    """CPU of a client that comes, alone in its chat, and of one that is there: of the node, and of NATS."""
    with make() as server:
        plan = [server.plan(user + 1, [user + 1]) for user in range(CHATS + 200)]
        store = getattr(server, "store", None)
        first, rest = server.clients(plan[:200]), server.clients(plan[200:])

        def used() -> tuple[float, float]:
            return process.cpu(server.pid), process.cpu(store.pid) if store else 0.0

        try:
            first.open()
            time.sleep(1)
            before = used()
            opened = rest.open(120)
            if opened["ready"] < CHATS:
                raise Unmeasurable(f"{CHATS - opened['ready']} clients were not served")
            time.sleep(2)
            came = used()
            time.sleep(seconds)
            stayed = used()
        finally:
            first.close()
            rest.close()
    return {
        "comes": (came[0] - before[0]) / CHATS * 1e6,
        "comes, NATS": (came[1] - before[1]) / CHATS * 1e6,
        "stays": (stayed[0] - came[0]) / seconds / (CHATS + 200) * 1e6,
        "stays, NATS": (stayed[1] - came[1]) / seconds / (CHATS + 200) * 1e6,
    }


def median(measure: Callable[[], dict[str, float]], rounds: int) -> dict[str, float]:
    """The median of each figure."""
    found = [measure() for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    compile_generator()
    print(f"{machine()}; {options.rounds} rounds, the median\n")
    print("| the stream's copies | the leader, CPU us a message | all servers | messages/s here |")
    print("| ---: | ---: | ---: | ---: |")
    for copies in (1, 3):
        found = median(lambda copies=copies: leader(copies, options.seconds), options.rounds)  # type: ignore[misc]
        print(f"| {copies} | {found['leader']:.1f} | {found['all']:.1f} | {found['rate']:,.0f} |", flush=True)
    print(
        f"\n| {CHATS:,} clients, each in a chat of its own | comes: node, us | NATS | stays: node, us/s | NATS |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for make in (Notify, NotifyJetStream, Kept):
        # Several of the comparisons that a node makes every ten seconds are in it.
        found = median(lambda make=make: clients(make, 6 * options.seconds), options.rounds)  # type: ignore[misc]
        cells = " | ".join(f"{found[name]:.1f}" for name in ("comes", "comes, NATS", "stays", "stays, NATS"))
        print(f"| {make.name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
