"""The write side of a connection: direct to the socket, held, queued, closed as too slow; always in order."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.identity import Peer
from notify.transport.connection import CHUNK, Connection, SendQueues
from notify.wire.frames import JSON
from tests.support.transport import Transport


class Wire:
    def __init__(self, transport: Transport, gone: Callable[[], object] = lambda: None) -> None:
        self.transport = transport
        self.said: list[tuple[int, str]] = []
        self.ends = 0
        self._gone = gone

    def say_close(self, code: int, reason: str) -> None:
        self.said.append((code, reason))
        self.transport.write(b"<close>")

    def gone(self) -> None:
        self.ends += 1
        self._gone()


class World:
    def __init__(self, each: int = 1000, all: int = 10_000) -> None:
        self.slow = 0
        self.queues = SendQueues(lambda: each, lambda: all, self.count)

    def count(self) -> None:
        self.slow += 1

    def connect(self, room: int = 0, plain: bool = True) -> tuple[Connection, Transport, Wire]:
        transport = Transport(room)
        wire = Wire(transport)
        connection = Connection(
            "c", Peer(""), JSON, 0.0, wire, transport, self.queues, transport if plain else None
        )
        transport.registerProducer(connection, True)
        return connection, transport, wire


class WriteTests(SynchronousTestCase):
    def test_a_frame_goes_straight_to_a_socket_that_takes_it(self) -> None:
        connection, transport, _ = World().connect(room=100)
        connection.write(b"one")
        connection.write(b"two")
        self.assertEqual((transport.wire, transport.sends), (b"onetwo", [3, 3]))

    def test_what_a_turn_answers_is_one_write(self) -> None:
        connection, transport, _ = World().connect(room=100)
        connection.hold()
        connection.write(b"one")
        connection.write(b"two")
        self.assertEqual(transport.wire, b"")
        connection.release()
        self.assertEqual((transport.wire, transport.sends), (b"onetwo", [6]))
        connection.write(b"three")
        self.assertEqual(transport.wire, b"onetwothree")

    def test_a_blocked_client_gets_everything_in_order_and_in_large_writes(self) -> None:
        connection, transport, _ = World(each=10**6, all=10**6).connect(room=2)
        frames = [b"%05d" % number for number in range(1000)]
        for frame in frames:
            connection.write(frame)
        self.assertEqual(connection.queued, 5 * 999)
        transport.sends.clear()
        transport.drain(10**6)
        self.assertEqual(transport.wire, b"".join(frames))
        self.assertEqual((connection.queued, transport.sends), (0, [4995]))
        connection.write(b"live")
        self.assertEqual(transport.wire[-4:], b"live")

    def test_it_is_blocked_from_the_first_byte_that_waits_until_none_does(self) -> None:
        for plain in (True, False):
            connection, transport, _ = World().connect(room=5, plain=plain)
            connection.write(b"12345")
            self.assertFalse(connection.blocked)
            connection.write(b"6")
            # It waits in the transport: the connection has queued nothing yet.
            self.assertEqual((connection.blocked, connection.queued), (True, 0))
            connection.write(b"7")
            self.assertEqual((connection.blocked, connection.queued), (True, 1))
            transport.drain(1000)
            self.assertEqual((connection.blocked, transport.wire), (False, b"1234567"))

    def test_a_long_queue_is_not_copied_to_the_transport_at_once(self) -> None:
        connection, transport, _ = World(each=10**7, all=10**7).connect()
        for _ in range(100):
            connection.write(b"x" * 10_000)
        transport.drain(10_000 + 1)
        self.assertLessEqual(len(transport.buffer), CHUNK)
        self.assertGreater(connection.queued, 900_000)

    @given(
        st.lists(
            st.tuples(st.sampled_from(["write", "hold", "release", "drain", "control"]), st.integers(0, 40)),
            max_size=60,
        ),
        st.booleans(),
    )
    @settings(max_examples=300)
    def test_order_holds_whatever_happens_between(self, steps: list[tuple[str, int]], plain: bool) -> None:
        connection, transport, _ = World(each=10**6, all=10**6).connect(room=10, plain=plain)
        written, controls = [], 0
        for step, size in steps:
            if step == "write":
                frame = b"<" + b"%d," % len(written) * (size // 8 + 1) + b">"
                written.append(frame)
                connection.write(frame)
            elif step == "control":  # one of autobahn's pongs goes to the transport directly, between frames
                controls += 1
                transport.write(b"{pong}")
            elif step == "drain":
                transport.drain(size)
            else:
                getattr(connection, step)()
        connection.release()
        while transport.buffer or connection.queued:
            transport.drain(1000)
        self.assertEqual(transport.wire.count(b"{pong}"), controls)
        self.assertEqual(transport.wire.replace(b"{pong}", b""), b"".join(written))


class BoundTests(SynchronousTestCase):
    def test_a_client_over_its_bound_is_closed_and_its_memory_is_back(self) -> None:
        world = World(each=100)
        connection, _, wire = world.connect()
        connection.write(b"x" * 10)  # this frame is already in the transport
        for _ in range(10):
            connection.write(b"x" * 10)
        self.assertEqual((connection.queued, wire.said), (100, []))
        connection.write(b"y")
        self.assertEqual(wire.said, [(4001, "slow consumer")])
        self.assertEqual((connection.queued, world.queues.total, world.slow), (0, 0, 1))
        self.assertEqual(wire.ends, 1)
        connection.write(b"more")
        connection.close(4000)
        self.assertEqual((connection.queued, len(wire.said), wire.ends), (0, 1, 1))

    def test_over_all_bounds_the_one_that_holds_the_most_goes(self) -> None:
        world = World(each=1000, all=1000)
        (little, _, little_wire), (much, _, much_wire), (third, _, third_wire) = (
            world.connect() for _ in range(3)
        )
        for one in (little, much, third):
            one.write(b"first")
        little.write(b"x" * 100)
        much.write(b"x" * 700)
        third.write(b"x" * 201)
        self.assertEqual((little_wire.said, third_wire.said), ([], []))
        self.assertEqual(much_wire.said, [(4001, "slow consumer")])
        self.assertEqual(world.queues.total, 301)

    def test_a_client_that_leaves_gives_its_share_back(self) -> None:
        world = World()
        connection, _, wire = world.connect()
        connection.write(b"first")
        connection.write(b"second")
        self.assertEqual(world.queues.total, 6)
        connection.stopProducing()
        self.assertEqual((world.queues.total, wire.said, dict(world.queues.waiting)), (0, [], {}))

    def test_what_waits_is_dropped_on_close_and_what_is_held_is_said_first(self) -> None:
        world = World()
        connection, transport, _ = world.connect(room=100)
        connection.hold()
        connection.write(b"answer")
        connection.close(4500)
        self.assertEqual(transport.wire, b"answer<close>")
        blocked, transport, _ = world.connect(room=1)
        blocked.write(b"ab")
        blocked.write(b"never")
        blocked.close(1012)
        transport.drain(100)
        self.assertEqual(transport.wire, b"ab<close>")

    def test_a_throttled_client_is_read_from_again_when_it_is_closed(self) -> None:
        connection, transport, _ = World().connect(room=100)
        connection.throttle(True)
        self.assertFalse(transport.reading)
        connection.close(1012)
        self.assertTrue(transport.reading)

    def test_a_closing_transport_is_not_kept_open_by_a_paused_producer(self) -> None:
        connection, transport, _ = World().connect()
        connection.write(b"never")
        connection.close(1012)
        self.assertIsNone(transport.producer)
