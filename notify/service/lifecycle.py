"""Reports the server's state to the outside: through systemd, health, metrics and the log."""

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

#: seconds that a boot, a package manager or a script waits for a start; then the server is reported as running, not
#: ready
PATIENCE = 15.0
#: the most seconds until the status line shows a change
_FRESH = 5.0
#: seconds between two log lines about one stage of the drain
_REPORT_EVERY = 5.0
#: seconds that a drain may take longer than announced
_MARGIN = 15.0


class Lifecycle:
    """The state of one process, from start to end.

    ``clients`` returns their number, and ``fault`` what was wrong with the last reload, for the status line.
    ``leave`` is called once, when the server is told to shut down: it stops the service. ``clock`` is an
    ``IReactorTime``.
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
        """The process runs but cannot serve yet. Whatever waits for its start does so for at most ``PATIENCE`` seconds."""
        self._systemd.status(self._status())
        self._patience = self._clock.callLater(PATIENCE, self._run_unready)

    def _run_unready(self) -> None:
        # It waits for something external (a broker, keys from the network), which may be unavailable for hours. The
        # boot or the package manager goes on; clients and load balancers ask for health, which reports the truth.
        self._patience = None
        log.warn("not ready after {seconds:.0f} s; the start continues in the background", seconds=PATIENCE)
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
        """A reload begins; :meth:`reloaded` ends it. During the start this changes nothing that is reported."""
        if not self._health.starting:
            self._systemd.reloading()

    def reloaded(self) -> None:
        """A reload has ended, with whatever result."""
        if not self._health.starting:
            self.ready()

    def drain(self) -> None:
        """Shut down. Does nothing if this has begun."""
        if not self.leaving:
            self.leaving = True
            self._stop_waiting()
            self._systemd.stopping("Draining.")
            self._leave()

    def progress(self, progress: Progress) -> None:
        """The drain has taken a step; the first call comes as soon as it runs."""
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
        """Stop reporting."""
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
