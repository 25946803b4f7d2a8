"""The client for an asyncio event loop. It needs no Twisted reactor."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Unpack, cast

from notify.client import _reasons
from notify.client._core import Core, Options
from notify.client._link import Link
from notify.client._runner import TokenSource
from notify.client._stream import Waiter


class FutureWaiter:
    """A :class:`~notify.client._stream.Waiter` for asyncio coroutines."""

    def __init__(self) -> None:
        self._future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fire(self, value: Any) -> None:
        """Resolve the future, unless it is done."""
        if not self._future.done():
            self._future.set_result(value)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` in the waiting coroutine."""
        if not self._future.done():
            self._future.set_exception(error)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._future.__await__()


class _LinkProtocol(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._link.connected(self._transport)

    def data_received(self, data: bytes) -> None:
        self._link.data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._link.lost(str(error or "the connection was closed"))


class AsyncioClient(Core):
    """A client for asyncio: see :class:`~notify.client._core.Core`. ``tls`` replaces the default TLS context."""

    def __init__(
        self, url: str, token: TokenSource, *, tls: ssl.SSLContext | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(url, token, **options)
        self._tls = (tls or ssl.create_default_context()) if self.address.secure else None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def _running(self) -> asyncio.AbstractEventLoop:
        """Return the client's loop: the one it is first used on. Used on another loop, the client would wait for ever."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif loop is not self._loop:
            raise RuntimeError("this client belongs to another event loop: make one in each")
        return loop

    def _now(self) -> float:
        return self._running().time()

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        return self._running().call_later(delay, call).cancel

    def _waiter(self) -> Waiter:
        self._running()
        return FutureWaiter()

    def _spawn(
        self, awaitable: Awaitable[Any], done: Callable[[Any], None], failed: Callable[[BaseException], None]
    ) -> None:
        task = asyncio.ensure_future(awaitable)
        self._tasks.add(task)

        def ended(task: asyncio.Future[Any]) -> None:
            self._tasks.discard(task)
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                done(task.result())
            else:
                failed(error)

        task.add_done_callback(ended)

    def _dial(self, link: Link) -> None:
        connecting = asyncio.get_running_loop().create_connection(
            lambda: _LinkProtocol(link), self.address.host, self.address.port, ssl=self._tls
        )

        def failed(error: BaseException) -> None:
            link.lost(_reasons.failed(error, self.address.host, self.address.port))

        task = asyncio.ensure_future(connecting)
        link.cancel = lambda: cast(None, task.cancel())
        self._spawn(task, lambda _: None, failed)
