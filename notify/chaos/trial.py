"""One run: clients that stay connected, numbered messages, faults at their times, and then time to recover."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.task import deferLater

from notify.chaos import report
from notify.chaos.clients import HeldClient
from notify.chaos.ledger import Ledger
from notify.chaos.plan import Fault
from notify.chaos.publishers import Publishers
from notify.chaos.report import Happened, Report
from notify.chaos.target import Target, TrialFailed
from notify.client import ClientClosed, Refused

#: limits of one trial, which bound its cost and the size of its records
MOST_CLIENTS, MOST_RATE, MOST_SECONDS, MOST_DELIVERIES = 500, 1000.0, 3600.0, 2_000_000
#: seconds for all clients to connect at first, between two checks, and in which duplicates may still arrive
_JOIN, _LOOK, _LINGER = 30.0, 0.1, 0.5


class Trial:
    """One trial. ``say`` is called with a line whenever something happens. :meth:`stop` must be called."""

    def __init__(
        self,
        reactor: Any,
        target: Target,
        faults: Sequence[Fault],
        *,
        clients: int,
        rate: float,
        seconds: float,
        settle: float,
        seed: int | None = None,
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reactor, self._target, self._faults, self._say, self._clock = (
            reactor,
            target,
            faults,
            say,
            clock,
        )
        self._count, self._rate, self._seconds, self._settle, self._seed = (
            clients,
            rate,
            seconds,
            settle,
            seed,
        )
        self._ledger = Ledger(f"chaos-{secrets.token_hex(4)}")
        self._clients: list[HeldClient] = []
        self._publishers: Publishers | None = None
        self._happened: list[Happened] = []
        #: faults that were carried out and not undone
        self._open: list[Fault] = []
        self._faulting: Deferred[Any] | None = None
        #: why a publisher cannot continue, set by its thread
        self._hopeless: list[str] = []
        self._began = 0.0

    async def run(self) -> Report:
        """Run the whole trial. Raises :class:`TrialFailed`."""
        self._say(f"{self._target.name} gets ready")
        await self._target.start()
        await self._join()
        self._say(
            f"{self._count} clients are connected; {self._rate:g} messages a second for {self._seconds:g} s"
        )
        publishers = self._publishers = Publishers(
            self._ledger,
            self._target.apis,
            self._target.api_key,
            self._rate,
            self._hopeless.append,
            self._clock,
        )
        self._began = self._clock()
        publishers.start()
        faults = self._faulting = gatherResults(
            [Deferred.fromCoroutine(self._fault(one)) for one in self._faults], True
        )
        await self._until(lambda: self._now() >= self._seconds and faults.called)
        await faults
        publishers.stop()
        await self._until(publishers.idle)
        self._say("the load is over, and every fault; now all have to become whole")
        await self._become_whole()
        return report.make(
            self._ledger,
            sorted(self._happened, key=lambda one: one.at),
            target=self._target.name,
            seed=self._seed,
            began=self._began,
            seconds=self._seconds,
            ended=self._clock(),
        )

    async def stop(self) -> None:
        """End everything that was started, and undo the faults that are not undone."""
        if self._publishers is not None:
            self._publishers.stop()
        if self._faulting is not None:
            self._faulting.addErrback(lambda failure: None)
            self._faulting.cancel()
        leaving = gatherResults([Deferred.fromCoroutine(client.stop()) for client in self._clients], True)
        leaving.addTimeout(5, self._reactor).addErrback(lambda failure: None)
        await leaving
        await self._target.stop([fault.undo for fault in self._open])

    async def _join(self) -> None:
        for seat in self._target.seats(self._count):
            self._clients.append(
                HeldClient(seat, self._target.settings, self._ledger, self._reactor, self._clock)
            )
        coming = gatherResults([Deferred.fromCoroutine(client.start()) for client in self._clients], True)
        coming.addTimeout(_JOIN, self._reactor)
        try:
            await coming
        except FirstError as error:
            why = error.subFailure.value
            if not isinstance(why, ClientClosed | Refused):
                raise why or error from None
            raise TrialFailed(f"A client was not let in: {why}. Look at its token, and at --chat.") from None
        except Late:
            raise TrialFailed(
                f"Not all of the {self._count} clients were connected within {_JOIN:g} s: is --url right?"
            ) from None

    async def _fault(self, fault: Fault) -> None:
        await self._at(fault.at)
        one = Happened(fault, self._now(), self._now())
        self._happened.append(one)
        if fault.undo_at is not None:
            self._open.append(fault)
        await self._act(one, fault.do)
        if fault.undo_at is not None:
            await self._at(fault.undo_at)
            await self._act(one, fault.undo)
            self._open.remove(fault)
        one.healed = self._now()

    async def _act(self, one: Happened, command: str) -> None:
        self._say(f"{self._now():6.1f} s  {command}")
        try:
            await self._target.act(command)
        except TrialFailed as error:
            one.error = str(error)
            self._say(f"{'':10}{error}")

    def _now(self) -> float:
        return self._clock() - self._began

    async def _at(self, seconds: float) -> None:
        await deferLater(self._reactor, max(0.0, seconds - self._now()), lambda: None)

    async def _become_whole(self) -> None:
        until = self._clock() + self._settle
        while not self._whole() and self._clock() < until:
            await deferLater(self._reactor, _LOOK, lambda: None)
        await deferLater(self._reactor, _LINGER, lambda: None)
        self._whole()

    def _whole(self) -> bool:
        """Whether every client has received everything."""
        there = [client.settle() or client.name in self._ledger.ended for client in self._clients]
        return all(there) and not self._ledger.behind()

    async def _until(self, done: Callable[[], object]) -> None:
        """Check repeatedly until ``done()``. A publisher that cannot continue ends the wait."""
        while not done():
            if self._hopeless:
                raise TrialFailed(self._hopeless[0])
            await deferLater(self._reactor, _LOOK, lambda: None)
