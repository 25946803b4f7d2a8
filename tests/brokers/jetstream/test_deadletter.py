"""Dead letters wait for their turn, within bounds, and none is forgotten."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.deadletter import DeadLetters
from notify.errors import TooLarge, Unavailable
from notify.nats import headers
from notify.nats.asking import Reply
from notify.observe.metrics import Metrics


class FakeConnection:
    """Requests stay open until they are answered."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []
        self.open: list[Deferred[Reply]] = []
        self.max_payload = 0
        self.away = False

    def request(self, subject: str, payload: bytes, timeout: Any, fields: dict[str, str]) -> Deferred[Reply]:
        if self.away:
            return fail(Unavailable("away"))
        try:
            headers.check_size(payload, fields, self.max_payload)
        except TooLarge:
            return fail()
        self.asked.append((subject, payload, fields))
        self.open.append(Deferred())
        return self.open[-1]

    def answer(self, **body: Any) -> None:
        """Answer the oldest request."""
        self.open.pop(0).callback(Reply(msgspec.json.encode(body), b""))


class Keeping(SynchronousTestCase):
    def setUp(self) -> None:
        self.connection, self.metrics = FakeConnection(), Metrics()
        self.letters = DeadLetters(self.connection, "dead.M", self.metrics)

    def keep(self, *numbers: int, payload: bytes = b"x") -> None:
        for number in numbers:
            self.letters.keep("e", "a.subject", number, payload, "a reason")

    def numbers(self) -> list[int]:
        return [int(subject.rpartition(".")[2]) for subject, _, _ in self.connection.asked]

    def count(self, result: str) -> float:
        return float(self.metrics.dead_letters.labels(result)._value.get())

    def answer_all(self) -> None:
        while self.connection.open:
            self.connection.answer(seq=1)

    def test_those_that_come_at_once_wait_and_are_all_kept(self) -> None:
        self.keep(*range(1, 501), *range(1, 501))
        self.assertEqual(self.numbers(), list(range(1, 65)))
        self.answer_all()
        self.assertEqual(self.numbers(), list(range(1, 501)))
        self.assertEqual((self.count("kept"), self.count("failed")), (500, 0))
        self.assertEqual(self.metrics.poison._value.get(), 500)

    def test_what_does_not_fit_is_counted_and_kept_when_it_is_met_again(self) -> None:
        self.keep(*range(1, 1101))
        self.assertEqual((self.count("failed"), self.metrics.poison._value.get()), (76, 1024))
        self.answer_all()
        self.keep(*range(1, 1101))
        self.answer_all()
        self.assertEqual(self.numbers(), list(range(1, 1101)))
        self.assertEqual((self.count("kept"), self.metrics.poison._value.get()), (1100, 1100))

    def test_they_are_bounded_in_bytes(self) -> None:
        self.keep(*range(1, 21), payload=b"x" * (1 << 20))
        self.assertEqual((len(self.numbers()), self.count("failed")), (8, 12))
        self.answer_all()
        self.keep(21, payload=b"x" * (9 << 20))
        self.keep(22)
        self.assertEqual((self.numbers()[-1], self.count("failed")), (21, 13))
        self.answer_all()
        self.keep(22)
        self.assertEqual(self.numbers()[-1], 22)

    def test_while_nats_is_away_each_fails_and_is_tried_again_when_it_is_met(self) -> None:
        self.keep(1)
        self.keep(*range(2, 1001))
        self.connection.away = True
        for one in list(self.connection.open):
            one.errback(Unavailable("lost"))
        self.connection.open.clear()
        self.assertEqual(self.count("failed"), 1000)
        self.connection.away = False
        self.keep(1)
        self.assertEqual(self.numbers()[-1], 1)

    def test_one_that_is_kept_already_is_known_and_no_other_refusal_counts_as_that(self) -> None:
        self.keep(1, 2)
        self.connection.answer(error={"err_code": 10071})
        self.connection.answer(error={"err_code": 10077})
        self.assertEqual((self.count("known"), self.count("failed")), (1, 1))
        self.keep(1, 2)
        self.assertEqual(self.numbers(), [1, 2, 2])

    def test_one_that_is_too_large_with_its_headers_is_kept_without_its_payload(self) -> None:
        self.connection.max_payload = 1000
        self.keep(1, payload=b"x" * 990)
        ((_, payload, fields),) = self.connection.asked
        self.assertEqual((payload, fields["Notify-Size"]), (b"", "990"))
        self.assertEqual(fields["Notify-Sequence"], "1")
        self.answer_all()
        self.assertEqual(self.count("kept"), 1)
