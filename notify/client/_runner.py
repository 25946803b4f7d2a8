"""Carries out the machine's actions with the clock, sockets and coroutines of a front end."""

from __future__ import annotations

import inspect
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from notify.client import actions as do
from notify.client._client_id import ClientId
from notify.client._link import Link
from notify.client._stream import Waiter
from notify.client._wire import Address
from notify.client.actions import Settings
from notify.client.machine import CLOSE_DEAD, CLOSE_DONE, Machine
from notify.client.values import ClientClosed, Refused, State, Token

log = logging.getLogger("notify.client")

TokenValue: TypeAlias = str | Token | None
TokenSource: TypeAlias = str | Callable[[], TokenValue | Awaitable[TokenValue]]


class Runner(ABC):
    """Runs one machine: its connection, its timer, its tokens, and the commands that wait for an answer.

    Everything that concerns the application goes to the subclass through :meth:`_told`: states, subscriptions and messages for readers.
    """

    def __init__(
        self,
        url: str,
        token: TokenSource,
        client_id: str | None,
        settings: Settings | None,
        random: Callable[[], float],
        on_action: Callable[[do.Action], None] | None,
    ) -> None:
        address = Address.parse(url)
        self._client_id = ClientId(address.client_id if client_id is None else client_id)
        self.address = address.under(self.client_id)
        self.machine = Machine(settings or Settings(), random, time.time)
        self.state = State()
        self._token, self._on_action = token, on_action
        self._link: Link | None = None
        self._lingering: set[Link] = set()
        self._commands: dict[int, Waiter] = {}
        self._count = 0
        self._fetching: int | None = None  # the number of the token fetch in flight
        self._stopping: list[Waiter] = []
        self._carrying_out = False
        self._wake: deque[Callable[[], None]] = deque()
        self._timer: tuple[float, Callable[[], None]] | None = None

    @property
    def client_id(self) -> str:
        """The client id in use."""
        return self._client_id.value

    # --- what a subclass of every front end provides --------------------------------------------------------

    @abstractmethod
    def _told(self, action: do.Action) -> None:
        """Handle one action that concerns the application; :attr:`state` is already up to date."""

    # --- what a front end provides --------------------------------------------------------------------------

    @abstractmethod
    def _now(self) -> float: ...

    @abstractmethod
    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after ``delay`` seconds, unless the returned function is called first."""

    @abstractmethod
    def _waiter(self) -> Waiter: ...

    @abstractmethod
    def _spawn(
        self, awaitable: Awaitable[Any], done: Callable[[Any], None], failed: Callable[[BaseException], None]
    ) -> None: ...

    @abstractmethod
    def _dial(self, link: Link) -> None:
        """Connect to :attr:`address`, then call the link's methods."""

    # --- the machine ----------------------------------------------------------------------------------------

    def _event(self, call: Callable[..., None], *args: Any) -> None:
        call(*args, self._now())
        self._carry_out()

    def _opened(self) -> None:
        self._event(self.machine.opened)

    def _text(self, text: str) -> None:
        try:
            frames = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        now = self._now()
        for frame in frames if isinstance(frames, list) else (frames,):
            try:
                self.machine.received(frame, now)
            except (ArithmeticError, LookupError, TypeError, ValueError):
                self._broken(now)
            self._carry_out(timer=False)
        self._arm()

    def _closed(self, code: int, reason: str) -> None:
        self._event(self.machine.closed, code, reason)

    def _closing(self, link: Link) -> None:
        self._lingering.add(link)

    def _gone(self, link: Link) -> None:
        self._lingering.discard(link)
        self._settled()

    def _broken(self, now: float) -> None:
        """The server violated the protocol: reconnect later, perhaps to another node."""
        if self._link is not None:
            self._link.leave(CLOSE_DEAD, "malformed frame")
        self.machine.closed(1002, "the server sent a malformed frame", now)

    def _carry_out(self, timer: bool = True) -> None:
        """Carry out the machine's actions. Actions that result from them are carried out by the outermost call, in order."""
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while self.machine.actions:
                todo, self.machine.actions = self.machine.actions, []
                for action in todo:
                    self._tell(self._on_action, action)
                    self._do(action)
        finally:
            self._carrying_out = False
        if timer:
            self._arm()
        while self._wake:
            self._wake.popleft()()

    def _fire(self, *waiters: Waiter) -> None:
        """Wake coroutines once all actions are carried out: Twisted runs them synchronously."""
        self._wake += [lambda waiter=waiter: waiter.fire(None) for waiter in waiters]  # type: ignore[misc]

    def _tell(self, callback: Callable[..., None] | None, *args: Any) -> None:
        """Call a callback of the application. Its exceptions must not disturb the client."""
        if callback is not None:
            try:
                callback(*args)
            except Exception:
                log.exception("a callback of the program failed")

    def _arm(self) -> None:
        due = self.machine.deadline()
        if self._timer is not None and (due is None or due < self._timer[0]):
            self._timer[1]()
            self._timer = None
        if self._timer is None and due is not None:
            self._timer = (due, self._later(max(0.0, due - self._now()), self._tick))

    def _tick(self) -> None:
        self._timer = None
        self._event(self.machine.tick)

    def _do(self, action: do.Action) -> None:
        match action:
            case do.Send(frame):
                if self._link is not None:
                    self._link.send(frame)
            case do.Open(elsewhere):
                if elsewhere:
                    self._client_id.move()
                    self.address = self.address.under(self.client_id)
                self._link = Link(self)
                self._dial(self._link)
            case do.Close(code, reason):
                if self._link is not None:
                    self._link.leave(code, reason)
            case do.FetchToken(n):
                self._fetch(n)
            case do.Done(n):
                waiter = self._commands.pop(n)
                self._wake.append(lambda: waiter.fire(action))
            case do.Failed(n, code, message):
                waiter = self._commands.pop(n)
                self._wake.append(lambda: waiter.fail(Refused(code, message or self._cause(code))))
            case do.StateChanged():
                self.state = State(
                    action.state,
                    action.delay,
                    action.code,
                    action.reason,
                    action.user_id,
                    action.connection_id,
                )
                self._told(action)
            case _:
                self._told(action)

    def _fetch(self, n: int) -> None:
        self._fetching = n

        def failed(error: BaseException) -> None:
            self._fetched(n)
            self._event(self.machine.token_failed, n, f"{type(error).__name__}: {error}")

        def done(token: Any) -> None:
            value, expires = (token.value, token.expires_at) if isinstance(token, Token) else (token, None)
            if value is not None and not isinstance(value, str):
                return failed(TypeError(f"a token is a str, a Token or None, not {type(value).__name__}"))
            self._fetched(n)
            self._event(lambda now: self.machine.token(n, value, now, expires))
            return None

        if not callable(self._token):
            return done(self._token)
        try:
            result = self._token()
        except Exception as error:
            return failed(error)
        if inspect.isawaitable(result):
            self._spawn(result, done, failed)
        else:
            done(result)
        return None

    def _fetched(self, n: int) -> None:
        if self._fetching == n:
            self._fetching = None

    def _cause(self, code: str) -> str:
        """The explanation for a command that fails with ``closed``."""
        end = self._end() if code == "closed" and self.state.name == "closed" else None
        return "the client has not been started" if self.state.name == "idle" else str(end or "")

    def _end(self) -> ClientClosed | None:
        """The exception that the client's end raises in readers; None if the application closed the client."""
        return None if self.state.code == CLOSE_DONE else ClientClosed(self.state.code, self.state.reason)

    # --- commands and closing -------------------------------------------------------------------------------

    def _command(self, call: Callable[..., None], *args: Any) -> Waiter:
        """Give the machine a numbered command, and return the waiter for its outcome."""
        self._count += 1
        waiter = self._commands[self._count] = self._waiter()
        self._event(call, self._count, *args)
        return waiter

    async def _ask(self, frame: do.Frame) -> do.Done:
        done: do.Done = await self._command(self.machine.request, frame)
        return done

    async def _stopped(self) -> None:
        """Wait until the machine has ended and all sockets are closed."""
        while self._lingering or self.state.name != "closed":
            waiter = self._waiter()
            self._stopping.append(waiter)
            await waiter

    def _settled(self) -> None:
        waiters, self._stopping = self._stopping, []
        self._fire(*waiters)
        self._carry_out()
