"""Pages from the newest message back, from a stream that can only be read forward: their contents, and their reads."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream import pages as module
from notify.brokers.jetstream.pages import GUESSES, SOME, Pages, find
from notify.brokers.jetstream.reader import Reader
from notify.brokers.jetstream.stream import StreamState
from notify.errors import HistoryLost, Unavailable
from notify.messages import Earlier
from notify.testing import chat_payload
from notify.topics import chat
from tests.brokers.jetstream.test_reader import FakeReplica, ReadingCase

TOPIC = chat(1, 10)


class Subject:
    """The numbers of one subject's messages in a stream, and how often they were looked up."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = sorted(set(numbers))
        self.looks = 0

    def count(self, start: int) -> int:
        return len(self.numbers) - bisect_left(self.numbers, start)

    async def look(self, subject: str, start: int) -> tuple[int, int]:
        self.looks += 1
        count = self.count(start)
        return (count, self.numbers[-count]) if count else (0, 0)


class Finding(SynchronousTestCase):
    def find(self, numbers: list[int], upper: int, want: int) -> tuple[int, int]:
        """The number of messages from the found place up to ``upper``, and the number of lookups to find it."""
        subject = Subject(numbers)
        low = (subject.count(1), subject.numbers[0])
        beyond = subject.count(upper + 1)
        most = 2 * want + SOME
        assert low[0] - beyond > most
        start, count = self.successResultOf(
            Deferred.fromCoroutine(find(subject, "x", low[::-1], (upper + 1, beyond), want, most))
        )
        assert count == subject.count(start)
        return count - beyond, subject.looks

    def test_a_dense_subject_and_a_sparse_one_take_a_few_looks(self) -> None:
        for gap in (1, 7, 1_000, 1_000_000):
            numbers = [n * gap for n in range(1, 20_000)]
            for upper in (numbers[-1], numbers[-1] - gap, numbers[10_000]):
                for want in (1, 50, 100):
                    found, looks = self.find(numbers, upper, want)
                    self.assertTrue(want <= found <= 2 * want + SOME, (gap, upper, want, found))
                    self.assertLessEqual(looks, 3, (gap, upper, want))

    def test_arrangements_that_deceive_take_no_more_than_the_bound(self) -> None:
        end = 2**40
        million = 10**6
        layouts = {
            "dense once, silent since": [*range(1, 10_000), end],
            "silent long, dense now": [1, 2, 3, *range(end - 10_000, end)],
            "one in a million, then dense": [*range(1, 3000 * million, million), *range(end - 500, end)],
            "dense, then one in a million": [*range(1, 5000), *range(million, 300 * million, million)],
            "each twice as far back as the one before": [*range(1, 300), *(end - 2**k for k in range(40))],
            "the newest far from all others": [*range(1, 1000), 2**62],
        }
        for name, numbers in layouts.items():
            for want in (1, 50, 100):
                found, looks = self.find(numbers, max(numbers), want)
                self.assertTrue(1 <= found <= 2 * want + SOME, (name, want, found))
                self.assertLessEqual(looks, GUESSES + 64, (name, want))

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), min_size=1, max_size=12),
        st.integers(1, 20),
        st.floats(0, 1),
    )
    def test_whatever_the_arrangement_there_is_one_message_at_least_and_not_too_many(
        self, runs: list[tuple[int, int]], want: int, part: float
    ) -> None:
        numbers, at = [], 0
        for shift, length in runs:
            at += 2**shift
            numbers += range(at, at + length)
            at += length
        upper = numbers[int(part * (len(numbers) - 1))]
        if len([n for n in numbers if n <= upper]) <= 2 * want + SOME:
            return
        found, looks = self.find(numbers, upper, want)
        self.assertTrue(1 <= found <= 2 * want + SOME)
        self.assertLessEqual(looks, GUESSES + 64)
        if looks < GUESSES:
            self.assertGreaterEqual(found, want)

    def test_counts_that_change_meanwhile_do_not_keep_it_from_ending(self) -> None:
        class Odd(Subject):
            async def look(self, subject: str, start: int) -> tuple[int, int]:
                self.looks += 1
                return (1000, start + 10**6) if self.looks % 3 else (0, 0)

        odd = Odd([1])
        place, _ = self.successResultOf(
            Deferred.fromCoroutine(find(odd, "x", (1, 1000), (2**62, 0), 50, 116))
        )
        self.assertTrue(1 <= place <= 2**62)
        self.assertLessEqual(odd.looks, GUESSES + 64)


class Reading(ReadingCase):
    """Reads from copies of the stream that answer from a script; the test sets what the leader has."""

    def pages(self, *script: Any, trusted: bool = True) -> Pages:
        reader = self.reader(*script, trusted=trusted)
        self.replica: FakeReplica = reader._connection
        data = self.streams.data = chat_payload(TOPIC)
        message = self.replica.message
        self.replica.message = lambda *a, **k: message(*a, **k)._replace(data=data)
        self.mine: Reader = reader
        return Pages(reader, 8)

    def page(
        self,
        pages: Pages,
        before: int | None = None,
        limit: int = 50,
        size: int = 2**20,
        known: int | None = None,
    ) -> Deferred[Earlier]:
        return pages.earlier(TOPIC, before, limit, size, lambda: known)

    def seqs(self, page: Deferred[Earlier]) -> list[int]:
        for _ in range(20):
            self.clock.advance(1)
        self.told = self.successResultOf(page)
        return [message.position.seq for message in self.told.messages]

    def test_a_subject_with_few_messages_takes_three_reads_and_the_state(self) -> None:
        self.streams.stored = have = [3, 10, 90]
        pages = self.pages(have)
        self.assertEqual(self.seqs(self.page(pages)), have)
        self.assertEqual((self.told.more, self.told.first, self.told.last), (False, 3, 90))
        self.assertEqual([request["batch"] for request in self.replica.asked], [1, 4])

    def test_a_long_one_is_read_from_near_its_end_alone(self) -> None:
        self.streams.stored = have = list(range(1, 20_000, 2))
        self.streams.state = StreamState("1", 1, 20_000, 0, "live.x.")
        pages = self.pages(have)
        self.assertEqual(self.seqs(self.page(pages)), have[-50:])
        self.assertTrue(self.told.more)
        self.assertLess(len(self.replica.asked), 6)
        self.replica.asked.clear()
        self.assertEqual(self.seqs(self.page(pages, before=have[5000])), have[4950:5000])
        self.assertLess(len(self.replica.asked), 8)
        self.assertEqual(self.seqs(self.page(pages, before=have[20])), have[:20])
        self.assertFalse(self.told.more)

    def test_a_copy_that_is_behind_is_not_believed(self) -> None:
        self.streams.stored = have = list(range(1, 100))
        pages = self.pages(have[:50])
        asked = self.page(pages, limit=5)
        self.assertEqual(self.seqs(asked), have[-5:])  # from the leader

    def test_no_messages_are_told_only_where_leader_and_copy_say_so(self) -> None:
        self.streams.stored = []
        asked = self.page(self.pages([1, 2, 3]))
        for _ in range(20):
            self.clock.advance(1)
        self.failureResultOf(asked, Unavailable)
        self.assertEqual(self.seqs(self.page(self.pages([]))), [])
        self.assertFalse(self.told.more)

    def test_a_first_message_may_come_between_the_two_answers(self) -> None:
        self.streams.stored = []
        pages = self.pages([1])
        look = self.mine.look

        def comes(subject: str, start: int) -> Any:
            self.streams.stored = [1]
            return look(subject, start)

        self.patch(self.mine, "look", comes)
        self.assertEqual(self.seqs(self.page(pages)), [1])

    def test_a_message_that_a_copy_counts_and_cannot_read_is_asked_of_the_leader_or_said_to_be_missing(
        self,
    ) -> None:
        self.streams.stored = have = list(range(1, 20))
        pages = self.pages(have)
        self.replica.unreadable = {15}
        self.assertEqual(self.seqs(self.page(pages, limit=8)), have[-8:])
        self.streams.stored = [n for n in have if n != 15]
        pages = self.pages(have)
        self.replica.unreadable = {15}
        asked = self.page(pages, limit=8)
        for _ in range(20):
            self.clock.advance(1)
        self.failureResultOf(asked, HistoryLost)

    def test_a_message_that_another_names_and_that_was_deleted_is_no_fault(self) -> None:
        self.streams.stored = have = [n for n in range(1, 20) if n != 15]
        self.streams.holes, self.streams.state = [15], StreamState("1", 1, 100, 1, "live.x.")
        pages = self.pages(have)
        self.replica.names = {16: 15}
        self.assertEqual(self.seqs(self.page(pages, limit=8)), have[-8:])

    def test_one_that_another_names_and_that_nobody_has_is_a_fault(self) -> None:
        self.streams.stored = have = [n for n in range(1, 20) if n != 15]
        pages = self.pages(have)
        self.replica.names = self.streams.names = {16: 15}
        asked = self.page(pages, limit=8)
        for _ in range(20):
            self.clock.advance(1)
        self.failureResultOf(asked, HistoryLost)

    def test_a_stream_that_was_made_anew_gives_no_page_of_the_old_history(self) -> None:
        self.streams.stored = have = [1, 2, 3]
        pages = self.pages(have)
        self.streams.state = StreamState("2", 1, 100, 0, "live.x.")
        self.failureResultOf(self.page(pages), HistoryLost)

    def test_a_leader_that_does_not_know_what_was_heard_is_not_believed_while_it_is_new(self) -> None:
        self.streams.stored = have = [1, 2, 3]
        pages = self.pages(have)
        self.mine._audit.unsettle()
        self.failureResultOf(self.page(pages, known=5), Unavailable)
        self.clock.advance(60)
        self.assertEqual(self.seqs(self.page(pages, known=5)), have)  # number 5 has expired, or was deleted

    def test_a_leader_that_is_away_is_told(self) -> None:
        pages = self.pages([1, 2, 3])
        self.streams.away = True
        self.failureResultOf(self.page(pages), Unavailable)

    def test_large_messages_are_not_all_read(self) -> None:
        self.streams.stored = have = list(range(1, 10_000))
        self.streams.state = StreamState("1", 1, 10_000, 0, "live.x.")
        pages = self.pages(have)
        data = chat_payload(TOPIC, 1, "x" * 50_000)
        message = self.replica.message
        self.replica.message = lambda *a, **k: message(*a, **k)._replace(data=data)
        self.patch(module, "PAGE", 8)
        seen: list[int] = []
        before = None
        for _ in range(5):
            part = self.seqs(self.page(pages, before=before, limit=100, size=110_000))
            self.assertEqual(len(part), 2)
            seen = part + seen
            before = self.told.first
        self.assertEqual(seen, have[-10:])
        self.assertLess(len(self.replica.asked), 5 * 16)

    def test_pages_wait_for_each_other_and_for_no_more_than_that(self) -> None:
        pages = self.pages([])
        self.streams.stored = [1, 2, 3]
        waiting: list[Deferred[Any]] = []

        async def newest(subject: str, since: int = 1) -> int:
            mine: Deferred[int] = Deferred()
            waiting.append(mine)
            return await mine

        self.patch(self.mine.leader, "newest", newest)
        asked = [self.page(pages) for _ in range(4)]
        other = pages.earlier(chat(2, 10), None, 5, 2**20, lambda: None)
        self.assertEqual(len(waiting), 2)  # a quarter of the 8 reads, and of those one for each tenant
        asked[3].cancel()
        self.failureResultOf(asked[3])
        while waiting:
            waiting.pop(0).callback(0)
        for one in (*asked[:3], other):
            self.assertEqual(self.successResultOf(one).messages, [])
        asked = [self.page(pages) for _ in range(3)]
        pages.stop()
        for one in asked:
            self.failureResultOf(one, Unavailable)
