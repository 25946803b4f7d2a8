"""The messages of one chat, or the notifications, as their reader sees them: a bounded queue and a place in it."""

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
    """The state at this position is to be loaded before anything behind it is read."""

    after: Position


class Waiter(Protocol):
    """An awaitable that is fired once; later calls do nothing."""

    def fire(self, value: Any) -> None:
        """Succeed."""

    def fail(self, error: Exception) -> None:
        """Raise in whoever waits."""

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait."""


class Owner(Protocol):
    """What a stream needs of its client. ``chat`` None: the notifications."""

    @property
    def queue(self) -> int:
        """How many messages may wait for a reader."""

    def _now(self) -> float:
        """Seconds of a steady clock."""

    def _standing(self) -> str:
        """How the connection is, in words."""

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after so many seconds, unless the returned function is called first."""

    def _waiter(self) -> Waiter:
        """Something to wait for."""

    def _fire(self, *waiters: Waiter) -> None:
        """Let those who wait go on, soon."""

    def _pause(self, stream: Stream[Any]) -> None:
        """Bring no more messages."""

    def _hold(self, stream: Stream[Any]) -> None:
        """Bring no more of those that are not brought anyhow, until this stream has them resumed, too."""

    def _resume(self, stream: Stream[Any]) -> None:
        """Bring them again, those that were missed first."""

    def _keep(self, stream: Stream[Any]) -> None:
        """The messages up to its position are done with."""

    def _unsubscribe(self, stream: Chat) -> None:
        """It is not read any more."""


class Stream(Generic[M]):
    """``async for message in stream``: each message once and in order, over any number of reconnects.

    One reader at a time. A message counts as handled when the reader comes for the next one; only then does its
    position go to the store. A reader that lags lets the queue fill up to its bound; then the client takes no
    more from the server until half of it is read, and then page by page until it has caught up: it misses nothing that
    the server still has. What it has no more is told as a loss; so is, by a server without the feature ``history``, a lag
    of more than one resumption brings.

    ``on_lost`` is called (and awaited) with a :class:`Loss` at its place between the messages; without it the
    iteration raises :class:`HistoryLost`, and goes on behind it when iterated again. ``on_event`` is called (and
    awaited) in the same way with each :class:`ChatEvent`, where the client has the feature. ``load`` is called (and awaited)
    with the position that the stream begins behind before the first message, and at each loss, in place of ``on_lost``; where
    it raises, so does the iteration, and calls it again when iterated again. The iteration ends when the
    client is closed here, and raises ``ClientClosed`` or ``Refused`` where the server ended it.
    """

    def __init__(self, client: Owner, key: Id | None, on_lost: OnLost | None, position: Position | None):
        self.on_lost = on_lost
        self.on_event: OnEvent | None = None
        self.load: OnLoad | None = None
        #: ``subscribing``, ``live``, ``waiting``, ``paused``, ``refused`` or ``closed``
        self.state = "subscribing"
        #: where the reader is: the last message that was handled
        self.position = position
        self._client, self._key = client, key
        self._queue: deque[M | ChatEvent | Loss | _Load] = deque()
        self._begun = False
        self._taken: Position | None = None
        self._error: Exception | None = None
        self._paused = False
        self._measuring: Callable[[], None] | None = None
        self._reading = False
        self._waiting: Waiter | None = None  # the reader's, where nothing is there
        self._ready: list[Waiter] = []

    @property
    def waiting(self) -> int:
        """Messages that have come and were not read yet."""
        return len(self._queue)

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until the server has confirmed it: so many seconds, or however long it takes.

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
        # Also while a callback of the program runs: two readers would take the same place, and one of them pass over the next.
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
                    if not self._queue:  # closed meanwhile
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
            # One read of the socket may bring more than the bound at once: the reader has its turn first.
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
        """What comes goes on from there."""
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
        if state == "paused" and not self._paused:  # behind a page; the next one is for the reader to ask for
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
    """Wait; past the deadline, a time of the client's clock, raise ``TimeoutError`` with these words."""
    if deadline is None:
        await waiter
        return
    cancel = client._later(max(0.0, deadline - client._now()), lambda: waiter.fail(TimeoutError(words())))
    try:
        await waiter
    finally:
        cancel()


async def _maybe(result: Awaitable[Any] | None) -> None:
    """Wait for a callback that is asynchronous."""
    if inspect.isawaitable(result):
        await result


class Chat(Stream[ChatMessage]):
    """One chat's messages: see :class:`Stream`. Of several of one chat each gets all, and the slowest sets the pace."""

    @property
    def id(self) -> Id:
        """The chat's id."""
        return cast(Id, self._key)

    def close(self) -> None:
        """Unsubscribe; what was not read is forgotten, and what was read last is handled."""
        self._client._unsubscribe(self)

    async def aclose(self) -> None:
        """The same, for ``contextlib.aclosing``."""
        self.close()
