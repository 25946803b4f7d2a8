"""One question for many askers, and answers remembered for a bounded time and number."""

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

    def forget(self, about: Callable[[K, T], bool]) -> None:
        """Remember no answer of which ``about(question, answer)`` is true."""
        for question in [each for each, (_, answer) in self._kept.items() if about(each, answer)]:
            del self._kept[question]


class Questions(Generic[T]):
    """One kind of question: remembered answers first, then whoever asks the same now, then whom ``call`` asks."""

    def __init__(self, clock: IReactorTime, size: int) -> None:
        self._answers: Answers[Hashable, T] = Answers(clock, size)
        self._asked: dict[Hashable, Shared[T]] = {}
        #: rises when answers are forgotten: one to a question of before is not remembered
        self.age = 0
        #: for each question that is under way, what was forgotten since it was asked
        self._under_way: dict[object, list[Callable[[Hashable, T], bool]]] = {}

    def ask(self, question: Hashable, call: Callable[[], Awaitable[tuple[T, float]]]) -> Deferred[T]:
        """``call`` gives the answer, and until when (seconds) it may be remembered."""
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
        """Remember an answer to a question that was asked at this ``age``."""
        if age == self.age:
            self._answers.put(question, answer, until)

    def forget(self, about: Callable[[Hashable, T], bool]) -> None:
        """Remember no answer of which ``about(question, answer)`` is true, nor any that is still to come.

        Nobody is given such an answer that is still to come: the question is asked again.
        """
        self.age += 1
        for forgotten in self._under_way.values():
            forgotten.append(about)
        self._asked.clear()
        self._answers.forget(about)
