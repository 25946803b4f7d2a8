"""One question for many askers, and answers remembered for a bounded time and number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Shared(Generic[T]):
    """The result of one call, for any number of waiters; one who cancels leaves the call and the others alone."""

    def __init__(self, call: Deferred[T]) -> None:
        self._waiters: list[Deferred[T]] = []
        self._result: T | Failure | None = None
        self.done = False
        call.addBoth(self._finish)

    def wait(self) -> Deferred[T]:
        """Fires or fails as the call does."""
        waiter: Deferred[T] = Deferred(self._forget)
        if self.done:
            waiter.callback(self._result)  # type: ignore[arg-type]
        else:
            self._waiters.append(waiter)
        return waiter

    def _forget(self, waiter: Deferred[T]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _finish(self, result: T | Failure) -> None:
        self.done, self._result = True, result
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(result)  # a Failure makes it an errback


class Answers(Generic[K, T]):
    """Up to ``size`` answers, the least recently used go first; each is good until its own time."""

    def __init__(self, clock: IReactorTime, size: int) -> None:
        self._clock = clock
        self._size = size
        self._kept: OrderedDict[K, tuple[float, T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, question: K) -> T | None:
        """The answer, while it is good."""
        found = self._kept.get(question)
        if found is None:
            return None
        until, answer = found
        if self._clock.seconds() >= until:
            del self._kept[question]
            return None
        self._kept.move_to_end(question)
        return answer

    def put(self, question: K, answer: T, until: float) -> None:
        """Remember an answer until a time in seconds; not at all where that is over or the size is 0."""
        self._kept.pop(question, None)
        if until > self._clock.seconds() and self._size > 0:
            self._kept[question] = (until, answer)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
