"""Lists that are stored as one, without NATS and with a fake clock."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.atomic import Atomic
from notify.brokers.jetstream.fair import Places
from notify.brokers.jetstream.publisher import Publisher
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.config import Duration
from notify.errors import AtFault, TooLarge, Unavailable, Unknown, Unsupported
from notify.messages import Draft
from notify.nats import headers
from notify.nats.asking import NoResponders, Reply
from notify.testing import chat_payload
from notify.topics import Topic, chat
from tests.brokers.jetstream.test_publisher import FakeConnection

A, B = chat(1, 1), chat(1, 2)
KNOWN, INCOMPLETE, DISABLED, OBJECTION = 10201, 10176, 10174, 10111


class Asked(FakeConnection):
    """Also keeps requests, so that a test can answer them."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.asked: list[tuple[str, dict[str, str], Deferred[Reply]]] = []

    def request(
        self, subject: str, payload: bytes, timeout: float, fields: dict[str, str]
    ) -> Deferred[Reply]:
        assert timeout > 0
        answer: Deferred[Reply] = Deferred()
        self.asked.append((subject, fields, answer))
        return answer

    def take(self) -> list[tuple[str, dict[str, str], Deferred[Reply]]]:
        """The requests since the last call."""
        asked, self.asked = self.asked, []
        return asked


def reply(answer: Deferred[Reply], **body: Any) -> None:
    answer.callback(Reply(msgspec.json.encode(body) if body else b"", b""))


def error(number: int, code: int = 400) -> dict[str, Any]:
    return {"error": {"code": code, "err_code": number, "description": "x"}, "seq": 0}


class AtomicTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.connection = Asked(self.clock)
        settings = JetStreamSettings(publish_patience=Duration(15), request_timeout=Duration(2))
        self.publisher = Publisher(settings, self.connection, self.clock, Random(1))
        self.atomic = Atomic(settings, self.connection, self.publisher, self.clock, Random(2))
        self.publisher.open()
        self.atomic.open(True)

    def store(self, *topics: Topic, key: str = "") -> Deferred[list[tuple[int, bool]]]:
        return self.atomic.publish_all(
            [Draft(t, chat_payload(t, n), f"{key}{n}" if key else None) for n, t in enumerate(topics)]
        )

    def commit(self, last: int, batch: list[Any] | None = None) -> list[Any]:
        """Answer a batch so that its last message is stored at this number; return the batch."""
        batch = self.connection.take() if batch is None else batch
        for _, _, answer in batch[:-1]:
            reply(answer)
        reply(batch[-1][2], seq=last, batch="b", count=len(batch))
        return batch

    def refuse(self, number: int) -> list[Any]:
        """Refuse a batch when it is to be stored; return the batch."""
        batch = self.connection.take()
        for _, _, answer in batch[:-1]:
            reply(answer)
        reply(batch[-1][2], **error(number))
        return batch

    def settled(self) -> None:
        """Nothing is left over."""
        self.assertEqual((self.publisher.pending, self.clock.getDelayedCalls()), (0, []))
        self.assertEqual((self.atomic._lists, self.atomic._places.taken), ({}, 0))
        self.assertEqual(self.publisher._places._of, {})

    def test_a_list_is_one_batch_by_topics_and_each_message_has_its_number(self) -> None:
        self.atomic.after = lambda topic, behind: f"e.{-1 if behind else topic.id}"
        told: list[int] = []
        self.atomic.stored = lambda seq, message: told.append(seq)
        answer = self.store(A, B, A, B)
        batch = self.connection.take()
        self.assertEqual([subject for subject, _, _ in batch], [A.subject, A.subject, B.subject, B.subject])
        fields = [fields for _, fields, _ in batch]
        self.assertEqual([one["Nats-Batch-Sequence"] for one in fields], ["1", "2", "3", "4"])
        self.assertEqual([one.get("Nats-Batch-Commit") for one in fields], [None, None, None, "1"])
        self.assertEqual([one["Notify-After"] for one in fields], ["e.1", "e.-1", "e.2", "e.-1"])
        self.assertEqual(len({one["Nats-Batch-Id"] for one in fields}), 1)
        self.assertNoResult(answer)
        self.commit(14, batch)
        self.assertEqual(self.successResultOf(answer), [(11, False), (13, False), (12, False), (14, False)])
        self.assertEqual(told, [11, 12, 13, 14])
        self.settled()

    def test_a_batch_with_ids_that_are_known_is_asked_about_and_the_rest_is_the_next(self) -> None:
        answer = self.store(A, A, A, key="k")
        first = self.refuse(KNOWN)
        asked = self.connection.take()
        self.assertEqual(
            [one["Nats-Msg-Id"] for _, one, _ in asked], [one["Nats-Msg-Id"] for _, one, _ in first]
        )
        # None of these requests can store its message, whatever the server makes of the rest.
        self.assertTrue(all("Nats-Rollup" in one and "Nats-Batch-Id" not in one for _, one, _ in asked))
        reply(asked[0][2], **error(OBJECTION, 500))
        reply(asked[1][2], seq=7, duplicate=True)
        reply(asked[2][2], **error(OBJECTION, 500))
        rest = self.commit(12)
        self.assertEqual(
            [one["Nats-Msg-Id"] for _, one, _ in rest], [first[n][1]["Nats-Msg-Id"] for n in (0, 2)]
        )
        self.assertNotEqual(rest[0][1]["Nats-Batch-Id"], first[0][1]["Nats-Batch-Id"])
        self.assertEqual(self.successResultOf(answer), [(11, False), (7, True), (12, False)])
        self.settled()

    def test_one_that_is_known_wholly_stores_nothing(self) -> None:
        answer = self.store(A, A, key="k")
        self.refuse(KNOWN)
        for number, (_, _, asked) in enumerate(self.connection.take(), start=3):
            reply(asked, seq=number, duplicate=True)
        self.assertEqual(self.successResultOf(answer), [(3, True), (4, True)])
        self.assertEqual(self.connection.asked, [])
        self.settled()

    def test_where_it_cannot_be_told_which_are_known_the_batch_is_repeated_after_a_while(self) -> None:
        answer = self.store(A, A)
        self.refuse(KNOWN)
        for _, _, asked in self.connection.take():
            reply(asked, **error(10158))  # the id is in process
        self.assertEqual(self.connection.asked, [])
        self.clock.advance(0.1)
        self.commit(2)
        self.successResultOf(answer)
        self.settled()

    def test_what_passes_is_waited_for(self) -> None:
        answer = self.store(A, A)
        for number in (INCOMPLETE, 10210, 10008, 10158):
            self.refuse(number)
            self.assertEqual(self.connection.asked, [])
            self.clock.advance(0.1)
        for _, _, nobody in self.connection.take():
            nobody.errback(NoResponders("nobody"))
        self.clock.advance(0.1)
        self.commit(2)
        self.assertEqual(self.successResultOf(answer), [(1, False), (2, False)])
        self.settled()

    def test_a_batch_without_an_answer_is_repeated_under_the_same_ids(self) -> None:
        answer = self.store(A, A)
        first = self.connection.take()
        reply(first[0][2])
        self.clock.advance(1.9)
        self.assertEqual(self.connection.asked, [])
        self.clock.advance(0.2)
        self.clock.advance(0.1)
        again = self.commit(2)
        self.assertEqual(*([one["Nats-Msg-Id"] for _, one, _ in batch] for batch in (first, again)))
        self.successResultOf(answer)
        self.settled()

    def test_only_silence_is_waited_for_in_vain(self) -> None:
        answer = self.store(*[A] * 4)
        batch = self.connection.take()
        for _, _, one in batch[:-1]:
            self.clock.advance(1.5)
            reply(one)
        self.clock.advance(1.5)
        reply(batch[-1][2], seq=4, batch="b", count=4)
        self.successResultOf(answer)
        self.settled()

    def test_when_patience_ends_the_outcome_is_unknown_only_where_a_try_had_no_answer(self) -> None:
        for silent, raised in ((True, Unknown), (False, Unavailable)):
            answer = self.store(A, A)
            while self.connection.asked:
                if silent:
                    self.connection.take()
                    self.clock.pump([0.5] * 6)
                else:
                    self.refuse(INCOMPLETE)
                    self.clock.advance(0.1)
            self.failureResultOf(answer, raised)
            self.settled()

    def test_where_storage_has_ended_a_part_may_be_there(self) -> None:
        for number in (10002, 10023, 10028, 10047, 10077):
            asked = self.store(A, A)
            self.refuse(number)
            self.failureResultOf(asked, Unknown)

    def test_a_refusal_after_a_try_without_an_answer_leaves_it_open(self) -> None:
        for number, raised in ((DISABLED, Unsupported), (10109, Unavailable), (10052, Unavailable)):
            answer = self.store(A, A)
            self.refuse(number)
            self.failureResultOf(answer, raised)
            answer = self.store(A, A)
            self.connection.take()
            self.clock.pump([0.5] * 6)
            self.refuse(number)
            self.failureResultOf(answer, Unknown)
            self.settled()

    def test_of_a_list_of_which_the_stream_knows_a_message_nobody_is_told_that_nothing_is_stored(
        self,
    ) -> None:
        for told in (True, False):  # whether the stream says which message it knows
            for number in (DISABLED, 10109, INCOMPLETE):
                answer = self.store(A, A, key="k")
                self.refuse(KNOWN)
                [(_, _, first), (_, _, second)] = self.connection.take()
                reply(first, **error(OBJECTION, 500))
                reply(second, **({"seq": 7, "duplicate": True} if told else error(10158)))
                self.clock.advance(0.1)
                while self.connection.asked:
                    [*_, (_, _, last)] = self.connection.take()
                    reply(last, **error(number))
                    self.clock.pump([0.5] * 6)
                self.failureResultOf(answer, Unknown)
                self.settled()

    def test_what_is_at_fault_is_named_where_the_stream_knows_another_too(self) -> None:
        answer = self.store(A, A, key="k")
        self.refuse(KNOWN)
        [(_, _, first), (_, _, second)] = self.connection.take()
        reply(first, seq=7, duplicate=True)
        reply(second, **error(OBJECTION, 500))
        [(_, _, rest)] = self.connection.take()
        reply(rest, **error(10054))
        self.assertEqual(self.failureResultOf(answer, AtFault).value.index, 1)
        self.settled()

    def test_while_the_stream_cannot_be_used_nothing_is_sent(self) -> None:
        self.atomic.close()
        answer = self.store(A, A)
        self.clock.advance(5)
        self.assertEqual(self.connection.asked, [])
        self.atomic.open(True)
        self.commit(2)
        self.successResultOf(answer)
        self.atomic.close()
        answer = self.store(A, A)
        self.clock.advance(15)
        self.failureResultOf(answer, Unavailable)
        self.settled()

    def test_a_stream_that_takes_no_batches_is_sent_none(self) -> None:
        self.atomic.close()
        waiting = self.store(A, A)
        self.atomic.open(False)
        for answer in (waiting, self.store(A, A)):
            self.assertIn("allow_atomic", str(self.failureResultOf(answer, Unsupported).value))
        self.assertEqual(self.connection.asked, [])
        self.settled()

    def test_a_repeat_that_comes_when_the_stream_takes_no_batches_any_more_is_refused_unasked(self) -> None:
        stored = self.store(A, A, key="k")
        self.commit(2)
        self.successResultOf(stored)
        self.atomic.close()
        self.atomic.open(False)
        words = str(self.failureResultOf(self.store(A, A, key="k"), Unsupported).value)
        # Of the earlier request nothing is said.
        self.assertIn("this request stored nothing", words)
        self.assertEqual(self.connection.asked, [])
        self.settled()

    def test_a_server_that_knows_no_batches_leaves_it_open(self) -> None:
        answer = self.store(A, A)
        for number, (_, _, one) in enumerate(self.connection.take(), start=1):
            reply(one, seq=number)
        self.failureResultOf(answer, Unknown)
        self.settled()

    def test_the_first_that_the_server_refuses_is_at_fault(self) -> None:
        answer = self.store(B, A, B, A)  # which goes out as B, B, A, A
        batch = self.connection.take()
        reply(batch[0][2])
        reply(batch[1][2])
        reply(batch[2][2], **error(10054))
        reply(batch[3][2], **error(INCOMPLETE))
        fault = self.failureResultOf(answer, AtFault).value
        self.assertEqual((fault.index, type(fault.reason)), (1, TooLarge))
        self.settled()

    def test_what_no_server_can_take_is_at_fault_unsent(self) -> None:
        self.store(A)
        needed = headers.size(chat_payload(A), self.commit(1)[0][1] | {headers.AFTER: "x" * 37})
        room = len("1000") - len("1")
        for most, fails in ((needed + room - 1, True), (needed + room, False)):
            self.connection.max_payload = most
            answer = self.store(A)
            if fails:
                fault = self.failureResultOf(answer, AtFault).value
                self.assertEqual((fault.index, type(fault.reason)), (0, TooLarge))
                self.assertEqual(self.connection.asked, [])
            else:
                self.commit(2)
                self.successResultOf(answer)
        self.settled()

    def test_a_list_waits_for_what_was_published_before_and_what_comes_later_for_it(self) -> None:
        before = self.publisher.publish(A, chat_payload(A), None, "")
        elsewhere = self.publisher.publish(B, chat_payload(B), None, "")
        answer = self.store(A, B)
        behind = self.publisher.publish(B, chat_payload(B), None, "")
        self.connection.answer(0, 1)
        self.assertEqual((self.successResultOf(before), self.connection.asked), ((1, False), []))
        # The list has its turn in one topic, and waits for the other.
        other = self.publisher.publish(A, chat_payload(A), None, "")
        self.connection.answer(1, 2)
        self.successResultOf(elsewhere)
        self.assertEqual(len(self.connection.sent), 2)
        self.commit(4)
        self.assertEqual(self.successResultOf(answer), [(3, False), (4, False)])
        self.assertEqual(len(self.connection.sent), 4)
        self.connection.answer(2, 5)
        self.connection.answer(3, 6)
        for late in (behind, other):
            self.successResultOf(late)
        self.settled()

    def test_lists_that_have_topics_in_common_take_turns(self) -> None:
        answers = [self.store(A, B), self.store(B, A), self.store(A)]
        for last, answer in ((2, answers[0]), (4, answers[1]), (5, answers[2])):
            self.commit(last)
            self.successResultOf(answer)
        self.settled()

    def test_few_batches_are_open_at_a_time(self) -> None:
        answers = [self.store(chat(1, n), chat(1, n)) for n in range(10)]
        first = self.connection.take()
        self.assertEqual(len(first), 8)
        self.commit(2, first[:2])
        self.assertEqual(len(self.connection.asked), 2)
        for place in (2, 4, 6):
            self.commit(place + 2, first[place : place + 2])
        while batch := self.connection.take():
            for place in range(0, len(batch), 2):
                self.commit(10, batch[place : place + 2])
        for answer in answers:
            self.successResultOf(answer)
        self.settled()

    def test_lists_of_one_workspace_keep_those_of_another_waiting_for_no_more_than_what_is_open(self) -> None:
        many, other = [self.store(chat(1, n)) for n in range(10)], self.store(chat(2, 1))
        first = self.connection.take()
        self.assertEqual(len(first), 4)
        self.commit(1, first[:1])
        self.assertEqual([subject for subject, _, _ in self.connection.asked], [chat(2, 1).subject])
        self.commit(2)
        self.successResultOf(other)
        for one in first[1:]:
            self.commit(5, [one])
        while batch := self.connection.take():
            for one in batch:
                self.commit(10, [one])
        for answer in many:
            self.successResultOf(answer)
        self.settled()

    def test_a_turn_that_does_not_come_before_patience_ends_while_nats_is_away_stores_nothing(self) -> None:
        before = self.publisher.publish(A, chat_payload(A), None, "")
        answer = self.store(A, B)
        self.publisher.close()
        self.atomic.close()
        self.clock.pump([0.5] * 32)
        self.failureResultOf(before, Unknown)
        self.failureResultOf(answer, Unavailable)
        self.publisher.open()
        self.atomic.open(True)
        later = self.publisher.publish(B, chat_payload(B), None, "")
        self.connection.answer(-1, 1)
        self.successResultOf(later)
        self.settled()

    def test_a_publish_that_is_not_permitted_stores_nothing(self) -> None:
        answer = self.store(A, B)
        self.assertFalse(
            self.atomic.denied(f'Permissions Violation for Publish to "{chat(1, 9).subject}"'.lower())
        )
        self.assertTrue(self.atomic.denied(f'permissions violation for publish to "{B.subject}"'))
        reply(self.connection.take()[0][2])
        self.failureResultOf(answer, Unavailable)
        self.settled()

    def test_reports_that_a_list_is_not_permitted_concern_nothing_published_later(self) -> None:
        refused, words = self.store(A, B, A), f'permissions violation for publish to "{A.subject}"'
        later = self.publisher.publish(A, chat_payload(A), None, "")
        other = self.store(B)
        # One report for each message of that topic. Meanwhile the permission may have been given back.
        self.assertTrue(self.atomic.denied(words))
        self.assertNoResult(refused)
        self.assertTrue(self.atomic.denied(words))
        reply(self.connection.take()[-1][2], **error(INCOMPLETE))
        self.assertIn("permit", str(self.failureResultOf(refused, Unavailable).value))
        self.connection.answer(0, 1)
        self.assertEqual(self.successResultOf(later), (1, False))
        self.commit(2)
        self.assertEqual(self.successResultOf(other), [(2, False)])
        self.settled()

    def test_a_message_is_reported_or_answered_in_any_order(self) -> None:
        refused, words = self.store(A, A, A), f'permissions violation for publish to "{A.subject}"'
        batch = self.connection.take()
        # The permission ended after the first message; the server answers it later.
        self.assertTrue(self.atomic.denied(words) and self.atomic.denied(words))
        self.assertNoResult(refused)
        reply(batch[0][2])
        self.failureResultOf(refused, Unavailable)
        self.settled()

    def test_a_batch_whose_end_is_not_permitted_is_dropped(self) -> None:
        refused, words = self.store(A, B), f'permissions violation for publish to "{B.subject}"'
        batch = self.connection.take()
        reply(batch[0][2])
        self.assertTrue(self.atomic.denied(words))
        self.failureResultOf(refused, Unavailable)
        ((subject, fields, to),) = self.connection.sent
        self.assertEqual((subject, to), (A.subject, ""))
        self.assertEqual(fields["Nats-Batch-Id"], batch[0][1]["Nats-Batch-Id"])
        self.assertGreater(int(fields["Nats-Batch-Sequence"]), 2)
        # No server stores it, whether it knows batches or not.
        self.assertNotIn("Nats-Batch-Commit", fields)
        self.assertIn("Nats-Rollup", fields)
        self.settled()

    def test_a_batch_that_has_ended_or_never_began_is_not_dropped(self) -> None:
        for refused, words in ((self.store(A, B), A), (self.store(B, B), B)):
            for subject, _, answer in self.connection.take():
                if subject == words.subject:
                    self.assertTrue(
                        self.atomic.denied(f'permissions violation for publish to "{words.subject}"')
                    )
                else:
                    reply(answer, **error(INCOMPLETE))
            self.failureResultOf(refused, Unavailable)
        self.assertEqual(self.connection.sent, [])
        self.settled()

    def test_whoever_gives_up_disturbs_nothing(self) -> None:
        answer = self.store(A, A)
        answer.addErrback(lambda failure: None)
        answer.cancel()
        self.commit(2)
        self.settled()

    def test_too_many_that_wait_are_refused(self) -> None:
        self.atomic._places = Places(4)
        first = self.store(A, A, A)
        self.failureResultOf(self.store(B, B), Unavailable)
        self.commit(3)
        self.successResultOf(first)
        # A larger list is accepted if nothing waits.
        large = self.store(*[A] * 9)
        self.commit(12)
        self.successResultOf(large)
        self.settled()

    def test_a_workspace_with_many_lists_leaves_room_for_others(self) -> None:
        self.atomic._places = Places(10)
        first = self.store(A, A, A, A)
        second = self.store(B, B, B, B)
        self.failureResultOf(self.store(A), Unavailable)
        other = self.store(chat(2, 1))
        self.failureResultOf(self.store(chat(2, 1), A), Unavailable)
        asked = self.connection.take()
        for batch, last in ((asked[:4], 4), (asked[4:8], 8), (asked[8:], 9)):
            self.commit(last, batch)
        for answer in (first, second, other):
            self.successResultOf(answer)
        self.settled()

    def test_a_list_queues_behind_a_flood_of_its_workspace_only(self) -> None:
        self.publisher._places = Places(10)
        flood = [self.publisher.publish(t, chat_payload(t), None, "") for t in (chat(1, n) for n in range(8))]
        self.failureResultOf(self.store(A, B), Unavailable)
        other = self.store(chat(2, 1))
        self.commit(1)
        self.successResultOf(other)
        self.publisher.abort()
        for answer in flood:
            self.failureResultOf(answer, Unknown)
        self.settled()
