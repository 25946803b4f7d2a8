"""Questions that can wait: sent at a limited rate, and in batches if the backend supports that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.errors import Unavailable

Q = TypeVar("Q", bound=Hashable)

#: seconds for which questions are collected into a batch
GATHER = 0.1


class _Asker(Generic[Q]):
    """A caller that waits for the answers to some questions."""

    __slots__ = ("gone", "missing", "told", "waiting")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.told: dict[Q, bool] = {}
        self.gone = False
        self.waiting: Deferred[Mapping[Q, bool]] = Deferred(self._give_up)

    def _give_up(self, _: object) -> None:
        self.gone = True

    def tell(self, question: Q, answer: bool | None) -> None:
        """Record the answer to one of them; None: there is none."""
        self.missing -= 1
        if answer is not None:
            self.told[question] = answer
        if not self.missing and not self.gone:
            self.waiting.callback(self.told)


class Paced(Generic[Q]):
    """Sends questions in order, and a question of several callers only once.

    ``ask`` takes up to ``most`` questions and returns the available answers. It raises :class:`~notify.errors.Unavailable` if nobody
    could be reached; all waiting callers are then told so at once. It is called up to ``rate`` times per second, with at most
    ``at_once`` calls in flight. ``patience``: seconds that a question may wait before the log says that the rate is too low.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        ask: Callable[[list[Q]], Awaitable[Mapping[Q, bool]]],
        most: int,
        rate: float,
        at_once: int,
        patience: float,
    ) -> None:
        self._clock, self._ask, self._most = clock, ask, most
        self._rate, self._at_once, self._patience = rate, at_once, patience
        self._waiting: dict[Q, tuple[float, list[_Asker[Q]]]] = {}
        self._under_way = 0
        self._next = float("-inf")  # when the rate limit allows another call
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, questions: Collection[Q]) -> Deferred[Mapping[Q, bool]]:
        """Fires with the available answers. Never fails. Cancelling withdraws the questions."""
        if not questions:
            return succeed({})
        asker: _Asker[Q] = _Asker(len(questions))
        now = self._clock.seconds()
        for question in questions:
            self._waiting.setdefault(question, (now, []))[1].append(asker)
        self._plan(GATHER if self._most > 1 else 0.0)
        return asker.waiting

    def stop(self) -> None:
        """Send nothing more; waiting callers are told that there is no answer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        _tell_nothing(waiting)

    def _plan(self, wait: float) -> None:
        if self._timer is None and self._waiting and self._under_way < self._at_once:
            wait = max(wait, self._next - self._clock.seconds(), 0.0)
            self._timer = self._clock.callLater(wait, self._go)

    def _go(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        batch: dict[Q, list[_Asker[Q]]] = {}
        while self._waiting and len(batch) < self._most:
            question = next(iter(self._waiting))
            since, askers = self._waiting.pop(question)
            if not all(asker.gone for asker in askers):
                batch[question] = askers
                if now - since > self._patience:
                    self.log.warn(
                        "a question about a live subscription waited for {seconds} s: more of them are asked than "
                        "the rate allows",
                        seconds=round(now - since),
                    )
        if batch:
            self._under_way += 1
            self._next = now + 1 / self._rate
            Deferred.fromCoroutine(self._put(batch)).addErrback(self._failed).addBoth(self._done)
        self._plan(0.0)

    async def _put(self, batch: dict[Q, list[_Asker[Q]]]) -> None:
        told: Mapping[Q, bool] = {}
        behind: dict[Q, tuple[float, list[_Asker[Q]]]] = {}
        try:
            told = await self._ask(list(batch))
        except Unavailable:
            # The backend cannot be reached: the questions behind these would only learn it later.
            behind, self._waiting = self._waiting, {}
        finally:
            for question, askers in batch.items():
                for asker in askers:
                    asker.tell(question, told.get(question))
            _tell_nothing(behind)

    def _failed(self, failure: Failure) -> None:
        self.log.failure("questions could not be asked", failure)

    def _done(self, _: object) -> None:
        self._under_way -= 1
        self._plan(0.0)


def _tell_nothing(waiting: Mapping[Q, tuple[float, list[_Asker[Q]]]]) -> None:
    for question, (_, askers) in waiting.items():
        for asker in askers:
            asker.tell(question, None)
