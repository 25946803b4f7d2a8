"""The window of publishes, without NATS and with a moved clock."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.publisher import Publisher
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.config import Duration
from notify.errors import TooLarge, Unavailable, Unknown
from notify.messages import Poison
from notify.nats import headers
from notify.nats.asking import Reply
from notify.testing import chat_payload
from notify.topics import Topic, chat

A, B = chat(1, 1), chat(1, 2)


class FakeConnection:
    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, str], str]] = []
        self.handlers: dict[bytes, Callable[[Reply], None]] = {}
        self.max_payload = 0

    def expect(self, handler: Callable[[Reply], None]) -> tuple[bytes, str]:
        token = b"%d" % len(self.handlers)
        self.handlers[token] = handler
        return token, token.decode()

    def forget(self, token: bytes) -> None:
        self.handlers[token] = lambda reply: None

    def publish(self, subject: str, payload: bytes, reply: str = "", fields: Any = None) -> None:
        headers.check_size(payload, fields, self.max_payload)
        self.sent.append((subject, fields, reply))

    def answer(self, index: int, seq: int = 0, block: bytes = b"", **more: Any) -> None:
        body = b"" if block else msgspec.json.encode({"stream": "MESSAGES", "seq": seq, **more})
        self.handlers[self.sent[index][2].encode()](Reply(body, block))


class Publishing(SynchronousTestCase):
    def setUp(self) -> None:
        self.make()

    def make(self, **settings: Any) -> None:
        self.clock, self.connection = Clock(), FakeConnection()
        all_settings = JetStreamSettings(
            **({"publish_patience": Duration(15), "request_timeout": Duration(2)} | settings)
        )
        self.publisher = Publisher(all_settings, self.connection, self.clock, Random(1))
        self.publisher.open()

    def publish(
        self, topic: Topic = A, key: str | None = None, trace: str = ""
    ) -> Deferred[tuple[int, bool]]:
        return self.publisher.publish(topic, chat_payload(topic), key, trace)

    def ids(self) -> list[str]:
        return [fields["Nats-Msg-Id"] for _, fields, _ in self.connection.sent]

    def test_what_is_accepted_has_its_number(self) -> None:
        answer = self.publish(trace="00-a")
        self.assertNoResult(answer)
        subject, fields, _ = self.connection.sent[0]
        self.assertEqual((subject, fields["traceparent"]), (A.subject, "00-a"))
        self.connection.answer(0, 7)
        self.assertEqual(self.successResultOf(answer), (7, False))
        self.assertEqual((self.publisher.pending, self.clock.getDelayedCalls()), (0, []))

    def test_a_key_counts_within_its_topic_and_may_be_any_text(self) -> None:
        for topic, key in ((A, "k"), (A, "k"), (B, "k"), (A, "x\r\ny \ud800"), (A, None), (A, None)):
            self.publish(topic, key)
            self.connection.answer(-1, 1)
        ids = self.ids()
        self.assertEqual(ids[0], ids[1])
        self.assertEqual(len(set(ids)), 5)
        self.assertTrue(all(one.isascii() and "\r" not in one for one in ids))

    def test_poison_is_refused_and_not_sent(self) -> None:
        self.assertRaises(Poison, self.publisher.publish, A, b"{}", None, "")
        self.assertEqual(self.connection.sent, [])

    def test_what_the_server_never_takes_is_refused_unsent_and_the_next_goes_on(self) -> None:
        self.publish()
        # With room for the message that it will name as the one before it.
        needed = headers.size(chat_payload(A), self.connection.sent[0][1] | {headers.AFTER: "x" * 37})
        self.connection.answer(0, 1)
        self.connection.max_payload = needed - 1
        error = str(self.failureResultOf(self.publish(), TooLarge).value)
        self.assertIn(f"at most {needed - 1} bytes", error)
        self.assertIn(f"has {needed}", error)
        self.assertEqual((len(self.connection.sent), self.publisher.pending), (1, 0))
        self.connection.max_payload = needed
        answer = self.publish()
        self.connection.answer(1, 2)
        self.assertEqual(self.successResultOf(answer), (2, False))

    def test_what_a_later_server_never_takes_is_settled_at_once(self) -> None:
        self.make(publish_window=1, publish_queue=5000)
        topics = [chat(1, n) for n in range(2000)]
        sent, *waiting = [self.publish(topic) for topic in topics]
        self.publisher.close()
        self.connection.max_payload = 10
        self.publisher.open()
        self.failureResultOf(sent, Unknown)
        for answer in waiting:
            self.failureResultOf(answer, TooLarge)
        self.assertEqual((len(self.connection.sent), self.publisher.pending), (1, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_settled_while_all_is_sent_again_lets_nothing_overtake(self) -> None:
        self.make(publish_window=2)
        first, second, third = chat(1, 1), chat(1, 2), chat(1, 3)
        large = self.publisher.publish(first, chat_payload(first, content="x" * 1000), None, "")
        self.publish(second)
        self.publish(third)
        self.publisher.close()
        self.connection.max_payload = 1000
        self.publisher.open()
        self.assertEqual([s for s, _, _ in self.connection.sent[2:]], [second.subject, third.subject])
        self.failureResultOf(large, Unknown)

    def test_the_streams_own_bound_and_its_seal_are_told_in_words(self) -> None:
        for number, kind, words in (
            (10054, TooLarge, "max_msg_size of the stream MESSAGES"),
            (10109, Unavailable, "the stream MESSAGES is sealed"),
        ):
            answer = self.publish()
            self.connection.answer(-1, error={"code": 400, "err_code": number, "description": "x"})
            self.assertIn(words, str(self.failureResultOf(answer, kind).value))

    def test_one_topic_waits_for_its_own_and_topics_do_not_wait_for_each_other(self) -> None:
        answers = [self.publish(A), self.publish(A), self.publish(B)]
        self.assertEqual([subject for subject, _, _ in self.connection.sent], [A.subject, B.subject])
        self.connection.answer(0, 1)
        self.assertEqual(
            [subject for subject, _, _ in self.connection.sent], [A.subject, B.subject, A.subject]
        )
        self.connection.answer(2, 3)
        self.assertEqual(self.successResultOf(answers[1]), (3, False))

    def test_no_more_than_the_window_are_on_their_way(self) -> None:
        self.make(publish_window=2, publish_queue=2)
        answers = [self.publish(chat(1, n)) for n in range(5)]
        self.assertEqual(len(self.connection.sent), 2)
        self.failureResultOf(answers[4], Unavailable)
        self.connection.answer(0, 1)
        self.assertEqual(len(self.connection.sent), 3)

    def test_without_an_answer_it_is_sent_again_under_the_same_id_and_any_answer_counts(self) -> None:
        answer = self.publish()
        self.clock.advance(2)
        self.assertEqual(len(self.connection.sent), 2)
        self.assertEqual(*self.ids())
        self.connection.answer(0, 9)
        self.assertEqual(self.successResultOf(answer), (9, False))

    def test_after_its_patience_the_outcome_is_unknown(self) -> None:
        answer = self.publish()
        self.clock.pump([1.0] * 14)
        self.assertNoResult(answer)
        self.clock.advance(1.1)
        self.failureResultOf(answer, Unknown)
        self.assertEqual((self.publisher.pending, self.clock.getDelayedCalls()), (0, []))

    def test_of_a_list_that_is_given_up_the_last_are_not_sent_for_having_come_a_moment_later(self) -> None:
        answers = []
        for _ in range(103):  # in one turn, which takes its time
            answers.append(self.publisher.publish(A, chat_payload(A), None, ""))
            self.clock.rightNow += 0.001
        sent = set(self.ids())
        self.clock.pump([0.01] * 1600)
        self.assertEqual(set(self.ids()), sent)
        for number, answer in enumerate(answers):
            self.failureResultOf(answer, Unknown if number < len(sent) else Unavailable)
        self.assertEqual((self.publisher.pending, self.clock.getDelayedCalls()), (0, []))

    def test_where_nobody_takes_it_it_was_surely_not_stored(self) -> None:
        answer = self.publish()
        for _ in range(151):
            self.connection.answer(-1, block=b"NATS/1.0 503\r\n\r\n")
            self.clock.advance(0.1)
        self.assertGreater(len(self.connection.sent), 100)
        self.failureResultOf(answer, Unavailable)

    def test_a_refusal_that_passes_is_tried_again(self) -> None:
        answer = self.publish()
        self.connection.answer(
            0, error={"code": 503, "err_code": 10008, "description": "temporarily unavailable"}
        )
        self.clock.advance(0.1)
        self.connection.answer(1, 4)
        self.assertEqual(self.successResultOf(answer), (4, False))

    def test_a_refusal_is_an_answer_and_the_next_of_the_topic_goes_on(self) -> None:
        first, second = self.publish(), self.publish()
        self.connection.answer(
            0, error={"code": 503, "err_code": 10077, "description": "maximum bytes exceeded"}
        )
        self.assertIn("maximum bytes", str(self.failureResultOf(first, Unavailable).value))
        self.connection.answer(1, 5)
        self.assertEqual(self.successResultOf(second), (5, False))

    def test_a_refusal_after_an_attempt_without_an_answer_says_nothing_of_the_first(self) -> None:
        answer = self.publish()
        self.clock.advance(2)
        self.connection.answer(
            1, error={"code": 503, "err_code": 10077, "description": "maximum bytes exceeded"}
        )
        self.failureResultOf(answer, Unknown)

    def test_a_new_connection_is_sent_what_was_on_its_way_under_the_same_ids_and_in_order(self) -> None:
        answers = [self.publish(A), self.publish(B)]
        before = self.ids()
        self.publisher.close()
        self.clock.advance(5)
        self.assertEqual(len(self.connection.sent), 2)
        self.publisher.open()
        self.assertEqual(self.ids()[2:], before)
        self.connection.answer(2, 1)
        self.connection.answer(3, 2, duplicate=True)
        self.assertEqual([self.successResultOf(a) for a in answers], [(1, False), (2, True)])

    def test_while_there_is_no_connection_nothing_is_taken_and_what_waits_does_so_within_its_patience(
        self,
    ) -> None:
        sent, waiting, later = self.publish(), self.publish(), self.publish(B)
        self.publisher.close()
        self.failureResultOf(self.publish(), Unavailable)
        self.clock.pump([0.5] * 29)
        self.assertNoResult(waiting)
        self.clock.pump([0.5] * 3)
        self.failureResultOf(sent, Unknown)
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(later, Unknown)
        self.assertEqual((self.publisher.pending, self.clock.getDelayedCalls()), (0, []))

    def test_what_waited_while_there_was_no_connection_goes_out_behind_what_was_sent(self) -> None:
        self.make(publish_window=1)
        answers = [self.publish(A), self.publish(A), self.publish(B)]
        self.publisher.close()
        self.clock.advance(3)
        self.publisher.open()
        for index in (1, 2, 3):
            self.connection.answer(index, index)
        self.assertEqual([self.successResultOf(a)[0] for a in answers], [1, 3, 2])
        self.assertEqual((self.publisher.pending, self.clock.getDelayedCalls()), (0, []))

    def test_giving_up_answers_all(self) -> None:
        sent, waiting = self.publish(), self.publish()
        self.publisher.abort()
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(sent, Unknown)
        self.assertEqual((self.publisher.pending, self.clock.getDelayedCalls()), (0, []))

    def test_a_missing_permission_is_an_answer(self) -> None:
        answer = self.publish()
        words = f'permissions violation for publish to "{A.subject}"'
        self.assertTrue(self.publisher.denied(words))
        self.assertIn("permit", str(self.failureResultOf(answer, Unavailable).value))
        self.assertFalse(self.publisher.denied(words))

    def test_draining_waits_for_all(self) -> None:
        self.publish()
        self.publish()
        done = self.publisher.drain()
        self.connection.answer(0, 1)
        self.assertNoResult(done)
        self.connection.answer(1, 2)
        self.successResultOf(done)
