"""How the server leaves without anyone noticing: a state machine apart from sockets, signals and systemd.

``serving -> announced -> closing -> finishing -> drained``. Announced, the server says that it is not ready but
still accepts, for ``delay`` seconds, so that balancers notice. Then it accepts nobody new and sends its clients
away in small steps spread evenly over ``duration`` seconds. Those of one step come back one after the other over
the length of a step: each is closed with 1012 and its own ``retry_after_ms``, so that all of them together return
at an even rate. Last, it waits for publishes under way.
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

#: seconds between two looks at who has answered the closing handshake
POLL = 0.05
#: seconds that clients which do not answer the closing handshake are waited for
GRACE = 2.5
#: seconds over which clients that were all sent away at once come back
HURRIED_SPREAD = 5.0


class Stage(Enum):
    """Where the server is on its way out. Only ``SERVING`` is ready."""

    SERVING = "serving"
    ANNOUNCED = "announced"
    CLOSING = "closing"
    FINISHING = "finishing"
    DRAINED = "drained"


class Progress(Struct, frozen=True):
    """How far the drain is: ``total`` clients were there when closing began, ``left`` still are.

    ``remaining`` is how many seconds it will still take at most, if nobody hurries it.
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
                return "Draining: all clients are away, finishing publishes."
            case Stage.DRAINED:
                return "Drained."


class Drain:
    """One server's way out; used once.

    ``connections`` gives those that have not been closed; ``sockets`` counts all that are there, those in the closing
    handshake included. ``refuse`` stops accepting new ones. ``finish`` fires once no
    publish is under way. ``report`` is called with each step's :class:`Progress`; none of them raises. ``delay`` and
    ``duration`` are seconds.
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
        """Whether the server is leaving, or has left."""
        return self.progress.stage is not Stage.SERVING

    def start(self, delay: float, duration: float) -> Deferred[None]:
        """Leave; fires once drained. A second call starts nothing new and fires with the first."""
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if self.progress.stage is Stage.DRAINED:
            self._done()
        elif not self.started:
            Deferred.fromCoroutine(self._run(delay, duration)).addErrback(self._failed)
        return done

    def hurry(self) -> None:
        """Skip every wait that can be skipped: whoever is left is sent away at once."""
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
        # Asked anew in each turn: clients leave by themselves, and a handshake may end after the listener has closed.
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
        """Close this step's share of those who wait, so that the last go when the time is up; how many that were."""
        steps = max(1, round(remaining / STEP))
        # Sorted, because sets have no order that a seed could repeat; shuffled, because neighbours in time often are
        # members of one chat.
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
        # Whatever went wrong, the process has to be able to leave.
        self.log.failure("the drain broke off", failure)
        self._done()

    def _done(self) -> None:
        self._tell(Stage.DRAINED, self.progress.total, 0.0)
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)
