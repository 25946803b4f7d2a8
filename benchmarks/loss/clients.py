"""The clients of each peer: its own library, one client a room, and what they see goes into the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from json import dumps
from typing import Any

from benchmarks.load import CACHE, Unmeasurable
from benchmarks.loss.ledger import Ledger
from benchmarks.servers import token
from notify.client import AsyncioClient, Loss, State

#: runs all clients through the proxy on this port until it is cancelled
Clients = Callable[[int, Ledger], Coroutine[Any, Any, None]]


async def notify(port: int, ledger: Ledger) -> None:
    """notify's Python client with its defaults. A ``Loss`` is what its program is told."""

    async def one(name: str, room: int, user: int) -> None:
        subscribed = False

        def told(loss: Loss) -> None:
            ledger.told(name)

        def state(now: State) -> None:
            if subscribed and now.name == "connected":
                ledger.connected(name)

        async with AsyncioClient(f"ws://127.0.0.1:{port}/ws", token(user), on_state=state) as client:
            chat = client.chat(room, on_lost=told)
            await chat.ready()
            ledger.connected(name)
            subscribed = True
            async for message in chat:
                assert isinstance(message.chat_id, int)
                assert isinstance(message.message_id, int)
                ledger.received(name, message.chat_id, message.message_id)

    async with asyncio.TaskGroup() as group:
        for user, (name, room) in enumerate(ledger.rooms.items(), 1):
            group.create_task(one(name, room, user))


async def python_socketio(port: int, ledger: Ledger) -> None:
    """python-socketio's client with its defaults, which reconnects; the program subscribes again."""
    try:
        import aiohttp
        import socketio
    except ImportError as error:
        raise Unmeasurable(f"{error}: pip install -e '.[bench]'") from None

    async def one(name: str, room: int, user: int, session: aiohttp.ClientSession) -> None:
        client = socketio.AsyncClient(http_session=session)

        async def connected() -> None:
            await client.emit("subscribe", room, callback=lambda *_: ledger.connected(name))

        def received(payload: dict[str, Any]) -> None:
            ledger.received(name, payload["chat_id"], payload["message_id"])

        client.on("connect", connected)
        client.on("chat_message", received)
        try:
            url = f"http://127.0.0.1:{port}"
            await client.connect(url, auth={"token": token(user)}, transports=["websocket"])
            await client.wait()
            raise RuntimeError(f"{name} has given up")
        finally:
            await client.shutdown()

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for user, (name, room) in enumerate(ledger.rooms.items(), 1):
            group.create_task(one(name, room, user, session))


def javascript(peer: str) -> Clients:
    """All clients of a peer of ``peers/loss_clients.js``, in one process of Node."""

    async def run(port: int, ledger: Ledger) -> None:
        clients = [(name, room, token(user)) for user, (name, room) in enumerate(ledger.rooms.items(), 1)]
        process = await asyncio.create_subprocess_exec(
            *("node", str(CACHE / "node" / "loss_clients.js"), peer, str(port), dumps(clients)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                kind, name, *rest = line.decode().split()
                if kind == "message":
                    ledger.received(name, int(rest[0]), int(rest[1]))
                elif kind == "told":
                    ledger.told(name)
                elif kind == "connected":
                    ledger.connected(name)
            raise RuntimeError(f"the clients of {peer} ended with {await process.wait()}")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    return run
