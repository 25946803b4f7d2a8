"""What the world outside is told of the server's life: through systemd, its health, the metrics and the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from notify.observe.health import Health
from notify.observe.metrics import Metrics
from notify.service.drain import Progress, Stage
from notify.service.systemd import Systemd

log = Logger()

#: seconds that a boot, a package manager or a script waits for a start: then the server runs, and is not ready
PATIENCE = 15.0
#: seconds, at most, until the status tells what has changed
_FRESH = 5.0
#: seconds between two lines of the log about one stage of the drain
_REPORT_EVERY = 5.0
#: seconds that the end of a drain may take beyond what it announced
_MARGIN = 15.0


class Lifecycle:
    """From the start to the end of one process.

    ``clients`` counts them, and ``fault`` says what is wrong with the last reload, for the status line. ``leave`` is called once, when the server is told to leave: it stops
    the service. ``clock`` is an ``IReactorTime``.
    """

    def __init__(
        self,
        clock: Any,
        systemd: Systemd,
        health: Health,
        metrics: Metrics,
        clients: Callable[[], int],
        leave: Callable[[], object],
        fault: Callable[[], str] = lambda: "",
    ) -> None:
        self._clock = clock
        self._systemd = systemd
        self._health = health
        self._metrics = metrics
        self._clients = clients
        self._leave = leave
        self._fault = fault
        self.leaving = False
        self._told: tuple[Stage, float] = (Stage.SERVING, 0.0)
        self._patience: IDelayedCall | None = None
        self._watchdog = LoopingCall(self._alive)
        self._watchdog.clock = clock

    def starting(self) -> None:
        """The process runs but cannot serve yet. Who waits for its start does so for ``PATIENCE`` seconds at most."""
        self._systemd.status(self._status())
        self._patience = self._clock.callLater(PATIENCE, self._run_unready)

    def _run_unready(self) -> None:
        # What is waited for is others' (a broker, keys from the network), and may be away for hours: the boot goes on,
        # and so does the package manager. Clients and balancers ask for health, which says what is so.
        self._patience = None
        log.warn("not ready after {seconds:.0f} s; it goes on trying", seconds=PATIENCE)
        self._tell_running()

    def ready(self) -> None:
        """The server serves."""
        self._health.started()
        self._stop_waiting()
        if not self.leaving:
            self._tell_running()

    def _tell_running(self) -> None:
        self._systemd.ready(self._status())
        if self._systemd.present and not self._watchdog.running:
            self._watchdog.start(min(self._systemd.watchdog_interval or _FRESH, _FRESH))

    def reloading(self) -> None:
        """A reload begins; :meth:`reloaded` ends it. One that comes during the start changes nothing of what is told."""
        if not self._health.starting:
            self._systemd.reloading()

    def reloaded(self) -> None:
        """A reload is over, whatever became of it."""
        if not self._health.starting:
            self.ready()

    def drain(self) -> None:
        """Leave. Harmless when the server does already."""
        if not self.leaving:
            self.leaving = True
            self._stop_waiting()
            self._systemd.stopping("Draining.")
            self._leave()

    def progress(self, progress: Progress) -> None:
        """The drain took a step, the first as soon as it runs."""
        self._health.drain()
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
        self._stop_waiting()
        if self._watchdog.running:
            self._watchdog.stop()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _alive(self) -> None:
        if self._systemd.watchdog_interval is not None:
            self._systemd.alive()
        if not self.leaving:
            self._systemd.status(self._status())

    def _status(self) -> str:
        if self._health.starting:
            return "Starting: waiting for the broker."
        count, broker = self._clients(), self._health.report().broker
        clients = f"{count} client{'' if count == 1 else 's'}"
        said = f"Serving {clients}." if broker.ready else f"Not ready, with {clients}: {broker.detail}."
        return f"{said} {self._fault()}".rstrip()
