"""One simulated clock for a whole world, and the reactor of each host in it.

Nothing here waits: :meth:`Clock.run` jumps from one due call to the next. Calls due at the same instant run in the order of
their ranks, which the seed draws; calls of the same rank run in the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

log = Logger()

NOTHING: dict[str, Any] = {}


class Draw:
    """Random decisions that depend only on what they are about, not on what was drawn before.

    The iteration order of a set differs from run to run, so code that draws in such an order must name what it
    draws for. ``seed`` is any text.
    """

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()

    def unit(self, *about: object) -> float:
        """A number in [0, 1) that depends on ``about``."""
        digest = blake2b(repr(about).encode(), key=self._seed, digest_size=7).digest()
        return int.from_bytes(digest, "big") / 2**56

    def chance(self, probability: float, *about: object) -> bool:
        """Whether it happens."""
        return probability > 0 and self.unit(*about) < probability


@implementer(IDelayedCall)
class Call:
    """A scheduled call. Raises the same errors as Twisted's if it is cancelled twice or too late."""

    __slots__ = ("_args", "_call", "_clock", "_kwargs", "at", "called", "cancelled", "host", "order")

    def __init__(
        self,
        clock: Clock,
        host: Host,
        at: float,
        order: int,
        call: Callable[..., object],
        args: Any,
        kwargs: Any,
    ) -> None:
        self._clock, self.host, self.at, self.order = clock, host, at, order
        self._call, self._args, self._kwargs = call, args, kwargs
        self.called = self.cancelled = False

    def run(self) -> None:
        """The call is due: make it."""
        self.called = True
        self.host.calls -= 1
        self._call(*self._args, **self._kwargs)

    def getTime(self) -> float:
        """The time at which it is due."""
        return self.at

    def active(self) -> bool:
        """Whether it is still to be made."""
        return not (self.called or self.cancelled)

    def cancel(self) -> None:
        """Do not make the call."""
        self._alive()
        self.cancelled = True
        self.host.calls -= 1

    def reset(self, seconds: float) -> None:
        """Make the call ``seconds`` from now instead."""
        self._alive()
        self.at = self._clock.later(seconds)
        self._clock.push(self)

    def delay(self, seconds: float) -> None:
        """Make the call ``seconds`` later than scheduled."""
        self._alive()
        self.at += seconds
        self._clock.push(self)

    def _alive(self) -> None:
        if self.called:
            raise AlreadyCalled
        if self.cancelled:
            raise AlreadyCancelled


class Clock:
    """The time of the world, in Unix seconds."""

    def __init__(self, start: float) -> None:
        self.now = start
        self._due: list[tuple[float, float, int, Call]] = []
        self._count = 0

    def later(self, seconds: float) -> float:
        """The time ``seconds`` from now, rounded to the microsecond, so that instants can coincide."""
        return round(self.now + max(0.0, seconds), 6)

    def call(
        self,
        host: Host,
        rank: float,
        seconds: float,
        call: Callable[..., object],
        args: Any = (),
        kwargs: Any = NOTHING,
    ) -> Call:
        """Schedule a call on ``host``, ``seconds`` from now."""
        self._count = order = self._count + 1
        at = round(self.now + seconds, 6) if seconds > 0 else self.now
        made = Call(self, host, at, order, call, args, kwargs)
        host.calls += 1
        heappush(self._due, (at, rank, order, made))
        return made

    def push(self, call: Call) -> None:
        """The due time of a call has changed."""
        self._count += 1
        call.order = self._count
        heappush(self._due, (call.at, call.host.rank, call.order, call))

    def run(self, until: float) -> None:
        """Advance the time to ``until``."""
        due = self._due
        while due and due[0][0] <= until:
            at, rank, order, call = heappop(due)
            if call.cancelled or call.called or call.order != order:
                continue
            if at > self.now:
                self.now = at
            host = call.host
            if host.dead:
                continue
            if host.paused:
                host.held.append((rank, call))
                continue
            try:
                call.run()
            except Exception:
                log.failure("a call failed")
        self.now = max(self.now, until)


@implementer(IReactorTime)
class Host:
    """A machine with one process. It is the reactor of the code that runs there. The seed draws ``rank``."""

    def __init__(self, clock: Clock, name: str, rank: float) -> None:
        self.clock, self.name, self.rank = clock, name, rank
        self.dead = self.paused = False
        #: calls that became due while it was paused
        self.held: list[tuple[float, Call]] = []
        #: the number of scheduled calls
        self.calls = 0
        #: its listening ports by number
        self.ports: dict[int, Any] = {}
        self.on_stop: Callable[[], None] = lambda: None
        self.listen: Callable[[Host, int, Any], Any]

    # --- faults ---------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill the process, together with everything scheduled there."""
        self.dead = True
        self.held.clear()
        self.ports.clear()

    def pause(self, on: bool) -> None:
        """Pause the process, or resume it. On resume everything that became due is due now."""
        self.paused = on
        if not on:
            held, self.held = self.held, []
            for rank, call in held:
                if call.active():
                    call.at = self.clock.now
                    heappush(self.clock._due, (call.at, rank, call.order, call))

    # --- a reactor ------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """The time."""
        return self.clock.now

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> Call:
        """Call in ``delay`` seconds."""
        return self.clock.call(self, self.rank, delay, callable, args, kwargs)

    def getDelayedCalls(self) -> list[Call]:
        """Not tracked."""
        return []

    def callWhenRunning(self, call: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call it: the reactor is running already."""
        self.callLater(0, call, *args, **kwargs)

    callFromThread = callWhenRunning

    def callInThread(self, call: Callable[..., object], *args: object) -> None:
        """Call it: a thread takes no time."""
        call(*args)

    def addSystemEventTrigger(self, *_: object, **__: object) -> None:
        """Ignored: the simulation, not the process, ends a host."""

    def stop(self) -> None:
        """The process wants to exit."""
        self.on_stop()

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Listen on a port."""
        return self.listen(self, port, factory)
