"""Valid and invalid streams of frames, whole and in pieces: answered as by autobahn alone, up to the Close.

``make fuzz`` goes on with new ones: :mod:`tests.transport.fuzz`.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any, NamedTuple

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Compression
from tests.autobahn.echo import EchoFactory
from tests.transport.test_websocket_attack import HANDSHAKE, MOST, Peer, Wire, frame, frames, head

#: no context takeover, as on our side
OFFER = (
    b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover"
)
_CLOSE, _COMPRESSED = 0x8, 0x40

masks = st.binary(min_size=4, max_size=4)
sizes = st.sampled_from((0, 1, 2, 124, 125, 126, 127, 128, MOST - 1, MOST))
texts = st.one_of(
    st.text(max_size=50).map(str.encode),
    st.builds(lambda size, of: (of * size).encode(), sizes, st.sampled_from("xé")),
).map(lambda text: text[:MOST].decode(errors="ignore").encode())
payloads = st.one_of(st.binary(max_size=50), st.builds(lambda size: b"y" * size, sizes))
short = st.binary(max_size=125)
codes = st.sampled_from(
    (0, 999, 1000, 1001, 1004, 1005, 1006, 1007, 1011, 1015, 1016, 2999, 3000, 4999, 5000, 65535)
)


def deflate(payload: bytes) -> bytes:
    """Compress a message."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """A message in several frames, with other frames in between."""
    binary, key, compressed = draw(st.booleans()), draw(masks), draw(st.booleans())
    payload = draw(payloads if binary else texts)
    sent, rsv = (deflate(payload), _COMPRESSED) if compressed else (payload, 0)
    places = sorted(draw(st.lists(st.integers(0, len(sent)), min_size=1, max_size=3)))
    stream = b""
    for number, (start, end) in enumerate(zip([0, *places], [*places, len(sent)], strict=True)):
        opcode, last = 0 if number else 2 if binary else 1, number == len(places)
        stream += frame(sent[start:end], opcode, last, 0 if number else rsv, key)
        if not last and draw(st.booleans()):
            stream += frame(draw(short), draw(st.sampled_from((9, 10))), mask=key)
    return stream


sound = st.one_of(
    st.builds(lambda payload, key: frame(payload, 1, mask=key), texts, masks),
    st.builds(lambda payload, key: frame(payload, 2, mask=key), payloads, masks),
    st.builds(lambda payload, key: frame(deflate(payload), 1, rsv=_COMPRESSED, mask=key), texts, masks),
    st.builds(lambda payload, key: frame(deflate(payload), 2, rsv=_COMPRESSED, mask=key), payloads, masks),
    st.builds(
        lambda payload, opcode, key: frame(payload, opcode, mask=key), short, st.sampled_from((9, 10)), masks
    ),
    fragmented(),
)
#: each breaks a rule of RFC 6455 or RFC 7692, or is a Close
unsound = st.one_of(
    st.builds(lambda code, why: frame(code.to_bytes(2, "big") + why, 8), codes, st.sampled_from((b"", b"bye", b"\xff"))),
    st.sampled_from((frame(b"", 8), frame(b"\x03", 8))),
    st.builds(lambda rsv: frame(b"{}", rsv=rsv), st.sampled_from((0x10, 0x20, 0x30, 0x70))),
    st.builds(lambda opcode: frame(b"{}", opcode), st.sampled_from((3, 4, 5, 6, 7, 11, 12, 13, 14, 15))),
    st.builds(lambda opcode, size: frame(b"{}", opcode, mask=b"abcd", size=size), st.sampled_from((1, 2, 9)), st.sampled_from((2, 8))),
    st.builds(lambda opcode: frame(b"{}", opcode, mask=None), st.sampled_from((1, 2, 8, 9))),
    st.builds(lambda opcode: frame(b"", opcode, fin=False), st.sampled_from((8, 9, 10))),
    st.builds(lambda opcode: frame(b"z" * 126, opcode), st.sampled_from((8, 9, 10))),
    st.builds(lambda opcode: frame(b"z" * 9, opcode, rsv=_COMPRESSED), st.sampled_from((0, 8, 9))),
    st.builds(lambda opcode, size: frame(b"z" * (MOST + size), opcode), st.sampled_from((1, 2)), st.sampled_from((1, 65536))),
    st.just(frame(b"again", 0)),
    st.just(frame(b"first", 1, fin=False) + frame(b"second", 1)),
    st.just(bytes((0x82, 0xFF)) + (2**63).to_bytes(8, "big") + b"abcd"),
    st.sampled_from((b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"ok \xc0\xaf")).map(frame),
    st.just(frame(b"\xff\xff\xff\xff", 2, rsv=_COMPRESSED)),
)  # fmt: skip
streams = st.builds(
    lambda first, last, rest: b"".join([*first, last, *rest]),
    st.lists(sound, max_size=6),
    st.one_of(st.just(b""), unsound),
    st.lists(sound, max_size=2),
)


class Answer(NamedTuple):
    """A server's answer: messages and pongs in order, and the code of its Close, or None if it sent none."""

    sent: list[tuple[int, bytes]]
    closed: int | None


def read(data: bytes) -> Answer:
    """Parse and inflate a server's output."""
    sent: list[tuple[int, bytes]] = []
    for first, payload in frames(data):
        opcode = first & 0xF
        if opcode == _CLOSE:
            return Answer(sent, int.from_bytes(payload[:2], "big"))
        if first & _COMPRESSED:
            payload = zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")
        sent.append((opcode, payload))
    return Answer(sent, None)


class Alone(WebSocketServerProtocol):
    """autobahn as an echo server."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.sendMessage(payload, isBinary)


def _accept(offers: Any) -> Any:
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(offer, request_no_context_takeover=True)
    return None


def autobahn(data: bytes) -> Answer:
    """The answer of autobahn alone."""
    factory: Any = WebSocketServerFactory()
    factory.setProtocolOptions(
        maxMessagePayloadSize=MOST,
        failByDrop=False,
        openHandshakeTimeout=0,
        closeHandshakeTimeout=0,
        webStatus=False,
        perMessageCompressionAccept=_accept,
    )
    factory.protocol = Alone
    protocol, transport = factory.buildProtocol(None), Peer()
    protocol.makeConnection(transport)
    protocol.dataReceived(data)
    return read(transport.value())


@cache
def server() -> Wire:
    """Our server, echoing; one for all streams."""
    wire = Wire(compression=Compression(enabled=True), frames_per_second=0)
    wire.port.websocket = EchoFactory(wire.world.hub, Clock())
    return wire


def ours(*segments: bytes) -> Answer:
    """The answer of our server."""
    wire = server().again()
    wire.feed(*segments)
    wire.protocol.connectionLost(connectionDone)
    return read(wire.answer)


START = head(*HANDSHAKE, OFFER)


def check(stream: bytes, places: list[int]) -> None:
    """Check that the stream, whole and in pieces, is answered as by autobahn."""
    places = sorted({place % len(stream) for place in places} - {0}) if stream else []
    segments = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    theirs = autobahn(START + stream)
    assert ours(START + stream) == theirs, "whole"
    assert ours(START, *segments) == theirs, "cut"


cuts = st.lists(st.integers(0, 2**20), max_size=8)


class BesideAutobahn(SynchronousTestCase):
    def test_what_is_unsound_is_closed_with_the_code_of_its_kind(self) -> None:
        """Makes sure that the comparison compares real answers."""
        for stream, code in (
            (frame(b"{}"), None),
            (frame(b"bye", 8), 1002),
            (frame(b"", 8), 1000),
            (frame(b"\x03\xe8", 8), 1000),
            (frame(b"{}", mask=None), 1002),
            (frame(b"\xff"), 1007),
            (frame(b"z" * (MOST + 1)), 1009),
        ):
            self.assertEqual(ours(START + stream).closed, code, stream)
            check(stream + frame(b"behind"), [1])

    @settings(max_examples=300)
    @given(streams, cuts)
    def test_streams_are_answered_alike(self, stream: bytes, places: list[int]) -> None:
        check(stream, places)
        self.flushLoggedErrors()
