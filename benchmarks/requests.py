"""What an HTTP request costs: ``python -m benchmarks.requests [--seconds 5] [--rounds 3] [--connections 16]``.

``POST /v1/publish`` of one message to a chat without members, over connections that are kept busy: each sends its
next request when it has the answer. notify takes turns with a bare uvicorn (httptools, uvloop) that parses the JSON
and answers: the measure. Printed are the medians of CPU us a request, and how much of that measure notify takes.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks import process
from benchmarks.load import Unmeasurable
from benchmarks.servers import PEERS, Notify, Server


class Uvicorn(Server):
    """A bare uvicorn."""

    name = "uvicorn"

    def command(self) -> list[str]:
        return [sys.executable, str(PEERS / "uvicorn_publish.py"), str(self.port)]


SERVERS: tuple[Callable[[], Server], ...] = (Notify, Uvicorn)


def body() -> dict[str, object]:
    """A message as the other benchmarks have it."""
    return {
        "message_id": 1,
        "chat_id": 10,
        "workspace_id": 1,
        "sender_id": 7,
        "content": "x" * 100,
        "timestamp": 1_700_000_000,
    }


def keep_busy(port: int, request: bytes, connections: int, seconds: float) -> int:
    """How many requests were answered, each with 200."""
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    parts: dict[int, bytes] = {}
    try:
        for _ in range(connections):
            one = socket.create_connection(("127.0.0.1", port))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets[one.fileno()] = one
            poll.register(one, select.EPOLLIN)
            one.sendall(request)
        answered, ends = 0, time.monotonic() + seconds
        while time.monotonic() < ends:
            for descriptor, _ in poll.poll(1):
                answer = parts.pop(descriptor, b"") + sockets[descriptor].recv(65536)
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise Unmeasurable(f"answered with {answer[:60]!r}")
                head, end, content = answer.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if not end or not length or len(content) < int(length[1]):
                    parts[descriptor] = answer
                    continue
                answered += 1
                sockets[descriptor].sendall(request)
        return answered
    finally:
        for one in sockets.values():
            one.close()
        poll.close()


def measure(make: Callable[[], Server], connections: int, seconds: float) -> float:
    """CPU us a request of one server."""
    with make() as server:
        head, _, content = server.request([body()]).partition(b"\r\n\r\n")
        one = json.dumps(json.loads(content)[0], separators=(",", ":")).encode()
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
        request = b"\r\n".join([*lines, b"Content-Length: %d" % len(one), b"", one])
        keep_busy(server.publish_port, request, connections, 1)
        cpu = process.cpu(server.pid)
        answered = keep_busy(server.publish_port, request, connections, seconds)
        return (process.cpu(server.pid) - cpu) / answered * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.requests", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    figures: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for make in SERVERS:
            found = measure(make, options.connections, options.seconds)
            figures.setdefault(make.name, []).append(found)  # type: ignore[attr-defined]
    for name, found in figures.items():
        print(f"{name:10} {statistics.median(found):7.1f} us a request ({min(found):.1f}-{max(found):.1f})")
    ratios = [ours / theirs for ours, theirs in zip(figures["notify"], figures["uvicorn"], strict=True)]
    print(f"notify takes {statistics.median(ratios):.2f} times what uvicorn takes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
