"""What differs between a server of one process and each process of several: here, the server of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocolFactory

from notify import components
from notify.config import Config
from notify.core.dispatcher import Dispatcher, end_of_turn
from notify.core.signals import Signals
from notify.core.steering import ShedOrder, Steering
from notify.observe.health import Health
from notify.observe.metrics import Metrics
from notify.service.drain import Progress
from notify.service.lifecycle import Lifecycle
from notify.service.reload import Reloader
from notify.service.service import Listener, Part
from notify.topics import Topic
from notify.transport.admission import Admission
from notify.transport.handover import Admits


class Role:
    """One process that does everything. What the composition root asks, in this order."""

    #: the node's name, where it is not the configured one; and what tells its files from those of its siblings
    node = part = ""
    #: whether WebSockets are served here
    serves = True
    #: how a share of this node's clients is sent to others, where they are clients of other processes
    shed: Callable[[ShedOrder], object] | None = None
    metrics: Metrics

    def soon(self, reactor: Any) -> Callable[[Callable[[], None]], object]:
        """How the dispatcher has something called at the end of a turn."""
        return end_of_turn(reactor)

    def make(self, kind: str, context: components.Context) -> Any:
        """A component of this kind. Raises ``StartError``."""
        return components.make(kind, context)

    def sink(self, dispatcher: Dispatcher) -> Any:
        """Whose ``deliver`` and ``lost`` the broker calls."""
        return dispatcher

    def ear(self, signals: Signals) -> Callable[[Topic, bytes], None]:
        """Who is told the signals that the broker brings."""
        return signals.heard

    def clients(self, here: int) -> int:
        """How many clients there are, of whom so many are connected to this process."""
        return here

    def files(self, open_files: int) -> int:
        """How many files may be open, where one process may have so many."""
        return open_files

    def admits(self, admission: Admission) -> Admits:
        """Who lets the sockets of this process's public port in."""
        return admission

    def render(self, metrics: Metrics) -> bytes | Deferred[bytes]:
        """The metrics as text."""
        return metrics.render()

    def internal(self, listener: Listener) -> Listener:
        """The internal port, which ``listener`` is."""
        return listener

    def public(self, listener: Listener, front: IProtocolFactory, health: Health) -> Listener:
        """The public port, which ``listener`` is, and ``front`` what it serves."""
        return listener

    def sent_away(self, seconds: float) -> Deferred[None]:
        """The port is closed: send clients of other processes away over so many seconds; fires when they are."""
        return succeed(None)

    def progress(self, lifecycle: Lifecycle, progress: Progress) -> None:
        """The drain took a step."""
        lifecycle.progress(progress)

    def applied(self, renew: Callable[[], object], config: Config) -> object:
        """Another configuration is in force: clients here are asked about by ``renew``. What it returns is waited for."""
        return renew()

    def reload(self, reloader: Reloader) -> None:
        """This node is told to reload."""
        reloader.reload()

    def reloaded(self, lifecycle: Lifecycle, reloader: Reloader) -> None:
        """A reload is over."""
        lifecycle.reloaded()

    def drain(self, lifecycle: Lifecycle) -> None:
        """This node is told to leave."""
        lifecycle.drain()

    def steered(self, steering: Steering, reload: Callable[[], object], lifecycle: Lifecycle) -> None:
        """How this process is made to do what nodes are asked, to reload, and to leave."""

    def parts(self) -> tuple[Part, ...]:
        """What is started last, and stopped first."""
        return ()
