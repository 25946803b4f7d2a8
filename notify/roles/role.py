"""Where a process of several differs from a server of one process; this module is the server of one process."""

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
from notify.ids import Id
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
    """One process that does everything. The composition root calls these methods in this order."""

    #: the node's name if it is not the configured one, and what distinguishes its files from those of its sibling
    #: processes
    node = part = ""
    #: whether this process serves WebSockets
    serves = True
    #: sheds a share of this node's clients if they are connected to other processes
    shed: Callable[[ShedOrder], object] | None = None
    metrics: Metrics

    def soon(self, reactor: Any) -> Callable[[Callable[[], None]], object]:
        """The function that runs the dispatcher's calls at the end of a turn."""
        return end_of_turn(reactor)

    def make(self, kind: str, context: components.Context) -> Any:
        """Make the component of this kind. Raises ``StartError``."""
        return components.make(kind, context)

    def sink(self, dispatcher: Dispatcher) -> Any:
        """The object whose ``deliver`` and ``lost`` the broker calls."""
        return dispatcher

    def ear(self, signals: Signals) -> Callable[[Topic, bytes], None]:
        """The function that receives the broker's signals."""
        return signals.heard

    def pace(self, workspace: Id, size: int) -> Deferred[None] | None:
        """Fires when a message of this workspace and of this many bytes may be published; None: now."""
        return None

    def clients(self, here: int) -> int:
        """The number of clients, given the number connected to this process."""
        return here

    def files(self, open_files: int) -> int:
        """The number of files that may be open in all, given the limit for one process."""
        return open_files

    def admits(self, admission: Admission) -> Admits:
        """Decides on the sockets of this process's public port."""
        return admission

    def render(self, metrics: Metrics) -> bytes | Deferred[bytes]:
        """The metrics as text."""
        return metrics.render()

    def internal(self, listener: Listener) -> Listener:
        """The internal port; ``listener`` is the real one."""
        return listener

    def public(self, listener: Listener, front: IProtocolFactory, health: Health) -> Listener:
        """The public port; ``listener`` is the real one, and ``front`` the factory that it serves."""
        return listener

    def sent_away(self, seconds: float) -> Deferred[None]:
        """The port is closed: disconnect other processes' clients over this many seconds; fires when they are gone."""
        return succeed(None)

    def progress(self, lifecycle: Lifecycle, progress: Progress) -> None:
        """The drain has taken a step."""
        lifecycle.progress(progress)

    def applied(self, renew: Callable[[], object], config: Config) -> object:
        """Another configuration is in force: ``renew`` has this process's clients reviewed. The result is waited for."""
        return renew()

    def reload(self, reloader: Reloader) -> None:
        """This node was told to reload."""
        reloader.reload()

    def reloaded(self, lifecycle: Lifecycle, reloader: Reloader) -> None:
        """A reload has ended."""
        lifecycle.reloaded()

    def drain(self, lifecycle: Lifecycle) -> None:
        """This node was told to drain."""
        lifecycle.drain()

    def steered(self, steering: Steering, reload: Callable[[], object], lifecycle: Lifecycle) -> None:
        """Connect the commands for nodes, to reload and to drain with this process."""

    def parts(self) -> tuple[Part, ...]:
        """The parts that are started last and stopped first."""
        return ()
