"""What a hostile client sends is read, answered and refused alike, however it is split into segments."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from random import Random
from typing import Any
from unittest.mock import patch

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Compression, Duration, Limits, Size
from notify.core.session import Session
from notify.identity import Identity
from notify.transport.admission import Admission
from notify.transport.events import EventFactory
from notify.transport.listener import PublicFactory
from notify.transport.origins import parse_origins
from notify.transport.reader import CROWD
from notify.transport.upstream import OpenProtocol
from notify.transport.websocket import NO_COMPRESSION, ConnectionFactory
from notify.wire.addresses import parse_networks
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
    """An opening handshake with these lines."""
    return b"\r\n".join(lines) + b"\r\n\r\n"


def frame(
    payload: bytes,
    opcode: int = 1,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\1\2\3\4",
    size: int | None = None,
) -> bytes:
    """A client's frame; ``size`` is how many bytes encode its length: 0, 2 or 8, even if fewer would do."""
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
    """A transport without a socket that records how it ended."""

    protocol: Any

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True

    def unregisterProducer(self) -> None:
        self.producer = None

    def fileno(self) -> int:
        return -1

    def write(self, data: bytes) -> None:
        if not self.disconnecting:
            super().write(data)

    def send(self, data: bytes) -> int:
        """Write, as a plain socket's ``send`` does."""
        self.write(data)
        return len(data)


class Site(Factory):
    """Serves everything on the public port except WebSockets."""

    noisy = False

    def buildProtocol(self, addr: Any) -> Any:
        return SitesOwn()


class SitesOwn(Protocol):
    """Answers every request in the same way."""

    seen = b""

    def dataReceived(self, data: bytes) -> None:
        self.seen += data

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(b"HTTP/1.1 299 the site's\r\n\r\n")


class Wire:
    """A server's end of one connection, from the public port on, fed by hand."""

    def __init__(
        self,
        trusted: tuple[str, ...] = (),
        origins: tuple[str, ...] = (),
        compression: Compression = NO_COMPRESSION,
        world: World | None = None,
        **limits: Any,
    ) -> None:
        self.world = world or World(Limits(max_frame=Size(MOST), **limits))
        self.world.authenticator.tokens["t"] = Identity(7, 1)
        self._in_force = {"allowed_origins": parse_origins(origins), "trusted": parse_networks(trusted)}
        factory = ConnectionFactory(self.world.hub, Clock(), compression)
        live, metrics = self.world.live, self.world.metrics
        self.admission = Admission(
            lambda: live.now.limits,
            lambda: live.now.trusted,
            lambda: 1000,
            self.world.clock.seconds,
            metrics.sockets.set,
            lambda reason: metrics.turned_away.labels(reason).inc(),
        )
        self.welcome = True
        self.events = EventFactory(factory)
        self.port = PublicFactory(
            factory,
            Site(),
            self.admission,
            self.world.hub.wheel,
            lambda: 5.0,
            lambda: self.welcome,
            self.events,
        )
        self.again()

    def again(self, address: str = "192.168.1.1") -> Wire:
        """Another client of the same server; its world may be shared with other wires."""
        self.world.reload(**self._in_force)
        self.transport = Peer()
        self.transport.peerAddr = IPv4Address("TCP", address, 1234)
        self.transport.protocol = self.port.buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)
        return self

    @property
    def protocol(self) -> Any:
        """The protocol that now has the transport."""
        return getattr(self.transport.protocol, "_site", None) or self.transport.protocol

    def feed(self, *segments: bytes) -> Wire:
        with patch("notify.transport.websocket.direct", lambda transport: transport):
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
    """The server's frames after the head of its answer."""
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


class Work:
    """The bytes that autobahn was given, and the most that it held at once."""

    given = held = 0


@contextmanager
def count_work() -> Iterator[Work]:
    work, other, process = Work(), OpenProtocol.other, OpenProtocol.processData

    def give(protocol: Any, data: bytes) -> None:
        work.given += len(data)
        other(protocol, data)

    def look(protocol: Any) -> Any:
        work.held = max(work.held, len(protocol.data))
        return process(protocol)

    with patch.object(OpenProtocol, "other", give), patch.object(OpenProtocol, "processData", look):
        yield work


class Segments(SynchronousTestCase):
    """A read may end anywhere: the answers to a client must not depend on where."""

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
            start = head(*HANDSHAKE, b"Sec-WebSocket-Extensions: permessage-deflate")
            sent = start + b"".join(self.random_frame(random) for _ in range(random.randrange(1, 9)))
            compression = Compression(enabled=random.random() < 0.3)
            whole = Wire(compression=compression).feed(sent)
            first = random.choice((0, len(start)))
            other = Wire(compression=compression).feed(*cut(random, sent, first))
            self.assertEqual(other.status, whole.status, f"seed {seed}")
            self.assertEqual(frames(other.answer), frames(whole.answer), f"seed {seed}")
            closes = [n for n, (one, _) in enumerate(frames(whole.answer)) if one == 0x88]
            self.assertIn(closes, ([], [len(frames(whole.answer)) - 1]), f"seed {seed}: data behind a close")

    def test_a_read_that_begins_inside_a_frame_is_answered_like_any_other(self) -> None:
        text = [b'{"type":"ping","id":%d}' % number for number in range(40)]
        for ahead in (
            frame(b"inside", 9),
            frame(b"", 10),
            frame(text[0]),
            frame(text[0][:9], fin=False) + frame(text[0][9:], 0),
            frame(text[0].ljust(MOST)),
            frame(b"inside", 9) * 20,
        ):
            sent = ahead + b"".join(map(frame, text))
            whole = Wire(frames_per_second=0).feed(head(*HANDSHAKE), sent)
            for place in {*range(1, min(len(ahead), 40)), len(ahead) - 1}:
                other = Wire(frames_per_second=0).feed(head(*HANDSHAKE), sent[:place], sent[place:])
                self.assertEqual(other.answer, whole.answer, (ahead[:9], place))

    def test_a_crowd_that_begins_inside_a_frame_is_no_more_work(self) -> None:
        """Counts the bytes that autobahn is given, and the most that it holds: it copies those with each frame."""
        for one, given in (
            (frame(b"", 10), 0),
            (frame(b"{}"), 0),
            (frame(b"12", 9), 0),
            (frame(b"", fin=False) + frame(b"", 0), 12),
        ):
            for place in range(len(one)):
                wire = Wire(frames_per_second=0, max_invalid=10**6).feed(head(*HANDSHAKE))
                with count_work() as work:
                    wire.feed(*filter(None, ((one * 5000)[:place], (one * 5000)[place:])))
                self.assertEqual(work.given, given * 5000, (one, place))
                self.assertLessEqual(work.held, len(one), (one, place))


class Floods(SynchronousTestCase):
    """What a client may send endlessly, and what it may leave unread."""

    def close_code(self, wire: Wire) -> int:
        [(_, payload)] = [one for one in frames(wire.answer) if one[0] == 0x88]
        return int.from_bytes(payload[:2], "big")

    def test_pings_pongs_and_parts_of_messages_count_as_frames(self) -> None:
        for flood in (frame(b"", 9), frame(b"x" * 125, 10), frame(b"", 0, fin=False)):
            for place in (0, 1, len(flood) - 1):
                sent = frame(b"", 1, fin=False) + flood * 99
                wire = Wire(frames_burst=50).feed(head(*HANDSHAKE), sent[:place], sent[place:])
                self.assertEqual([one for one, _ in frames(wire.answer) if one == 0x88], [])
                wire.feed(flood * 99)
                self.assertEqual(self.close_code(wire), 4504)
                self.assertLessEqual(len(frames(wire.answer)), 52)

    def test_what_a_few_bytes_are_inflated_to_is_paid_for(self) -> None:
        large = b'{"type":"ping","x":"' + b"a" * 60_000 + b'"}'
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        small = (squeeze.compress(large) + squeeze.flush(zlib.Z_SYNC_FLUSH))[:-4]
        packed = bytearray(frame(small))
        packed[0] |= 0x40
        offer = b"Sec-WebSocket-Extensions: permessage-deflate"
        for sent in (bytes(packed), frame(large[:9], fin=False) + frame(large[9:], 0)):
            world = World(Limits(frames_burst=50))
            wire = Wire(compression=Compression(enabled=True), world=world)
            wire.feed(head(*HANDSHAKE, offer), sent * 8)
            said = [json.loads(payload)["type"] for one, payload in frames(wire.answer) if one == 0x81]
            self.assertEqual((said[:3], {*said[3:]}), (["pong"] * 3, {"error"}))
            self.assertEqual(self.close_code(wire), 4504)

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
        for bad in (head(HANDSHAKE[0], b"nonsense"), HANDSHAKE[0] + b"\r\nX: " + b"x" * 20_000):
            wire = Wire().feed(bad)
            self.assertIn(wire.status, (b"400", b"431"))
            self.assertEqual((wire.transport.disconnecting, wire.transport.aborted), (True, False))
            answer = wire.answer
            wire.protocol.dataReceived(b"x" * 100_000)
            wire.protocol.dataReceived(head(*HANDSHAKE))
            self.assertEqual((wire.answer, wire.protocol._start), (answer, b""))
            wire.world.clock.pump([0.25] * 8)
            self.assertTrue(wire.transport.aborted)

    def test_who_trickles_a_handshake_has_one_deadline_for_all_of_it(self) -> None:
        wire = Wire()
        sent = head(*HANDSHAKE)
        for second in range(4):
            wire.feed(sent[second * 20 : second * 20 + 20])
            wire.world.clock.advance(1)
        self.assertFalse(wire.transport.aborted)
        wire.world.clock.pump([0.5] * 4)
        self.assertTrue(wire.transport.aborted)

    def test_who_is_in_or_gone_has_no_deadline_any_more(self) -> None:
        for wire in (Wire(auth_timeout=Duration(60)).feed(head(*HANDSHAKE)), Wire()):
            if wire.status != b"101":
                wire.protocol.connectionLost()
            wire.world.clock.pump([1.0] * 8)
            self.assertFalse(wire.transport.aborted)

    def test_nothing_is_read_of_what_comes_behind_a_fault_or_a_close(self) -> None:
        for last in (frame(b"{}", 3), frame(b"\xff"), frame(b"x" * (MOST + 1)), frame(b"", 8)):
            for behind in (frame(b"12", 9) * 50, frame(b"", 8), frame(b'{"type":"ping"}')):
                for segments in ((last + behind,), (last, behind)):
                    wire = Wire().feed(head(*HANDSHAKE))
                    with count_work() as work:
                        for segment in segments:
                            wire.protocol.dataReceived(segment)
                    self.assertLessEqual(work.given, len(last), (last[:9], behind[:9]))
                    self.assertEqual([one for one, _ in frames(wire.answer)], [0x88])

    def test_behind_our_close_nothing_is_looked_for_but_the_clients(self) -> None:
        crowds = (
            frame(b"", 10),
            frame(b"12", 9),
            frame(b'{"type":"ping"}'),
            frame(b"", 0, fin=False),
            frame(b"", 3),
        )
        for crowd in crowds:
            for place in (0, 1, len(crowd) - 1):
                wire = Wire(max_invalid=1).feed(head(*HANDSHAKE))
                with count_work() as work, patch.object(Session, "spend", side_effect=AssertionError):
                    wire.feed(frame(b"nonsense") + crowd[:place], crowd[place:] + crowd * 99)
                    self.assertEqual((work.given, self.close_code(wire)), (0, 4502))
                    self.assertFalse(wire.transport.disconnecting)
                    wire.feed(frame(b"\x03\xe8", 8))
                self.assertTrue(wire.transport.aborted, crowd)
                self.assertEqual(self.close_code(wire), 4502)

    def test_who_sends_on_behind_our_close_is_read_from_no_more_and_dropped(self) -> None:
        wire = Wire(max_invalid=1).feed(head(*HANDSHAKE), frame(b"nonsense"))
        self.assertEqual(wire.transport.producerState, "producing")
        wire.feed(*[frame(b"", 10) * 100] * 20)
        self.assertEqual(wire.transport.producerState, "paused")
        self.assertFalse(wire.transport.aborted)
        wire.world.clock.pump([0.25] * 8)
        self.assertTrue(wire.transport.aborted)

    def test_a_flood_is_not_looked_at_to_its_end(self) -> None:
        for flood in (frame(b"", 10), frame(b"x", 10), frame(b"", 9), frame(b'{"type":"ping"}')):
            wire = Wire(frames_burst=100).feed(head(*HANDSHAKE))
            with patch.object(Session, "spend", autospec=True, side_effect=Session.spend) as spend:
                wire.feed(flood * 10_000)
            spent = sum(call.args[1] if len(call.args) > 1 else 1 for call in spend.call_args_list)
            self.assertEqual(self.close_code(wire), 4504)
            self.assertLessEqual(spent, 201 + CROWD, flood)

    def test_nothing_is_kept_of_what_comes_behind_the_end(self) -> None:
        wire = Wire(max_invalid=1).feed(head(*HANDSHAKE), frame(b"{}"))
        session = wire.protocol._session
        wire.feed(*[frame(b'{"type":"ping"}')] * 100)
        self.assertEqual(self.close_code(wire), 4502)
        self.assertFalse(session._backlog)
        # A control frame of 2**40 bytes is an error: it is not collected until the client is dropped.
        wire = Wire().feed(
            head(*HANDSHAKE), b"\x89\xff" + (2**40).to_bytes(8, "big") + b"\0" * 4, b"x" * 100_000
        )
        self.assertEqual(self.close_code(wire), 1002)
        self.assertEqual((wire.protocol.data, wire.protocol.current_frame), (b"", None))
        wire.world.clock.pump([0.25] * 8)
        self.assertTrue(wire.transport.aborted)


class Pings(SynchronousTestCase):
    """A client that says nothing, by a moved clock."""

    def idle(self, interval: int, timeout: int) -> Wire:
        """A client that is in, and has just been heard."""
        wire = Wire(ping_interval=Duration(interval), ping_timeout=Duration(timeout))
        wire.feed(head(*HANDSHAKE), frame(b'{"type":"auth","token":"t"}'))
        return wire

    def pings(self, wire: Wire, seconds: int, pong_after: float | None, every: float = 0.25) -> list[float]:
        """When it is pinged in the next seconds, each ping answered after so many; None: none is."""
        found, due, count = [], [], len(frames(wire.answer))
        for step in range(1, int(seconds / every) + 1):
            wire.world.clock.advance(every)
            for opcode, _ in frames(wire.answer)[count:]:
                count += 1
                if opcode == 0x89:
                    found.append(step * every)
                    if pong_after is not None:
                        due.append(step * every + pong_after)
            while due and due[0] <= step * every:
                due.pop(0)
                wire.feed(frame(b"", 10))
        return found

    def test_one_that_answers_is_pinged_at_the_interval_whatever_the_timeout(self) -> None:
        for interval, timeout in ((25, 20), (25, 40), (10, 10), (5, 20), (20, 5)):
            wire = self.idle(interval, timeout)
            pings = self.pings(wire, 10 * interval, 0.0)
            apart = [later - earlier for earlier, later in pairwise([0.0, *pings])]
            self.assertEqual(len(pings), 9, (interval, timeout))
            self.assertTrue(all(interval <= one <= interval + 1 for one in apart), (apart, timeout))
            self.assertFalse(wire.transport.disconnecting)

    def test_a_late_pong_is_one(self) -> None:
        wire = self.idle(5, 20)
        self.assertEqual(len(self.pings(wire, 100, 18.0)), 5)  # each 5 s after the pong before
        self.assertFalse(wire.transport.disconnecting)

    def test_one_that_does_not_answer_is_closed_after_the_timeout(self) -> None:
        for interval, timeout in ((25, 20), (5, 20), (20, 5)):
            wire = self.idle(interval, timeout)
            self.assertEqual(len(self.pings(wire, interval + timeout, None)), 1)
            self.assertFalse(wire.protocol.ending)
            self.pings(wire, 1, None)
            self.assertEqual(frames(wire.answer)[-1], (0x88, (4003).to_bytes(2, "big") + b"no pong"))

    def test_one_that_speaks_is_not_pinged(self) -> None:
        wire = self.idle(25, 20)
        for _ in range(10):
            self.assertEqual(self.pings(wire, 20, None), [])
            wire.feed(frame(b'{"type":"ping"}'))


class Peers(SynchronousTestCase):
    """The address that a client is believed to come from."""

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
