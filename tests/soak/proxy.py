"""A TCP proxy that cuts, delays, stalls and half-opens connections at random. Runs on asyncio."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random


class ChaosProxy:
    """Forwards ``127.0.0.1:{port}`` to a target. It draws its faults from ``random``, and counts them in ``did``.

    Each connection lives for a random time, ``life`` seconds on average, and then ends in one of these ways:

    - ``cut``: both sides are reset; ``torn``: the same, after the beginning of a frame;
    - ``closed``: both sides are closed properly;
    - ``half-open``: nothing is forwarded any more, and neither side is told.

    Meanwhile some pieces are ``delayed``, and one direction or both are ``stalled`` for up to ``stall`` seconds. A
    new connection may also be ``refused``. While ``calm`` is set, the proxy does none of this by itself;
    :meth:`outage` causes a fault at a chosen time.

    ``targets`` are the ports of equivalent servers: they get connections in turn, and one that refuses is skipped.
    They may change at any time.
    """

    def __init__(
        self, target: int | list[int], random: Random, life: float = 6.0, stall: float = 3.0
    ) -> None:
        self.did: Counter[str] = Counter()
        self.calm = False
        self.targets = [target] if isinstance(target, int) else list(target)
        self._random, self._life, self._stall = random, life, stall
        self._out = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()

    async def outage(self, seconds: float, silent: bool = False) -> None:
        """Let nothing through for this many seconds: all connections are reset and new ones refused.

        If ``silent``, connections are reset only at the end; until then they look alive, and whatever is sent is
        dropped.
        """
        self.did["silences" if silent else "outages"] += 1
        self._out = True
        if not silent:
            await self._cut()
        await asyncio.sleep(seconds)
        await self._cut()
        self._out = False

    async def _cut(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.did["connections"] += 1
        if self._out or (not self.calm and self._random.random() < 0.05):
            self.did["refused"] += 1
            return
        there, back = await self._connect()
        pipes = [
            asyncio.ensure_future(self._pipe(reader, back)),
            asyncio.ensure_future(self._pipe(there, writer)),
        ]
        try:
            await self._until_its_end(pipes, writer, back)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            back.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(len(self.targets)):
            target = self.targets.pop(0)
            self.targets.append(target)
            try:
                return await asyncio.open_connection("127.0.0.1", target)
            except ConnectionRefusedError:
                continue
        raise ConnectionRefusedError("nobody listens")

    async def _until_its_end(
        self, pipes: list[asyncio.Future[None]], writer: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        while True:
            life = self._random.expovariate(1 / self._life)
            done, _ = await asyncio.wait(pipes, timeout=life, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return
            if not self.calm:
                break
        end = self._random.choices(["cut", "torn", "closed", "half-open"], [5, 2, 2, 3])[0]
        self.did[end] += 1
        if end == "closed":
            writer.close()
            back.close()
            await asyncio.sleep(0.05)
        elif end == "half-open":
            for pipe in pipes:
                pipe.cancel()
            # Both sides must find out by themselves; after this time the proxy drops the connection.
            await asyncio.sleep(30)
        elif end == "torn":
            writer.write(b"\x81\x7e")
            await asyncio.sleep(0.01)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self._out:
                continue
            if not self.calm:
                chance = self._random.random()
                if chance < 0.02:
                    self.did["stalled"] += 1
                    await asyncio.sleep(self._random.uniform(0.2, self._stall))
                elif chance < 0.15:
                    self.did["delayed"] += 1
                    await asyncio.sleep(self._random.uniform(0.001, 0.1))
            writer.write(data)
            await writer.drain()
