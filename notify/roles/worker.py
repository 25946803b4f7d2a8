"""A worker: it serves the clients that the first process hands to it, and shares the first process's broker and state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from notify import components
from notify.config import Config, loads
from notify.core.dispatcher import Dispatcher, end_of_turn
from notify.core.steering import ShedOrder, Steering
from notify.errors import StartError
from notify.interfaces import IBroker, ISignals
from notify.observe import logging
from notify.observe.health import Health
from notify.roles.role import Role
from notify.service.daemon import Foreground
from notify.service.drain import Progress
from notify.service.lifecycle import Lifecycle
from notify.service.reload import Reloader
from notify.service.service import Listener, NotifyService
from notify.tap import build
from notify.transport.admission import Admission
from notify.transport.handover import Admits, Adopting, Decided, Receiver
from notify.workers import metrics as counted
from notify.workers.broker import LinkedBroker, LinkedSignals
from notify.workers.control import LinkedControl
from notify.workers.frames import (
    Announce,
    Begin,
    Document,
    Failed,
    Hurry,
    Leave,
    Left,
    Nothing,
    Ready,
    Reload,
    Scrape,
    Shed,
    Wanted,
)
from notify.workers.link import Link
from notify.workers.registry import CountedRegistry, LinkedRegistry

log = Logger()


class WorkerRole(Role):
    """The role of a worker. See :class:`~notify.roles.role.Role`."""

    def __init__(self, reactor: Any, link: Link, sockets: Any, begin: Begin) -> None:
        self.node = begin.node
        self.part = f"w{begin.number}"
        self._reactor = reactor
        self._link = link
        self._sockets = sockets
        self._soon = end_of_turn(reactor)
        self._decided = Decided()
        self._config = loads(begin.config)
        self._health: Health | None = None
        self._broker: IBroker | None = None
        self._linked: LinkedBroker | None = None
        self._asked: Deferred[Nothing] | None = None

    def soon(self, reactor: Any) -> Callable[[Callable[[], None]], object]:
        """See :class:`~notify.roles.role.Role`. Messages that came together over the link belong to one turn."""
        return self._link.at_end if self._linked is not None else super().soon(reactor)

    def make(self, kind: str, context: components.Context) -> Any:
        """See :class:`~notify.roles.role.Role`.

        A plugin that knows only its own process is replaced by a link to the first's.
        """
        made = self._make(kind, context)
        if kind == "broker":
            self._broker = made
        return made

    def _make(self, kind: str, context: components.Context) -> Any:
        factory, _ = components.find(kind, context.config)
        if not getattr(factory, "alone", False):
            made = super().make(kind, context)
            return CountedRegistry(made, self._link, self._soon) if kind == "registry" else made
        if kind == "broker":
            self._linked = (LinkedSignals if ISignals.implementedBy(factory) else LinkedBroker)(self._link)
            return self._linked
        if kind == "registry":
            return LinkedRegistry(super().make(kind, context), self._link, self._soon)
        return LinkedControl(self._link, self.node)

    def sink(self, dispatcher: Dispatcher) -> Any:
        """See :class:`~notify.roles.role.Role`."""
        if self._linked is not None:
            self._linked.deliver_together(dispatcher.deliver_together)
        return dispatcher

    def admits(self, admission: Admission) -> Admits:
        """See :class:`~notify.roles.role.Role`. The first process has already admitted the sockets that it hands over."""
        return self._decided

    def internal(self, listener: Listener) -> Listener:
        """See :class:`~notify.roles.role.Role`. The first process has the internal port."""
        return _NoListener(listener)

    def public(self, listener: Listener, front: IProtocolFactory, health: Health) -> Listener:
        """See :class:`~notify.roles.role.Role`."""
        self._health = health
        return _HandedListener(listener, self._receiver, front)

    def _receiver(self, port: Adopting) -> Receiver:
        return Receiver(self._reactor, self._sockets, port, self._decided, self._link, self._soon)

    def progress(self, lifecycle: Lifecycle, progress: Progress) -> None:
        """See :class:`~notify.roles.role.Role`."""
        lifecycle.progress(progress)
        self._link.say(Left())

    def reload(self, reloader: Reloader) -> None:
        """See :class:`~notify.roles.role.Role`. The whole server reloads."""
        self._link.say(Wanted("reload"))

    def drain(self, lifecycle: Lifecycle) -> None:
        """See :class:`~notify.roles.role.Role`. The whole server drains."""
        self._link.say(Wanted("drain"))

    def steered(self, steering: Steering, reload: Callable[[], object], lifecycle: Lifecycle) -> None:
        """See :class:`~notify.roles.role.Role`. The first process has each worker shed a share of its clients."""

        def shed(asked: Shed) -> Deferred[Document]:
            done = steering.do("shed", msgspec.json.encode(ShedOrder(asked.share)))
            return done.addCallback(Document)

        self._link.answer(Shed, shed)

    def reloaded(self, lifecycle: Lifecycle, reloader: Reloader) -> None:
        """See :class:`~notify.roles.role.Role`."""
        asked, self._asked = self._asked, None
        if asked is None or asked.called:
            return
        _, failed = reloader.outcome
        if failed:
            asked.errback(StartError(failed))
        else:
            asked.callback(Nothing())

    # --- from the first process -----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the first process says to leave."""
        logging.configure(self._config.log)
        link = self._link
        service = build(
            self._config, self._reactor, read=lambda: self._config, foreground=First(link), role=self
        )
        link.answer(Scrape, lambda _: self._scraped())
        link.answer(Reload, lambda asked: self._reload(service, loads(asked.config)))
        link.hear(Announce, lambda _: self._announced())
        link.hear(Leave, lambda said: self._leave(service, said.seconds))
        link.hear(Hurry, lambda _: service.drain.hurry())
        service.privilegedStartService()
        service.startService()

    def _announced(self) -> None:
        if self._health is not None:
            self._health.drain()

    def _scraped(self) -> Document:
        if self._broker is not None:
            self.metrics.broker_up.set(self._broker.status().ready)
        return Document(counted.dump(self.metrics.registry))

    def _reload(self, service: NotifyService, config: Config) -> Deferred[Nothing]:
        self._config = config
        asked = self._asked = Deferred()
        service.reloader.reload()
        return asked

    def _leave(self, service: NotifyService, seconds: float) -> None:
        service.drain.start(0, seconds).addCallback(lambda _: self._reactor.stop())
        self._reactor.addSystemEventTrigger("before", "shutdown", service.stopService)


class First(Foreground):
    """Stands for the first process, which started this one and is told whether it serves."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def up(self, sentence: str = "") -> None:
        """See :class:`~notify.service.daemon.Foreground`."""
        self._link.say(Ready())

    def failed(self, sentence: str) -> None:
        """See :class:`~notify.service.daemon.Foreground`."""
        self._link.say(Failed(sentence))
        self._link.flush()


class _NoListener(Listener):
    """A port that belongs to another process."""

    def __init__(self, listener: Listener) -> None:
        vars(self).update(vars(listener))
        self.description = "the first process's"

    def bind(self, reactor: Any) -> None:
        """Does nothing: another process binds the port."""

    def accept(self) -> None:
        """Does nothing: another process accepts."""
        self._health.listening(self.key)

    @property
    def number(self) -> int:
        """0: this process has no such port."""
        return 0

    def close(self) -> Deferred[None]:
        """Does nothing."""
        return succeed(None)


class _HandedListener(_NoListener):
    """The public port, whose sockets the first process hands to this one."""

    def __init__(
        self, listener: Listener, receiver: Callable[[Adopting], Receiver], front: IProtocolFactory
    ) -> None:
        super().__init__(listener)
        self.description = listener.description
        self._make = receiver
        self._front = front
        self._receiver: Receiver | None = None

    def bind(self, reactor: Any) -> None:
        """Find out what the port serves: TLS, or the given factory."""
        factory = served(self, reactor)
        starting: Any = factory
        starting.doStart()
        self._receiver = self._make(Adopting(factory, reactor))

    def accept(self) -> None:
        """Take sockets from the first process."""
        if self._receiver is not None:
            self._receiver.start()
        super().accept()

    def close(self) -> Deferred[None]:
        """Take no more sockets."""
        if self._receiver is not None:
            self._receiver.stop()
        return super().close()


def served(listener: Listener, reactor: Any) -> IProtocolFactory:
    """The factory that the listener's port would serve if it were bound here. Raises ``StartError``."""
    if listener.description.startswith("systemd:"):
        return listener.factory  # this process cannot know more about the socket
    capturing = _Capturing(reactor)
    listener.endpoint(capturing).listen(listener.factory)
    return capturing.factory


class _Capturing:
    """A reactor that binds nothing and records the ``factory`` that would be served."""

    factory: IProtocolFactory

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> None:
        """See ``IReactorTCP``."""
        self.factory = factory
