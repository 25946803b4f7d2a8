"""permessage-deflate (RFC 7692) without context takeover in either direction.

A message can therefore be compressed once for all connections with the same parameters, and a connection keeps no
window between messages.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from notify.wire.frames import BINARY, TEXT, ClientFrame, Encoding, ServerFrame, websocket_frame

#: the end of a compressed message, which RFC 7692, section 7.2.1 has the sender remove
_TAIL = b"\x00\x00\xff\xff"
_COMPRESSED = 0x40  # RSV1

#: the window sizes with which a client may ask the server to compress; zlib makes no raw stream of 8 bits
WINDOW_BITS = range(9, 16)


class DeflateEncoding(Encoding):
    """Another encoding, with its larger messages compressed.

    ``window_bits`` is 9 to 15 and ``level`` zlib's 1 to 9. A message smaller than ``minimum`` bytes is sent
    uncompressed, which every client must accept.
    """

    def __init__(self, encoding: Encoding, window_bits: int, level: int, minimum: int) -> None:
        self.subprotocol = encoding.subprotocol
        self.binary = encoding.binary
        self._encoding = encoding
        self._window_bits = window_bits
        self._level = level
        self._minimum = minimum

    def decode(self, payload: bytes) -> list[ClientFrame]:
        """See :meth:`Encoding.decode`; the payload has already been inflated."""
        return self._encoding.decode(payload)

    def encode(self, frame: ServerFrame) -> bytes:
        """See :meth:`Encoding.encode`."""
        return self._encoding.encode(frame)

    def payloads(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """See :meth:`Encoding.payloads`; they are not compressed yet."""
        return self._encoding.payloads(bodies)

    def pack(self, bodies: Sequence[bytes]) -> bytes:
        """See :meth:`Encoding.pack`."""
        return b"".join([self._message(payload) for payload in self._encoding.payloads(bodies)])

    def _message(self, payload: bytes) -> bytes:
        opcode = BINARY if self.binary else TEXT
        if len(payload) >= self._minimum:
            compressor = zlib.compressobj(self._level, zlib.DEFLATED, -self._window_bits)
            deflated = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
            deflated = deflated[: -len(_TAIL)]
            if len(deflated) < len(payload):
                return websocket_frame(deflated, opcode, _COMPRESSED)
        return websocket_frame(payload, opcode)
