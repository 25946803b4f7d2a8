"""The two ends of a link: questions and answers, failures, and bounds."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify import topics
from notify.errors import HistoryLost, Unavailable
from notify.messages import Poison
from notify.workers import frames
from notify.workers.frames import Do, Document, Follow, Hurry, Lost, Ping, Pong, Scrape, Splitter, pack
from notify.workers.link import Link
from tests.workers.joined import Joined

TOPIC = topics.chat(1, "room-7")


class Frames(SynchronousTestCase):
    def test_messages_are_found_in_whatever_pieces_they_come(self) -> None:
        said = [Ping(), Lost(TOPIC), frames.Call(7, Follow(TOPIC)), Hurry()]
        data = b"".join(map(pack, said))
        for piece in range(1, len(data) + 1):
            splitter, found = Splitter(), []
            for at in range(0, len(data), piece):
                found += splitter.feed(data[at : at + piece])
            self.assertEqual(found, said)

    def test_what_is_no_message_is_an_error(self) -> None:
        self.assertRaises(ValueError, Splitter().feed, b"\xff\xff\xff\xff")
        self.assertRaises(ValueError, Splitter().feed, b"\0\0\0\1\xc1")
        self.assertRaises(ValueError, Splitter().feed, b"\0\0\0\1\x90")


class Links(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.joined = Joined(self.clock)
        self.head, self.worker = self.joined.head, self.joined.worker

    def turns(self) -> None:
        for _ in range(10):
            self.clock.advance(0)

    def test_what_is_said_in_one_turn_goes_out_in_one_piece_and_in_order(self) -> None:
        written: list[bytes] = []
        self.head._write = written.append
        self.head.say(Ping())
        self.head.say(Lost(TOPIC))
        self.assertEqual(written, [])
        self.turns()
        self.assertEqual(written, [pack(Ping()) + pack(Lost(TOPIC))])

    def test_an_answer_finds_its_question(self) -> None:
        answers: dict[str, Deferred[Document]] = {"a": Deferred(), "b": Deferred()}
        self.worker.answer(Do, lambda asked: answers[asked.command])
        one, other = self.head.ask(Do("a", b"")), self.head.ask(Do("b", b""))
        self.turns()
        answers["b"].callback(Document(b"2"))
        self.turns()
        self.assertNoResult(one)
        self.assertEqual(self.successResultOf(other), Document(b"2"))
        answers["a"].callback(Document(b"1"))
        self.turns()
        self.assertEqual(self.successResultOf(one), Document(b"1"))

    def test_what_is_raised_there_is_raised_here_and_what_is_not_meant_to_be_is_logged(self) -> None:
        for error, expected in (
            (HistoryLost("too old"), HistoryLost),
            (Poison("not valid"), Poison),
            (RuntimeError("a secret"), Unavailable),
        ):

            def fail(_: object, error: Exception = error) -> None:
                raise error

            self.worker.answer(Scrape, fail)
            asked = self.head.ask(Scrape())
            self.turns()
            failure = self.failureResultOf(asked, expected)
            self.assertNotIn("secret", str(failure.value))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_question_that_nobody_answers_is_refused(self) -> None:
        asked = self.head.ask(Scrape())
        self.turns()
        self.failureResultOf(asked, Unavailable)

    def test_who_has_no_interest_any_more_is_told_of(self) -> None:
        cancelled: list[bool] = []
        self.worker.answer(Scrape, lambda _: Deferred(lambda _: cancelled.append(True)))
        asked = self.head.ask(Scrape())
        self.turns()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.turns()
        self.assertEqual(cancelled, [True])
        self.assertTrue(self.head.alive and self.worker.alive)

    def test_when_one_end_is_gone_nobody_waits(self) -> None:
        cancelled: list[bool] = []
        self.worker.answer(Scrape, lambda _: Deferred(lambda _: cancelled.append(True)))
        asked = self.head.ask(Scrape())
        self.turns()
        self.joined.end("killed")
        self.failureResultOf(asked, Unavailable)
        self.failureResultOf(self.head.ask(Scrape()), Unavailable)
        self.assertEqual(cancelled, [True])
        self.head.say(Ping())
        self.turns()

    def test_an_end_that_does_not_read_is_given_up(self) -> None:
        self.head.hold()
        heard: list[object] = []
        self.worker.hear(Lost, heard.append)
        packed = pack(Lost(TOPIC))
        fits = 2**20 // len(packed)
        for _ in range(fits):
            self.head.send(packed)
        self.assertEqual(self.joined.ended, [])
        self.head.send(packed)
        self.assertFalse(self.head.alive)
        self.turns()
        self.assertEqual(self.joined.ended, ["it does not read what it is told"])
        self.assertEqual(heard, [])

    def test_what_waited_goes_out_once_it_reads_again(self) -> None:
        heard: list[object] = []
        self.worker.hear(Pong, heard.append)
        self.head.hold()
        self.head.say(Pong())
        self.turns()
        self.assertEqual(heard, [])
        self.head.go_on()
        self.turns()
        self.assertEqual(heard, [Pong()])

    def test_large_answers_get_their_turn_however_much_else_is_queued(self) -> None:
        link = Link(lambda data: link.hold(), self.clock.callLater, self.joined.end, 256_000)
        link.hold()
        made: list[int] = []
        for number in range(3):

            def make(_: None, number: int = number) -> None:
                made.append(number)
                link.say(frames.Reply(number, Document(b"x" * 600)))

            link.writable().addCallback(make)
        for number in range(3):
            link.say(Pong())
            link.go_on()  # it takes what was queued, but never all that is written to it then
            self.assertEqual(made, list(range(number + 1)))
            self.assertFalse(link.behind)

    def test_what_comes_together_is_taken_before_what_is_to_be_done_at_its_end(self) -> None:
        done: list[object] = []

        def heard(said: object) -> None:
            if not done:
                self.worker.at_end(lambda: at_end("first"))
            done.append(type(said))

        def at_end(what: str) -> None:
            done.append(what)
            # A callback that keeps adding others leaves room for other work.
            following = {"first": "second", "second": "later"}.get(what)
            if following is not None:
                self.worker.at_end(lambda: at_end(following))

        self.worker.hear(Pong, heard)
        self.worker.hear(Lost, heard)
        self.worker.received(pack(Pong()) + pack(Lost(TOPIC)))
        self.assertEqual(done, [Pong, Lost, "first", "second"])
        self.turns()
        self.assertEqual(done, [Pong, Lost, "first", "second", "later"])

    def test_what_fails_at_its_end_is_logged_and_ends_nothing(self) -> None:
        done: list[str] = []

        def heard(said: object) -> None:
            self.worker.at_end(lambda: [][1])
            self.worker.at_end(lambda: done.append("other"))

        self.worker.hear(Pong, heard)
        self.worker.received(pack(Pong()))
        self.assertEqual((done, self.worker.alive), (["other"], True))
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)

    def test_what_cannot_be_understood_ends_it(self) -> None:
        self.worker.received(b"\0\0\0\1\xc1")
        self.assertEqual(self.joined.ended, ["what it says cannot be understood"])
