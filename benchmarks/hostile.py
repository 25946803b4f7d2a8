"""What hostile clients cost the others: ``python -m benchmarks.hostile [--kinds KIND ...] [--clients 32] [--seconds 6]``.

The server has a core to itself. Some clients measure how long a WebSocket ping takes to be answered: with nobody else
there, beside the attackers, and beside as many polite clients that send as many bytes in the same time. An attacker
that is cut off comes back at once. The ratio is that of the pings' p99 beside attackers and beside polite clients. It
must be at most 10, the server's memory may grow by 20 MiB, and attackers must be cut off and counted.

A kind of attack is one function, and a line in :data:`KINDS`: the life of one connection of a client, hostile or polite.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import select
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.request import urlopen

from benchmarks import process
from benchmarks.pongs import pongs, pongs_of_strangers
from benchmarks.servers import Notify, token

#: what must hold
RATIO, MEMORY = 10, 20 * 2**20
#: clients that measure, and seconds between two pings of one
PINGING, PAUSE = 4, 0.05


class Client:
    """One client that others see as an address: what it sends is counted, and paced if ``rate`` is not 0 (bytes/s)."""

    def __init__(self, server: Notify, ends: float, rate: float) -> None:
        self.server = server
        self.port = server.port
        self.ends = ends
        self.sent = self.connections = self.cut_off = 0
        self.rate = rate
        self._began = time.monotonic()

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.ends

    def connect(self) -> socket.socket:
        self.connections += 1
        one = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return one

    def websocket(self, user: int) -> socket.socket:
        """A connection that has been through the handshake, and shown its token if ``user`` is not 0."""
        one = self.connect()
        one.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        read_until(one, b"\r\n\r\n")
        if user:
            one.sendall(frame(0x1, b'{"type":"auth","token":"%s","id":1}' % token(user).encode()))
            read_until(one, b'"id":1}')
        return one

    def send(self, one: socket.socket, data: bytes) -> None:
        """All of ``data``, when it is time for it."""
        if self.rate:
            wait = self._began + self.sent / self.rate - time.monotonic()
            if wait > 0:
                time.sleep(min(wait, max(0.0, self.ends - time.monotonic())))
        one.sendall(data)
        self.sent += len(data)

    def flood(self, one: socket.socket, data: bytes) -> None:
        """Send ``data`` again and again, and read what comes, until the server hangs up."""
        one.setblocking(False)
        rest = data
        while self.goes_on:
            readable, writable, _ = select.select([one], [one], [], 0.1)
            if readable and not one.recv(2**20):
                return
            if writable:
                sent = one.send(rest)
                self.sent += sent
                rest = rest[sent:] or data


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros; of less than 64 KiB."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else bytes((0x80 | 126, size >> 8, size & 255))
    return bytes((0x80 | opcode,)) + length + bytes(4) + payload


def read_until(one: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        part = one.recv(65536)
        if not part:
            raise ConnectionResetError
        data += part
    return data


# --- the kinds ----------------------------------------------------------------------------------------------

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def pipelined_gets(client: Client, hostile: bool) -> None:
    """Requests on the public port, without waiting for answers, or each when the answer is here."""
    with client.connect() as one:
        if hostile:
            client.flood(one, GET * 1000)
        while client.goes_on:
            client.send(one, GET)
            read_until(one, b'"}')


class Kind(NamedTuple):
    """``live`` is the life of one connection; ``counted`` the metric, and a label of it, that counts who was cut off."""

    live: Callable[[Client, bool], None]
    counted: str


KINDS = {
    "pipelined GETs": Kind(pipelined_gets, 'notify_http_hangups_total{reason="ahead"}'),
    "pongs": Kind(pongs, 'notify_closes_total{code="4504"}'),
    "pongs of strangers": Kind(pongs_of_strangers, 'notify_closes_total{code="4504"}'),
}


# --- the measure --------------------------------------------------------------------------------------------


def crowd(
    server: Notify, name: str, count: int, seconds: float, rate: float, hostile: bool, out: Any
) -> None:
    """In a process of its own, behind the clients that measure: ``count`` clients, each in a thread."""
    os.nice(10)
    ends = time.monotonic() + seconds
    clients = [Client(server, ends, rate) for _ in range(count)]

    def live(client: Client) -> None:
        while client.goes_on:
            with suppress(OSError):
                KINDS[name].live(client, hostile)
            client.cut_off += client.goes_on

    threads = [threading.Thread(target=live, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 10)
    out.put((sum(client.sent for client in clients), sum(client.cut_off for client in clients)))


def pings(server: Notify, seconds: float) -> list[float]:
    """Milliseconds from each ping to its pong, of several clients."""
    taken: list[float] = []

    def measure(user: int) -> None:
        client = Client(server, time.monotonic() + seconds, 0)
        with client.websocket(user) as one:
            one.settimeout(60)
            number = 0
            while client.goes_on:
                number += 1
                payload = b"%08d" % number
                began = time.monotonic()
                one.sendall(frame(0x9, payload))
                read_until(one, payload)
                taken.append((time.monotonic() - began) * 1000)
                time.sleep(PAUSE)

    threads = [threading.Thread(target=measure, args=(user + 1,)) for user in range(PINGING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


class Beside(NamedTuple):
    """What was measured beside a crowd. ``sent`` are its bytes; ``grown`` is of the server's memory at its peak; ``used``
    is the server's share of its core, and ``waited`` that of the time in which others had it.
    """

    pings: list[float]
    sent: int
    cut_off: int
    grown: int
    used: float
    waited: float


def beside(
    server: Notify, name: str, count: int, seconds: float, *, rate: float = 0, hostile: bool = False
) -> Beside:
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    before = process.memory(server.pid)
    peak, over = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.1):
            peak = max(peak, process.memory(server.pid))

    watcher = threading.Thread(target=watch)
    other = context.Process(target=crowd, args=(server, name, count, seconds, rate, hostile, out))
    used, waited = process.cpu(server.pid), process.waited(server.pid)
    other.start()
    watcher.start()
    taken = pings(server, seconds)
    used, waited = process.cpu(server.pid) - used, process.waited(server.pid) - waited
    sent, cut_off = out.get(timeout=60)
    other.join()
    over.set()
    watcher.join()
    return Beside(taken, sent, cut_off, peak - before, used / seconds, waited / seconds)


def counted(server: Notify, metric: str) -> float:
    with urlopen(f"http://127.0.0.1:{server.publish_port}/metrics", timeout=30) as answer:
        found = re.search(re.escape(metric) + r" (\S+)", answer.read().decode())
    return float(found[1]) if found else 0


def p99(values: Iterable[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def run(name: str, count: int, seconds: float) -> bool:
    """Measure a kind, print what came out, and say whether it holds."""
    with Notify() as server:
        mine, *others = sorted(os.sched_getaffinity(0))
        if others:
            os.sched_setaffinity(server.pid, {mine})
            os.sched_setaffinity(0, set(others))
        try:
            calm = pings(server, seconds / 2)
            before = counted(server, KINDS[name].counted)
            attacked = beside(server, name, count, seconds, hostile=True)
            told = counted(server, KINDS[name].counted) - before
            time.sleep(3)  # what is left of the attackers goes
            rate = attacked.sent / count / seconds
            polite = beside(server, name, count, seconds, rate=rate)
        finally:
            os.sched_setaffinity(0, {mine, *others})
    print(f"{count} clients, {name}; pings of {PINGING} others:")
    for who, values in (("nobody else", calm), ("polite", polite.pings), ("hostile", attacked.pings)):
        print(
            f"  {who:12} p50 {statistics.median(values):7.2f} ms, p99 {p99(values):7.2f} ms, max {max(values):7.2f} ms"
        )
    ratio = p99(attacked.pings) / p99(polite.pings)
    print(
        f"  sent         {attacked.sent / seconds:,.0f} bytes/s hostile, {polite.sent / seconds:,.0f} polite"
    )
    for who, crowd_ in (("polite", polite), ("hostile", attacked)):
        print(f"  {who:12} server used {crowd_.used:.0%} of its core, and waited {crowd_.waited:.0%} for it")
    verdicts = (
        (f"p99 beside hostile ones is {ratio:.1f} times that beside polite ones", ratio <= RATIO),
        (f"memory grew by {attacked.grown / 2**20:.1f} MiB", attacked.grown <= MEMORY),
        (
            f"cut off {attacked.cut_off:,} times, counted {told:,.0f} times",
            attacked.cut_off >= count and told >= count,
        ),
        (f"polite clients were cut off {polite.cut_off} times", not polite.cut_off),
    )
    for text, holds in verdicts:
        print(f"  {'holds' if holds else 'FAILS'}: {text}")
    return all(holds for _, holds in verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.hostile", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement (default: 6)")
    options = parser.parse_args()
    held = [run(kind, options.clients, options.seconds) for kind in options.kinds]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
