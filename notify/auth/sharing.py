"""Shared calls: one call for many callers, and answers cached for a limited time and in limited number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Shared(Generic[T]):
    """The result of one call for any number of waiters. A waiter that cancels affects neither the call nor the others."""

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
    """A cache of up to ``size`` answers that evicts the least recently used; each answer has its own expiry time."""

    def __init__(self, clock: IReactorTime, size: int) -> None:
        self._clock = clock
        self._size = size
        self._kept: OrderedDict[K, tuple[float, T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, question: K) -> T | None:
        """The answer, if it is cached and still valid."""
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
        """Cache an answer until a time in seconds. Has no effect if that time is over or the size is 0."""
        self._kept.pop(question, None)
        if until > self._clock.seconds() and self._size > 0:
            self._kept[question] = (until, answer)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)

    def forget(self, about: Callable[[K, T], bool]) -> None:
        """Drop the answers for which ``about(question, answer)`` is true."""
        for question in [each for each, (_, answer) in self._kept.items() if about(each, answer)]:
            del self._kept[question]


class Questions(Generic[T]):
    """One kind of question. It is answered from the cache, by a call in flight for the same question, or by ``call``, in this order."""

    def __init__(self, clock: IReactorTime, size: int) -> None:
        self._answers: Answers[Hashable, T] = Answers(clock, size)
        self._asked: dict[Hashable, Shared[T]] = {}
        #: increases when answers are forgotten; an answer to a question from before is not cached
        self.age = 0
        #: for each question in flight, what was forgotten since it was asked
        self._under_way: dict[object, list[Callable[[Hashable, T], bool]]] = {}

    def ask(self, question: Hashable, call: Callable[[], Awaitable[tuple[T, float]]]) -> Deferred[T]:
        """``call`` returns the answer and the time (seconds) until which it may be cached."""
        answer = self._answers.get(question)
        if answer is not None:
            return succeed(answer)
        shared = self._asked.get(question)
        if shared is None:
            shared = Shared(Deferred.fromCoroutine(self._ask(question, call, self.age)))
            if not shared.done:
                self._asked[question] = shared
        return shared.wait()

    async def _ask(self, question: Hashable, call: Callable[[], Awaitable[tuple[T, float]]], age: int) -> T:
        key = object()
        forgotten = self._under_way[key] = []
        try:
            answer, until = await call()
            while any(about(question, answer) for about in forgotten):
                forgotten.clear()
                answer, until = await call()
        finally:
            del self._under_way[key]
            if age == self.age:
                self._asked.pop(question, None)
        self.remember(question, answer, until, age)
        return answer

    def remember(self, question: Hashable, answer: T, until: float, age: int) -> None:
        """Cache the answer to a question that was asked at this ``age``."""
        if age == self.age:
            self._answers.put(question, answer, until)

    def forget(self, about: Callable[[Hashable, T], bool]) -> None:
        """Drop the answers for which ``about(question, answer)`` is true, including those still in flight.

        No caller gets such an answer that was in flight: the question is asked again.
        """
        self.age += 1
        for forgotten in self._under_way.values():
            forgotten.append(about)
        self._asked.clear()
        self._answers.forget(about)
