"""Thousands of opening handshakes: answered alike in any pieces, and no stricter than autobahn without a reason."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Compression, Limits
from notify.transport.extensions import parse_offers
from notify.transport.handshake import Refused, judge
from notify.wire import encodings
from tests.support.world import World
from tests.transport.test_websocket_attack import HANDSHAKE, Peer, Wire, cut, frame, frames, head

#: roughly how many heads
HEADS = 12_000

CONFIGURATIONS = [
    (origins, Compression(enabled=enabled))
    for origins in ((), ("*",), ("https://a", "http://evil.example:80"), ("https://a", "*"))
    for enabled in (False, True)
]

ORIGINS = (b"", b"null", b"http://a", b"http://a:80", b"HTTP://A", b"https://a", b"http://evil.example",
           b"http://a.evil.example", b"http://a@evil.example", b"http://a, http://evil.example", b"file://",
           b"http://[::1", b"http://a:x", b"//a", b"nonsense", b"http://\xe9", b"moz-extension://a-b")  # fmt: skip
DEFLATE = (b"client_max_window_bits", b"client_max_window_bits=10", b"server_max_window_bits=10",
           b"server_max_window_bits=8", b"server_max_window_bits=16", b"server_max_window_bits",
           b'server_max_window_bits="9"', b"server_no_context_takeover", b"client_no_context_takeover",
           b"client_no_context_takeover=1", b"unknown", b"", b"=", b'x="', b"x y")  # fmt: skip
EXTENSIONS = (b"", b";", b"a=b=c;,", b'x; y="z"', b'x; y="', b",", b"x-unknown; a; b=1", b"permessage-bzip2",
              b"Permessage-Deflate", b"permessage-deflate,", b"permessage-deflate, x")  # fmt: skip
PROTOCOLS = (b"", b"x", b"notify.v1.json, notify.v1.json", b"notify.v1.json.batch,notify.v1.json", b"NOTIFY.V1.JSON",
             b",,", b"a,,b,", b"x, notify.v1.protobuf")  # fmt: skip
TARGETS = (b"/ws?a=b&c=%zz", b"/ws?a#b", b"/ws?\xff", b"/ws?[", b"/ws?//[", b"/ws?", b"http://a/ws", b"HTTP://a:80/ws?x",
           b"https://evil.example/ws", b"http://u@a/ws", b"http://[::1/ws", b"http://a/other", b"http:///ws",
           b"/ws;p?x", b"//ws", b"*", b"ws://a/ws")  # fmt: skip


def offers(random: Random) -> bytes:
    """A client's offers in one header."""
    if random.random() < 0.3:
        return random.choice(EXTENSIONS)
    return b", ".join(
        b"; ".join([b"permessage-deflate", *random.choices(DEFLATE, k=random.choice((0, 1, 1, 2, 3)))])
        for _ in range(random.choice((1, 1, 2, 3)))
    )


def random_head(random: Random) -> bytes:
    """An opening handshake as browsers, odd clients and request smugglers write it."""
    lines = list(HANDSHAKE)
    sound = random.random() < 0.4
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        spot = random.randrange(len(lines))
        line = lines[spot]
        name, _, value = line.partition(b": ")
        evil = b"Origin: http://evil.example"
        changes: tuple[list[bytes], ...] = (
            [line, b"Origin: " + random.choice(ORIGINS)],
            [line, b"Sec-WebSocket-Protocol: " + random.choice(PROTOCOLS)],
            [line, b"Sec-WebSocket-Extensions: " + offers(random)],
            [line, b"Sec-WebSocket-Extensions: " + offers(random)],
            [line, line],
            [],
            [line.upper()],
            [line.lower()],
            [name + b":" + value],
            [name + b" : " + value],
            [name + b":\t " + value + b" \t"],
            [line, b" folded: yes"],
            [line, b"\t" + evil],
            [line + b"\x00"],
            [line + random.choice((b"\x0b", b"\x1c", b"\x85", b"\n", b"\r")) + evil],
            [line, b"no colon here"],
            [line, b": nothing"],
            [line, b"X-\xc3\x85: \xc3\x85\xa0"],
            [line, b"Cookie: " + random.randbytes(8)],
            [line, b"X-Forwarded-For: 9.9.9.9", b"X-Forwarded-For: 8.8.8.8"],
            [b"Connection: keep-alive, Upgrade" if name == b"Connection" else line],
            [b"Host: " + random.choice((b"", b"a:80", b"a:x", b"[::1]:80", b"a:80:80", b"a b", b"a,b", b"a:"))],
            [b"Upgrade: " + random.choice((b"", b"h2c", b"h2c, WebSocket"))],
            [b"Sec-WebSocket-Version: " + random.choice((b"8", b"+13", b"1_3", b"13, 13", b"013", b"0"))],
            [b"Sec-WebSocket-Key: " + random.choice((b"dGhlIHNhbXBsZSBub25jZQ=", b"", b"=" * 24, b"A" * 24))],
            [line] if spot else [b"GET %s HTTP/1.1" % random.choice(TARGETS)],
            [line] if spot else [b"GET %s HTTP/1.1" % random.choice(TARGETS)],
            [random.choice((b"GET /ws HTTP/1.0", b"GET /ws HTTP/1.1 ", b"GET /ws  HTTP/1.1", b"GET /ws",
                            b"GET /ws?x\tHTTP/1.1", b"GET /ws? HTTP/2")) if not spot else line],
            [line, b"Content-Length: " + random.choice((b"0", b"5", b"0, 0", b"+0"))],
            [line, b"Transfer-Encoding: " + random.choice((b"chunked", b"identity", b"gzip, chunked"))],
            [line, b"X-Long: " + b"x" * random.choice((15_900, 16_100, 16_200, 16_300, 17_000))],
        )  # fmt: skip
        lines[spot : spot + 1] = random.choice(changes[:4] if sound else changes)
    return head(*lines) if random.random() < 0.97 else b"\n".join(lines) + b"\n\n"


class Cuts(SynchronousTestCase):
    def test_heads_are_answered_alike_however_they_are_cut(self) -> None:
        world = World(Limits(max_arriving=0, max_connections=0, frames_per_second=0))
        wires = [Wire(origins=origins, compression=how, world=world) for origins, how in CONFIGURATIONS]
        answers = set()
        for seed in range(HEADS):
            random = Random(seed)
            sent = random_head(random) + frame(b'{"type":"ping"}')
            wire = wires[seed % len(wires)]
            whole = wire.again().feed(sent).answer
            other = wire.again().feed(*cut(random, sent)).answer
            self.assertEqual(other, whole, f"seed {seed}: {sent!r}")
            self.assertNotIn(b"evil", whole)
            answers.add(whole[9:12])
            if whole.startswith(b"HTTP/1.1 101"):
                self.assertEqual(len(frames(whole)), 1, f"seed {seed}")
        self.assertEqual(answers, {b"101", b"299", b"400", b"403", b"404", b"426", b"431", b"505", b""})
        self.assertEqual(self.flushLoggedErrors(), [])


class ByAutobahn(WebSocketServerProtocol):
    """The answer of autobahn alone."""

    def onConnect(self, request: Any) -> str | None:
        return encodings.choose(request.protocols)[0]


#: what autobahn accepts and we refuse: the reason, and a test of the head and its lines
STRICTER: dict[str, Any] = {
    "RFC 9112, section 2.2: lines end at CRLF and nowhere else": lambda head, lines: (
        len(head.decode("latin-1").splitlines()) != len(lines) + 1
    ),
    "RFC 9112, section 3: one blank between the parts of a request line": lambda head, lines: (
        not re.fullmatch(rb"[!-~]+ [!-~]+ [!-~]+", lines[0])
    ),
    "RFC 9112, section 5: names are tokens, with the colon at once; values have no control characters": (
        lambda head, lines: not all(re.fullmatch(rb"[!#$%&'*+.^_`|~\w-]+:[^\0-\x08\x0a-\x1f\x7f]*", one) for one in lines[1:])
    ),
    "RFC 9112, section 6.3: a body is none of our frames": lambda head, lines: any(
        re.fullmatch(rb"content-length:\s*(?!0$).*|transfer-encoding:.*", one.lower()) for one in lines
    ),
    "RFC 9110, section 4.2: a path with parameters is another path": lambda head, lines: b"/ws;p" in lines[0],
    "RFC 6455, section 4.2.1: http and https": lambda head, lines: b" ws://" in lines[0],
    "RFC 9110, section 4.2.4: no user in an authority": lambda head, lines: b"u@a" in lines[0],
    "RFC 9110, section 4.2.1: no empty host": lambda head, lines: b"http:///" in lines[0],
    "RFC 6455, section 4.3: what a version may be": lambda head, lines: re.search(rb"Version: (\+13|1_3|013)", head),
    "RFC 6455, section 9.1: malformed extensions fail the connection": lambda head, lines: any(
        parse_offers(one.partition(b":")[2].strip().decode()) is None
        for one in lines
        if one.lower().startswith(b"sec-websocket-extensions")
    ),
}  # fmt: skip


def autobahn() -> Any:
    """autobahn's factory, configured to accept the same clients as we do."""
    factory: Any = WebSocketServerFactory()
    factory.setProtocolOptions(
        versions=[13], allowedOrigins=["*"], allowNullOrigin=True, openHandshakeTimeout=0, webStatus=False
    )
    factory.protocol = ByAutobahn
    return factory


def beside(factory: Any, data: bytes) -> set[str] | None:
    """Our reasons to refuse a head that autobahn accepts: empty if the answers are equal, None if it refuses, too."""
    protocol, transport = factory.buildProtocol(None), Peer()
    protocol.makeConnection(transport)
    protocol.dataReceived(data)
    theirs = transport.value()
    if not theirs.startswith(b"HTTP/1.1 101") or not re.match(rb"GET +(?:\w+://[^/]*)?/ws[?; ]", data):
        return None
    lines = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
    try:
        ours = judge(data.removesuffix(b"\r\n\r\n"), ("*",), False).answer
    except Refused:
        found = {why for why, holds in STRICTER.items() if holds(data, lines)}
        assert found, f"refused for no reason: {data!r}"
        return found
    assert lower(ours) == lower(theirs), data
    return set()


class BesideAutobahn(SynchronousTestCase):
    def test_what_autobahn_accepts_is_accepted_with_the_same_answer_or_refused_for_a_reason(self) -> None:
        factory, reasons, both = autobahn(), set(), 0
        for seed in range(5000):
            found = beside(factory, random_head(Random(seed)))
            both += found == set()
            reasons |= found or set()
        self.assertEqual(reasons, {*STRICTER})
        self.assertGreater(both, 500)
        self.flushLoggedErrors()


def lower(answer: bytes) -> list[bytes]:
    """The relevant lines of an answer in lower case, sorted."""
    return sorted(line for line in answer.lower().split(b"\r\n") if not line.startswith(b"server:"))
