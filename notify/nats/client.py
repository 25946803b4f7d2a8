"""nats-py's client with fast paths for messages: from the socket directly to a plain function, and directly to the socket.

For each message nats-py wakes the task that reads, decodes every header into a dict, creates an object, puts it on a queue and
wakes another task; for each message that it sends it wakes a task, too. On the hot path that is most of the cost.
:class:`RawClient` takes the messages of its own subscriptions out of what arrives (:mod:`notify.nats.splitter`), and writes to the
transport as long as nothing waits there. Where either is impossible, for example because a later nats-py lacks a name that is used
here, messages take nats-py's normal path: slower, with the same result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from twisted.logger import Logger

from notify.nats.splitter import Message, Splitter

log = Logger()

#: bytes that a transport may hold when more are written to it; otherwise nats-py keeps them, and makes the writer wait
_HELD = 2**15

#: The private names of nats-py that notify depends on, all used in this module, and why. setup.py limits its version,
#: and tests/nats/test_upstream.py fails with the name of any that disappears.
PRIVATE = {
    "Client._process_msg": "the parser calls it with each message that the splitter did not see",
    "Client._subs": "tells whose message it is that came",
    "Subscription._cb": "tells our own subscriptions, and holds their handler",
    "Client._reading_task": "its end is the end of the client, told or not",
    "Client._flusher_task": "as the reading task: without it nothing is sent any more",
    "Client._ping_interval_task": "as the reading task: without it a dead peer is never found out",
    "Client._process_info": "called when the cluster's servers come and go",
    "Client._server_info": "has the version as the server gave it; the public one does not take every version",
    "Client._transport": "the way to the socket",
    "Client._close": "writes what was not sent, also where the connection is gone: asyncio drops that, uvloop raises",
    "Client._send_command": "sends what publish sends, without publish's checks: they cost as much as all the rest",
    "Client._flush_queue": "empty: what is sent now has nobody to flush it yet",
    "Client._flush_pending": "flushes it",
    "Client._pending": "what was not sent: while there is some, nothing may be written before it",
    "Client._pending_data_size": "its bytes",
    "TcpTransport._io_writer": "has asyncio's transport: to write to it, to read from it, and to abort it, which nats-py cannot",
}

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


def _reply(subject: bytes) -> str:
    """A reply subject as text. Empty if nothing can be published to it: its sender chose it, and servers do not check it."""
    text = subject.decode("utf-8", "replace")
    return text if text.split() == [text] else ""


def words_of(error: Exception) -> str:
    """The text of an error, without the prefix of all nats-py errors."""
    return str(error).removeprefix("nats: ")


def _error(line: bytes) -> Exception:
    """The error that nats-py makes of this line, except that the subject keeps its case: subjects may differ in case only."""
    words, quote, subject = line[5:].decode("utf-8", "replace").strip().strip("'").partition('"')
    return nats.errors.Error(f"nats: {words.lower()}{quote}{subject}")


def missing_permission(error: Exception) -> str:
    """The server's words if an error says that something is not permitted; empty for any other error."""
    words = words_of(error)
    return words if "permissions violation" in words.lower() else ""


def command(subject: str, payload: bytes, reply: str, block: bytes) -> tuple[bytes, ...]:
    """The pieces of the command that publishes a message, among them the payload itself; an empty ``block`` means no headers.

    Nothing is checked: the subjects must be valid, and the server must accept a message of that size.
    """
    if not block:
        return f"PUB {subject} {reply} {len(payload)}\r\n".encode(), payload, b"\r\n"
    size = len(block)
    head = f"HPUB {subject} {reply} {size} {size + len(payload)}\r\n".encode()
    return head, block, payload, b"\r\n"


class _Incoming(asyncio.Protocol):
    """Receives what a server sends in place of nats-py's protocol, which gets all that is not handled here.

    Missing permissions are handled here, too: nats-py would report them after messages that the server sent later.
    """

    def __init__(self, theirs: Any, take: Message, denied: Callable[[Exception], None]) -> None:
        self._theirs = theirs
        self._denied = denied
        self._splitter = Splitter(take, self._rest)

    def _rest(self, data: bytes) -> None:
        if data.startswith(b"-ERR ") and missing_permission(error := _error(data)):
            self._denied(error)
        else:
            self._theirs.data_received(data)

    def data_received(self, data: bytes) -> None:
        self._splitter.feed(data)

    def eof_received(self) -> bool:
        self._theirs.eof_received()
        return False  # close: with TLS a connection cannot stay open for one direction, and asyncio warns of the attempt

    def connection_lost(self, exc: Exception | None) -> None:
        self._theirs.connection_lost(exc)

    def pause_writing(self) -> None:
        self._theirs.pause_writing()

    def resume_writing(self) -> None:
        self._theirs.resume_writing()


class RawClient(Client):
    """See the module docstring. ``changed`` is called when the server reported a change in its cluster."""

    changed: Callable[[], None] = staticmethod(lambda: None)

    async def subscribe_raw(self, subject: str, handler: Handler) -> Any:
        """Subscribe; ``handler`` is called in the reading task: it must neither block nor raise."""
        return await self.subscribe(subject, cb=partial(_long_way, handler))

    def read_directly(self, denied: Callable[[Exception], None]) -> None:
        """From now on messages of raw subscriptions do not pass through nats-py. To be called before the first subscription.

        ``denied`` is called with each missing permission.
        """
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and not writer.is_closing():  # with TLS, asyncio then has no protocol any more
            transport = writer.transport
            transport.set_protocol(_Incoming(transport.get_protocol(), self._take, denied))

    def write(self, data: bytes) -> bool:
        """Send commands immediately. Returns false if they must wait behind others: use :meth:`put`."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None or self._pending or not self.is_connected:
            return False
        transport = writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > _HELD:
            return False
        transport.write(data)
        return True

    async def put(self, data: bytes) -> None:
        """Send commands behind those that wait. Waits while too much does."""
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError
        await self._send_command(data)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def _take(self, number: int, subject: bytes, reply: bytes, data: bytes, block: bytes) -> bool:
        subscription = self._subs.get(number)
        if subscription is None:
            return True  # it has ended
        callback = getattr(subscription, "_cb", None)
        if not (isinstance(callback, partial) and callback.func is _long_way):
            return False
        callback.args[0](subject, _reply(reply) if reply else "", data, block)
        return True

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if not self._take(sid, subject, reply, data, headers or b""):
            await super()._process_msg(sid, subject, reply, data, headers)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        if not initial_connection:
            self.changed()

    def watch(self, ended: Callable[[], None]) -> None:
        """Call ``ended`` when a task that the client cannot work without ends, for whatever reason.

        nats-py does not call ``closed_cb`` if closing itself fails, as with unsent data on a reset connection.
        """

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                task.exception()  # mark as retrieved: the connection's owner reports the end
            ended()

        for task in (self._reading_task, self._flusher_task, self._ping_interval_task):
            if task is not None:
                task.add_done_callback(done)

    @property
    def version(self) -> str:
        """The server's version string; empty if it gave none."""
        return str(self._server_info.get("version", ""))

    @property
    def ended_by(self) -> str:
        """The reason for which the client ended, in the server's or nats-py's words; empty if unknown."""
        error = self.last_error
        return "" if error is None or missing_permission(error) else words_of(error)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and writer.is_closing():
            self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    def sever(self) -> None:
        """Drop the connection immediately, with any unsent data: the other end may be gone for ever."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def end(self) -> None:
        """Close the client, whatever its state, or drop it after a second. Raises nothing, because its owner must go on to reconnect."""
        try:
            await asyncio.wait_for(self.close(), 1.0)
        except Exception as error:  # nats-py and event loops have many ways to say that it is gone
            log.debug("closing a connection to NATS: {error}", error=repr(error))
        finally:
            self.sever()
