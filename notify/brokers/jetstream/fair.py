"""Bounded concurrency that is fair between tenants, and work that is done once for all who ask for the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from notify.errors import Unavailable

T = TypeVar("T")


class _Job(Generic[T]):
    """One piece of work and all who wait for it."""

    __slots__ = ("running", "waiting", "what", "work")

    def __init__(self, what: Hashable, work: Callable[[], Deferred[T]]) -> None:
        self.what = what
        self.work = work
        self.waiting: list[Deferred[T]] = []
        self.running: Deferred[T] | None = None


class FairQueue(Generic[T]):
    """Runs ``width`` pieces of work at once; the others wait, each ``key`` (a tenant) in a line of its own.

    The lines take turns: ten thousand jobs of one tenant delay another's first by no more than those that run.
    Jobs with the same ``what`` that wait or run are one job. ``bound`` is how many may wait.
    """

    def __init__(self, width: int, bound: int) -> None:
        self._width = width
        self._bound = bound
        self._lines: dict[Hashable, deque[_Job[T]]] = {}
        self._turns: deque[Hashable] = deque()
        self._jobs: dict[Hashable, _Job[T]] = {}
        self.waiting = 0
        self.running = 0

    def do(self, key: Hashable, what: Hashable, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Fires with what ``work()`` gave. Cancelling gives up the place; work that nobody waits for is not begun.

        Errback ``Unavailable``: too many wait.
        """
        job = self._jobs.get(what)
        if job is None:
            if self.waiting >= self._bound:
                return fail(Unavailable("too many reads of history wait already"))
            job = self._jobs[what] = _Job(what, work)
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = deque()
                self._turns.append(key)
            line.append(job)
            self.waiting += 1
        mine: Deferred[T] = Deferred(job.waiting.remove)
        job.waiting.append(mine)
        self._next()
        return mine

    def _next(self) -> None:
        while self.running < self._width and self._turns:
            key = self._turns.popleft()
            line = self._lines[key]
            job = line.popleft()
            if line:
                self._turns.append(key)
            else:
                del self._lines[key]
            self.waiting -= 1
            if not job.waiting:
                self._jobs.pop(job.what, None)
                continue
            self.running += 1
            job.running = job.work()
            job.running.addBoth(self._done, job)

    def _done(self, outcome: T | Failure, job: _Job[T]) -> None:
        self.running -= 1
        self._jobs.pop(job.what, None)
        waiting, job.waiting = job.waiting, []
        for one in waiting:
            one.callback(outcome)  # a Failure makes it an errback
        self._next()

    def stop(self) -> None:
        """Errback ``Unavailable`` to all, and end what runs."""
        self._turns.clear()
        self._lines.clear()
        self.waiting = 0
        for job in list(self._jobs.values()):
            waiting, job.waiting = job.waiting, []
            for one in waiting:
                one.errback(Unavailable("the broker is stopping"))
            if job.running is not None:
                job.running.cancel()
        self._jobs.clear()
