"""TLS on our own ports: what is negotiated, and handshakes that fail.

Twisted's ``ssl:`` endpoints speak TLS by ``reactor.listenSSL``. A listener gives them a reactor whose ``listenSSL`` is
the one here: modern suites only, an answer to ALPN, and failures that are counted.
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

#: of TLS 1.2, suites with forward secrecy and authenticated encryption; TLS 1.3 has no others
SUITES = b"ECDHE+AESGCM:ECDHE+CHACHA20"

HTTP = b"http/1.1"

#: what a client may have to say of TLS itself once the handshake is done: a new key is needed after some sixteen million
#: records (RFC 8446, section 5.5)
ASIDES = 32

#: what can be said in a Twisted endpoint and would do nothing here, or harm
NEEDLESS = {
    "sslmethod": "leave it out: what is spoken is TLS 1.2 and 1.3",
    "dhParameters": "leave it out: keys are exchanged over elliptic curves",
}


class Encrypting:
    """A reactor whose ``listenSSL`` is ours; all else is that of the real one.

    ``failed`` is told why a handshake was none: ``fault``, where the two could not agree or one of them broke it off;
    ``unfinished``, where the client left before the end or took too long. And ``endless``, where a client was cut off that went
    on asking for new keys.
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
    """A connection under TLS that says when its handshake failed, or never comes to an end."""

    _endless = False

    def dataReceived(self, data: bytes) -> None:
        """Bytes came, of TLS."""
        super().dataReceived(data)
        # They carry nothing, so that nobody else makes the client pay for them.
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
        super().connectionLost(reason)


def harden(context: SSL.Context) -> None:
    """Let a server's context speak what is safe today, and answer ALPN (RFC 7301).

    Who offers protocols and not HTTP/1.1 among them is refused: a browser must not be led here with what was meant for a
    server of something else.
    """
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(SUITES)
    context.set_alpn_select_callback(_choose)
    context.set_info_callback(aside)


def _choose(_: SSL.Connection, offered: Sequence[bytes]) -> bytes:
    return HTTP if HTTP in offered else b""


def explain(fault: BaseException) -> str:
    """What OpenSSL says of a fault, in its own words; nothing of what the client sent."""
    queue = fault.args[0] if fault.args else ()
    reasons = [entry[2] for entry in queue if isinstance(entry, tuple)] if isinstance(queue, list) else []
    return "; ".join(reasons) or type(fault).__name__


def check(key: str, description: str) -> None:
    """Refuse an ``ssl:`` endpoint that asks for what is not spoken here. Raises ``StartError``."""
    kind, _, rest = description.partition(":")
    if kind == "ssl":
        for option, advice in NEEDLESS.items():
            if f":{option}=" in f":{rest}":
                raise StartError(f"listen.{key}: '{option}' has no use in '{description}': {advice}.")
