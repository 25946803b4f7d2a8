"""What a hostile client sends: whatever the cuts between its segments, it is read, answered and refused alike."""

from __future__ import annotations

from random import Random
from typing import Any
from unittest.mock import patch

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Limits, Size
from notify.identity import Identity
from notify.transport.handshake import parse_networks
from notify.transport.websocket import ConnectionFactory
from tests.support.world import World

MOST = 4096

HANDSHAKE = (
    b"GET /ws HTTP/1.1",
    b"Host: a",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)


def head(*lines: bytes) -> bytes:
    """An opening handshake of these lines."""
    return b"\r\n".join(lines) + b"\r\n\r\n"


def frame(
    payload: bytes,
    opcode: int = 1,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\1\2\3\4",
    size: int | None = None,
) -> bytes:
    """A client's frame; ``size`` is how many bytes its length takes: 0, 2 or 8, whether or not it needs them."""
    length = len(payload)
    if size is None:
        size = 0 if length < 126 else 2 if length < 65536 else 8
    first = length if size == 0 else 126 if size == 2 else 127
    bit = 0 if mask is None else 0x80
    start = bytes((0x80 * fin | rsv | opcode, bit | first)) + (length.to_bytes(size, "big") if size else b"")
    if mask is None:
        return start + payload
    return start + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


class Peer(StringTransport):
    """A transport without a socket that says how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        if not self.disconnecting:
            super().write(data)

    def send(self, data: bytes) -> int:
        """What a plain socket has."""
        self.write(data)
        return len(data)


class Wire:
    """A server's end of one connection, fed by hand."""

    def __init__(self, trusted: tuple[str, ...] = (), **limits: Any) -> None:
        self.world = World(Limits(max_frame=Size(MOST), **limits))
        self.world.authenticator.tokens["t"] = Identity(7, 1)
        self.world.reload(trusted=parse_networks(trusted))
        factory = ConnectionFactory(self.world.hub, Clock())
        self.protocol: Any = factory.buildProtocol(None)
        self.transport = Peer()
        self.protocol.makeConnection(self.transport)

    def feed(self, *segments: bytes) -> Wire:
        with patch("notify.transport.websocket.direct", lambda transport: transport.send):
            for segment in segments:
                if self.transport.disconnecting:
                    break
                self.protocol.dataReceived(segment)
        return self

    @property
    def answer(self) -> bytes:
        value: bytes = self.transport.value()
        return value

    @property
    def status(self) -> bytes:
        return self.answer[9:12]


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """The server's frames behind the head of its answer."""
    found, data = [], data.partition(b"\r\n\r\n")[2]
    while data:
        length, start = data[1], 2
        if length > 125:
            size = 2 if length == 126 else 8
            length, start = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
        found.append((data[0], data[start : start + length]))
        data = data[start + length :]
    return found


def cut(random: Random, data: bytes, first: int = 0) -> list[bytes]:
    """The same bytes in other segments, none of which ends before ``first``."""
    if random.random() < 0.2 and len(data) < 3000:
        places = list(range(max(first, 1), len(data)))
    else:
        spread = [random.randrange(max(first, 1), len(data)) for _ in range(random.randrange(1, 12))]
        places = sorted(set(spread))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


class Segments(SynchronousTestCase):
    """A read ends anywhere: what a client gets to see must not depend on where."""

    def random_frame(self, random: Random) -> bytes:
        number = random.randrange(1000)
        text = b'{"type":"ping","id":%d}' % number
        key = bytes(random.randrange(256) for _ in range(4))
        kind = random.randrange(24)
        if kind < 6:
            return frame(text, mask=key)
        if kind < 8:
            return frame(b'{"type":"subscribe","chat_id":%d,"id":%d}' % (number % 5, number), mask=key)
        if kind == 8:
            return frame(b'{"type":"auth","token":"t"}', mask=key)
        if kind < 12:
            parts = sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(1, 4)))
            pieces = [text[a:b] for a, b in zip([0, *parts], [*parts, len(text)], strict=True)]
            sent = b""
            for index, piece in enumerate(pieces):
                last = index == len(pieces) - 1
                sent += frame(piece, 0 if index else 1, fin=last, mask=key)
                if not last and random.random() < 0.4:
                    sent += frame(b"between", random.choice((9, 9, 10)), mask=key)
            return sent
        if kind < 14:
            size = random.choice((125, 126, 127, MOST - 1, MOST, MOST + 1, 65535, 65536))
            return frame(text.ljust(size)[:size], mask=key)
        if kind < 17:
            return frame(random.randbytes(random.choice((0, 1, 125))), random.choice((9, 10)), mask=key)
        if kind == 17:
            return frame(random.choice((b"", b"[]", b"\xff", b"\xc3", b"nonsense", text + b"\0")), mask=key)
        if kind == 18:
            return frame(text, 2, mask=key)
        if random.random() < 0.5:
            return frame(text, mask=key)
        return random.choice(
            (
                frame(text, rsv=random.choice((0x40, 0x20, 0x10))),
                frame(text, mask=None),
                frame(text, random.choice((3, 7, 11, 15))),
                frame(text, 0),
                frame(text, size=2, mask=key) if len(text) < 126 else b"",
                frame(text, size=8, mask=key),
                frame(b"x" * 126, 9),
                frame(b"", 9, fin=False),
                frame(b"\x03", 8),
                frame(b"", 8, mask=key),
                frame(random.choice((0, 999, 1000, 1004, 1005, 1006, 1015, 2999, 3000, 4999, 5000, 65535))
                      .to_bytes(2, "big") + random.choice((b"", b"bye", b"\xff\xfe")), 8, mask=key),
                bytes(random.randrange(256) for _ in range(random.randrange(1, 30))),
            )
        )  # fmt: skip

    def test_frames_are_answered_alike_however_they_are_cut(self) -> None:
        for seed in range(700):
            random = Random(seed)
            start = head(*HANDSHAKE)
            sent = start + b"".join(self.random_frame(random) for _ in range(random.randrange(1, 9)))
            whole = Wire().feed(sent)
            # Cuts in the handshake leave it to autobahn, the others to our own reading.
            first = random.choice((0, len(start)))
            other = Wire().feed(*cut(random, sent, first))
            self.assertEqual(other.status, whole.status, f"seed {seed}")
            self.assertEqual(frames(other.answer), frames(whole.answer), f"seed {seed}")
            closes = [n for n, (first, _) in enumerate(frames(whole.answer)) if first == 0x88]
            self.assertIn(closes, ([], [len(frames(whole.answer)) - 1]), f"seed {seed}: data behind a close")


class Heads(SynchronousTestCase):
    """Opening handshakes as smugglers write them."""

    def random_head(self, random: Random) -> bytes:
        lines = list(HANDSHAKE)
        for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
            spot = random.randrange(len(lines))
            line = lines[spot]
            name, _, value = line.partition(b": ")
            lines[spot : spot + 1] = random.choice(
                (
                    [line, line],
                    [],
                    [line.upper()],
                    [line.lower()],
                    [name + b":" + value],
                    [name + b" : " + value],
                    [name + b":\t " + value + b" \t"],
                    [line, b" folded: yes"],
                    [line, b"\tOrigin: http://evil.example"],
                    [line + b"\x00"],
                    [line + random.choice((b"\x0b", b"\x1c", b"\x85", b"\n", b"\r")) + b"Origin: http://evil.example"],
                    [line, b"no colon here"],
                    [line, b": nothing"],
                    [line, b"X-\xc3\x85: \xc3\x85\xa0"],
                    [line, b"Cookie: " + random.randbytes(8)],
                    [line, b"Origin: " + random.choice((b"", b"null", b"http://a", b"http://a:80", b"HTTP://A",
                           b"https://a", b"http://evil.example", b"http://a.evil.example", b"http://a@evil.example",
                           b"http://a, http://evil.example", b"file://", b"http://[::1", b"http://a:x", b"//a"))],
                    [line, b"X-Forwarded-For: 9.9.9.9", b"X-Forwarded-For: 8.8.8.8"],
                    [line, b"Sec-WebSocket-Protocol: " + random.choice((b"", b"x", b"notify.v1.json, notify.v1.json",
                           b"notify.v1.json.batch,notify.v1.json", b"NOTIFY.V1.JSON", b",,"))],
                    [line, b"Sec-WebSocket-Extensions: " + random.choice((b"", b"permessage-deflate",
                           b"permessage-deflate; client_max_window_bits", b";", b"a=b=c;,", b'x; y="'))],
                    [b"Connection: keep-alive, Upgrade" if name == b"Connection" else line],
                    [b"Host: " + random.choice((b"", b"a:80", b"a:x", b"[::1]:80", b"a:80:80", b"a b", b"a,b"))],
                    [b"Sec-WebSocket-Version: " + random.choice((b"8", b"+13", b"1_3", b"13, 13", b"\x31\x33", b"0"))],
                    [b"Sec-WebSocket-Key: " + random.choice((b"dGhlIHNhbXBsZSBub25jZQ=", b"", b"=" * 24, b"A" * 24))],
                    [random.choice((b"GET /ws HTTP/1.0", b"GET /ws HTTP/1.1 ", b"GET /ws  HTTP/1.1", b"GET /ws",
                            b"GET /ws?a=b&c=%zz HTTP/1.1", b"GET /ws?a#b HTTP/1.1", b"GET /ws?\xff HTTP/1.1",
                            b"GET /ws?x\tHTTP/1.1", b"GET /ws?[ HTTP/1.1", b"GET /ws?//[ HTTP/1.1",
                            b"GET /ws? HTTP/2", b"GET /ws;p?x HTTP/1.1"))] if not spot else [line],
                )
            )  # fmt: skip
        return head(*lines) if random.random() < 0.95 else b"\n".join(lines) + b"\n\n"

    def test_heads_are_answered_alike_however_they_are_cut(self) -> None:
        answers = set()
        for seed in range(1500):
            random = Random(seed)
            sent = self.random_head(random) + frame(b'{"type":"ping"}')
            whole, other = Wire().feed(sent), Wire().feed(*cut(random, sent))
            answers.add(whole.status)
            self.assertEqual(other.status, whole.status, f"seed {seed}: {sent!r}")
            self.assertEqual(frames(other.answer), frames(whole.answer), f"seed {seed}: {sent!r}")
            self.assertNotIn(b"evil", whole.answer)
        self.assertEqual(answers, {b"101", b"400", b"403", b"404", b"405", b"426", b"505", b""})
        self.assertEqual(self.flushLoggedErrors(), [])


class Floods(SynchronousTestCase):
    """What a client may send without end, and what it may leave unread."""

    def close_code(self, wire: Wire) -> int:
        [(_, payload)] = [one for one in frames(wire.answer) if one[0] == 0x88]
        return int.from_bytes(payload[:2], "big")

    def test_pings_and_parts_of_messages_count_as_frames(self) -> None:
        for flood in (frame(b"", 9), frame(b"", 0, fin=False)):
            wire = Wire(frames_burst=50).feed(head(*HANDSHAKE), frame(b"", 1, fin=False) + flood * 200)
            self.assertEqual(self.close_code(wire), 4504)
            self.assertLessEqual(len(frames(wire.answer)), 52)

    def test_pongs_that_nobody_reads_wait_within_the_bound(self) -> None:
        wire = Wire(frames_per_second=0, send_queue=Size(10_000)).feed(head(*HANDSHAKE))
        wire.transport.producer.pauseProducing()
        before = len(wire.answer)
        wire.feed(*[frame(b"x" * 125, 9)] * 1000)
        self.assertEqual(self.close_code(wire), 4001)
        self.assertLess(len(wire.answer) - before, 200)

    def test_an_empty_list_of_messages_counts_as_one(self) -> None:
        for protocol, nothing in (
            ("notify.v1.json.batch", frame(b"[]")),
            ("notify.v1.protobuf", frame(b"", 2)),
        ):
            offer = b"Sec-WebSocket-Protocol: " + protocol.encode()
            wire = Wire(frames_burst=50).feed(head(*HANDSHAKE, offer), nothing * 200)
            self.assertEqual(self.close_code(wire), 4504)

    def test_who_leaves_without_reading_is_dropped_all_the_same(self) -> None:
        wire = Wire().feed(head(*HANDSHAKE), frame(b"\x03\xe8", 8))
        self.assertEqual((wire.transport.disconnecting, wire.transport.aborted), (True, False))
        wire.world.clock.pump([0.25] * 8)
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(wire.world.hub.connections, {})

    def test_who_is_refused_and_stays_is_dropped(self) -> None:
        wire = Wire().feed(head(HANDSHAKE[0], b"nonsense"))
        self.assertEqual(wire.status, b"400")
        wire.protocol.dataReceived(b"x" * 100_000)
        self.assertEqual(wire.protocol.data, b"")
        wire.world.clock.pump([0.25] * 8)
        self.assertTrue(wire.transport.aborted)

    def test_nothing_is_kept_of_what_comes_behind_the_end(self) -> None:
        wire = Wire(max_invalid=1).feed(head(*HANDSHAKE), frame(b"{}"))
        session = wire.protocol._session
        wire.feed(*[frame(b'{"type":"ping"}')] * 100)
        self.assertEqual(self.close_code(wire), 4502)
        self.assertFalse(session._backlog)
        # A control frame of 2**40 bytes is a fault: it is not collected until the client is dropped.
        wire = Wire().feed(
            head(*HANDSHAKE), b"\x89\xff" + (2**40).to_bytes(8, "big") + b"\0" * 4, b"x" * 100_000
        )
        self.assertEqual(self.close_code(wire), 1002)
        self.assertEqual((wire.protocol.data, wire.protocol.current_frame), (b"", None))
        wire.world.clock.pump([0.25] * 8)
        self.assertTrue(wire.transport.aborted)


class Peers(SynchronousTestCase):
    """Where a client says that it comes from."""

    def peer(self, *lines: bytes) -> str:
        wire = Wire(("10.0.0.0/8",))
        wire.transport.peerAddr = IPv4Address("TCP", "10.0.0.1", 1234)
        wire.feed(head(*HANDSHAKE, *lines))
        self.assertEqual(wire.status, b"101")
        host: str = wire.protocol.connection.peer.host
        return host

    def test_only_what_trusted_proxies_added_is_believed(self) -> None:
        self.assertEqual(self.peer(), "10.0.0.1")
        self.assertEqual(self.peer(b"X-Forwarded-For: 1.1.1.1"), "1.1.1.1")
        self.assertEqual(self.peer(b"X-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.7"), "2.2.2.2")
        self.assertEqual(self.peer(b"X-Forwarded-For: 1.1.1.1", b"X-Forwarded-For: 2.2.2.2"), "2.2.2.2")
        self.assertEqual(
            self.peer(b"X-Forwarded-For: 2.2.2.2", b"X-A: b\x85X-Forwarded-For: 1.1.1.1"), "2.2.2.2"
        )
        self.assertEqual(self.peer(b"X-Forwarded-For: <script>, nonsense"), "10.0.0.1")
