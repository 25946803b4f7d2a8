"""What one process can hold: 5,000 connections with one subscription each, and the memory that each costs."""

from __future__ import annotations

import json
import resource
import selectors
import socket
import time
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.programs import need
from tests.support.running import API_KEY, SECRET, RawClient, Twistd, token

COUNT = 5000
_HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(**fields: Any) -> bytes:
    payload = json.dumps(fields).encode()
    length = (
        bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    )
    return b"\x81" + length + b"\0\0\0\0" + payload


def resident(pid: int) -> int:
    """Bytes of memory that only this process uses."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) * 1024 for name in ("Private_Clean", "Private_Dirty"))


class Capacity(TestCase):
    timeout = 120

    async def test_five_thousand_subscribed_connections_are_held_by_one_process(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        need(hard >= COUNT + 1000, f"a file limit of {COUNT + 1000}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        server = Twistd(
            "-n",
            "--pidfile=",
            "notify",
            cwd=Path.cwd(),
            NOTIFY_LISTEN__PUBLIC="tcp:0:interface=127.0.0.1:backlog=5000",
            NOTIFY_LISTEN__INTERNAL="tcp:0:interface=127.0.0.1",
            NOTIFY_AUTH__JWT__SECRET=SECRET,
            NOTIFY_API__KEYS=API_KEY,
            NOTIFY_SERVER__DUMPABLE="true",  # the test measures its memory from outside
            NOTIFY_LIMITS__AUTH_TIMEOUT="60s",
            NOTIFY_LIMITS__HANDSHAKE_TIMEOUT="60s",
        )
        self.addCleanup(server.kill)
        await server.says("ready: public")
        pid = server.process.pid
        port = await deferToThread(_listening, pid)
        before = resident(pid)
        clients = await deferToThread(_connect, port)
        self.addCleanup(lambda: [client.close() for client in clients])
        each = (resident(pid) - before) / COUNT
        print(
            f"\n{COUNT} connections, each authenticated and subscribed to a chat: {each / 1024:.1f} KiB a connection"
        )
        self.assertEqual(len(clients), COUNT)
        last = RawClient(f"ws://127.0.0.1:{port}/ws")
        await deferToThread(last.send_json, type="auth", token=token())
        self.assertEqual(json.loads((await deferToThread(last.receive))[1])["type"], "auth_result")
        await deferToThread(last.send_json, type="subscribe", chat_id=0)
        await deferToThread(last.send_json, type="presence", chat_id=0)
        present = json.loads((await deferToThread(last.receive))[1])["users"]
        self.assertEqual(sum(user["connections"] for user in present), 11)
        last.close()


def _listening(pid: int) -> int:
    """The public port: of the process's two listening sockets, the one that accepts a WebSocket."""
    inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            port = int(fields[1].split(":")[1], 16)
            client = RawClient(f"ws://127.0.0.1:{port}/ws")
            client.close()
            if client.status == 101:
                return port
    raise AssertionError("no public port")


def _connect(port: int) -> list[socket.socket]:
    """Open, authenticate and subscribe all clients; each has received the answer to its subscription."""
    auth = frame(type="auth", token=token())
    clients, waiting, end = [], selectors.DefaultSelector(), time.monotonic() + 90
    for number in range(COUNT):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        client.sendall(_HANDSHAKE + auth + frame(type="subscribe", chat_id=number // 10, id=number))
        clients.append(client)
        waiting.register(client, selectors.EVENT_READ, bytearray())
    left = COUNT
    while left and time.monotonic() < end:
        for key, _ in waiting.select(1):
            key.data.extend(key.fileobj.recv(65536))  # type: ignore[union-attr]
            if b'"subscribed"' in key.data:
                waiting.unregister(key.fileobj)
                left -= 1
    waiting.close()
    if left:
        raise AssertionError(f"{left} clients were not answered within 90 s")
    return clients
