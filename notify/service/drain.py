"""Drains the server without an interruption that users notice: a state machine without sockets, signals or systemd.

``serving -> announced -> closing -> finishing -> drained``

- Announced: for ``delay`` seconds, the server reports not ready but still accepts, so that load balancers notice.
- Closing: it stops accepting, and closes its clients in small steps spread evenly over ``duration`` seconds. Each
  client is closed with 1012 and its own ``retry_after_ms``, so that those of one step reconnect one after the other
  over the length of a step, and all of them together at an even rate.
- Finishing: it waits for publishes in flight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from enum import Enum
from random import Random

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.core.shed import STEP, send_away
from notify.interfaces import IConnection

#: seconds between two checks of which clients have answered the closing handshake
POLL = 0.05
#: seconds to wait for clients that do not answer the closing handshake
GRACE = 2.5
#: seconds over which clients that were all closed at once reconnect
HURRIED_SPREAD = 5.0


class Stage(Enum):
    """The stage of the shutdown. Only ``SERVING`` is ready."""

    SERVING = "serving"
    ANNOUNCED = "announced"
    CLOSING = "closing"
    FINISHING = "finishing"
    DRAINED = "drained"


class Progress(Struct, frozen=True):
    """How far the drain is: ``total`` clients were there when closing began, and ``left`` still are.

    ``remaining`` is the most seconds that it will still take, unless it is hurried.
    """

    stage: Stage
    total: int = 0
    left: int = 0
    remaining: float = 0.0

    def __str__(self) -> str:
        match self.stage:
            case Stage.SERVING:
                return "Serving."
            case Stage.ANNOUNCED:
                return f"Draining: not ready, {self.left} clients, still accepting; {self.remaining:.0f} s to go."
            case Stage.CLOSING:
                return f"Draining: {self.left} of {self.total} clients left, {self.remaining:.0f} s to go."
            case Stage.FINISHING:
                return "Draining: all clients have left, finishing publishes."
            case Stage.DRAINED:
                return "Drained."


class Drain:
    """One server's shutdown; used once.

    ``connections`` returns those that have not been closed; ``sockets`` counts all that exist, including those in the
    closing handshake. ``refuse`` stops accepting new ones. ``finish`` fires once no publish is in flight. ``report``
    is called with each step's :class:`Progress`. None of them raises. ``delay`` and ``duration`` are in seconds.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        random: Random,
        connections: Callable[[], Collection[IConnection]],
        sockets: Callable[[], int],
        refuse: Callable[[], Deferred[None]],
        finish: Callable[[], Deferred[None]],
        report: Callable[[Progress], None],
    ) -> None:
        self._clock = clock
        self._random = random
        self._connections = connections
        self._sockets = sockets
        self._refuse = refuse
        self._finish = finish
        self._report = report
        self.progress = Progress(Stage.SERVING)
        self._hurried = False
        self._nap: IDelayedCall | None = None
        self._waiting: list[Deferred[None]] = []

    @property
    def started(self) -> bool:
        """Whether the shutdown has begun, or ended."""
        return self.progress.stage is not Stage.SERVING

    def start(self, delay: float, duration: float) -> Deferred[None]:
        """Start to drain; fires once drained. A second call starts nothing new and fires with the first."""
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if self.progress.stage is Stage.DRAINED:
            self._done()
        elif not self.started:
            Deferred.fromCoroutine(self._run(delay, duration)).addErrback(self._failed)
        return done

    def hurry(self) -> None:
        """Skip every wait that can be skipped: close all remaining clients immediately."""
        if self.started:
            self._hurried = True
            if self._nap is not None and self._nap.active():
                self._nap.reset(0)

    async def _run(self, delay: float, duration: float) -> None:
        leave_at = self._clock.seconds() + delay
        while True:
            remaining = leave_at - self._clock.seconds()
            self._tell(Stage.ANNOUNCED, len(self._connections()), max(0.0, remaining) + duration)
            if self._hurried or remaining <= 0:
                break
            await self._sleep(min(1.0, remaining))
        await self._refuse()
        await self._send_away(duration)
        self._tell(Stage.FINISHING, self.progress.total, 0.0)
        await self._finish()
        self._done()

    async def _send_away(self, duration: float) -> None:
        end = self._clock.seconds() + duration
        told = 0
        # Read again in each turn: clients leave by themselves, and handshakes may complete after the listener closed.
        while waiting := self._connections():
            remaining = 0.0 if self._hurried else max(0.0, end - self._clock.seconds())
            self._tell(Stage.CLOSING, told + len(waiting), remaining)
            told += self._step(waiting, remaining)
            if self._connections():
                await self._sleep(STEP)
        patience = self._clock.seconds() + GRACE
        while self._sockets():
            if self._clock.seconds() >= patience:
                self.log.warn("{count} clients did not answer the closing handshake", count=self._sockets())
                return
            await self._sleep(POLL)
            self._step(self._connections(), 0.0)

    def _step(self, waiting: Collection[IConnection], remaining: float) -> int:
        """Close this step's share of the waiting clients, so that the last go when the time is up. Returns how many."""
        steps = max(1, round(remaining / STEP))
        # Sorted, so that a seed can repeat the order of a set; shuffled, because clients that connected at about the
        # same time are often members of one chat.
        chosen = sorted(waiting, key=lambda connection: connection.id)
        self._random.shuffle(chosen)
        chosen = chosen[: math.ceil(len(waiting) / steps)]
        spread = HURRIED_SPREAD if self._hurried else STEP
        send_away(chosen, spread)
        return len(chosen)

    def _tell(self, stage: Stage, total: int, remaining: float) -> None:
        self.progress = Progress(stage, total, len(self._connections()), remaining)
        self._report(self.progress)

    def _sleep(self, seconds: float) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._nap = self._clock.callLater(seconds, done.callback, None)
        return done

    def _failed(self, failure: Failure) -> None:
        # Whatever went wrong, the process must be able to end.
        self.log.failure("the drain failed", failure)
        self._done()

    def _done(self) -> None:
        self._tell(Stage.DRAINED, self.progress.total, 0.0)
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)
