"""The messages of one chat, or the notifications, as their reader sees them: a bounded queue and a position."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

from msgspec import Struct

from notify.client.actions import Id, Position
from notify.client.values import ChatEvent, ChatMessage, HistoryLost, Loss, Notification

M = TypeVar("M", ChatMessage, Notification)
OnLost: TypeAlias = Callable[[Loss], Awaitable[Any] | None]
OnEvent: TypeAlias = Callable[[ChatEvent], Awaitable[Any] | None]
OnLoad: TypeAlias = Callable[[Position], Awaitable[Any] | None]


class _Load(Struct, frozen=True):
    """The application must load its state as of this position before it reads on."""

    after: Position


class Waiter(Protocol):
    """An awaitable that is resolved once; later calls have no effect."""

    def fire(self, value: Any) -> None:
        """Return ``value`` to the waiting coroutine."""

    def fail(self, error: Exception) -> None:
        """Raise ``error`` in the waiting coroutine."""

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait until the waiter is resolved."""


class Owner(Protocol):
    """What a stream needs of its client. ``chat`` is None for the notifications."""

    @property
    def queue(self) -> int:
        """The maximum number of messages that wait for a reader."""

    def _now(self) -> float:
        """The seconds of a monotonic clock."""

    def _standing(self) -> str:
        """The state of the connection, in words."""

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after ``delay`` seconds, unless the returned function is called first."""

    def _waiter(self) -> Waiter:
        """Return a new waiter."""

    def _fire(self, *waiters: Waiter) -> None:
        """Wake the waiting coroutines soon."""

    def _pause(self, stream: Stream[Any]) -> None:
        """Stop delivering messages."""

    def _hold(self, stream: Stream[Any]) -> None:
        """The machine has paused the topic: do not resume it before this stream has resumed as well."""

    def _resume(self, stream: Stream[Any]) -> None:
        """Deliver messages again, starting with those that were missed."""

    def _keep(self, stream: Stream[Any]) -> None:
        """The messages up to the stream's position are handled."""

    def _unsubscribe(self, stream: Chat) -> None:
        """The stream is no longer read."""


class Stream(Generic[M]):
    """``async for message in stream`` yields each message once and in order, across any number of reconnects.

    A stream has one reader at a time. A message counts as handled when the reader asks for the next one; only then is its
    position stored. If the reader lags until the queue is full, the client takes no more from the server until half of the queue
    is read, and then fetches page by page until the reader has caught up. The reader misses nothing that the server still has.
    Messages that the server no longer has are reported as a loss. With a server without the feature ``history``, so is a lag
    larger than one resume can replay.

    ``on_lost`` is called (and awaited) with a :class:`Loss` at its place between the messages. Without it the iteration raises
    :class:`HistoryLost`, and continues after the gap when iterated again. ``on_event`` is called (and awaited) in the same way
    with each :class:`ChatEvent`, if the client has the feature. ``load`` replaces ``on_lost``: it is called (and awaited) before
    the first message, with the position after which the stream begins, and at each loss. If it raises, so does the iteration, and
    it is called again when iterated again. The iteration ends when the application closes the client; it raises ``ClientClosed``
    or ``Refused`` if the server ended it.
    """

    def __init__(self, client: Owner, key: Id | None, on_lost: OnLost | None, position: Position | None):
        self.on_lost = on_lost
        self.on_event: OnEvent | None = None
        self.load: OnLoad | None = None
        #: ``subscribing``, ``live``, ``waiting``, ``paused``, ``refused`` or ``closed``
        self.state = "subscribing"
        #: the position of the last message that was handled
        self.position = position
        self._client, self._key = client, key
        self._queue: deque[M | ChatEvent | Loss | _Load] = deque()
        self._begun = False
        self._taken: Position | None = None
        self._error: Exception | None = None
        self._paused = False
        self._measuring: Callable[[], None] | None = None
        self._reading = False
        self._waiting: Waiter | None = None  # set while the reader waits for a message
        self._ready: list[Waiter] = []

    @property
    def waiting(self) -> int:
        """The number of messages that have arrived and were not read yet."""
        return len(self._queue)

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until the server has confirmed the subscription, for at most ``timeout`` seconds if it is given.

        Raises ``Refused``, ``ClientClosed`` or ``TimeoutError``.
        """
        deadline = None if timeout is None else self._client._now() + timeout
        what = "the notifications are" if self._key is None else f"chat {self._key} is"
        while self.state not in ("live", "paused"):
            if self._finished:
                raise self._error or StopAsyncIteration
            waiter = self._client._waiter()
            self._ready.append(waiter)
            await wait(
                self._client,
                waiter,
                deadline,
                lambda: f"{what} not live within {timeout} s: {self.state}; {self._client._standing()}",
            )

    def __aiter__(self) -> AsyncIterator[M]:
        return self

    async def __anext__(self) -> M:
        # Checked also while a callback runs: two readers would take the same position, and one of them would skip the next message.
        if self._reading:
            raise RuntimeError("this stream has a reader already")
        self._reading = True
        try:
            return await self._next()
        finally:
            self._reading = False

    async def _next(self) -> M:
        self._handled()
        while True:
            if self._queue:
                item = self._queue[0]
                if self.load is not None and isinstance(item, Loss | _Load):
                    await _maybe(self.load(item.after))
                    if not self._queue:  # the stream was closed meanwhile
                        continue
                self._pop()
                self._taken = item.after if isinstance(item, Loss | _Load) else item.position
                if isinstance(item, Loss):
                    if self.load is None and self.on_lost is None:
                        raise HistoryLost(item)
                    if self.load is None and self.on_lost is not None:
                        await _maybe(self.on_lost(item))
                elif isinstance(item, ChatEvent):
                    if self.on_event is not None:
                        await _maybe(self.on_event(item))
                elif not isinstance(item, _Load):
                    return item
                self._handled()
            elif self._finished:
                raise self._error or StopAsyncIteration
            else:
                self._waiting = self._client._waiter()
                try:
                    await self._waiting
                finally:
                    self._waiting = None

    # --- called by the client -------------------------------------------------------------------------------

    @property
    def _finished(self) -> bool:
        return self.state in ("refused", "closed")

    def _put(self, item: M | ChatEvent | Loss | _Load) -> None:
        self._queue.append(item)
        if len(self._queue) >= self._client.queue and not self._paused and self._measuring is None:
            # One read of the socket may bring more messages than the queue may hold: let the reader run first.
            self._measuring = self._client._later(0, self._measure)
        if self._waiting is not None:
            self._client._fire(self._waiting)

    def _measure(self) -> None:
        self._measuring = None
        if len(self._queue) >= self._client.queue and not self._paused:
            self._paused = True
            self._client._pause(self)

    def _pop(self) -> None:
        self._queue.popleft()
        self._ask_on()

    def _ask_on(self) -> None:
        if self._paused and not self._finished and len(self._queue) <= self._client.queue // 2:
            self._paused = False
            self._client._resume(self)

    def _handled(self) -> None:
        if self._taken is not None:
            self.position, self._taken = self._taken, None
        if self.position is not None:
            self._client._keep(self)

    def _begin(self, position: Position) -> None:
        """Continue from this position."""
        if self.load is not None:
            if not self._begun:
                self._put(_Load(position))
            self._begun = True
        elif self.position is None and self._taken is None and not self._queue:
            self.position = position
            if self._key is not None:
                self._handled()

    def _changed(self, state: str, position: Position | None) -> None:
        self.state = state
        if state == "paused" and not self._paused:  # after a page; the reader asks for the next one
            self._paused = True
            self._client._hold(self)
            self._ask_on()
        if state == "live" and position is not None:
            self._begin(position)
        if state in ("live", "paused"):
            self._wake()

    def _finish(self, state: str, error: Exception | None) -> None:
        if not self._finished:
            self.state, self._error = state, error
            if self._measuring is not None:
                self._measuring()
                self._measuring = None
            self._wake()
            if self._waiting is not None:
                self._client._fire(self._waiting)

    def _wake(self) -> None:
        waiters, self._ready = self._ready, []
        self._client._fire(*waiters)


async def wait(client: Owner, waiter: Waiter, deadline: float | None, words: Callable[[], str]) -> None:
    """Wait. At the deadline, in seconds of the client's clock, raise ``TimeoutError`` with these words."""
    if deadline is None:
        await waiter
        return
    cancel = client._later(max(0.0, deadline - client._now()), lambda: waiter.fail(TimeoutError(words())))
    try:
        await waiter
    finally:
        cancel()


async def _maybe(result: Awaitable[Any] | None) -> None:
    """Await the result of a callback if it is asynchronous."""
    if inspect.isawaitable(result):
        await result


class Chat(Stream[ChatMessage]):
    """The messages of one chat: see :class:`Stream`. Each stream of a chat gets all messages, and the slowest sets the pace."""

    @property
    def id(self) -> Id:
        """The chat's id."""
        return cast(Id, self._key)

    def close(self) -> None:
        """Unsubscribe. Unread messages are dropped, and the message that was read last counts as handled."""
        self._client._unsubscribe(self)

    async def aclose(self) -> None:
        """Call :meth:`close`; for ``contextlib.aclosing``."""
        self.close()
