"""Supervises the workers of a server: starts, watches and restarts them, and tells them to reload and to leave.

    starting ──ready──► serving ──told to leave──► leaving ──► (ended)
        └────────dies──────┴──► away ──a while──► starting

When a worker dies, its clients have to resume, and no others. A worker that keeps dying is restarted after ever
longer delays, and the server goes on with the others. A worker that does not answer is hung: it is killed, and its
last output says where it hung.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from notify.errors import StartError, Unavailable
from notify.workers.frames import (
    Announce,
    Begin,
    Failed,
    Hurry,
    Leave,
    Left,
    Ping,
    Pong,
    Ready,
    Reload,
    Wanted,
)
from notify.workers.link import Link

log = Logger()

#: seconds between pings of a worker's reactor, and seconds without an answer after which the worker counts as hung
PING, HUNG = 1.0, 15.0
#: seconds without an answer after which a worker gets no more sockets while others answer
SILENT = 3.0
#: seconds until the first answer of a new process, which has much to load on a busy machine
LOADING = 120.0
#: seconds in which a hung worker may say where it is
LAST_WORDS = 2.0
#: seconds of serving after which an earlier death no longer counts
STEADY = 60.0
#: consecutive deaths of one worker after which a start is given up, since it will not succeed by itself
HOPELESS = 3
#: seconds before a worker is restarted after its second death in a row; doubled each time, up to the maximum
SOON, AT_MOST = 1.0, 30.0
#: seconds after the end of the drain until workers that are still there are killed
GRACE = 10.0
#: seconds that a worker may take to put another configuration in force
RELOAD = 30.0


class Process(Protocol):
    """A worker's process."""

    def signal(self, number: int) -> None:
        """Send it a signal. Does nothing if it has ended."""


class Worker:
    """One worker. Its ``number`` is permanent; ``link`` and ``process`` belong to its current process."""

    def __init__(self, number: int, node: str) -> None:
        self.number = number
        self.node = node
        self.link: Link | None = None
        self.process: Process | None = None
        self.ready = False
        self.ended: Deferred[None] = succeed(None)
        self.since = 0.0  # since when it serves
        self.served = 0.0  # for how long its previous process served
        self.silent = 0.0  # seconds for which it has not answered
        self.idle = 0.0  # seconds for which it has neither answered nor taken anything
        self.taken = 0  # what it had taken by the last ping
        self.deaths = 0  # in a row
        self.timer: Any = None


class Crew:
    """Supervises the workers; see the module.

    - ``spawn`` starts a worker's process: it sets the worker's link, ready for use, and its process, and later calls
      :meth:`gone` and :meth:`ended`.
    - ``begin`` sends a worker its first message.
    - ``serving`` is called when a worker starts to serve, and ``lost`` when one no longer does.
    - ``wanted`` is told when a worker was asked for something that concerns the whole server.
    - ``progress`` is called as workers disconnect their clients.
    - ``clock`` is an ``IReactorTime``.
    """

    def __init__(
        self,
        clock: Any,
        workers: Iterable[Worker],
        spawn: Callable[[Worker], None],
        begin: Callable[[Worker], Begin],
        serving: Callable[[Worker], object],
        lost: Callable[[Worker], object],
        wanted: Callable[[str], object] = lambda what: None,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.workers = list(workers)
        self._clock = clock
        self._spawn = spawn
        self._begin = begin
        self._serving = serving
        self._lost = lost
        self._wanted = wanted
        self._progress = progress
        self._starting: Deferred[None] | None = None
        self._leaving = self._announced = False
        self._pinging = LoopingCall(self._ping)
        self._pinging.clock = clock

    @property
    def ready(self) -> list[Worker]:
        """The workers that serve."""
        return [one for one in self.workers if one.ready]

    def silent(self, link: Link) -> bool:
        """Whether the worker at this link has not answered for a while, and may hang."""
        return any(one.link is link and one.silent >= SILENT for one in self.workers)

    # --- start ----------------------------------------------------------------------------------------------

    def start(self) -> Deferred[None]:
        """Start all workers; fires once they serve.

        Errback :class:`~notify.errors.StartError` when one says that it cannot.
        """
        self._starting = Deferred()
        self._pinging.start(PING, now=False)
        for one in self.workers:
            self._launch(one)
        return self._starting

    def _launch(self, one: Worker) -> None:
        one.timer = None
        if self._leaving:
            return
        one.silent = one.idle = HUNG - LOADING
        one.taken = 0
        one.ended = Deferred()
        try:
            self._spawn(one)
        except OSError as error:
            log.error("{worker} cannot be started: {reason}", worker=one.node, reason=error.strerror)
            one.link = one.process = None
            self.ended(one, f"{error.filename or 'no process'}: {error.strerror}")
            return
        link: Any = one.link
        link.hear(Ready, lambda _: self._is_ready(one))
        link.hear(Failed, lambda said: self._cannot(one, said.text))
        link.hear(Left, lambda _: self._progress())
        link.hear(Pong, lambda _: self._answered(one))
        link.hear(Wanted, lambda said: self._wanted(said.what))
        link.say(self._begin(one))

    def _is_ready(self, one: Worker) -> None:
        one.ready, one.since = True, self._clock.seconds()
        self._answered(one)
        self._serving(one)
        if self._starting is not None and len(self.ready) == len(self.workers):
            starting, self._starting = self._starting, None
            starting.callback(None)
        elif self._starting is None:
            log.info("{worker} serves again", worker=one.node)

    def _cannot(self, one: Worker, text: str) -> None:
        if self._starting is not None:
            starting, self._starting = self._starting, None
            starting.errback(StartError(text))
        else:
            log.error("{worker} cannot run: {reason}", worker=one.node, reason=text)

    # --- supervision ----------------------------------------------------------------------------------------

    @staticmethod
    def _answered(one: Worker) -> None:
        one.silent = one.idle = 0.0

    def _ping(self) -> None:
        # Counts pings, not the clock: if this process was stopped, it sent no pings, and the workers are not hung.
        for one in self.workers:
            if one.link is None or one.process is None:
                continue
            one.silent += PING
            # A ping waits behind everything that is queued for a worker that is behind, and such a worker is busy.
            if one.link.taken != one.taken:
                one.taken, one.idle = one.link.taken, 0.0
            else:
                one.idle += PING
            if one.idle >= HUNG:
                log.error(
                    "{worker} has not answered for {seconds} s and is killed", worker=one.node, seconds=HUNG
                )
                one.silent = one.idle = SILENT + PING  # it gets no sockets while it says where it is
                process = one.process
                process.signal(signal.SIGABRT)
                self._clock.callLater(LAST_WORDS, process.signal, signal.SIGKILL)
            else:
                one.link.say(Ping())

    def gone(self, one: Worker, reason: str = "") -> None:
        """A worker's link has ended. Whatever its process is doing, end it as well."""
        link, one.link = one.link, None
        if link is None:
            return
        link.gone()
        if reason:
            log.error("{worker} is stopped: {reason}", worker=one.node, reason=reason)
        one.served = self._clock.seconds() - one.since if one.ready else 0.0
        one.ready = False
        self._lost(one)
        if one.process is not None and not self._leaving:
            one.process.signal(signal.SIGKILL)

    def ended(self, one: Worker, how: str) -> None:
        """A worker's process has ended."""
        one.process = None
        self.gone(one)
        ended, one.ended = one.ended, succeed(None)
        if not self._leaving:
            one.deaths = 1 if one.served >= STEADY else one.deaths + 1
            delay = 0.0 if one.deaths == 1 else min(AT_MOST, SOON * 2.0 ** min(one.deaths - 2, 10))
            log.error(
                "{worker} has ended ({how}): {left} of {all} workers are serving; it is restarted in {delay} s",
                worker=one.node,
                how=how,
                left=len(self.ready),
                all=len(self.workers),
                delay=delay,
            )
            one.timer = self._clock.callLater(delay, self._launch, one)
            if self._starting is not None and one.deaths >= HOPELESS:
                self._cannot(
                    one, f"{one.node} ends each time it is started ({how}): see the log for the reason."
                )
        if not ended.called:
            ended.callback(None)

    # --- for all workers ------------------------------------------------------------------------------------

    async def reload(self, config: bytes) -> None:
        """Have one worker after the other put it in force.

        Raises :class:`~notify.errors.StartError`: which did not, and why.
        """
        failed = []
        for one in self.workers:
            link = one.link
            if link is None:
                continue  # its next process starts with what is in force then
            asked = link.ask(Reload(config))
            late = self._clock.callLater(RELOAD, asked.cancel)
            try:
                await asked
            except (StartError, Unavailable) as error:
                if link.alive:  # else it is restarted
                    failed.append(f"{one.node} could not reload: {error}")
            except Exception:
                failed.append(f"{one.node} did not answer")
            finally:
                if late.active():
                    late.cancel()
        if failed:
            raise StartError("; ".join(failed))

    def announce(self) -> None:
        """Tell the workers that the server is about to shut down. A second call does nothing."""
        if not self._announced:
            self._announced = True
            self._tell(Announce())

    def leave(self, seconds: float) -> Deferred[None]:
        """Have all workers disconnect their clients over this many seconds, and end; fires when they have."""
        self.announce()
        self._leaving = True
        for one in self.workers:
            if one.timer is not None:
                one.timer.cancel()
                one.timer = None
        self._tell(Leave(seconds))
        late = self._clock.callLater(seconds + GRACE, self._kill)
        done: Deferred[None] = Deferred()

        def over(_: object) -> None:
            if late.active():
                late.cancel()
            done.callback(None)

        DeferredList([one.ended for one in self.workers]).addCallback(over)
        return done

    def hurry(self) -> None:
        """Disconnect the remaining clients immediately."""
        self._tell(Hurry())

    def stop(self) -> Deferred[None]:
        """End the remaining workers; fires when they have ended."""
        if self._pinging.running:
            self._pinging.stop()
        self._starting = None
        left = [one for one in self.workers if one.process is not None]
        done = self.leave(0)
        if left:
            self._kill()
        return done

    def _tell(self, what: Announce | Leave | Hurry) -> None:
        for one in self.workers:
            if one.link is not None:
                one.link.say(what)

    def _kill(self) -> None:
        for one in self.workers:
            if one.process is not None:
                log.warn("{worker} has not ended in time and is killed", worker=one.node)
                one.process.signal(signal.SIGKILL)
