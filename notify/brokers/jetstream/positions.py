"""Newest positions of topics, followed or not. All requests made in one turn of the reactor share one lookup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import deferLater
from twisted.logger import Logger

from notify.brokers.jetstream.holes import Holes
from notify.brokers.jetstream.reader import LOOKUP
from notify.brokers.jetstream.stored import Newest
from notify.errors import Unavailable
from notify.messages import Position
from notify.topics import Topic

log = Logger()

Waiting: TypeAlias = dict[Topic, list[Deferred[Position]]]

#: topics that may wait for a lookup
_WAITING = 100_000


class Lookups(Protocol):
    """The part of a reader that is used here."""

    epoch: str

    @property
    def holes(self) -> Holes: ...  # noqa: D102
    async def newest(self, subjects: Sequence[str], since: int = 1, at_least: int = 0) -> Newest: ...  # noqa: D102


class Positions:
    """See the module docstring. ``highest()`` is the stream's highest number known to exist: answers reach at least to it."""

    def __init__(self, reader: Lookups, reactor: Any, highest: Callable[[], int]) -> None:
        self._reader = reader
        self._reactor = reactor
        self._highest = highest
        self._asking: Waiting = {}
        self._under_way: Waiting = {}
        self._work: Deferred[None] | None = None

    def ask(self, topic: Topic) -> Deferred[Position]:
        """A topic's newest position. Errback ``Unavailable``."""
        if len(self._asking) >= _WAITING and topic not in self._asking:
            return fail(Unavailable("too many positions are being looked up already"))
        mine: Deferred[Position] = Deferred(lambda _: self._give_up(topic, mine))
        self._asking.setdefault(topic, []).append(mine)
        if self._work is None:
            self._work = Deferred.fromCoroutine(self._look_up())
            self._work.addErrback(_ended)
        return mine

    def stop(self) -> None:
        """Errback ``Unavailable`` to all callers."""
        if self._work is not None:
            self._work.cancel()
        for waiting in (self._under_way, self._asking):
            _refuse(waiting, "the broker is stopping")
            waiting.clear()

    def _give_up(self, topic: Topic, mine: Deferred[Position]) -> None:
        for waiting in (self._asking, self._under_way):
            if mine in waiting.get(topic, ()):
                waiting[topic].remove(mine)
                if not waiting[topic]:
                    del waiting[topic]

    async def _look_up(self) -> None:
        await deferLater(self._reactor, 0, lambda: None)
        while self._asking:
            topics = list(self._asking)[:LOOKUP]
            self._under_way = {topic: self._asking.pop(topic) for topic in topics}
            try:
                found = await self._positions(topics)
            except CancelledError:
                raise
            except Exception as error:
                if not isinstance(error, Unavailable):
                    log.failure("looking up positions failed")
                _refuse(self._under_way, str(error))
            else:
                _answer(self._under_way, found)
            self._under_way = {}
        self._work = None

    async def _positions(self, topics: Sequence[Topic]) -> dict[Topic, Position]:
        epoch = self._reader.epoch
        subjects = [topic.subject for topic in topics]
        newest = await self._reader.newest(subjects, at_least=self._highest())
        if self._reader.epoch != epoch:
            # The numbers may belong to either history.
            raise Unavailable("the history was made anew")
        return {topic: Position(epoch, newest.begin(topic.subject, self._reader.holes)) for topic in topics}


def _ended(failure: Any) -> None:
    failure.trap(CancelledError)


def _answer(waiting: Waiting, found: dict[Topic, Position]) -> None:
    for topic, asked in list(waiting.items()):
        for one in list(asked):
            if not one.called:
                one.callback(found[topic])


def _refuse(waiting: Waiting, reason: str) -> None:
    for asked in list(waiting.values()):
        for one in list(asked):
            if not one.called:
                one.errback(Unavailable(reason))
