"""A server that echoes each message: all of it is notify's own code, down to the socket, except for the session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from notify.config import Compression, Size
from notify.core.hub import Hub
from notify.transport.admission import Visit
from notify.transport.handshake import Accepted
from notify.transport.websocket import LINGER, ClientProtocol, ConnectionFactory
from notify.wire import encodings
from notify.wire.frames import Encoding
from tests.support.running import LocalServer


class Raw(Encoding):
    """Payloads exactly as they were received."""

    subprotocol = ""

    def __init__(self, binary: bool) -> None:
        self.binary = binary

    def payloads(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        return bodies


RAW = {binary: Raw(binary) for binary in (False, True)}


class Echo(ClientProtocol):
    """Sends each message back, compressed if compression was negotiated."""

    window_bits = 0

    def take(self, payload: bytes, binary: bool) -> None:
        encoding: Encoding = RAW[binary]
        if self.window_bits:
            settings = self.factory.compression
            encoding = encodings.deflated(encoding, self.window_bits, settings.level, settings.minimum)
        if self.connection is not None:
            self.connection.write(encoding.pack([payload]))


class EchoFactory(ConnectionFactory):
    """Opens connections that echo."""

    def __init__(self, hub: Hub, reactor: Any) -> None:
        super().__init__(hub, reactor, Compression(enabled=True, minimum=Size(0)))
        self.prepare(Echo, self.most, LINGER)

    def open(self, transport: Any, accepted: Accepted, address: str, visit: Visit) -> ClientProtocol:
        protocol: Any = super().open(transport, accepted, address, visit)
        if accepted.deflate is not None:
            protocol.window_bits = accepted.deflate.window_bits
        return protocol  # type: ignore[no-any-return]


async def serve(case: Any) -> str:
    """Start a whole server whose sessions echo; return its address. It runs until the test case ends."""
    from twisted.internet import reactor

    limits = {"AUTH_TIMEOUT": "1h", "MAX_FRAME": "16MiB", "FRAMES_PER_SECOND": "0", "SEND_QUEUE": "64MiB"}
    server = await LocalServer(**{f"LIMITS__{name}": value for name, value in limits.items()}).start(case)
    front: Any = server.service.public.factory
    front.websocket = EchoFactory(server.hub, reactor)
    return server.ws
