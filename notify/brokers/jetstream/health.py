"""Checks every few seconds that the server works: it must store a health probe, the canary, and the stream is compared.

A client of a server that was cut off from its cluster stays connected, receives nothing, and reads stale data. Only storing
something, which takes a majority of the replicas, shows the difference.

Each canary names the one before it. If another canary was stored in between, another node uses this node's name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.brokers.jetstream.settings import JetStreamSettings
from notify.errors import Unavailable
from notify.nats.connection import Connection

_FAILURES = 2  # consecutive failures
_AGAIN = 0.5  # seconds until a comparison that is wanted soon
_WRONG_LAST_SEQUENCE = (10071, 10164)
_RIVALS = 2  # foreign canaries, within as many of one's own, that are no accident
_WITHIN = 6


class Refused(Unavailable):
    """The server answered that it cannot store messages."""


class Health:
    """See the module docstring.

    ``compare`` makes a comparison and returns whether another is wanted soon; it raises ``Unavailable`` if it cannot.
    ``sick(reason, isolated)`` is called when the server does not work; after that nothing happens until :meth:`watch`.
    """

    log = Logger()

    def __init__(
        self,
        settings: JetStreamSettings,
        connection: Connection,
        canary: str,
        reactor: Any,
        compare: Callable[[], Awaitable[bool]],
        sick: Callable[[str, bool], None],
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._canary = canary
        self._reactor = reactor
        self._compare = compare
        self._sick = sick
        self._working: list[Deferred[None]] = []
        self._soon: Deferred[None] | None = None
        self._hurry = False
        self._last = 0  # the number of the last canary stored; 0: unknown
        self._strange: deque[bool] = deque(maxlen=_WITHIN)
        #: no comparison was made since :meth:`watch`
        self.first = True

    @property
    def shared(self) -> bool:
        """Whether another node has the same name."""
        return sum(self._strange) >= _RIVALS

    async def sing(self) -> None:
        """Store a canary. Raises ``Unavailable``, or :class:`Refused` if the server says that it cannot store it."""
        last, self._last = self._last, 0
        fields = {"Nats-Expected-Last-Subject-Sequence": str(last)} if last else None
        reply = await self._connection.request(self._canary, b"", None, fields)
        try:
            answer = msgspec.json.decode(reply.data)
            error = answer.get("error")
            self._last = int(answer.get("seq", 0))
        except (msgspec.DecodeError, AttributeError, TypeError, ValueError):
            error = {"description": "nobody stores it"}
        strange = bool(error) and error.get("err_code") in _WRONG_LAST_SEQUENCE
        if strange:
            await self.sing()
            # A stream that was recreated, or has gone back, may have no canary.
            strange = self._last > last
        elif error:
            raise Refused(f"NATS cannot store messages: {error.get('description', 'no reason given')}")
        if last:
            shared = self.shared
            self._strange.append(strange)
            if self.shared and not shared:
                self.log.error("another node has the name of this one: give each its own ([server] node)")

    def watch(self) -> None:
        """Start the checks."""
        self.rest()
        self.first = True
        self._start(self._sing_on())
        self._start(self._compare_on())

    def rest(self) -> None:
        """Stop the checks."""
        working, self._working = self._working, []
        self._soon = None
        for one in working:
            one.cancel()

    def compare_soon(self) -> None:
        """Compare now, or once more after the comparison in progress."""
        self._hurry = True
        if self._soon is not None and not self._soon.called:
            soon, self._soon = self._soon, None
            soon.callback(None)

    def _start(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> None:
        work = Deferred.fromCoroutine(coroutine)
        self._working.append(work)
        work.addErrback(self._ended)

    def _ended(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self.log.failure("watching the broker failed", failure)
            self._reactor.callLater(0, self._sick, "watching it failed", False)

    async def _sing_on(self) -> None:
        failures = 0
        while True:
            await deferLater(self._reactor, self._settings.canary_interval, lambda: None)
            try:
                await self.sing()
            except Unavailable as error:
                failures += 1
                if failures >= _FAILURES:
                    # Not directly: acting on it ends this coroutine.
                    self._reactor.callLater(0, self._sick, str(error), not isinstance(error, Refused))
                    return
            else:
                failures = 0

    async def _compare_on(self) -> None:
        failures = 0
        while True:
            self._hurry = False
            try:
                again = await self._compare()
            except Unavailable as error:
                failures += 1
                if failures >= _FAILURES:
                    self._reactor.callLater(0, self._sick, str(error), False)
                    return
                await deferLater(self._reactor, 0.25, lambda: None)
                continue
            failures, self.first = 0, False
            if not self._hurry:
                self._soon = Deferred()
                pause = min(_AGAIN, self._settings.check_interval) if again else self._settings.check_interval
                timer = self._reactor.callLater(pause, self.compare_soon)
                try:
                    await self._soon
                finally:
                    if timer.active():
                        timer.cancel()
            else:
                await deferLater(self._reactor, 0.05, lambda: None)
