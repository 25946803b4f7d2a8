"""The window of publishes, without NATS and with a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from random import Random
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.publisher import Publisher
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.stream import Together
from notify.config import Duration
from notify.errors import TooLarge, Unavailable, Unknown
from notify.messages import Poison
from notify.nats import headers
from notify.nats.asking import Reply
from notify.testing import chat_payload
from notify.topics import Topic, chat

A, B = chat(1, 1), chat(1, 2)


class FakeConnection:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[tuple[str, dict[str, str], str]] = []
        self.handlers: dict[bytes, Callable[[Reply], None]] = {}
        self.max_payload = 0
        self.gathering = nullcontext()

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
        self.clock = Clock()
        self.connection = FakeConnection(self.clock)
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

    def test_workspaces_take_turns_and_what_one_publishes_keeps_its_order(self) -> None:
        self.make(publish_window=1)
        for topic in (chat(1, 1), chat(1, 2), chat(1, 3), chat(1, 1), chat(2, 1), chat(3, 1), chat(2, 2)):
            self.publish(topic)
        for number in range(7):
            self.connection.answer(number, number + 1)
        sent = [subject for subject, _, _ in self.connection.sent]
        order = [(1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (2, 2), (1, 1)]
        self.assertEqual(sent, [chat(*ids).subject for ids in order])
        self.assertEqual(self.publisher.pending, 0)

    def test_poison_is_refused_and_not_sent(self) -> None:
        self.assertRaises(Poison, self.publisher.publish, A, b"{}", None, "")
        self.assertEqual(self.connection.sent, [])

    def test_what_the_server_never_takes_is_refused_unsent_and_the_next_goes_on(self) -> None:
        self.publish()
        # Includes room for the header that will name the message before it.
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
        self.clock.advance(0)
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

    def test_a_workspace_that_floods_leaves_room_for_others(self) -> None:
        self.make(publish_window=2, publish_queue=98)
        flood = [self.publish(chat(1, n)) for n in range(200)]
        self.assertEqual(self.publisher.pending, 80)
        for answer in flood[80:]:
            self.failureResultOf(answer, Unavailable)
        others = [self.publish(chat(2, n)) for n in range(10)]
        for answer in others:
            self.assertNoResult(answer)
        # Whatever becomes of the messages, their places are free again.
        self.connection.answer(0, 1)
        self.publisher.close()
        self.clock.pump([1.0] * 16)
        for answer in [*flood[1:80], *others]:
            self.failureResultOf(answer, Unavailable, Unknown)
        self.assertEqual(self.publisher.pending, 0)
        self.publisher.open()
        last = self.publish(chat(1, 1))
        self.publisher.abort()
        self.failureResultOf(last, Unknown)
        self.assertEqual((self.publisher.pending, self.publisher._places._of), (0, {}))

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
        for _ in range(103):  # in one turn, during which time passes
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

    def test_where_the_leader_could_not_write_it_the_outcome_is_unknown(self) -> None:
        # nats-server 2.12.8, whose disk is full: the other copies of the stream may have the message.
        answer = self.publish()
        self.connection.answer(
            0, error={"code": 503, "err_code": 10077, "description": "write 1.blk: no space left on device"}
        )
        self.assertIn("no space left", str(self.failureResultOf(answer, Unknown).value))
        self.assertEqual((self.publisher.pending, self.clock.getDelayedCalls()), (0, []))

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

    def test_what_was_sent_before_the_permission_ended_may_be_stored(self) -> None:
        answer = self.publish()
        self.clock.advance(2)
        self.assertEqual(len(self.connection.sent), 2)
        self.assertTrue(self.publisher.denied(f'permissions violation for publish to "{A.subject}"'))
        self.failureResultOf(answer, Unknown)

    def test_draining_waits_for_all(self) -> None:
        self.publish()
        self.publish()
        done = self.publisher.drain()
        self.connection.answer(0, 1)
        self.assertNoResult(done)
        self.connection.answer(1, 2)
        self.successResultOf(done)


class _Together(Publishing):
    """Messages for a topic that wait for the one in front of them, and go out together once that is settled."""

    together: Together

    def make(self, **settings: Any) -> None:
        super().make(**settings)
        self.publisher.together = self.together
        self.publisher.after = lambda topic, directly: "e.-1" if directly else "e.5"
        self.told: list[tuple[int, str]] = []
        self.publisher.stored = lambda seq, message: self.told.append((seq, message))

    def list(self, count: int, topic: Topic = A, **more: Any) -> list[Deferred[tuple[int, bool]]]:
        """Publish this many messages that go out together. The settled message in front of them leaves no trace."""
        front = None if topic in self.publisher._behind else self.publish(topic)
        answers = [
            self.publisher.publish(topic, chat_payload(topic, n, **more), f"k{n}", "") for n in range(count)
        ]
        if front is not None:
            _, _, reply = self.connection.sent.pop()
            self.connection.handlers[reply.encode()](Reply(b'{"stream": "MESSAGES", "seq": 1}', b""))
            self.assertEqual((self.successResultOf(front), self.told.pop()[0]), ((1, False), 1))
        return answers

    def expected(self) -> list[str | None]:
        return [fields.get("Nats-Expected-Last-Msg-Id") for _, fields, _ in self.connection.sent]

    def error(self, index: int, number: int) -> None:
        self.connection.answer(
            index, error={"code": 400, "err_code": number, "description": f"error {number}"}
        )

    def settled(self, answers: list[Deferred[tuple[int, bool]]], numbers: list[int]) -> None:
        """Assert that all are accepted with these numbers, and nothing is left."""
        self.assertEqual([self.successResultOf(one)[0] for one in answers], numbers)
        self.assertEqual((self.publisher.pending, self.publisher._flown), (0, 0))
        self.assertEqual((self.clock.getDelayedCalls(), self.publisher._behind), ([], {}))


class Chained(_Together):
    together = Together.CHAINED

    def test_what_waits_goes_out_at_once_and_each_names_the_one_before_it(self) -> None:
        answers = self.list(3)
        ids = self.ids()
        self.assertEqual(self.expected(), [None, ids[0], ids[1]])
        self.assertEqual([f[headers.AFTER] for _, f, _ in self.connection.sent], ["e.5", "e.-1", "e.-1"])
        for index in (0, 1, 2):
            self.connection.answer(index, 7 + index)
        self.settled(answers, [7, 8, 9])
        self.assertEqual(self.told, [*zip([7, 8, 9], ids, strict=True)])

    def test_topics_go_out_by_themselves(self) -> None:
        answers = [one for pair in zip(self.list(2, A), self.list(2, B), strict=True) for one in pair]
        ids = self.ids()
        self.assertEqual([s for s, _, _ in self.connection.sent], [A.subject] * 2 + [B.subject] * 2)
        self.assertEqual(self.expected(), [None, ids[0], None, ids[2]])
        for index, seq in enumerate((1, 2, 3, 4)):
            self.connection.answer(index, seq)
        self.settled(answers, [1, 3, 2, 4])

    def test_what_comes_while_one_is_on_its_way_goes_out_together_behind_it(self) -> None:
        first = self.publish()
        later = self.list(2)
        self.assertEqual(len(self.connection.sent), 1)
        self.connection.answer(0, 1)
        self.assertEqual(len(self.connection.sent), 3)
        self.assertEqual(self.expected()[1], None)
        for index in (1, 2):
            self.connection.answer(index, 1 + index)
        self.settled([first, *later], [1, 2, 3])

    def test_where_others_came_in_between_the_rest_goes_out_once_all_is_answered_and_fewer_at_once(
        self,
    ) -> None:
        answers = self.list(5)
        ids = self.ids()
        self.connection.answer(0, 1)
        for index in (1, 2, 3):
            self.error(index, 10070)
        self.assertEqual(len(self.connection.sent), 5)
        self.error(4, 10070)
        self.assertEqual(self.ids()[5:], ids[1:])
        self.assertEqual(self.expected()[5:], [None, *ids[1:4]])
        self.assertEqual(self.publisher._most, 50)
        for index, seq in ((5, 3), (6, 4), (7, 5), (8, 6)):
            self.connection.answer(index, seq)
        self.settled(answers, [1, 3, 4, 5, 6])
        self.assertEqual(self.publisher._most, 100)

    def test_a_repeated_list_has_its_first_numbers_and_what_is_new_goes_behind(self) -> None:
        answers = self.list(3)
        self.connection.answer(0, 1, duplicate=True)
        self.connection.answer(1, 2, duplicate=True)
        self.error(2, 10070)
        self.assertEqual(self.expected()[3:], [None])
        self.connection.answer(3, 9)
        self.settled(answers, [1, 2, 9])

    def test_only_the_first_is_refused_for_good_the_others_get_their_own_turn(self) -> None:
        answers = self.list(3)
        self.connection.answer(0, 1)
        self.error(1, 10047)
        self.error(2, 10070)
        self.error(3, 10047)
        self.error(4, 10070)
        self.connection.answer(5, 2)
        self.assertEqual(self.successResultOf(answers[0]), (1, False))
        self.assertIn("error 10047", str(self.failureResultOf(answers[1], Unavailable).value))
        self.assertEqual(self.successResultOf(answers[2]), (2, False))

    def test_a_refusal_that_passes_holds_the_others_back_too(self) -> None:
        answers = self.list(2)
        self.error(0, 10008)
        self.error(1, 10070)
        self.assertEqual(len(self.connection.sent), 2)
        self.clock.advance(0.1)
        self.assertEqual(self.ids()[2:], self.ids()[:2])
        self.connection.answer(2, 1)
        self.connection.answer(3, 2)
        self.settled(answers, [1, 2])

    def test_only_silence_is_a_failure_and_then_the_rest_is_sent_again_in_order(self) -> None:
        answers = self.list(3)
        ids = self.ids()
        self.clock.advance(1.9)
        self.connection.answer(0, 1)
        self.clock.advance(1.9)
        self.assertEqual(len(self.connection.sent), 3)
        self.clock.advance(0.2)
        self.assertEqual((self.ids()[3:], self.expected()[3:]), (ids[1:], [None, ids[1]]))
        # A refusal says nothing about the attempt before it.
        self.error(3, 10077)
        self.failureResultOf(answers[1], Unknown)
        self.connection.answer(4, 3, duplicate=True)
        self.assertEqual(self.successResultOf(answers[2]), (3, True))

    def test_a_late_refusal_to_come_behind_another_says_nothing_of_who_is_the_first_now(self) -> None:
        answers = self.list(3)
        self.connection.answer(0, 1)
        self.clock.advance(2)
        self.error(1, 10070)
        self.assertNoResult(answers[1])
        self.connection.answer(3, 2)
        self.connection.answer(4, 3)
        self.settled(answers, [1, 2, 3])

    def test_no_more_than_the_window_are_on_their_way(self) -> None:
        self.make(publish_window=3, publish_queue=5)
        answers = [*self.list(2, A), *self.list(4, B), self.publish(B)]
        self.failureResultOf(self.publish(), Unavailable)
        self.assertEqual(len(self.connection.sent), 3)
        self.assertEqual(self.connection.sent[2][0], B.subject)
        for index in range(7):
            self.connection.answer(index, index + 1)
        self.settled(answers, [1, 2, 3, 4, 5, 6, 7])

    def test_what_has_no_room_to_name_another_goes_behind_it_alone(self) -> None:
        self.publish()
        fields = self.connection.sent[0][1]
        self.connection.answer(0, 1)
        room = headers.size(chat_payload(A, content="x" * 500), fields | {headers.AFTER: "x" * 37})
        self.connection.max_payload = room + 60
        answers = self.list(2, content="x" * 500)
        self.assertEqual(len(self.connection.sent), 2)
        self.connection.answer(1, 2)
        self.assertEqual(self.expected()[2:], [None])
        self.connection.answer(2, 3)
        self.settled(answers, [2, 3])

    def test_a_new_connection_is_sent_all_of_it_in_order(self) -> None:
        answers = self.list(3)
        ids = self.ids()
        self.connection.answer(0, 1)
        self.publisher.close()
        self.publisher.together = Together.NO
        self.publisher.open()
        self.assertEqual(self.ids()[3:], ids[1:2])
        self.connection.answer(3, 2, duplicate=True)
        self.connection.answer(4, 3)
        self.settled(answers, [1, 2, 3])

    def test_while_there_is_no_connection_patience_ends_for_each(self) -> None:
        early = self.list(2)
        self.clock.advance(1)
        self.publisher.close()
        self.clock.advance(1)
        for one in early:
            self.assertNoResult(one)
        self.clock.pump([0.5] * 40)
        for one in early:
            self.failureResultOf(one, Unknown)
        self.settled([], [])

    def test_what_was_not_sent_when_the_connection_went_was_surely_not_stored(self) -> None:
        self.make(publish_window=1)
        sent = self.publish(B)
        answers = [self.publish(), self.publish()]
        self.publisher.close()
        self.clock.pump([0.5] * 40)
        self.failureResultOf(sent, Unknown)
        for one in answers:
            self.failureResultOf(one, Unavailable)
        self.settled([], [])

    def test_giving_up_answers_each_of_a_list(self) -> None:
        sent = self.list(2)
        waiting = self.list(2)
        self.publisher.abort()
        for one in sent:
            self.failureResultOf(one, Unknown)
        for one in waiting:
            self.failureResultOf(one, Unavailable)
        self.settled([], [])

    def test_a_permission_that_ends_in_the_middle_concerns_those_without_an_answer(self) -> None:
        answers = self.list(3)
        words = f'permissions violation for publish to "{A.subject}"'
        # The server writes this immediately, and the answer to the first after it has stored it.
        self.assertTrue(self.publisher.denied(words) and self.publisher.denied(words))
        self.connection.answer(0, 7)
        self.assertEqual(self.successResultOf(answers[0]), (7, False))
        for one in answers[1:]:
            self.failureResultOf(one, Unavailable)
        self.settled([], [])

    def test_a_missing_permission_is_told_of_each_that_was_sent(self) -> None:
        answers = self.list(3)
        words = f'permissions violation for publish to "{A.subject}"'
        for one in answers:
            self.assertNoResult(one)
            self.assertTrue(self.publisher.denied(words))
        for one in answers:
            self.failureResultOf(one, Unavailable)
        self.assertFalse(self.publisher.denied(words))
        self.settled([], [])


class Batched(_Together):
    together = Together.BATCHED

    def batch(self) -> list[tuple[str, str | None]]:
        return [
            (fields["Nats-Batch-Sequence"], fields.get("Nats-Batch-Commit"))
            for _, fields, _ in self.connection.sent
            if "Nats-Batch-Id" in fields
        ]

    def acknowledge(self, seq: int, **more: Any) -> None:
        self.connection.answer(-1, seq, **more)

    def test_what_waits_is_one_batch_and_has_one_answer(self) -> None:
        answers = self.list(3)
        self.assertEqual(self.batch(), [("1", None), ("2", None), ("3", "1")])
        self.assertEqual([bool(reply) for _, _, reply in self.connection.sent], [False, False, True])
        self.assertEqual([f[headers.AFTER] for _, f, _ in self.connection.sent], ["e.5", "e.-1", "e.-1"])
        self.assertEqual(len({fields["Nats-Batch-Id"] for _, fields, _ in self.connection.sent}), 1)
        self.acknowledge(9, count=3, batch="x")
        self.settled(answers, [7, 8, 9])
        self.assertEqual(self.told, [*zip([7, 8, 9], self.ids(), strict=True)])

    def test_one_message_is_no_batch(self) -> None:
        answer = self.publish()
        self.assertEqual(self.batch(), [])
        self.acknowledge(4)
        self.settled([answer], [4])

    def one_by_one(self, answers: list[Deferred[tuple[int, bool]]], sent: int) -> None:
        """Assert that they are sent one by one from now on, without the headers of a batch."""
        ids = self.ids()[:3]
        for number in range(3):
            self.assertEqual(self.ids()[sent:], ids[: number + 1])
            self.assertNotIn("Nats-Batch-Id", self.connection.sent[-1][1])
            self.assertEqual(self.connection.sent[-1][1][headers.AFTER], "e.5")
            self.acknowledge(number + 1, duplicate=True)
        self.settled(answers, [1, 2, 3])

    def test_a_batch_with_something_that_is_there_goes_one_by_one(self) -> None:
        answers = self.list(3)
        self.error(-1, 10201)
        self.one_by_one(answers, 3)

    def test_a_batch_without_an_answer_goes_one_by_one(self) -> None:
        answers = self.list(3)
        self.clock.advance(2)
        self.assertTrue(all(flight.alone for flight in self.publisher._flying))
        self.one_by_one(answers, 3)

    def test_a_late_answer_to_a_batch_is_no_answer_to_one(self) -> None:
        answers = self.list(3)
        self.clock.advance(2)
        self.assertEqual(len(self.connection.sent), 4)
        self.connection.answer(2, 9, count=3)
        self.error(2, 10201)
        self.one_by_one(answers, 3)

    def test_a_new_connection_is_sent_them_one_by_one(self) -> None:
        answers = self.list(3)
        self.publisher.close()
        self.publisher.open()
        self.one_by_one(answers, 3)

    def test_where_nobody_takes_it_it_is_tried_later(self) -> None:
        answers = self.list(3)
        self.connection.answer(-1, block=b"NATS/1.0 503\r\n\r\n")
        self.assertEqual(len(self.connection.sent), 3)
        self.clock.advance(0.1)
        self.one_by_one(answers, 3)

    def test_a_batch_that_the_leader_could_not_write_may_be_stored(self) -> None:
        answers = self.list(2)
        self.error(-1, 10077)
        for _ in answers:
            self.error(-1, 10109)
        for answer in answers:
            self.failureResultOf(answer, Unknown)

    def test_a_server_that_knows_no_batches_is_asked_what_it_has(self) -> None:
        answers = self.list(3)
        self.acknowledge(3)
        self.assertEqual(self.publisher.together, Together.NO)
        self.one_by_one(answers, 3)

    def test_a_stream_that_takes_none_any_more_is_not_asked_again(self) -> None:
        answers = self.list(3)
        self.error(-1, 10174)
        self.one_by_one(answers, 3)
        self.list(2)
        self.assertEqual(len(self.connection.sent), 7)

    def test_a_list_with_a_message_that_has_no_room_goes_one_by_one(self) -> None:
        self.publish()
        fields = self.connection.sent[0][1]
        self.acknowledge(1)
        room = headers.size(chat_payload(A, content="x" * 500), fields | {headers.AFTER: "x" * 37})
        self.connection.max_payload = room + 60
        answers = self.list(2, content="x" * 500)
        self.assertEqual((len(self.connection.sent), self.batch()), (2, []))
        self.acknowledge(2)
        self.acknowledge(3)
        self.settled(answers, [2, 3])

    def test_a_permission_that_is_missing_is_told_of_each(self) -> None:
        answers = self.list(3)
        words = f'permissions violation for publish to "{A.subject}"'
        for one in answers:
            self.assertNoResult(one)
            self.assertTrue(self.publisher.denied(words))
        for one in answers:
            self.failureResultOf(one, Unavailable)
        self.assertFalse(self.publisher.denied(words))
        self.settled([], [])


del _Together
