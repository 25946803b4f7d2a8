"""The server's lifecycle: ordered start, readiness, stop.

Start: ports are bound, so that a fault is known immediately; the internal listener answers; the parts start one after
the other; then the public listener accepts. If that takes long, it accepts earlier, to report that it is not ready.
Stop: the drain (drain.py), then the parts in reverse order.
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

#: seconds that a start may take before the public port accepts: until then, clients wait in the kernel
UNNOTICED = 1.0

#: the drain of a server that was never ready
AT_ONCE = DrainSettings(Duration(0), Duration(0))

_exit_status = 0


def _leave() -> None:
    """Exit with a failure, for the shell, systemd and the package scripts: twistd itself always exits with 0."""
    if _exit_status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_status)


atexit.register(_leave)


def _is_local(address: object) -> bool:
    """Whether an address can be reached only from this machine."""
    if isinstance(address, IPv4Address | IPv6Address):
        return ip_address(address.host.partition("%")[0]).is_loopback
    return isinstance(address, UNIXAddress)


class Part(Struct, frozen=True, kw_only=True):
    """Something that runs while the server does. A Deferred that ``start`` or ``stop`` returns is waited for."""

    start: Callable[[], object] = lambda: None
    stop: Callable[[], object] = lambda: None


class Listener:
    """A port that is bound early and accepts late.

    ``settled()`` fires once nothing that came through it is in flight. ``tls_failed`` is told why a TLS handshake
    failed (:class:`~notify.transport.tls.Encrypting`). With ``loopback`` the port is bound only to this machine's own
    addresses. Raises ``StartError`` if the description has options that are not supported.
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
        """Check that the description is valid and that its files can be read; nothing is bound.

        A socket passed by systemd need not exist yet. Raises ``StartError``.
        """
        try:
            self.endpoint(reactor)
        except (KeyError, IndexError):
            pass

    def endpoint(self, reactor: Any) -> Any:
        """The endpoint. Raises ``StartError``; also ``KeyError`` or ``IndexError`` if systemd has passed no such socket."""
        encrypting = tls.Encrypting(reactor, self._tls_failed)
        try:
            handed_over = is_handed_over(self.description)
            return serverFromString(encrypting, self.description)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise StartError(
                f"listen.{self.key}: {error.filename} cannot be read: {error.strerror}."
            ) from None
        except Exception as error:  # endpoints are plugins, and pyOpenSSL's errors have no common base
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
                "`systemctl start notify.socket` (and use the name from its FileDescriptorName)."
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
                f"listen.{self.key}: '{self.description}' can be reached from other machines, and --dev accepts anyone: "
                "use 'tcp:8080:interface=127.0.0.1', or run notify with a configuration."
            )

    def accept(self) -> None:
        """Accept connections, starting with those that have waited since the port was bound."""
        self._port.startReading()
        self._health.listening(self.key)

    @property
    def port(self) -> IListeningPort:
        """The listening port."""
        port: IListeningPort = self._port
        return port

    @property
    def number(self) -> int:
        """The TCP port number; 0: it is not a TCP port."""
        return getattr(self.port.getHost(), "port", 0)

    def close(self) -> Deferred[None]:
        """Stop accepting. Fires once the port is closed and everything that came through it is settled."""
        port, self._port = self._port, None
        closing = maybeDeferred(port.stopListening) if port is not None else succeed(None)
        return closing.addCallback(lambda _: self._settled())

    def _why(self, error: object) -> str:
        if isinstance(error, CannotListenError):
            reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
            advice = (
                f"stop the other process, or choose another port (in this key or with NOTIFY_LISTEN__{self.key.upper()})"
                if "in use" in reason
                else "choose another address or port"
            )
            return f"listen.{self.key}: '{self.description}' cannot be bound: {reason}; {advice}."
        return f"listen.{self.key}: '{self.description}' cannot be bound: {error}"


class NotifyService(Service):
    """Runs what the composition root built.

    ``parts`` are started in order before the public listener accepts, and stopped in reverse order after the drain.
    ``announce`` is called once the server is ready. ``node`` is its name, for the log. ``foreground`` is told that it
    runs, or why it does not.
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
        """Bind the ports while the process may still have the privilege to. :meth:`startService` reports a fault."""
        try:
            self.internal.bind(self._reactor)
            self.public.bind(self._reactor)
        except StartError as error:
            self._fault = error

    def startService(self) -> None:
        """Start; returns immediately."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._fault is None:
            self.internal.accept()
            self.lifecycle.starting()
        # No event loop is running before the reactor's first turn.
        self._reactor.callLater(0, self._start)

    def _start(self) -> None:
        if self._fault is not None:
            self._give_up(Failure(self._fault))  # type: ignore[no-untyped-call]
        elif self.running:
            self._starting = ensureDeferred(self._bring_up())
            self._starting.addErrback(self._give_up)
            if self._foreground.waits:
                late = "the server runs but is not ready yet: something that it needs is unavailable, and it keeps trying; see the log for details."
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
        """Stop; fires when everything is closed."""
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
