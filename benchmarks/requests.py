"""What an HTTP request costs: ``POST /v1/publish`` of one message to a chat without members.

Over connections that are kept busy, each of which sends its next request when it has the answer; and over one, at the pace of the
pairs, where each request wakes a process that has slept.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from benchmarks import process
from benchmarks.load import Unmeasurable
from benchmarks.servers import Server

CONNECTIONS = 16
#: requests a second
RATE = 1000


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
                if not _whole(answer):
                    parts[descriptor] = answer
                    continue
                answered += 1
                sockets[descriptor].sendall(request)
        return answered
    finally:
        for one in sockets.values():
            one.close()
        poll.close()


def alone(port: int, request: bytes, rate: float, seconds: float) -> int:
    """How many requests were answered of ``rate`` a second, each sent when the one before was answered and its time has come."""
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            if (left := began + number / rate - time.monotonic()) > 0:
                time.sleep(left)
            one.sendall(request)
            answer = b""
            while not _whole(answer):
                part = one.recv(65536)
                if not part:
                    raise Unmeasurable("the server closed the connection")
                answer += part
    return int(rate * seconds)


def _whole(answer: bytes) -> bool:
    """Whether that is all of an answer. Raises ``Unmeasurable`` where it is another than 200."""
    if answer and not answer.startswith(b"HTTP/1.1 200"):
        raise Unmeasurable(f"answered with {answer[:60]!r}")
    head, end, content = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end and length and len(content) >= int(length[1]))


def _request(server: Server) -> bytes:
    """A publish of one message."""
    head, _, content = server.request([body()]).partition(b"\r\n\r\n")
    one = json.dumps(json.loads(content)[0], separators=(",", ":")).encode()
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(one), b"", one])


def _measured(server: Server, answered: Callable[[], int], seconds: float) -> dict[str, Any]:
    """CPU us a request, of the server and of what it stores messages with."""
    cpu, stored = process.cpu(server.pid), server.store_cpu()
    count = answered()
    cpu, stored = process.cpu(server.pid) - cpu, server.store_cpu() - stored
    return {
        "request_us": cpu / count * 1e6,
        "requests": count / seconds,
        **({"store_us": stored / count * 1e6} if server.store else {}),
    }


def publish(server: Server, seconds: float) -> dict[str, Any]:
    """Over connections that are kept busy."""
    port, request = server.publish_port, _request(server)
    keep_busy(port, request, CONNECTIONS, 1)
    return _measured(server, lambda: keep_busy(port, request, CONNECTIONS, seconds), seconds)


def publish_alone(server: Server, seconds: float) -> dict[str, Any]:
    """Over one connection, ``RATE`` a second: between two requests the server has nothing to do."""
    port, request = server.publish_port, _request(server)
    alone(port, request, RATE, 1)
    return _measured(server, lambda: alone(port, request, RATE, seconds), seconds)
