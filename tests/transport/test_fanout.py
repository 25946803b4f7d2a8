"""One message to many connections, in Python and in C: one test suite for both, on real sockets."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import struct
import sys
import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import SkipTest
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.core.dispatcher import FanOut, one_by_one
from notify.identity import Peer
from notify.interfaces import IConnection
from notify.testing import FakeConnection
from notify.transport import fanout
from notify.transport.connection import Connection, SendQueues
from notify.transport.tcp import WriteThroughServer
from notify.wire.encodings import featured
from notify.wire.frames import JSON, Encoding
from tests.support.programs import ROOT, find, need, run
from tests.support.running import LocalServer, RawClient, token

SOURCE = ROOT / "notify" / "transport" / "_fanout.c"
HEADERS = Path(sysconfig.get_path("include"))
#: more than any socket here accepts at once
LONG = b"long" * 200_000
OTHER = featured(JSON, frozenset(["other"]))


def compiler() -> str:
    """A C compiler that finds Python's headers. Skips the test if there is none, even with REQUIRE_ALL=1."""
    found = find("cc") or find("gcc")
    if not found or not (HEADERS / "Python.h").exists():
        raise SkipTest("what is in C is not built here: apt-get install build-essential python3-dev")
    return found


def built() -> FanOut:
    """The C implementation; skips the test if it cannot be built, and needs it (``need``) if it only was not."""
    if fanout.in_c is None:
        compiler()
    need(fanout.in_c, "notify/transport/_fanout.c is not built: make env")
    assert fanout.in_c is not None
    return fanout.in_c


class Transport:
    """The part of Twisted's transport that a connection needs, over one end of a socket pair; ``far`` is the other."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.socket, self.far = socket.socketpair()
        for end in (self.socket, self.far):
            end.setblocking(False)
            case.addCleanup(end.close)
        self.buffer = b""
        self.producer: Any = None
        self.got = b""

    def write(self, data: bytes) -> None:
        self.buffer += data
        self.pump()
        if self.buffer and self.producer is not None:
            self.producer.pauseProducing()

    def pump(self) -> None:
        try:
            self.buffer = self.buffer[self.socket.send(self.buffer) :] if self.buffer else b""
        except BlockingIOError:
            pass
        except OSError:
            self.buffer = b""  # Twisted drops the buffer when it notices that the connection is lost

    def drain(self, most: int) -> None:
        """The client reads up to ``most`` bytes, and the reactor notices that there is room again."""
        try:
            self.got += self.far.recv(most)
        except OSError:
            pass
        waited = bool(self.buffer)
        self.pump()
        if waited and not self.buffer and self.producer is not None:
            self.producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def resumeProducing(self) -> None:
        pass

    def read(self) -> bytes:
        """Everything that the client receives."""
        while True:
            before = len(self.got)
            self.drain(1 << 20)
            if len(self.got) == before and not self.buffer:
                return self.got


class Wire:
    def __init__(self) -> None:
        self.said: list[int] = []

    def say_close(self, code: int, reason: str) -> None:
        self.said.append(code)

    def gone(self) -> None:
        pass


class Place:
    """Connections over sockets, and their state."""

    def __init__(self, case: SynchronousTestCase, way: FanOut, each: int = 10**7, all: int = 10**8) -> None:
        self.case = case
        self.way = way
        self.queues = SendQueues(lambda: each, lambda: all, lambda: None)
        self.transports: list[Transport] = []
        self.members: list[Any] = []
        self.wires: list[Wire] = []

    def connect(self, encoding: Encoding = JSON, kind: type[Connection] = Connection) -> Connection:
        transport, wire = Transport(self.case), Wire()
        made = kind("c", Peer(""), encoding, 0.0, wire, transport, self.queues, transport.socket)
        transport.producer = made
        self.transports.append(transport)
        self.members.append(made)
        self.wires.append(wire)
        return made

    def fan(self, frame: bytes) -> None:
        self.way(list(self.members), {JSON: frame, OTHER: frame})

    def state(self) -> list[tuple[Any, ...]]:
        """The state of all connections, except for bytes in the kernel."""
        return [
            (
                one._open,
                one._clear,
                one._blocked,
                one.queued,
                one._descriptor >= 0,
                len(transport.buffer),
                wire.said,
            )
            for one, transport, wire in zip(self.members, self.transports, self.wires, strict=True)
        ]


class Meddler(FakeConnection):
    """A plugin's own connection, whose write runs ``act``."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def write(self, frame: bytes) -> None:
        self.act()


class Ways:
    """What both implementations do. ``way`` is one of them."""

    way: Any
    #: for the test that memory does not grow
    rounds = 40_000

    def place(self: Any, **bounds: int) -> Place:
        return Place(self, self.way, **bounds)

    def test_each_is_written_the_frame_of_its_encoding_in_order(self: Any) -> None:
        order: list[tuple[str, bytes]] = []

        class Told(Connection):
            __slots__ = ()

            def left(self, frame: bytes, sent: int) -> None:
                raise AssertionError("all of it was sent")

        class Foreign(FakeConnection):
            def write(self, frame: bytes) -> None:
                order.append((self.id, frame))

        class Asked(dict[Encoding, bytes]):
            def __missing__(self, encoding: Encoding) -> bytes:
                order.append(("made", b""))
                frame = self[encoding] = b"other" if encoding is OTHER else b"plain"
                return frame

        place = self.place()
        ours = [place.connect(encoding, kind) for encoding in (OTHER, JSON) for kind in (Connection, Told)]
        foreign = [Foreign(id="a"), Foreign(id="b", encoding=OTHER)]
        self.way([ours[0], foreign[0], ours[2], foreign[1], ours[1], ours[3]], Asked())
        self.assertEqual(order, [("made", b""), ("made", b""), ("a", b"plain"), ("b", b"other")])
        self.assertEqual([one.read() for one in place.transports], [b"other", b"other", b"plain", b"plain"])

    def test_an_empty_frame_is_not_written(self: Any) -> None:
        foreign = Meddler(lambda: self.fail("written"))
        self.way([foreign, self.place().connect()], {JSON: b""})
        self.way([], {})

    def test_one_that_is_not_clear_is_written_to_as_ever(self: Any) -> None:
        place = self.place()
        clear, held, blocked, closed = (place.connect() for _ in range(4))
        held.hold()
        blocked.write(LONG)
        closed.end()
        place.fan(b"frame")
        self.assertEqual((clear.queued, blocked.queued), (0, 5))
        self.assertEqual([one.got for one in place.transports], [b""] * 4)
        held.release()
        for transport, got in zip(place.transports, (b"frame", b"frame", LONG + b"frame", b""), strict=True):
            self.assertEqual(transport.read(), got)

    def test_what_a_socket_does_not_take_is_the_transports(self: Any) -> None:
        place = self.place()
        one = place.connect()
        place.fan(LONG)
        self.assertEqual((one._clear, one._blocked), (False, True))
        self.assertTrue(0 < len(place.transports[0].buffer) < len(LONG))
        place.fan(b"next")
        self.assertEqual(one.queued, 4)
        self.assertEqual(place.transports[0].read(), LONG + b"next")
        self.assertTrue(one._clear)

    def test_a_socket_that_takes_nothing_leaves_a_whole_frame(self: Any) -> None:
        place = self.place()
        one = place.connect()
        filled = 0
        with self.assertRaises(BlockingIOError):
            while True:
                filled += place.transports[0].socket.send(b"x")
        place.fan(b"whole")
        self.assertEqual((one._clear, place.transports[0].buffer), (False, b"whole"))
        self.assertEqual(place.transports[0].read(), b"x" * filled + b"whole")

    def test_a_dead_socket_harms_nobody_else(self: Any) -> None:
        before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGPIPE, before)
        place = self.place()
        dead, _ = place.connect(), place.connect()
        place.transports[0].far.close()
        place.fan(b"frame")
        self.assertFalse(dead._clear)
        self.assertEqual(place.transports[1].read(), b"frame")

    def test_a_socket_that_takes_the_rest_at_once_is_written_to_directly_again(self: Any) -> None:
        place = self.place()
        one = place.connect()
        one.left(b"frame", place.transports[0].socket.send(b"fra"))
        self.assertTrue(one._clear)
        place.fan(b"more")
        self.assertEqual(place.transports[0].read(), b"framemore")

    def test_one_that_is_over_its_bound_is_given_up_and_the_others_are_not(self: Any) -> None:
        place = self.place(each=9)
        slow, _ = place.connect(), place.connect()
        slow.write(LONG)
        for _ in range(2):
            place.fan(b"frame")
        self.assertEqual([wire.said for wire in place.wires], [[4001], []])
        self.assertEqual(place.transports[1].read(), b"frameframe")

    def test_a_descriptor_that_is_another_sockets_by_now_is_not_written_to(self: Any) -> None:
        place = self.place()
        one = place.connect()
        newcomer: list[socket.socket] = []

        def replace() -> None:
            # As in Twisted: the producer is told, then the socket is closed, and another socket gets its number.
            number = place.transports[0].socket.fileno()
            one.stopProducing()
            place.transports[0].socket.close()
            mine, its = socket.socketpair()
            for end in (mine, its):
                end.setblocking(False)
                self.addCleanup(end.close)
            if its.fileno() == number:
                mine, its = its, mine
            self.assertEqual(mine.fileno(), number)
            newcomer.append(its)

        self.way([Meddler(replace), one], {JSON: b"not yours"})
        with self.assertRaises(BlockingIOError):
            newcomer[0].recv(100)

    def test_what_a_write_raises_ends_it(self: Any) -> None:
        def fails() -> None:
            raise ValueError("no")

        place = self.place()
        first, last = place.connect(), place.connect()
        with self.assertRaisesRegex(ValueError, "no"):
            self.way([first, Meddler(fails), last], {JSON: b"frame"})
        self.assertEqual([one.read() for one in place.transports], [b"frame", b""])
        with self.assertRaises(KeyError):
            self.way([first], {})
        with self.assertRaises(AttributeError):
            self.way([object()], {JSON: b"frame"})

    def test_a_list_that_shrinks_meanwhile(self: Any) -> None:
        place = self.place()
        members: list[IConnection] = []
        members += [Meddler(members.clear), *(place.connect() for _ in range(100))]
        self.way(members, {JSON: b"frame"})
        self.assertEqual(place.transports[0].read(), b"")

    def test_nothing_is_kept(self: Any) -> None:
        place = self.place()
        ours, dead, foreign = place.connect(), place.connect(), FakeConnection()
        place.transports[1].far.close()
        foreign.closed = (1000, "")  # it keeps no frames then

        class Fresh(dict[Encoding, bytes]):
            def __missing__(self, encoding: Encoding) -> bytes:
                return bytes(bytearray(b"frame"))

        frames = Fresh()

        def rounds(count: int) -> None:
            members = [ours, dead, foreign, ours, ours]
            for _ in range(count):
                dead._clear = True
                self.way(members, frames)
                place.transports[0].far.recv(100)
                try:
                    self.way([object()], frames)
                except AttributeError:
                    pass

        def counts() -> list[int]:
            known = (ours, dead, foreign, frames, frames[JSON], JSON, type(ours), self.way)
            return [sys.getrefcount(one) for one in known]

        rounds(100)
        gc.collect()
        objects, before, memory = len(gc.get_objects()), counts(), [resident()]
        for _ in range(3):
            rounds(self.rounds)
            gc.collect()
            memory.append(resident())
        self.assertEqual(counts(), before)
        self.assertLess(len(gc.get_objects()) - objects, 100)
        # What is kept makes each of the three grow; whatever else the process does need not.
        self.assertLess(min(after - earlier for earlier, after in pairwise(memory)), 1 << 20)


def resident() -> int:
    """Bytes of memory that this process uses, without those of files: the system takes and brings these as it likes."""
    _, total, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (total - shared) * os.sysconf("SC_PAGE_SIZE")


class PythonTests(Ways, SynchronousTestCase):
    rounds = 1000
    way = staticmethod(one_by_one)


class CTests(Ways, SynchronousTestCase):
    def setUp(self) -> None:
        self.way = built()

    def test_it_says_what_it_was_given_wrongly(self) -> None:
        way: Any = self.way
        connection = self.place().connect()
        for wrong in (
            ((), {}),
            ([connection], {JSON: "text"}),
            ([connection], {JSON: None}),
            ([],),
            ([], {}, {}),
        ):
            with self.assertRaises(TypeError):
                way(*wrong)
        with self.assertRaises(TypeError):
            way([], {}, extra=1)

    def test_it_takes_no_class_without_the_slots(self) -> None:
        kind: Any = type(self.way)
        for wrong in (FakeConnection, object, 5):
            with self.assertRaises((TypeError, AttributeError)):
                kind(wrong)
        with self.assertRaises(TypeError):
            kind(Connection, extra=1)
        with self.assertRaises(TypeError):
            kind()

    def test_one_whose_slots_are_empty_is_an_error_and_no_crash(self) -> None:
        with self.assertRaises(AttributeError):
            self.way([Connection.__new__(Connection)], {JSON: b"frame"})
        bare = Connection.__new__(Connection)
        bare.encoding, bare._clear = JSON, True
        with self.assertRaises(AttributeError):
            self.way([bare], {JSON: b"frame"})

    def test_a_descriptor_that_is_none_is_not_sent_to(self) -> None:
        for wrong in (-1, None, 1 << 40, 1 << 80, "1", True):
            place = self.place()
            connection: Any = place.connect()
            connection._descriptor = wrong
            self.way([connection], {JSON: b"frame"})
            self.assertEqual(place.transports[0].read(), b"frame")

    def test_it_goes_when_nobody_has_it_any_more(self) -> None:
        kind: Any = type(self.way)
        before = sys.getrefcount(kind), sys.getrefcount(Connection)
        for _ in range(1000):
            kind(Connection)
        self.assertEqual((sys.getrefcount(kind), sys.getrefcount(Connection)), before)


class AlikeTests(SynchronousTestCase):
    steps = st.lists(
        st.tuples(
            st.sampled_from(
                ["fan", "fan", "fan", "read", "hold", "release", "control", "die", "end", "close"]
            ),
            st.integers(0, 2),
            st.sampled_from([1, 100, 5000, 70_000, 300_000]),
        ),
        max_size=40,
    )

    @given(steps)
    @settings(max_examples=150, deadline=None)
    def test_both_give_the_same_bytes_order_and_states(self, steps: list[tuple[str, int, int]]) -> None:
        places = [Place(self, way, each=400_000, all=600_000) for way in (one_by_one, built())]
        for place in places:
            place.connect(), place.connect(OTHER), place.connect()
        for number, (step, which, size) in enumerate(steps):
            for place in places:
                self.take(place, step, which, size, b"%d," % number)
            self.assertEqual(places[0].state(), places[1].state(), (step, which, size))
        got = [[one.read() for one in place.transports] for place in places]
        self.assertEqual(got[0], got[1])
        self.assertEqual(places[0].state(), places[1].state())
        for place in places:
            for transport in place.transports:
                transport.socket.close()
                transport.far.close()

    @staticmethod
    def take(place: Place, step: str, which: int, size: int, mark: bytes) -> None:
        connection, transport = place.members[which], place.transports[which]
        match step:
            case "fan":
                place.fan(mark * (size // len(mark) + 1))
            case "read":
                transport.drain(size)
            case "control":  # one of autobahn's pongs goes to the transport directly, between frames
                transport.write(b"{pong}")
            case "die":
                transport.far.close()
            case "end":
                connection.stopProducing()
                transport.buffer = b""
                transport.socket.close()
            case "close":
                connection.close(4000)
            case _:
                getattr(connection, step)()


class ServerTests(TestCase):
    """On a whole server: which implementation it uses, and that no connection keeps the number of a closed socket."""

    timeout = 60

    async def test_no_connection_knows_a_socket_that_is_closed(self) -> None:
        server = await LocalServer().start(self)
        clients = []
        for _ in range(5):
            client = await deferToThread(RawClient, server.ws)
            self.addCleanup(client.close)
            clients.append((client, next(reversed(server.hub.connections))))
        connections: list[Any] = [connection for _, connection in clients]
        self.assertEqual([one._clear for one in connections], [True] * 5)
        closed: list[int] = []
        all_closed: Deferred[None] = Deferred()
        close = WriteThroughServer._closeSocket

        def watched(transport: Any, orderly: bool) -> None:
            number = transport.socket.fileno()
            closed.append(number)
            self.assertNotIn(number, [one._descriptor for one in connections])
            close(transport, orderly)
            if len(closed) == len(connections):
                all_closed.callback(None)

        numbers = [one._descriptor for one in connections]
        self.patch(WriteThroughServer, "_closeSocket", watched)
        gone, reset, polite = (client for client, _ in clients[:3])
        gone.close()
        reset.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
        polite.send((1000).to_bytes(2, "big"), opcode=8)
        connections[3]._transport.abortConnection()
        connections[4].close(4000, "go")
        await all_closed
        self.assertEqual(sorted(closed), sorted(numbers))

    async def test_messages_go_out_either_way(self) -> None:
        for pure in ("1", "0"):
            with patch.dict(os.environ, {"NOTIFY_PURE": pure}):
                server = await LocalServer().start(self)
            way = fanout.one_by_one if pure == "1" or fanout.in_c is None else fanout.in_c
            dispatcher: Any = server.hub.dispatcher
            self.assertIs(dispatcher._fan_out, way)
            client = await deferToThread(RawClient, server.ws)
            self.addCleanup(client.close)
            client.send_json(type="auth", token=token())
            client.send_json(type="subscribe", chat_id=1, id=1)
            while json.loads((await deferToThread(client.receive))[1])["type"] != "subscribed":
                pass
            for number in range(3):
                await server.publish(1, message_id=number + 1)
            got = [json.loads((await deferToThread(client.receive))[1])["message_id"] for _ in range(3)]
            self.assertEqual(got, [1, 2, 3])

    def test_operators_are_told_which_way_it_goes(self) -> None:
        self.assertIs(fanout.choose({"NOTIFY_PURE": "1"}), one_by_one)
        self.assertEqual(fanout.name(one_by_one), "Python")
        way = built()
        self.assertIs(fanout.choose({}), way)
        self.assertEqual(fanout.name(way), "C")


class CompiledTests(SynchronousTestCase):
    """What a compiler and its sanitizers find in the C source."""

    def compile(self, *options: str) -> Path:
        made = Path(self.mktemp()).resolve().with_suffix(".so")
        run(
            compiler(),
            "-std=c11",
            "-O2",
            "-fPIC",
            "-shared",
            *options,
            "-isystem",
            HEADERS,
            SOURCE,
            "-o",
            made,
        )
        return made

    def test_it_has_no_warning(self) -> None:
        self.compile("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wno-cast-function-type")

    def test_nothing_is_read_or_written_out_of_its_bounds(self) -> None:
        options = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        try:
            made = self.compile(*options)
        except AssertionError as error:
            raise SkipTest(f"this compiler has no sanitizers: {error}") from None
        libraries = [
            run(compiler(), f"-print-file-name={name}.so").strip() for name in ("libasan", "libubsan")
        ]
        run(
            sys.executable, "-c", SANITIZED, made,
            environ={"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"},
            cwd=ROOT,
        )  # fmt: skip


#: runs the tests of the C implementation with the compiled file at a path instead of the installed one
SANITIZED = """
import sys, unittest
from importlib.util import module_from_spec, spec_from_file_location
name = "notify.transport._fanout"
import notify.transport.connection
spec = spec_from_file_location(name, sys.argv[1])
sys.modules[name] = notify.transport._fanout = module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
from tests.transport import test_fanout
assert test_fanout.fanout._fanout.__file__ == sys.argv[1]
test_fanout.CTests.rounds = 100
test_fanout.resident = lambda: 0  # what is freed stays a while
unittest.main(test_fanout, argv=["", "CTests", "AlikeTests"])
"""
