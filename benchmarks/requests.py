"""What an HTTP request costs: ``POST /v1/publish`` of one message to a chat without members.

Over connections that are kept busy: each sends its next request when it has the answer.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from typing import Any

from benchmarks import process
from benchmarks.load import Unmeasurable
from benchmarks.servers import Server

CONNECTIONS = 16


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


def publish(server: Server, seconds: float) -> dict[str, Any]:
    """CPU us a request, of the server and of what it stores messages with."""
    head, _, content = server.request([body()]).partition(b"\r\n\r\n")
    one = json.dumps(json.loads(content)[0], separators=(",", ":")).encode()
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    request = b"\r\n".join([*lines, b"Content-Length: %d" % len(one), b"", one])
    keep_busy(server.publish_port, request, CONNECTIONS, 1)
    cpu, stored = process.cpu(server.pid), server.store_cpu()
    answered = keep_busy(server.publish_port, request, CONNECTIONS, seconds)
    cpu, stored = process.cpu(server.pid) - cpu, server.store_cpu() - stored
    return {
        "request_us": cpu / answered * 1e6,
        "requests": answered / seconds,
        **({"store_us": stored / answered * 1e6} if server.store else {}),
    }
