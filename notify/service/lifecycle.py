"""What the world outside tells the server to do, and what it is told: signals, systemd, and the watchdog."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from notify.observe.metrics import Metrics
from notify.service.drain import Progress, Stage
from notify.service.systemd import Systemd

log = Logger()

#: seconds between two lines of the log about one stage of the drain
_REPORT_EVERY = 5.0
#: seconds that the end of a drain may take beyond what it announced
_MARGIN = 15.0


class Lifecycle:
    """Stands between the service and the outside.

    ``leave`` starts the drain, which ends the process; ``hurry`` shortens it; ``reload`` reads the configuration
    again. ``clients`` counts them, for the status line. ``clock`` is an ``IReactorTime``.
    """

    def __init__(self, clock: Any, systemd: Systemd, metrics: Metrics, clients: Callable[[], int]) -> None:
        self._clock = clock
        self._systemd = systemd
        self._metrics = metrics
        self._clients = clients
        self._leaving = self._signalled = False
        self._told: tuple[Stage, float] = (Stage.SERVING, 0.0)
        self._watchdog = LoopingCall(self._alive)
        self._watchdog.clock = clock
        self.leave: Callable[[], object] = lambda: None
        self.hurry: Callable[[], object] = lambda: None
        self.reload: Callable[[], object] = lambda: None

    def install_signals(self, call_from_signal: Callable[[Callable[[], object]], object]) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP. ``call_from_signal`` hands a call to the reactor's thread."""
        for number, call in (
            (signal.SIGTERM, self.terminate),
            (signal.SIGINT, self.terminate),
            (signal.SIGHUP, self.hang_up),
        ):
            signal.signal(number, lambda *_, call=call: call_from_signal(call))

    def starting(self) -> None:
        """The process runs but cannot serve yet."""
        self._systemd.status("Starting: waiting for the broker.")

    def ready(self) -> None:
        """The server serves, for the first time or after a reload."""
        if self._leaving:
            return
        self._systemd.ready(self._status())
        if self._systemd.watchdog_interval is not None and not self._watchdog.running:
            self._watchdog.start(self._systemd.watchdog_interval)

    def terminate(self) -> None:
        """SIGTERM or SIGINT: leave. Another one: hurry. A drain that the API began is not hurried by the first."""
        if self._signalled:
            log.warn("told to stop again: sending away at once whoever is left")
            self.hurry()
        self._signalled = True
        self.drain()

    def drain(self) -> None:
        """Leave. Harmless when the server does already."""
        if not self._leaving:
            self._leaving = True
            self._systemd.stopping("Draining.")
            self.leave()

    def hang_up(self) -> None:
        """SIGHUP: reload."""
        if self._leaving:
            log.warn("not reloading: the server is stopping")
            return
        self._systemd.reloading()
        self.reload()

    def progress(self, progress: Progress) -> None:
        """The drain took a step."""
        self._metrics.draining.set(1)
        self._metrics.drain_left.set(progress.left)
        self._systemd.status(str(progress))
        self._systemd.extend_timeout(progress.remaining + _MARGIN)
        stage, at = self._told
        now = self._clock.seconds()
        if progress.stage is not stage or now - at >= _REPORT_EVERY:
            self._told = (progress.stage, now)
            log.info("{progress}", progress=str(progress), stage=progress.stage.value, left=progress.left)

    def stopped(self) -> None:
        """Nothing more is to be told."""
        if self._watchdog.running:
            self._watchdog.stop()

    def _alive(self) -> None:
        self._systemd.alive()
        if not self._leaving:
            self._systemd.status(self._status())

    def _status(self) -> str:
        count = self._clients()
        return f"Serving {count} client{'' if count == 1 else 's'}."
