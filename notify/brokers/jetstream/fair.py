"""What is bounded, and shared fairly between tenants: the places of messages that wait, their order, and concurrent work."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, fail

from notify.errors import Unavailable

T = TypeVar("T")


class Places:
    """Up to ``most`` places. A workspace is given at most four fifths of those that the other workspaces leave.

    So a workspace that takes all it can get leaves room for the next one, however many such workspaces there are.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[Hashable, int] = {}
        self.taken = 0

    def room(self, workspace: Hashable, count: int = 1) -> bool:
        """Whether a workspace may take this many more."""
        # As if they were taken one by one: the last one needs a free place for each four that the workspace has by then.
        return self._of.get(workspace, 0) + count <= 4 * (self._most - self.taken - count + 1)

    def take(self, workspace: Hashable, count: int = 1) -> None:
        """Take places, whether there is room or not."""
        self._of[workspace] = self._of.get(workspace, 0) + count
        self.taken += count

    def give_back(self, workspace: Hashable, count: int = 1) -> None:
        """Free places that were taken."""
        self.taken -= count
        left = self._of[workspace] - count
        if left:
            self._of[workspace] = left
        else:
            del self._of[workspace]


class Turns(Generic[T]):
    """A queue in which workspaces take turns. What one workspace has added keeps its order. Iterates over all that waits."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._lines.values())

    def add(self, workspace: Hashable, one: T) -> None:
        """Add something as the last of its workspace."""
        line = self._lines.get(workspace)
        if line is None:
            line = self._lines[workspace] = deque()
        line.append(one)

    def next(self) -> T:
        """Remove and return the first of the workspace whose turn it is. Something must wait."""
        workspace, line = next(iter(self._lines.items()))
        one = line.popleft()
        if line:
            self._lines.move_to_end(workspace)
        else:
            del self._lines[workspace]
        return one


class _Job(Generic[T]):
    """One job, and the Deferred of its caller."""

    __slots__ = ("key", "mine", "running", "work")

    def __init__(self, key: Hashable, work: Callable[[], Deferred[T]], mine: Deferred[T]) -> None:
        self.key = key
        self.work = work
        self.mine = mine
        self.running: Deferred[T] | None = None


class FairQueue(Generic[T]):
    """Runs up to ``width`` jobs at once, of which a quarter, or ``share``, may belong to one ``key`` (a tenant). Other jobs wait.

    Each key has its own queue, and the queues take turns: ten thousand jobs of one tenant delay the first job of another
    by no more than the running jobs. ``bound`` is the maximum number of waiting jobs.
    """

    def __init__(self, width: int, bound: int, share: int = 0) -> None:
        self._width = width
        self._share = share or max(1, width // 4)
        self._bound = bound
        self._lines: dict[Hashable, deque[_Job[T]]] = {}
        self._turns: deque[Hashable] = deque()
        self._running: dict[_Job[T], None] = {}
        self._busy: Counter[Hashable] = Counter()
        self.waiting = 0

    @property
    def running(self) -> int:
        """The number of running jobs."""
        return len(self._running)

    def do(self, key: Hashable, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Fires with the result of ``work()``. Cancelling removes a waiting job, or cancels a running one.

        Errback ``Unavailable``: too many jobs are waiting.
        """
        if self.waiting >= self._bound:
            return fail(Unavailable("too many reads of history wait already"))
        job = _Job(key, work, Deferred(lambda _: self._give_up(job)))
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = deque()
            if self._busy[key] < self._share:
                self._turns.append(key)
        line.append(job)
        self.waiting += 1
        self._next()
        return job.mine

    def _next(self) -> None:
        while len(self._running) < self._width and self._turns:
            key = self._turns.popleft()
            line = self._lines[key]
            job = line.popleft()
            self.waiting -= 1
            self._busy[key] += 1
            if not line:
                del self._lines[key]
            elif self._busy[key] < self._share:
                self._turns.append(key)
            self._running[job] = None
            job.running = job.work()
            job.running.addBoth(self._done, job)

    def _done(self, outcome: Any, job: _Job[T]) -> None:
        if self._running.pop(job, job) is not None:
            return
        key = job.key
        self._busy[key] -= 1
        if key in self._lines and self._busy[key] == self._share - 1:
            self._turns.append(key)
        if not self._busy[key]:
            del self._busy[key]
        if not job.mine.called:
            job.mine.callback(outcome)  # a Failure makes it an errback
        self._next()

    def _give_up(self, job: _Job[T]) -> None:
        if job.running is not None:
            job.running.cancel()
        elif (line := self._lines.get(job.key)) and job in line:
            line.remove(job)
            self.waiting -= 1
            if not line:
                del self._lines[job.key]
                if job.key in self._turns:
                    self._turns.remove(job.key)

    def stop(self) -> None:
        """Errback ``Unavailable`` to all callers, and cancel the running jobs."""
        waiting = [job for line in self._lines.values() for job in line]
        self._turns.clear()
        self._lines.clear()
        self.waiting = 0
        for job in [*waiting, *self._running]:
            if not job.mine.called:
                job.mine.errback(Unavailable("the broker is stopping"))
        for job in list(self._running):
            if job.running is not None:
                job.running.cancel()
