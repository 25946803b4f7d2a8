"""The first of several processes: it accepts connections, holds what all share, and supervises the workers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from notify import components
from notify.config import Config, dumps
from notify.core.dispatcher import Dispatcher, end_of_turn
from notify.core.signals import Signals
from notify.core.steering import Shedding, ShedOrder, Steering
from notify.errors import StartError
from notify.ids import Id
from notify.observe import logging
from notify.observe.health import Health
from notify.observe.metrics import Metrics
from notify.roles.role import Role
from notify.service.crew import Crew, Worker
from notify.service.drain import Progress, Stage
from notify.service.lifecycle import Lifecycle
from notify.service.service import Listener, Part
from notify.service.spawn import spawn
from notify.topics import Topic
from notify.transport import poller
from notify.transport.admission import Admission, reserve
from notify.transport.handover import Acceptor, Admits, Adopting, Decided, Doorman
from notify.workers import limits
from notify.workers import metrics as counted
from notify.workers.broker import SharedBroker
from notify.workers.control import SharedControl
from notify.workers.frames import Begin, Line, Scrape, Shed
from notify.workers.link import Link
from notify.workers.pace import Pace
from notify.workers.registry import SharedRegistry

log = Logger()

#: seconds that a scrape waits for a worker
SCRAPE = 2.0


class Head(Role):
    """The role of the first process; ``workers`` is their number.

    Raises ``StartError`` if this system does not support it.
    """

    serves = False

    def __init__(self, reactor: Any, config: Config, node: str, workers: int) -> None:
        if not poller.available():
            raise StartError("[server] workers needs Linux: leave it out, and this process does everything.")
        self._reactor = reactor
        self._soon = end_of_turn(reactor)
        self._config = config
        self._count = workers
        names = [limits.name(node, number) for number in range(1, workers + 1)]
        self.crew = Crew(
            reactor,
            [Worker(number, name) for number, name in enumerate(names, 1)],
            self._spawn,
            self._begin,
            self._serving,
            self._lost,
            self._wanted,
            self._left,
        )
        self._broker: SharedBroker | None = None
        self._registry: SharedRegistry | None = None
        self._control: SharedControl | None = None
        self._desks: dict[int, socket.socket] = {}
        self._links: dict[int, Link] = {}
        self._pace = Pace(reactor, self._links.values)
        self._decided = Decided()
        self._tally = counted.Tally()
        self._lifecycle: Lifecycle | None = None
        self._health: Health | None = None
        self._reload: Callable[[], object] = lambda: None
        #: the number of clients when the drain began to disconnect them, and the time by which they are to be gone
        self._leaving = 0, 0.0

    # --- for the composition root ---------------------------------------------------------------------------

    def make(self, kind: str, context: components.Context) -> Any:
        """See :class:`~notify.roles.role.Role`; the same holds for the methods below."""
        made = super().make(kind, context)
        if not getattr(made, "alone", False):
            if kind == "registry":
                self._registry = SharedRegistry(
                    made
                )  # for the workers: a user's connections are counted there
            return made
        if kind == "broker":
            self._broker = SharedBroker(made, self._soon)
        elif kind == "registry":
            made = self._registry = SharedRegistry(made)
        elif kind == "control":
            made = self._control = SharedControl(made, self._reactor.callLater, context.now)
        return made

    def sink(self, dispatcher: Dispatcher) -> Any:
        """See :class:`~notify.roles.role.Role`."""
        return self._broker or dispatcher

    def ear(self, signals: Signals) -> Callable[[Topic, bytes], None]:
        """See :class:`~notify.roles.role.Role`."""
        return signals.heard if self._broker is None else self._broker.heard

    def pace(self, workspace: Id, size: int) -> Deferred[None] | None:
        """See :class:`~notify.roles.role.Role`."""
        return self._pace(workspace, size)

    def clients(self, here: int) -> int:
        """See :class:`~notify.roles.role.Role`."""
        return here + sum(self._doorman.loads().values())

    def files(self, open_files: int) -> int:
        """See :class:`~notify.roles.role.Role`: the files of all workers that take sockets."""
        return limits.files(self._doorman.open or self._count, open_files, reserve(open_files))

    def admits(self, admission: Admission) -> Admits:
        """See :class:`~notify.roles.role.Role`. The admission is asked when a socket is accepted."""
        self._doorman = Doorman(admission, lambda: self._public.own, self._decided, self.crew.silent)
        admission.announce()
        return self._decided

    def render(self, metrics: Metrics) -> Deferred[bytes]:
        """See :class:`~notify.roles.role.Role`."""
        mine = counted.dump(metrics.registry)
        asked = [self._scraped(one.number, one.link) for one in self.crew.ready if one.link is not None]
        told: Any = DeferredList(asked, consumeErrors=True)
        wanted = [one.number for one in self.crew.workers]

        def render(results: list[tuple[bool, Any]]) -> bytes:
            return self._tally.render(mine, [number for answered, number in results if answered], wanted)

        rendered: Deferred[bytes] = told.addCallback(render)
        return rendered

    def public(self, listener: Listener, front: IProtocolFactory, health: Health) -> Listener:
        """See :class:`~notify.roles.role.Role`."""
        self._health = health
        health.workers = lambda: {one.node: one.ready for one in self.crew.workers}
        self._public = _SharedListener(listener, self._reactor, self._doorman)
        return self._public

    def sent_away(self, seconds: float) -> Deferred[None]:
        """See :class:`~notify.roles.role.Role`."""
        if self._health is not None and self._health.starting:
            seconds = 0.0
        self._leaving = self.clients(0), self._reactor.seconds() + seconds
        return self.crew.leave(seconds)

    def progress(self, lifecycle: Lifecycle, progress: Progress) -> None:
        """See :class:`~notify.roles.role.Role`. This process has no clients of its own."""
        self._lifecycle = lifecycle
        self.crew.announce()
        total, _ = self._leaving
        lifecycle.progress(replace(progress, total=total, left=self.clients(0)))

    def applied(self, renew: Callable[[], object], config: Config) -> object:
        """See :class:`~notify.roles.role.Role`."""
        renew()
        self._config = config
        return Deferred.fromCoroutine(self.crew.reload(dumps(self._shared())))

    def parts(self) -> tuple[Part, ...]:
        """See :class:`~notify.roles.role.Role`."""
        return (Part(start=self.crew.start, stop=self.crew.stop),)

    def shed(self, order: ShedOrder) -> Deferred[Shedding]:
        """See :class:`~notify.roles.role.Role`. Every worker sheds this share of its clients."""
        asked = [self._bounded(one.link.ask(Shed(order.share))) for one in self.crew.ready if one.link]

        def gather(results: list[tuple[bool, Any]]) -> Shedding:
            told = [msgspec.json.decode(said.data, type=Shedding) for done, said in results if done]
            begun = [one for one in told if not one.refused]
            if told and not begun:
                return told[0]
            if not begun:
                return Shedding(refused="not_serving")
            return Shedding(sum(one.clients for one in begun), max(one.seconds for one in begun))

        shedding: Any = DeferredList(asked, consumeErrors=True)
        shedding.addCallback(gather)
        begun: Deferred[Shedding] = shedding
        return begun

    def steered(self, steering: Steering, reload: Callable[[], object], lifecycle: Lifecycle) -> None:
        """Set what this process does when a worker is told to reload or to drain."""
        self._reload, self._lifecycle = reload, lifecycle

    # --- for the crew ---------------------------------------------------------------------------------------

    def _shared(self) -> Config:
        return limits.shared(self._config, self._count)

    def _begin(self, one: Worker) -> Begin:
        return Begin(dumps(self._shared()), one.node, one.number, self._count)

    def _spawn(self, one: Worker) -> None:
        one.process, one.link, desk = spawn(
            self._reactor,
            one.number,
            lambda reason: self.crew.gone(one, reason),
            lambda how: self.crew.ended(one, how),
            lambda line: logging.relayed(one.node, "stderr", "error", line, b"{}"),
            self._soon,
        )
        link = self._links[one.number] = one.link
        self._desks[one.number] = desk
        link.hear(
            Line,
            lambda said: logging.relayed(one.node, said.namespace, said.level, said.text, said.fields),
        )
        if self._broker is not None:
            self._broker.serve(link)
        if self._registry is not None:
            self._registry.serve(link)
        if self._control is not None:
            self._control.serve(link, one.node)

    def _serving(self, one: Worker) -> None:
        self._doorman.serve(self._links[one.number], self._desks[one.number])
        self._listens()

    def _lost(self, one: Worker) -> None:
        link, desk = self._links.pop(one.number), self._desks.pop(one.number)
        self._doorman.drop(link)
        self._tally.ended(one.number)
        desk.close()
        if self._broker is not None:
            self._broker.forget(link)
        if self._registry is not None:
            self._registry.drop(link)
        if self._control is not None:
            self._control.drop(link)
        self._listens()

    def _listens(self) -> None:
        """Report not ready while there is no worker, because no client can be admitted."""
        if self._health is not None and not self._health.starting:
            self._health.listening("public", bool(self._doorman.open))

    def _wanted(self, what: str) -> None:
        if what == "reload":
            self._reload()
        elif self._lifecycle is not None:
            self._lifecycle.drain()

    def _left(self) -> None:
        if self._lifecycle is not None:
            total, ends = self._leaving
            remaining = max(0.0, ends - self._reactor.seconds())
            self._lifecycle.progress(Progress(Stage.CLOSING, total, self.clients(0), remaining))

    def _scraped(self, number: int, link: Link) -> Deferred[Any]:
        return self._bounded(link.ask(Scrape())).addCallback(lambda said: self._tally.told(number, said.data))

    def _bounded(self, asked: Deferred[Any]) -> Deferred[Any]:
        late = self._reactor.callLater(SCRAPE, asked.cancel)

        def over(result: Any) -> Any:
            if late.active():
                late.cancel()
            return result

        return asked.addBoth(over)


class _SharedListener(Listener):
    """The public port, whose sockets are handed to workers. ``own`` serves the sockets that no worker takes."""

    own: Adopting

    def __init__(self, listener: Listener, reactor: Any, doorman: Doorman) -> None:
        vars(self).update(vars(listener))
        self._reactor = reactor
        self._doorman = doorman
        self._acceptor: Acceptor | None = None

    def bind(self, reactor: Any) -> None:
        """See :class:`~notify.service.service.Listener`."""
        super().bind(reactor)
        if not isinstance(
            getattr(self._port, "socket", None), socket.socket
        ) or self._port.socket.family not in (
            socket.AF_INET,
            socket.AF_INET6,
        ):
            raise StartError(
                f"listen.public: '{self.description}' is no TCP port, which [server] workers needs: leave one of them out."
            )
        self.own = Adopting(self._port.factory, reactor)

    def accept(self) -> None:
        """See :class:`~notify.service.service.Listener`."""
        self._acceptor = Acceptor(self._reactor, self._port.socket, self._doorman)
        self._acceptor.start()
        self._health.listening(self.key)

    def close(self) -> Deferred[None]:
        """See :class:`~notify.service.service.Listener`."""
        if self._acceptor is not None:
            self._acceptor.stop()
        return super().close()


def head(reactor: Any, config: Config, node: str) -> Head | None:
    """The role of the first process of a server with workers; None: it has none."""
    workers = limits.count(config.server.workers)
    return Head(reactor, config, node, workers) if workers > 1 else None
