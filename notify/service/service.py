"""The server's life: ordered start, readiness, stop.

Start: ports are bound (a fault is known at once), the internal listener answers, then the parts come up one after
the other, then the public listener accepts; where that takes longer, it accepts before, to say that it is not ready. Stop: the drain (drain.py), then the parts, the last first.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from msgspec import Struct
from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify import __version__
from notify.config import Drain as DrainSettings
from notify.config import Duration
from notify.errors import StartError
from notify.observe.health import Health
from notify.service.daemon import Foreground
from notify.service.drain import Drain
from notify.service.lifecycle import PATIENCE, Lifecycle
from notify.service.reactor import running_on
from notify.service.reload import Reloader
from notify.service.systemd import is_handed_over
from notify.transport import fanout, tls
from notify.transport.tcp import InnerPort, PacedPort, paced

log = Logger()

#: seconds that a start may take without anybody's notice: who connects meanwhile waits
UNNOTICED = 1.0

#: how a server leaves that was never ready
AT_ONCE = DrainSettings(Duration(0), Duration(0))

_exit_status = 0


def _leave() -> None:
    """Tell the shell, systemd and the package scripts that it failed: twistd itself always leaves with 0."""
    if _exit_status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_status)


atexit.register(_leave)


def _is_local(address: object) -> bool:
    """Whether what is bound to this address can be reached by this machine alone."""
    if isinstance(address, IPv4Address | IPv6Address):
        return ip_address(address.host.partition("%")[0]).is_loopback
    return isinstance(address, UNIXAddress)


class Part(Struct, frozen=True, kw_only=True):
    """Something that runs while the server does. What a call returns is waited for, where it can be."""

    start: Callable[[], object] = lambda: None
    stop: Callable[[], object] = lambda: None


class Listener:
    """A port that is bound early and accepts late. ``settled()`` fires once nothing that came through it is under way,
    and ``tls_failed`` is told why a TLS handshake failed (:class:`~notify.transport.tls.Encrypting`).
    With ``loopback`` it is bound to this machine's own addresses only.
    Raises ``StartError`` for a description that asks for what is not spoken here.
    """

    def __init__(
        self,
        key: str,
        description: str,
        factory: IProtocolFactory,
        health: Health,
        settled: Callable[[], Deferred[None]] = lambda: succeed(None),
        *,
        loopback: bool = False,
        tls_failed: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.key = key
        self.description = description
        self.factory = factory
        self._health = health
        self._settled = settled
        self._loopback = loopback
        self._tls_failed = tls_failed
        self._port: Any = None
        tls.check(key, description)

    def check(self, reactor: Any) -> None:
        """Whether the description can be understood, and the files that it names be read; nothing is bound.

        A socket that systemd hands over need not be there yet. Raises ``StartError``.
        """
        try:
            self.endpoint(reactor)
        except (KeyError, IndexError):
            pass

    def endpoint(self, reactor: Any) -> Any:
        """What listens. Raises ``StartError``, and ``KeyError`` or ``IndexError`` where systemd has handed over no such socket."""
        encrypting = tls.Encrypting(reactor, self._tls_failed)
        try:
            handed_over = is_handed_over(self.description)
            return serverFromString(encrypting, self.description)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise StartError(
                f"listen.{self.key}: {error.filename} cannot be read: {error.strerror}."
            ) from None
        except Exception as error:  # endpoints are plugins, and what pyOpenSSL raises has no base of its own
            if isinstance(error, LookupError) and handed_over:
                raise
            raise StartError(
                f"listen.{self.key}: '{self.description}' is not a server endpoint: {error}."
            ) from None

    def bind(self, reactor: Any) -> None:
        """Bind, without accepting yet. Raises ``StartError``."""
        try:
            listening: Deferred[Any] = self.endpoint(reactor).listen(self.factory)
        except (KeyError, IndexError):
            raise StartError(
                f"listen.{self.key}: systemd has handed over no socket for '{self.description}': start its unit first, "
                "`systemctl start notify.socket` (and name it as its FileDescriptorName does)."
            ) from None
        results: list[Any] = []
        listening.addBoth(results.append)
        if not results:
            raise StartError(f"listen.{self.key}: '{self.description}' cannot be bound at once")
        if isinstance(results[0], Failure):
            raise StartError(self._why(results[0].value))
        self._port = results[0]
        paced(self._port, reactor, PacedPort if self.key == "public" else InnerPort)
        self._port.stopReading()
        if self._loopback and not _is_local(self._port.getHost()):
            raise StartError(
                f"listen.{self.key}: '{self.description}' can be reached by other machines, and --dev lets in whoever asks: "
                "use 'tcp:8080:interface=127.0.0.1', or run notify with a configuration."
            )

    def accept(self) -> None:
        """Accept connections, those that waited since the port was bound first."""
        self._port.startReading()
        self._health.listening(self.key)

    @property
    def port(self) -> IListeningPort:
        """The listening port."""
        port: IListeningPort = self._port
        return port

    @property
    def number(self) -> int:
        """The TCP port that it listens on; 0: it is no such port."""
        return getattr(self.port.getHost(), "port", 0)

    def close(self) -> Deferred[None]:
        """Accept no more; fires once that is so and all is settled."""
        port, self._port = self._port, None
        closing = maybeDeferred(port.stopListening) if port is not None else succeed(None)
        return closing.addCallback(lambda _: self._settled())

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
    """Runs what the composition root made.

    ``parts`` are started in their order before the public listener accepts, and stopped in the opposite one after the
    drain. ``announce`` is called once the server is ready. ``node`` is its name, for the log. ``foreground`` is told
    that it runs, or why it does not.
    """

    name = "notify"

    def __init__(
        self,
        reactor: Any,
        parts: Sequence[Part],
        internal: Listener,
        public: Listener,
        lifecycle: Lifecycle,
        drain: Drain,
        reloader: Reloader,
        announce: Callable[[], None],
        node: str = "",
        foreground: Foreground | None = None,
    ) -> None:
        self.internal = internal
        self.public = public
        self.lifecycle = lifecycle
        self.drain = drain
        self.reloader = reloader
        self._reactor = reactor
        self._parts = parts
        self._announce = announce
        self._node = node
        self._foreground = foreground or Foreground()
        self._fault: StartError | None = None
        self._starting: Deferred[None] | None = None
        self._ready = False

    def privilegedStartService(self) -> None:
        """Bind the ports, while the process may still have the right to. A fault is told by :meth:`startService`."""
        try:
            self.internal.bind(self._reactor)
            self.public.bind(self._reactor)
        except StartError as error:
            self._fault = error

    def startService(self) -> None:
        """Start; returns at once."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._fault is None:
            self.internal.accept()
            self.lifecycle.starting()
        # There is no running event loop before the reactor's first turn.
        self._reactor.callLater(0, self._start)

    def _start(self) -> None:
        if self._fault is not None:
            self._give_up(Failure(self._fault))  # type: ignore[no-untyped-call]
        elif self.running:
            self._starting = ensureDeferred(self._bring_up())
            self._starting.addErrback(self._give_up)
            if self._foreground.waits:
                late = "it runs and is not ready yet: what it waits for is away, and it goes on trying; the log says more."
                self._reactor.callLater(PATIENCE, self._foreground.up, late)

    async def _bring_up(self) -> None:
        late = self._reactor.callLater(UNNOTICED, self.public.accept)
        try:
            for part in self._parts:
                await maybeDeferred(part.start)
        finally:
            in_time = late.active()
            if in_time:
                late.cancel()
        if in_time:
            self.public.accept()
        log.info(
            "notify {version} as {node} is ready: public {public}, internal {internal}, event loop {event_loop}, fan-out in {way}",
            version=__version__,
            node=self._node,
            public=self.public.description,
            internal=self.internal.description,
            event_loop=running_on(self._reactor),
            way=fanout.name(fanout.choose()),
        )
        self._ready = True
        self.lifecycle.ready()
        self._foreground.up()
        self._announce()

    def _give_up(self, failure: Failure) -> None:
        global _exit_status
        if not self.running:
            return
        _exit_status = 1
        if isinstance(failure.value, StartError):
            log.critical("cannot start: {reason}", reason=str(failure.value))
        else:
            log.failure("cannot start", failure)
        self._foreground.failed(str(failure.value))
        self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """Stop; fires when all is closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        return ensureDeferred(self._bring_down())

    async def _bring_down(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        patience = self.reloader.config.drain if self._ready else AT_ONCE
        await self.drain.start(patience.delay, patience.duration)
        for part in reversed(self._parts):
            await maybeDeferred(part.stop)
        self.lifecycle.stopped()
