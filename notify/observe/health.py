"""The server's health: one small object that the service updates and the listeners report."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import UNSET, Struct, UnsetType

from notify.interfaces import BrokerStatus


class HealthReport(Struct, frozen=True):
    """The full state, for operators. ``status`` is ``ok`` when ready, otherwise the first reason why not."""

    status: str
    ready: bool
    broker: BrokerStatus
    listeners: dict[str, bool]
    draining: bool
    #: by node name, if there are workers: whether each serves
    workers: dict[str, bool] | UnsetType = UNSET


class Live(Struct, frozen=True):
    """The process is running and answers."""

    status: str = "ok"


class PublicHealth(Struct, frozen=True):
    """Whether clients are welcome: ``ok`` or ``unavailable``, and nothing else."""

    status: str


class Health:
    """Ready only while every expected listener is up, the broker can be used, and the server is not draining.

    ``broker`` is :meth:`IBroker.status`, called for each report. Until :meth:`started`, the server is starting,
    whatever its other states.
    """

    def __init__(self, broker: Callable[[], BrokerStatus], listeners: Iterable[str]) -> None:
        self._broker = broker
        self._listeners = dict.fromkeys(listeners, False)
        self._started = False
        self._draining = False
        #: called for each report
        self.workers: Callable[[], dict[str, bool]] | None = None

    @property
    def starting(self) -> bool:
        """Whether the server is still starting."""
        return not self._started

    @property
    def draining(self) -> bool:
        """Whether the server is shutting down."""
        return self._draining

    def listening(self, name: str, up: bool = True) -> None:
        """A listener came up, or went down. Raises ``KeyError`` for an unexpected name."""
        if name not in self._listeners:
            raise KeyError(name)
        self._listeners[name] = up

    def started(self) -> None:
        """The start is complete: the broker is connected, and all listeners have been asked to listen."""
        self._started = True

    def drain(self) -> None:
        """The server is shutting down, for good. A second call does nothing."""
        self._draining = True

    def report(self) -> HealthReport:
        """The state now."""
        broker = self._broker()
        if self._draining:
            status = "draining"
        elif not self._started:
            status = "starting"
        elif not broker.ready:
            status = "broker unavailable"
        elif not all(self._listeners.values()):
            status = "not listening"
        else:
            status = "ok"
        workers = UNSET if self.workers is None else self.workers()
        return HealthReport(status, status == "ok", broker, dict(self._listeners), self._draining, workers)
