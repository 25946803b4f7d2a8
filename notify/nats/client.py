"""nats-py's client with a short way for messages: from the parser straight to a plain function.

nats-py decodes every header into a dict, makes an object, puts it on a queue and wakes a task for each
message; on the hot path that is most of the cost. :class:`RawClient` steps in before that (`_process_msg`), for
subscriptions of its own only. Should a later nats-py no longer call that method, messages still come the long
way round, slower and the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

#: called with subject, reply subject, payload and the raw header block
Handler = Callable[[bytes, str, bytes, bytes], None]


async def _long_way(handler: Handler, message: Msg) -> None:
    fields = dict(message.headers or {})
    status, words = fields.pop("Status", ""), fields.pop("Description", "")
    block = ""
    if status or fields:
        head = f"NATS/1.0 {status} {words}".rstrip() if status else "NATS/1.0"
        block = "\r\n".join([head, *(f"{name}: {value}" for name, value in fields.items()), "", ""])
    handler(message.subject.encode(), message.reply, message.data, block.encode())


class RawClient(Client):
    """See the module."""

    async def subscribe_raw(self, subject: str, handler: Handler) -> Any:
        """Subscribe; ``handler`` is called in the reading task: it must neither block nor raise."""
        return await self.subscribe(subject, cb=partial(_long_way, handler))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        subscription = self._subs.get(sid)
        callback = getattr(subscription, "_cb", None)
        if isinstance(callback, partial) and callback.func is _long_way:
            callback.args[0](subject, reply.decode() if reply else "", data, headers or b"")
        elif subscription is not None:
            await super()._process_msg(sid, subject, reply, data, headers)

    def watch(self, ended: Callable[[], None]) -> None:
        """Call ``ended`` when a task without which the client is of no use ends, for whatever reason.

        nats-py's ``closed_cb`` is not called where closing itself fails, as with unsent data on a reset connection.
        """

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                task.exception()  # seen: the connection's owner tells of the end
            ended()

        for task in (self._reading_task, self._flusher_task, self._ping_interval_task):
            if task is not None:
                task.add_done_callback(done)

    @property
    def version(self) -> str:
        """The server's version as it gave it; empty where it gave none."""
        return str(self._server_info.get("version", ""))

    def sever(self) -> None:
        """Cut the connection at once, whatever waits to be written: the other end may be gone for ever."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
