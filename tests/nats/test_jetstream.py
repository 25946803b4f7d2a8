"""Requests about streams to JetStream, and how the answers are read; without a server."""

from __future__ import annotations

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from notify.errors import Unavailable
from notify.nats.asking import Reply
from notify.nats.jetstream import ApiError, JetStream, covers, differences


class Answers:
    """A connection that gives these answers, one after another."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def request(self, subject: str, payload: bytes, timeout: float | None = None) -> Deferred[Reply]:
        return succeed(Reply(msgspec.json.encode(self.answers.pop(0)), b""))


class Messages(SynchronousTestCase):
    def ask(self, *answers: object) -> Deferred[object]:
        jetstream = JetStream(Answers(*answers), 1.0, manage=False)
        return Deferred.fromCoroutine(jetstream.message("S", {"seq": 3}))

    def test_one_that_is_not_there_is_none(self) -> None:
        there = {"message": {"seq": 3}}
        self.assertEqual(self.successResultOf(self.ask(there)), {"seq": 3})
        self.assertIsNone(self.successResultOf(self.ask({"error": {"err_code": 10037}})))
        self.failureResultOf(self.ask({"error": {"err_code": 10059}}), ApiError)

    def test_an_answer_with_neither_message_nor_error_is_asked_for_again(self) -> None:
        self.assertEqual(self.successResultOf(self.ask({}, {}, {"message": {"seq": 3}})), {"seq": 3})
        self.failureResultOf(self.ask({}, {}, {}), Unavailable)


class Streams(SynchronousTestCase):
    def test_which_patterns_cover_which(self) -> None:
        for pattern, subject in (("a.>", "a.b"), ("a.*", "a.b"), ("a.*.c", "a.*.c"), (">", "a.*")):
            self.assertTrue(covers(pattern, subject), (pattern, subject))
        for pattern, subject in (
            ("a.>", "a"),
            ("a.b", "a.*"),
            ("a.*", "a.>"),
            ("a.*", "a.b.c"),
            ("a.b.c", "a.b"),
        ):
            self.assertFalse(covers(pattern, subject), (pattern, subject))

    def test_what_differs_is_named_with_both_values(self) -> None:
        asked = {"subjects": ["b", "a"], "max_age": 5, "republish": {"src": ">", "dest": "live.x.>"}}
        have = {"subjects": ["a", "b"], "max_age": 5, "republish": {"dest": "live.x.>"}, "storage": "file"}
        self.assertEqual(differences(asked, have), [])
        self.assertEqual(differences(asked, have | {"max_age": 6}), ["max_age is 6, not 5"])
        self.assertEqual(len(differences(asked, {})), 3)
