"""What others wait while clients send pongs without end: ``python -m benchmarks.pongs [--seconds 10]``.

The server has one core to itself. First ``CLIENTS`` attackers send pongs as fast as the server takes them, half of them without
a token, and come back at once when they are closed. Then as many polite clients send as many bytes in pings of JSON,
within their rate. Beside both a client sends a ping each 10 ms, whatever it is answered, and measures.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import re
import selectors
import socket
import sys
import time
import urllib.request
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.process import memory
from benchmarks.servers import Notify, token

CLIENTS = 32
#: seconds between two pings of the client that measures
INTERVAL = 0.01
#: frames a second of a polite client: within the default of 50
POLITE = 40
#: the server's core, and that of all others
SERVER_CORE, LOAD_CORE = 0, 1

_TEXT, _PONG = 0x81, 0x8A


def frame(first: int, payload: bytes = b"") -> bytes:
    """A client's frame with a mask of zeros."""
    length = len(payload)
    head = bytes((first, 0x80 | length)) if length < 126 else bytes((first, 0xFE)) + length.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


#: 64 KiB of empty pongs
PONGS = frame(_PONG) * (64 * 1024 // 6)


def dial(port: int, user: int | None) -> socket.socket:
    """An open connection, with a token where there is a user, that does not block."""
    link = socket.create_connection(("127.0.0.1", port), 10)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        "GET /ws HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        # Each client has an address of its own, as behind a proxy.
        f"X-Forwarded-For: 9.9.{(user or 0) >> 8 & 255}.{(user or 0) & 255}",
    )
    link.sendall("\r\n".join((*lines, "", "")).encode())
    wanted = b"\r\n\r\n"
    if user is not None:
        link.sendall(frame(_TEXT, json.dumps({"type": "auth", "token": token(user)}).encode()))
        wanted = b'"auth_result"'
    seen = b""
    while wanted not in seen:
        data = link.recv(65536)
        if not data:
            raise ConnectionResetError
        seen += data
    link.setblocking(False)
    return link


@dataclass
class Sent:
    """What a crowd of clients did. ``refused``: times that one could not come back, and waited a tenth of a second."""

    bytes: int = 0
    opened: int = 0
    refused: int = 0


def attack(port: int, seconds: float, told: Connection) -> None:
    """Attackers, in a process of their own."""
    os.sched_setaffinity(0, {LOAD_CORE})
    os.nice(19)
    sent, selector = Sent(), selectors.DefaultSelector()
    waiting: list[tuple[float, int]] = [(0.0, number) for number in range(CLIENTS)]
    until = time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        for due, number in [one for one in waiting if one[0] <= now]:
            waiting.remove((due, number))
            try:
                link = dial(port, number + 1 if number % 2 else None)
            except OSError:
                sent.refused += 1
                waiting.append((now + 0.1, number))
                continue
            sent.opened += 1
            selector.register(link, selectors.EVENT_READ | selectors.EVENT_WRITE, number)
        for key, events in selector.select(0.05):
            link, gone = key.fileobj, False
            assert isinstance(link, socket.socket)
            try:
                if events & selectors.EVENT_WRITE:
                    sent.bytes += link.send(PONGS)
                if events & selectors.EVENT_READ:
                    gone = not link.recv(65536)
            except BlockingIOError:
                pass
            except OSError:
                gone = True
            if gone:
                selector.unregister(link)
                link.close()
                waiting.append((time.monotonic(), key.data))
    told.send(sent)


def behave(port: int, seconds: float, rate: float, told: Connection) -> None:
    """Polite clients that send ``rate`` bytes a second together, in a process of their own."""
    os.sched_setaffinity(0, {LOAD_CORE})
    os.nice(19)
    size = min(60_000, max(15, int(rate / CLIENTS / POLITE) - 8))
    ping = frame(_TEXT, b'{"type":"ping"}'.ljust(size))
    links = [dial(port, number + 1) for number in range(CLIENTS)]
    sent = Sent(opened=len(links))
    began, turn = time.monotonic(), 0
    while (now := time.monotonic()) < began + seconds:
        due = int((now - began) * POLITE * CLIENTS)
        for number in range(turn, due):
            link = links[number % CLIENTS]
            try:
                while link.recv(65536):
                    pass
            except BlockingIOError:
                pass
            link.setblocking(True)
            link.sendall(ping)
            link.setblocking(False)
            sent.bytes += len(ping)
        turn = due
        time.sleep(0.5 / POLITE / CLIENTS)
    told.send(sent)


class Beside:
    """A client that sends a ping each interval, whether or not those before are answered, and measures each."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._pending: deque[float] = deque()
        self._seen = b""
        #: seconds from ping to pong
        self.waited: list[float] = []

    def measure(self, seconds: float) -> None:
        """For so long, and until all are answered."""
        began, turn = time.monotonic(), 0
        while (now := time.monotonic()) < began + seconds:
            due = began + turn * INTERVAL
            if now >= due:
                self._link.send(frame(_TEXT, b'{"type":"ping"}'))
                self._pending.append(due)
                turn += 1
            else:
                self._read(due - now)
        while self._pending:
            self._read(1.0)

    def _read(self, patience: float) -> None:
        self._link.settimeout(patience)
        try:
            self._seen += self._link.recv(65536)
        except TimeoutError:
            return
        *pongs, self._seen = self._seen.split(b'"pong"')
        now = time.monotonic()
        self.waited += [now - self._pending.popleft() for _ in pongs]

    def at(self, part: float) -> float:
        """A quantile of what it waited, in milliseconds."""
        ordered = sorted(self.waited)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1000


class OnOneCore(Notify):
    """notify on a core of its own, where each client has its own address."""

    extra = ""

    def command(self) -> list[str]:
        command = super().command()
        config = self.folder / "notify.toml"
        text = config.read_text().replace("[listen]", '[listen]\ntrusted_proxies = ["127.0.0.1"]')
        config.write_text(text)
        return ["taskset", "-c", str(SERVER_CORE), *command]


def closes(server: Notify) -> int:
    """Connections that the server closed for their rate, as its metrics say."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.publish_port}/metrics") as answer:
        found = re.search(rb'notify_closes_total\{code="4504"\} ([\d.]+)', answer.read())
    return int(float(found[1])) if found else 0


def one(seconds: float, crowd: Any, *more: Any) -> dict[str, float]:
    """One crowd against one server: its figures."""
    with OnOneCore() as server:
        assert isinstance(server, Notify)
        beside = Beside(dial(server.port, 10_000))
        beside.measure(1.0)
        beside.waited.clear()
        before = most = memory(server.pid)
        told, ours = multiprocessing.Pipe()
        process = multiprocessing.Process(target=crowd, args=(server.port, seconds, *more, ours))
        process.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            beside.measure(1.0)
            most = max(most, memory(server.pid))
        sent: Sent = told.recv()
        process.join()
        return {
            "p50_ms": beside.at(0.5),
            "p99_ms": beside.at(0.99),
            "max_ms": beside.at(1),
            "memory_mib": (most - before) / 2**20,
            "bytes_per_second": sent.bytes / seconds,
            "opened": sent.opened,
            "refused": sent.refused,
            "closed_4504": closes(server),
        }


def pongs(seconds: float = 10.0) -> dict[str, dict[str, float]]:
    """The figures of attackers, and of polite clients that send as many bytes."""
    os.sched_setaffinity(0, {LOAD_CORE})
    attacked = one(seconds, attack)
    polite = one(seconds, behave, attacked["bytes_per_second"])
    return {"pongs": attacked, "polite": polite}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.pongs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each crowd (default: 10)")
    figures = pongs(parser.parse_args().seconds)
    for name, found in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:,.2f}" for key, value in found.items()))
    attacked, polite = figures["pongs"], figures["polite"]
    print(f"p99: {attacked['p99_ms'] / polite['p99_ms']:.1f} times that beside polite clients")
    good = (
        attacked["p99_ms"] <= 10 * polite["p99_ms"]
        and attacked["memory_mib"] <= 20
        and attacked["closed_4504"] > 0
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
