"""Publishes to one room, one message at a time, and notes what was acknowledged."""

from __future__ import annotations

import asyncio
import re
import time

from benchmarks.load import content
from benchmarks.loss.ledger import Ledger
from benchmarks.others import Nats
from benchmarks.servers import Server

#: seconds that a publish may take; it is then not acknowledged
PATIENCE = 10.0
#: not 207, which notify answers where a message of the list was refused
ACCEPTED = (b"200", b"201", b"202")
#: the WebSocket benchmark publishes without acknowledgements, this one with
VERBOSE = b'CONNECT {"verbose":true,"pedantic":false,"echo":false}\r\n'


class Room:
    """The publisher of one room, on a connection of its own; ``servers`` are as good as each other."""

    def __init__(self, room: int, servers: list[Server], ledger: Ledger) -> None:
        self.room, self.servers, self.ledger = room, list(servers), ledger
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def publish(self) -> None:
        """Publish the next message, once. One whose fate is not known is not repeated, and not counted either."""
        number = self.ledger.number(self.room)
        payload = {
            "message_id": number,
            "chat_id": self.room,
            "workspace_id": 1,
            "sender_id": 7,
            "content": content(100),
            "timestamp": int(time.time()),
        }
        try:
            async with asyncio.timeout(PATIENCE):
                if await self._ask(self.servers[0].request([payload])):
                    self.ledger.acknowledged(self.room, number)
        except (OSError, EOFError, TimeoutError):
            self.close()

    async def _ask(self, request: bytes) -> bool:
        reader, writer = self._link or await self._connect()
        writer.write(request)
        if isinstance(self.servers[0], Nats):
            return await reader.readline() == b"+OK\r\n"
        head = await reader.readuntil(b"\r\n\r\n")
        if length := re.search(rb"(?i)content-length: *(\d+)", head):
            await reader.readexactly(int(length[1]))
        if re.search(rb"(?i)connection: *close", head):
            self.close()
        return head.split(b" ", 2)[1] in ACCEPTED

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in self.servers:
            try:
                link = await asyncio.open_connection("127.0.0.1", self.servers[0].publish_port)
                break
            except ConnectionRefusedError:
                self.servers.append(self.servers.pop(0))
        else:
            raise ConnectionRefusedError("nobody listens")
        self._link = link
        if isinstance(self.servers[0], Nats):
            await link[0].readline()
            link[1].write(VERBOSE)
            await link[0].readline()
        return link

    def close(self) -> None:
        if self._link is not None:
            self._link[1].transport.abort()
            self._link = None
