"""What the server says of its own health: one small object that the service feeds and the listeners show."""

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
    #: by node, where there are workers: whether it serves
    workers: dict[str, bool] | UnsetType = UNSET


class Live(Struct, frozen=True):
    """The process runs and answers."""

    status: str = "ok"


class PublicHealth(Struct, frozen=True):
    """Whether clients are welcome, ``ok`` or ``unavailable``, and nothing else."""

    status: str


class Health:
    """Ready only while every expected listener is up, the broker can be used, and the server is not draining.

    ``broker`` is :meth:`IBroker.status`, asked anew for each report. Until :meth:`started` the server is
    starting, whatever else is so.
    """

    def __init__(self, broker: Callable[[], BrokerStatus], listeners: Iterable[str]) -> None:
        self._broker = broker
        self._listeners = dict.fromkeys(listeners, False)
        self._started = False
        self._draining = False
        #: asked anew for each report
        self.workers: Callable[[], dict[str, bool]] | None = None

    @property
    def starting(self) -> bool:
        """Whether the start is not over yet."""
        return not self._started

    @property
    def draining(self) -> bool:
        """Whether the server is leaving."""
        return self._draining

    def listening(self, name: str, up: bool = True) -> None:
        """A listener came up, or went down. ``KeyError`` for a name that was not expected."""
        if name not in self._listeners:
            raise KeyError(name)
        self._listeners[name] = up

    def started(self) -> None:
        """The start is over: broker connected, all listeners asked to listen."""
        self._started = True

    def drain(self) -> None:
        """The server leaves; there is no way back. Harmless when it drains already."""
        self._draining = True

    def report(self) -> HealthReport:
        """How things are now."""
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
