"""A server of a few chats in this process, which can lose and repeat messages, cut connections and refuse clients."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

from twisted.internet.defer import Deferred
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

EPOCH = "e1"


class FakeServer:
    """``ws://127.0.0.1:{port}/ws``. Histories are lists of contents by chat (None: notifications); seq is 10, 20, …"""

    def __init__(self) -> None:
        self.history: dict[int | None, list[str]] = {}
        self.members: dict[ServerConnection, set[int | None]] = {}
        self.tokens: list[str] = []
        self.frames: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.recoverable = True
        self.features: list[str] | None = None  # features that it grants to clients that ask for them
        self.longest = 10**9  # most messages in one resumption
        self.oldest = 1  # the first message that history still has
        self.refuse: dict[str, int] = {}  # token -> close code
        self.expires_at: float | None = None
        self.port = 0
        self._server: Server | None = None

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            port,
            subprotocols=["notify.v1.json.batch"],
            ssl=tls,  # type: ignore[list-item]
        )
        self.scheme = "wss" if tls else "ws"
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/ws"

    def cut(self) -> None:
        """Drop every connection, without a close frame."""
        for connection in list(self.members):
            connection.transport.abort()

    async def close(self, code: int, reason: str) -> None:
        """Close every connection."""
        for connection in list(self.members):
            await connection.close(code, reason)

    async def say(self, text: str) -> None:
        """Send this text to every connection, whatever it is."""
        for connection in list(self.members):
            await connection.send(text)

    async def end(self, chat: int, error: dict[str, Any]) -> None:
        """End all subscriptions to a chat with this error."""
        for connection, topics in list(self.members.items()):
            topics.discard(chat)
            await self._send(connection, error)

    async def send_away(self, code: int, reason: str = "") -> None:
        for connection in list(self.members):
            await connection.close(code, reason)

    async def publish(self, chat: int | None, content: str, lose: bool = False, double: bool = False) -> None:
        history = self.history.setdefault(chat, [])
        history.append(content)
        for connection, topics in list(self.members.items()):
            if chat in topics and not lose:
                for _ in range(2 if double else 1):
                    await self._send(connection, self._message(chat, len(history)))

    def _message(self, chat: int | None, number: int) -> dict[str, Any]:
        seq, text = number * 10, self.history[chat][number - 1]
        place = {"epoch": EPOCH, "seq": seq, "prev": seq - 10, "timestamp": 1}
        if chat is None:
            return {
                "type": "notification",
                "notification_id": number,
                "user_id": 5,
                "kind": "k",
                "data": text,
                **place,
            }
        return {
            "type": "chat_message",
            "chat_id": chat,
            "message_id": number,
            "sender_id": 1,
            "content": text,
            **place,
        }

    async def _send(self, connection: ServerConnection, *frames: dict[str, Any]) -> None:
        try:
            await connection.send(json.dumps(frames))
        except ConnectionClosed:
            pass

    async def _serve(self, connection: ServerConnection) -> None:
        self.members[connection] = set()
        self.paths.append(connection.request.path if connection.request is not None else "")
        try:
            async for text in connection:
                frame = json.loads(text)
                self.frames.append(frame)
                await getattr(self, f"_on_{frame['type']}")(connection, frame)
        except ConnectionClosed:
            pass
        finally:
            del self.members[connection]

    def _resume(self, chat: int | None, frame: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        length, since = len(self.history.get(chat, [])), frame.get("since")
        first = since["seq"] // 10 if since is not None else length
        good = (
            since is not None
            and since["epoch"] == EPOCH
            and self.recoverable
            and length - first <= self.longest
        )
        if not good:
            first = length
        replay = [self._message(chat, number) for number in range(first + 1, length + 1)]
        return {"epoch": EPOCH, "seq": length * 10, "recovered": good}, replay

    async def _on_auth(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        self.tokens.append(frame["token"])
        if code := self.refuse.get(frame["token"]):
            await self._send(connection, {"type": "auth_result", "success": False, "user_id": None})
            return await connection.close(code)
        answer, replay = self._resume(None, frame)
        self.members[connection].add(None)
        result = {
            "type": "auth_result",
            "success": True,
            "user_id": 5,
            "connection_id": "c",
            "ping_interval": 25,
        }
        if self.features is not None:
            result["features"] = [one for one in self.features if one in frame.get("features", ())]
        await self._send(connection, {**result, "expires_at": self.expires_at, **answer}, *replay)
        return None

    async def _on_subscribe(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        chat = frame["chat_id"]
        if chat < 0:
            error = {"type": "error", "code": "forbidden", "message": "not yours", "id": frame["id"]}
            return await self._send(connection, error)
        answer, replay = self._resume(chat, frame)
        self.members[connection].add(chat)
        subscribed = {"type": "subscribed", "chat_id": chat, "id": frame["id"], **answer}
        await self._send(connection, subscribed, *replay)
        if frame.get("watch_presence"):
            await self._send(connection, {"type": "presence", **self._present(chat)})
        return None

    async def _on_unsubscribe(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        self.members[connection].discard(frame["chat_id"])

    async def _on_history(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        chat, limit, length = frame["chat_id"], frame["limit"], len(self.history.get(frame["chat_id"], []))
        answer: dict[str, Any] = {"type": "history", "chat_id": chat, "id": frame["id"]}
        place = frame.get("after") or frame.get("before")
        if chat < 0 or (place and (place["epoch"] != EPOCH or place["seq"] // 10 + 1 < self.oldest)):
            code = "forbidden" if chat < 0 else "history_unavailable"
            return await self._send(
                connection, {"type": "error", "code": code, "message": "m", "id": frame["id"]}
            )
        if "after" in frame:
            first = place["seq"] // 10 + 1
            last = min(first + limit - 1, length)
            answer["more"] = last < length
        else:
            last = place["seq"] // 10 - 1 if place else length
            first = max(self.oldest, last - limit + 1)
            answer["more"] = first > self.oldest
            if not place:
                answer |= {"epoch": EPOCH, "seq": length * 10}
        answer["messages"] = [self._message(chat, number) for number in range(first, last + 1)]
        await self._send(connection, answer)
        return None

    async def _on_refresh(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        self.tokens.append(frame["token"])
        await self._send(connection, {"type": "ok", "id": frame["id"]})

    async def _on_ping(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        await self._send(connection, {"type": "pong", **({"id": frame["id"]} if "id" in frame else {})})

    async def _on_signal(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        """Nobody else is connected who could receive it."""

    async def _on_presence(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        answer = {"type": "presence", "id": frame["id"], **self._present(frame["chat_id"])}
        await self._send(connection, answer)

    def _present(self, chat: int) -> dict[str, Any]:
        connections = sum(chat in topics for topics in self.members.values())
        return {"chat_id": chat, "users": [{"user_id": 5, "connections": connections}]}


def from_asyncio(coroutine: Any) -> Deferred[Any]:
    """Run an asyncio coroutine in the reactor's loop."""
    return Deferred.fromFuture(asyncio.ensure_future(coroutine))
