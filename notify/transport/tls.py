"""TLS on the server's own ports: what is negotiated, and how failed handshakes are counted.

Twisted's ``ssl:`` endpoints use TLS through ``reactor.listenSSL``. A listener gives them a reactor with the
``listenSSL`` of this module: modern cipher suites only, an answer to ALPN, and counted failures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from notify.errors import StartError
from notify.transport.upstream import TlsServer, aside

log = Logger()

#: for TLS 1.2, suites with forward secrecy and authenticated encryption; TLS 1.3 has no others
SUITES = b"ECDHE+AESGCM:ECDHE+CHACHA20"

HTTP = b"http/1.1"

#: TLS-level messages that a client may send after the handshake; legitimate ones are rare, since a new key is needed
#: after some sixteen million records (RFC 8446, section 5.5)
ASIDES = 32

#: options of a Twisted endpoint that would do nothing here, or harm
NEEDLESS = {
    "sslmethod": "leave it out: what is spoken is TLS 1.2 and 1.3",
    "dhParameters": "leave it out: keys are exchanged over elliptic curves",
}


class Encrypting:
    """A reactor with its own ``listenSSL``; everything else is passed on to the real one.

    ``failed`` is told why a handshake failed: ``fault`` if the two sides could not agree or one of them broke it off,
    ``unfinished`` if the client left before the end or took too long. It is also told ``endless`` when a client was
    cut off because it kept asking for new keys.
    """

    def __init__(self, reactor: Any, failed: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._failed = failed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenSSL(
        self,
        port: int,
        factory: IProtocolFactory,
        contextFactory: Any,
        backlog: int = 50,
        interface: str = "",
    ) -> IListeningPort:
        """See ``IReactorSSL``."""
        harden(contextFactory.getContext())
        wrapped: Any = TLSMemoryBIOFactory(contextFactory, False, factory, self._reactor)
        wrapped.protocol, wrapped.failed = _Server, self._failed
        listening: IListeningPort = self._reactor.listenTCP(port, wrapped, backlog, interface)
        return listening


class _Server(TlsServer):
    """A TLS connection that reports when its handshake fails, or when the client keeps renewing keys."""

    _endless = False

    def dataReceived(self, data: bytes) -> None:
        """TLS bytes arrived."""
        super().dataReceived(data)
        # They carry no data, so no other limit applies to them.
        if self.asides > ASIDES and not self._endless:
            self._endless = True
            factory: Any = self.factory
            factory.failed("endless")
            self.abortConnection()  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        factory: Any = self.factory
        if (fault := self.fault) is not None:
            factory.failed("fault")
            peer: Any = self.getPeer()  # type: ignore[no-untyped-call]
            why = explain(fault)
            log.info("a TLS handshake with {peer} failed: {why}", peer=getattr(peer, "host", "-"), why=why)
        elif not self.shaken:
            factory.failed("unfinished")
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


def harden(context: SSL.Context) -> None:
    """Restrict a server's context to what is safe today, and have it answer ALPN (RFC 7301).

    A client whose protocols do not include HTTP/1.1 is refused, so that a browser cannot be sent here with a request
    that was meant for another kind of server.
    """
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(SUITES)
    context.set_alpn_select_callback(_choose)
    context.set_info_callback(aside)


def _choose(_: SSL.Connection, offered: Sequence[bytes]) -> bytes:
    return HTTP if HTTP in offered else b""


def explain(fault: BaseException) -> str:
    """OpenSSL's own words for a fault, without anything that the client sent."""
    queue = fault.args[0] if fault.args else ()
    reasons = [entry[2] for entry in queue if isinstance(entry, tuple)] if isinstance(queue, list) else []
    return "; ".join(reasons) or type(fault).__name__


def check(key: str, description: str) -> None:
    """Refuse an ``ssl:`` endpoint with an option that is not supported here. Raises ``StartError``."""
    kind, _, rest = description.partition(":")
    if kind == "ssl":
        for option, advice in NEEDLESS.items():
            if f":{option}=" in f":{rest}":
                raise StartError(f"listen.{key}: '{option}' has no use in '{description}': {advice}.")
