"""The server's life: ordered start, readiness, stop.

Start: ports are bound (a fault is known at once), the internal listener answers, then authenticator, broker and
registry come up, then the public listener accepts. Stop: the drain (drain.py), then registry, broker and
authenticator.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.config import Drain as DrainSettings
from notify.config import Duration
from notify.core.hub import Hub
from notify.errors import StartError
from notify.interfaces import IBroker, IRegistry
from notify.observe.health import Health
from notify.service.drain import Drain
from notify.service.garbage import Collector
from notify.service.lifecycle import Lifecycle
from notify.transport.tcp import paced, write_through

log = Logger()

_exit_status = 0


def _leave() -> None:
    """Tell the shell, systemd and the package scripts that it failed: twistd itself always leaves with 0."""
    if _exit_status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_status)


atexit.register(_leave)


def _complain(error: object) -> None:
    """One sentence to whoever waits at the terminal: twistd sends to the log what goes to sys.stderr."""
    print(f"notify: {error}", file=sys.__stderr__, flush=True)


class Listener:
    """A port that is bound early and accepts late."""

    def __init__(self, key: str, description: str, factory: IProtocolFactory) -> None:
        self.key = key
        self.description = description
        self._factory = factory
        self._port: Any = None

    def bind(self, reactor: Any) -> None:
        """Bind, without accepting yet. Raises ``StartError``."""
        try:
            endpoint = serverFromString(reactor, self.description)  # type: ignore[no-untyped-call]
            listening: Deferred[Any] = endpoint.listen(self._factory)
        except OSError as error:
            raise StartError(
                f"listen.{self.key}: {error.filename} cannot be read: {error.strerror}."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise StartError(
                f"listen.{self.key}: '{self.description}' is not a server endpoint: {error}"
            ) from None
        results: list[Any] = []
        listening.addBoth(results.append)
        if not results:
            raise StartError(f"listen.{self.key}: '{self.description}' cannot be bound at once")
        if isinstance(results[0], Failure):
            raise StartError(self._why(results[0].value))
        self._port = results[0]
        if self.key == "public":
            paced(self._port, reactor)
        else:
            write_through(self._port)
        self._port.stopReading()

    def accept(self) -> None:
        """Accept connections, those that waited since the port was bound first."""
        self._port.startReading()

    @property
    def port(self) -> IListeningPort:
        """The listening port."""
        port: IListeningPort = self._port
        return port

    def close(self) -> Deferred[None]:
        """Accept no more."""
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening) if port is not None else maybeDeferred(lambda: None)

    def _why(self, error: object) -> str:
        if isinstance(error, CannotListenError):
            reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
            advice = (
                f"stop the other process or choose another port (here or with NOTIFY_LISTEN__{self.key.upper()})"
                if "in use" in reason
                else "choose another"
            )
            return f"listen.{self.key}: '{self.description}' cannot be bound: {reason}; {advice}."
        return f"listen.{self.key}: '{self.description}' cannot be bound: {error}"


class NotifyService(Service):
    """Runs the parts that the composition root made.

    ``announce`` is called once the server is ready. ``patience`` gives the times of a drain, ``sockets`` the number of
    clients that are connected, ``settled`` fires once no request of the API is under way.
    """

    name = "notify"

    def __init__(
        self,
        reactor: Any,
        hub: Hub,
        broker: IBroker,
        registry: IRegistry,
        health: Health,
        internal: Listener,
        public: Listener,
        announce: Callable[[NotifyService], None],
        lifecycle: Lifecycle,
        patience: Callable[[], DrainSettings],
        sockets: Callable[[], int],
        settled: Callable[[], Deferred[None]],
        flush_traces: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._hub = hub
        self._collector = Collector(hub.wheel)
        self._broker = broker
        self._registry = registry
        self._health = health
        self._announce = announce
        self._starting: Deferred[None] | None = None
        self.internal = internal
        self.public = public
        self.lifecycle = lifecycle
        self._patience = patience
        self._settled = settled
        self._flush_traces = flush_traces
        self._ready = False
        self._drain = Drain(
            reactor,
            hub.random,
            hub.connections.keys,
            sockets,
            public.close,
            self._finish,
            lifecycle.progress,
        )
        lifecycle.leave = self._leave
        lifecycle.hurry = self._drain.hurry

    def privilegedStartService(self) -> None:
        """Bind the ports, while the process may still have the right to."""
        try:
            self.internal.bind(self._reactor)
            self.public.bind(self._reactor)
        except StartError as error:
            log.critical("cannot start: {reason}", reason=str(error))
            _complain(error)
            raise SystemExit(1) from None

    def startService(self) -> None:
        """Start; returns at once."""
        super().startService()  # type: ignore[no-untyped-call]
        self._hub.wheel.start()
        self._collector.start()
        self.internal.accept()
        self._health.listening("internal")
        self.lifecycle.starting()
        # There is no running event loop before the reactor's first turn.
        self._reactor.callLater(0, self._start)

    def _start(self) -> None:
        if self.running:
            self._starting = ensureDeferred(self._bring_up())
            self._starting.addErrback(self._give_up)

    async def _bring_up(self) -> None:
        hub = self._hub
        await hub.authenticator.start()
        await self._broker.start(hub.dispatcher.deliver, hub.dispatcher.lost)
        await self._registry.start(hub.presence.changed)
        self.public.accept()
        self._health.listening("public")
        self._health.started()
        log.info("ready: public {public}, internal {internal}", public=self.public.description,
                 internal=self.internal.description)  # fmt: skip
        self._ready = True
        self.lifecycle.ready()
        self._announce(self)

    def _give_up(self, failure: Failure) -> None:
        global _exit_status
        if not self.running:
            return
        _exit_status = 1
        if isinstance(failure.value, StartError):
            log.critical("cannot start: {reason}", reason=str(failure.value))
        else:
            log.failure("cannot start", failure)
        _complain(failure.value)
        self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """Stop; fires when all is closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        return ensureDeferred(self._bring_down())

    async def _bring_down(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        self._health.drain()
        patience = self._patience() if self._ready else DrainSettings(Duration(0), Duration(0))
        await self._drain.start(patience.delay, patience.duration)
        await self._registry.stop()
        await self._broker.stop()
        await self._hub.authenticator.stop()
        self._collector.stop()
        self._flush_traces()
        self._hub.wheel.stop()
        self.lifecycle.stopped()

    def _leave(self) -> None:
        # Not at once: whoever asked over HTTP gets an answer first.
        self._reactor.callLater(0, self._reactor.stop)

    async def _finish_requests(self) -> None:
        await self.internal.close()
        await self._settled()

    def _finish(self) -> Deferred[None]:
        return ensureDeferred(self._finish_requests())
