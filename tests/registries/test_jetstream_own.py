"""A node's own entries in a bucket that forgets, goes back in time and refuses; with a clock that the test advances."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from notify.errors import Unavailable
from notify.identity import Presence
from notify.registries.jetstream_own import COMPARED, OwnEntries
from notify.topics import Topic, chat

A, B, C = (chat(1, number) for number in (10, 11, 12))


class FakeBucket:
    """Stores parts with their numbers, as the server does; with ``refuses`` it stores nothing."""

    def __init__(self) -> None:
        self.newest = 0
        self.room = 1000
        self.number = 0
        self.lease = 0
        self.parts: dict[Topic, dict[int, tuple[int, bytes]]] = {}
        self.puts: list[Topic] = []
        self.reads: list[int] = []
        self.refuses = False
        self.waiting: list[Deferred[None]] | None = None

    def copy(self) -> tuple[Any, ...]:
        return self.number, self.lease, {topic: dict(parts) for topic, parts in self.parts.items()}

    def go_back(self, copy: tuple[Any, ...]) -> None:
        self.number, self.lease, self.parts = copy

    def _store(self) -> int:
        if self.refuses:
            raise Unavailable("no")
        self.number += 1
        self.newest = max(self.newest, self.number)
        return self.number

    async def put(self, topic: Topic, bodies: list[bytes], had: int) -> None:
        self.puts.append(topic)
        if self.waiting is not None:
            self.waiting.append(Deferred())
            await self.waiting[-1]
        for number in reversed(range(len(bodies))):
            self.parts.setdefault(topic, {})[number] = self._store(), bodies[number]
        for number in range(len(bodies), had):
            self._store()
            self.parts.get(topic, {}).pop(number, None)

    async def renew(self, last: int = 0) -> int:
        if last not in (0, self.lease):
            return 0
        self.lease = self._store()
        return self.lease

    async def topics(self) -> set[Topic]:
        return set(self.parts)

    async def own(self, topics: Collection[Topic]) -> dict[Topic, dict[int, bytes]]:
        self.reads.append(len(topics))
        return {topic: {n: body for n, (_, body) in self.parts.get(topic, {}).items()} for topic in topics}

    async def remove_own(self, before: int) -> int:
        for topic, parts in self.parts.items():
            self.parts[topic] = {n: part for n, part in parts.items() if part[0] >= before}
        return 0


class Own(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.bucket = FakeBucket()
        self.there: dict[Topic, list[Presence]] = {}
        self.working: list[Deferred[None]] = []

        def work(coroutine: Coroutine[Deferred[Any], Any, None]) -> None:
            self.working.append(Deferred.fromCoroutine(coroutine))

        self.own = OwnEntries(
            self.bucket, lambda topic: self.there.get(topic, []), lambda: list(self.there), work, self.clock
        )
        self.logged: list[str] = []

        def observe(event: Any) -> None:
            self.logged.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.do(self.own.renew)
        self.own.up()

    def do(self, what: Callable[[], Coroutine[Deferred[Any], Any, Any]]) -> None:
        self.successResultOf(Deferred.fromCoroutine(what()))
        self.settle()

    def said(self, words: str) -> int:
        return sum(words in line for line in self.logged)

    def settle(self) -> None:
        self.clock.pump([0.1] * 20)
        for work in self.working:
            self.successResultOf(work)
        self.working.clear()

    def be(self, topic: Topic, *users: int) -> None:
        if users:
            self.there[topic] = [Presence(user, 1) for user in users]
        else:
            self.there.pop(topic, None)
        self.own.touch(topic)

    def right(self) -> None:
        """Check that the bucket has exactly what it should."""
        stored = {t: [body for _, body in parts.values()] for t, parts in self.bucket.parts.items() if parts}
        wanted = {
            topic: ["[{}]".format(",".join(f"[{one.user_id},1]" for one in present)).encode()]
            for topic, present in self.there.items()
        }
        self.assertEqual(stored, wanted)

    def test_changes_are_gathered_and_written(self) -> None:
        self.be(A, 1)
        self.be(A, 1, 2)
        self.be(B, 3)
        self.be(C, 4)
        self.be(C)
        self.settle()
        self.right()
        self.assertEqual(sorted(self.bucket.puts), [A, B])
        self.be(B)
        self.settle()
        self.right()

    def test_an_emptied_bucket_is_filled_at_the_next_renewal(self) -> None:
        self.be(A, 1)
        self.be(B, 2)
        self.settle()
        self.bucket.lease, self.bucket.parts = 0, {}
        self.do(self.own.renew)
        self.right()
        self.assertEqual(self.said("not as it was left"), 1)
        self.do(self.own.renew)
        self.assertEqual(self.said("not as it was left"), 1)
        self.assertEqual(len(self.bucket.puts), 4)

    def test_a_bucket_that_was_made_anew_is_filled(self) -> None:
        self.be(A, 1)
        self.settle()
        self.bucket.go_back((0, 0, {}))
        self.do(self.own.renew)
        self.right()

    def test_a_bucket_that_went_back_past_the_renewal_is_brought_up_to_date(self) -> None:
        self.be(A, 1)
        self.be(B, 2)
        self.settle()
        copy = self.bucket.copy()
        self.be(A)
        self.be(B, 2, 3)
        self.be(C, 4)
        self.settle()
        self.do(self.own.renew)
        self.bucket.go_back(copy)
        self.do(self.own.renew)
        self.do(self.own.compare)
        self.right()

    def test_a_bucket_that_went_back_less_far_than_the_renewal_shows_by_its_numbers(self) -> None:
        self.be(A, 1)
        self.settle()
        self.do(self.own.renew)
        copy = self.bucket.copy()
        self.be(A)
        self.be(B, 2)
        self.settle()
        self.bucket.go_back(copy)
        self.do(self.own.renew)
        self.assertEqual(self.said("not as it was left"), 1)
        self.assertIn(0, self.bucket.parts[B])
        self.do(self.own.compare)
        self.right()

    def test_a_bucket_that_went_back_and_was_overtaken_by_others_is_found_by_comparison(self) -> None:
        self.be(A, 1)
        self.settle()
        self.do(self.own.renew)
        copy = self.bucket.copy()
        self.be(A)
        self.be(B, 2)
        self.settle()
        self.bucket.go_back(copy)
        self.bucket.number += 100
        self.do(self.own.renew)
        self.assertEqual(self.said("not as it was left"), 0)
        self.do(self.own.compare)
        self.right()

    def test_single_entries_that_are_lost_or_wrong_or_too_many_are_mended(self) -> None:
        self.be(A, 1)
        self.be(B, 2)
        self.settle()
        self.do(self.own.compare)
        self.assertEqual(len(self.bucket.puts), 2)
        del self.bucket.parts[A]
        self.bucket.parts[B][0] = 1, b"[[9,1]]"
        self.bucket.parts[B][2] = 1, b"[[8,1]]"
        self.bucket.parts[C] = {1: (1, b"[[7,1]]")}
        self.do(self.own.compare)
        self.right()

    def test_an_unacknowledged_entry_is_removed_when_its_users_have_left(self) -> None:
        self.bucket.waiting = []
        self.be(A, 1)
        self.clock.advance(0.1)
        waiting, self.bucket.waiting = self.bucket.waiting, None
        self.bucket.parts[A] = {0: (1, b"[[1,1]]")}  # it was stored, but the answer got lost
        self.be(A)
        waiting[0].errback(Unavailable("no answer in time"))
        self.settle()
        self.right()

    def test_what_is_not_stored_is_tried_until_it_is_and_told_now_and_then(self) -> None:
        self.bucket.refuses = True
        self.be(A, 1)
        self.clock.pump([0.1] * 200)
        self.assertEqual(self.said("presence is not stored: no"), 1)
        self.bucket.refuses = False
        self.settle()
        self.right()

    def test_a_comparison_reads_so_much_and_no_more_until_all_are_seen(self) -> None:
        topics = [chat(1, number) for number in range(2 * COMPARED + 5)]
        for topic in topics:
            self.be(topic, 1)
        self.settle()
        lost = {topics[0], topics[COMPARED], topics[-1]}
        for topic in lost:
            del self.bucket.parts[topic]
        for _ in range(3):
            self.do(self.own.compare)
        self.right()
        self.assertEqual(sorted(self.bucket.reads), [5, COMPARED, COMPARED])

    def test_what_is_older_is_removed_though_changes_never_end(self) -> None:
        self.bucket.parts[C] = {0: (0, b"[[7,1]]")}
        self.be(A, 1)
        self.own.down()
        self.do(self.own.renew)
        self.own.up()
        self.settle()
        self.be(B, 1)
        self.successResultOf(Deferred.fromCoroutine(self.own.compare()))
        self.assertEqual(self.bucket.parts[C], {})
        self.settle()
        self.right()

    def test_a_crowd_past_all_parts_is_cut_and_told_once(self) -> None:
        self.bucket.room = 20
        self.be(A, *range(1, 1000))
        self.settle()
        self.be(A, *range(1, 1001))
        self.settle()
        self.assertEqual(len(self.bucket.parts[A]), 64)
        self.assertEqual(self.said("has more users on this node than"), 1)
        self.be(A, 1)
        self.settle()
        self.right()
        self.be(A, *range(1, 1001))
        self.settle()
        self.assertEqual(self.said("has more users on this node than"), 2)
