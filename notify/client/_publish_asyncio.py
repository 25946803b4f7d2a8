"""The publisher for an asyncio event loop. It needs no Twisted reactor."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Any, cast

from notify.client._asyncio import FutureWaiter
from notify.client._coroutines import CoroutinePublisher
from notify.client._publishing import End, Options
from notify.client._stream import Waiter

#: seconds before the next address of a name is tried in parallel with the current one (RFC 8305, section 5)
_NEXT = 0.25


class _Protocol(asyncio.Protocol):
    def __init__(self, end: End) -> None:
        self._end = end
        self.made = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        self._end.connected(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._end.data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._end.lost(str(error or "the server closed the connection"))


class AsyncioPublisher(CoroutinePublisher):
    """A publisher for asyncio: see :class:`~notify.client._coroutines.CoroutinePublisher`; for its options see
    :class:`~notify.client.publisher.Publisher`. It belongs to the event loop that first runs one of its coroutines.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        try_timeout: float = 10.0,
        tries: int | None = None,
        stream: bool = True,
        connections: int = 8,
        duplicate_window: float = 120.0,
        tls: ssl.SSLContext | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(
            url, api_key, Options(timeout, try_timeout, tries, stream, connections, duplicate_window), random
        )
        self._tls = (tls or ssl.create_default_context()) if self._address.secure else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dialling: set[asyncio.Task[object]] = set()

    def _now(self) -> float:
        return self._running().time()

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        return self._running().call_later(delay, call).cancel

    def _dial(self, end: End) -> None:
        loop, protocol, address = self._running(), _Protocol(end), self._address
        # uvloop does not support happy eyeballs.
        more: dict[str, Any] = (
            {"happy_eyeballs_delay": _NEXT} if isinstance(loop, asyncio.BaseEventLoop) else {}
        )
        connecting = loop.create_connection(
            lambda: protocol, address.host, address.port, ssl=self._tls, **more
        )
        task: asyncio.Task[object] = loop.create_task(connecting)
        self._dialling.add(task)

        def dialled(task: asyncio.Task[object]) -> None:
            self._dialling.discard(task)
            error = None if task.cancelled() else task.exception()
            if not protocol.made:  # otherwise the connection itself reports its end
                end.lost("given up" if task.cancelled() else str(error) or type(error).__name__)

        task.add_done_callback(dialled)
        end.cancel = lambda: cast(None, task.cancel())

    def _waiter(self) -> Waiter:
        self._running()
        return FutureWaiter()

    def _running(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("this publisher belongs to another event loop: make one in each")
        return loop
