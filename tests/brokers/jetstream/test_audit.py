"""Holes inside the stream, and copies that lack what their leader has; without NATS and with a fake clock."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.audit import Audit
from notify.brokers.jetstream.holes import Holes
from notify.brokers.jetstream.stream import StreamState
from notify.nats.asking import Reply
from notify.observe.metrics import Metrics


class Numbers(SynchronousTestCase):
    def test_what_lies_between(self) -> None:
        holes = Holes([9, 3, 5])
        for after, up_to, found in ((0, None, 9), (0, 4, 3), (3, 4, 0), (3, 5, 5), (9, None, 0), (5, 8, 0)):
            self.assertEqual(holes.newest(after, up_to), found)
            self.assertEqual(holes.between(after, up_to), found > 0)
        self.assertEqual(
            [holes.count(1, 9), holes.count(4, 9), holes.count(4, 8), holes.count(10, 9)], [3, 2, 1, 0]
        )
        self.assertFalse(Holes().between(0))

    def test_too_many_to_know_are_everywhere_up_to_a_number(self) -> None:
        holes = Holes(up_to=7)
        self.assertEqual(
            [holes.newest(0), holes.newest(0, 4), holes.newest(6), holes.newest(7)], [7, 4, 7, 0]
        )


class FakeStreams:
    name = "MESSAGES"

    def __init__(self) -> None:
        self.first = 1
        self.numbers = list(range(1, 101))
        self.replicas = "n1+ n2+"
        self.lagging = False
        self.copies = 3
        self.questions = 0

    def state(self) -> StreamState:
        first, last = (self.numbers[0], self.numbers[-1]) if self.numbers else (1, 0)
        missing = last - first + 1 - len(self.numbers)
        return StreamState("1", first, last, missing, "live.", self.copies, self.lagging, self.replicas)

    async def info(self) -> StreamState:
        self.questions += 1
        return self.state()

    async def deleted(self) -> list[int]:
        first, last = self.numbers[0], self.numbers[-1]
        return sorted(set(range(first, last + 1)) - set(self.numbers))


class FakeCopies:
    """Three copies that answer in turn."""

    def __init__(self, streams: FakeStreams) -> None:
        self.lacking: list[set[int]] = [set(), set(), set()]
        self.streams = streams
        self.asked = 0
        self.meanwhile: Any = lambda: None

    def gather(self, subject: str, payload: bytes) -> Deferred[list[Reply]]:
        self.meanwhile()
        lacks = self.lacking[self.asked % 3]
        self.asked += 1
        start = msgspec.json.decode(payload)["seq"]
        have = [n for n in self.streams.numbers if n >= start and n not in lacks]
        if not have:
            return succeed([Reply(b"", b"NATS/1.0 404 Message Not Found\r\n\r\n")])
        block = b"NATS/1.0\r\nNats-Sequence: %d\r\nNats-Num-Pending: %d\r\n\r\n" % (have[0], len(have) - 1)
        return succeed([Reply(b"x", block), Reply(b"", b"NATS/1.0 204 EOB\r\n\r\n")])


class Comparing(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.streams = Clock(), FakeStreams()
        self.copies = FakeCopies(self.streams)
        self.metrics = Metrics()
        streams: Any = self.streams
        self.audit = Audit(self.copies, streams, self.clock, self.metrics)

    def compare(self) -> bool:
        done = Deferred.fromCoroutine(self.audit.compare(self.streams.state()))
        self.clock.pump([0.05] * 5)
        self.successResultOf(done)
        return self.audit.trusted

    def test_copies_are_trusted_once_each_is_likely_to_have_been_asked(self) -> None:
        self.assertFalse(self.audit.trusted)
        self.assertTrue(self.compare())
        self.assertEqual(self.copies.asked, 24)
        self.assertTrue(self.compare())
        self.assertEqual(self.copies.asked, 27)

    def test_one_copy_that_lacks_a_message_is_enough_for_mistrust_until_it_has_it(self) -> None:
        for lacks in ({50}, {1}, {100}, set(range(1, 40))):
            self.setUp()
            self.compare()
            self.copies.lacking[2] = lacks
            # The copies answer in turn: with all three, a second look finds the message missing again.
            self.copies.lacking = [lacks] * 3
            self.assertFalse(self.compare())
            self.assertIn("lacks", self.audit.problem)
            self.assertEqual(self.metrics.audit_failures._value.get(), 1)
            self.assertFalse(self.compare())
            self.assertEqual(self.metrics.audit_failures._value.get(), 1)
            self.copies.lacking = [set()] * 3
            self.assertTrue(self.compare())
            self.assertEqual(self.audit.problem, "")
            self.flushLoggedErrors()

    def test_one_that_is_only_behind_is_no_failure(self) -> None:
        self.streams.lagging = True
        self.copies.lacking = [{99, 100}] * 3
        self.assertFalse(self.compare())
        self.assertIn("behind", self.audit.problem)
        self.assertEqual(self.metrics.audit_failures._value.get(), 0)

    def test_a_change_of_the_cluster_begins_anew(self) -> None:
        self.compare()
        self.streams.replicas = "n1+ n2-"
        asked = self.copies.asked
        # A copy that comes back may not answer for a while, and the other copies' answers say nothing about it.
        self.assertFalse(self.compare())
        self.assertFalse(self.compare())
        self.assertEqual(self.copies.asked - asked, 6)
        self.clock.advance(30)
        self.assertTrue(self.compare())
        self.assertEqual(self.copies.asked - asked, 30)
        self.audit.unsettle()
        self.assertFalse(self.audit.trusted)

    def test_a_single_copy_is_trusted_whatever_comes_and_goes(self) -> None:
        self.streams.copies = 1
        self.compare()
        self.assertEqual(self.copies.asked, 1)
        self.audit.unsettle()
        self.assertTrue(self.audit.trusted)

    def test_while_the_leader_says_that_one_is_away_no_copy_is_trusted(self) -> None:
        self.compare()
        self.streams.lagging = True
        self.assertFalse(self.compare())
        self.clock.advance(60)
        self.assertFalse(self.compare())
        self.assertIn("behind", self.audit.problem)
        self.streams.lagging = False
        self.assertFalse(self.compare())
        self.clock.advance(30)
        self.assertTrue(self.compare())

    def test_what_is_stored_or_expires_meanwhile_is_no_difference(self) -> None:
        def meanwhile() -> None:
            self.streams.numbers = [*self.streams.numbers[2:], self.streams.numbers[-1] + 1]

        self.copies.meanwhile = meanwhile
        self.assertTrue(self.compare())

    def test_what_the_leader_lacks_is_known_and_no_copys_fault(self) -> None:
        self.streams.numbers.remove(30)
        self.streams.numbers.remove(60)
        self.assertTrue(self.compare())
        self.assertEqual((self.audit.holes.newest(0), self.audit.holes.newest(0, 59)), (60, 30))
        self.assertEqual(self.metrics.history_holes._value.get(), 2)
        self.streams.numbers = self.streams.numbers[40:]
        self.compare()
        self.assertEqual(self.metrics.history_holes._value.get(), 1)
        self.streams.numbers = self.streams.numbers[40:]
        self.compare()
        self.assertFalse(self.audit.holes.between(0))

    def test_a_large_chat_that_was_purged_takes_nothing_from_what_came_behind_it(self) -> None:
        self.streams.numbers = [1, *range(100_000, 100_010)]
        self.assertTrue(self.compare())
        self.streams.numbers += range(100_010, 100_020)
        self.assertTrue(self.compare())
        self.assertEqual(self.audit.holes.newest(0), 99_999)

    def test_an_empty_stream_is_whole(self) -> None:
        self.streams.numbers = []
        self.assertTrue(self.compare())
