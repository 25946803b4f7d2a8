"""The fair queue."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.fair import FairQueue
from notify.errors import Unavailable


class Fairness(SynchronousTestCase):
    def setUp(self) -> None:
        self.queue: FairQueue[str] = FairQueue(2, 10)
        self.running: list[tuple[str, Deferred[str]]] = []

    def ask(self, key: str, what: str) -> Deferred[str]:
        def work() -> Deferred[str]:
            done: Deferred[str] = Deferred()
            self.running.append((what, done))
            return done

        return self.queue.do(key, what, work)

    def finish(self, index: int = 0) -> None:
        what, done = self.running.pop(index)
        done.callback(what.upper())

    def names(self) -> list[str]:
        return [what for what, _ in self.running]

    def test_no_more_run_at_once_than_allowed(self) -> None:
        for n in range(4):
            self.ask("a", f"a{n}")
        self.assertEqual((self.names(), self.queue.waiting), (["a0", "a1"], 2))
        self.finish()
        self.assertEqual((self.names(), self.queue.waiting), (["a1", "a2"], 1))

    def test_tenants_take_turns_however_many_one_of_them_asks_for(self) -> None:
        for n in range(6):
            self.ask("a", f"a{n}")
        self.ask("b", "b0")
        self.ask("c", "c0")
        order = []
        while self.running:
            order.append(self.running[0][0])
            self.finish()
        self.assertEqual(order, ["a0", "a1", "a2", "b0", "c0", "a3", "a4", "a5"])

    def test_the_same_read_is_done_once_for_all(self) -> None:
        answers = [self.ask("a", "x"), self.ask("a", "x")]
        self.assertEqual(self.names(), ["x"])
        answers.append(self.ask("a", "x"))
        self.finish()
        self.assertEqual([self.successResultOf(answer) for answer in answers], ["X"] * 3)
        self.ask("a", "x")
        self.assertEqual(self.names(), ["x"])

    def test_a_failure_is_everybodys_and_the_next_is_run(self) -> None:
        first, second = self.ask("a", "x"), self.ask("a", "x")
        self.ask("a", "y")
        self.ask("a", "z")
        self.running.pop(0)[1].errback(ZeroDivisionError())
        self.failureResultOf(first, ZeroDivisionError)
        self.failureResultOf(second, ZeroDivisionError)
        self.assertEqual(self.names(), ["y", "z"])

    def test_who_gives_up_does_not_disturb_the_others(self) -> None:
        first, second = self.ask("a", "x"), self.ask("a", "x")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.finish()
        self.assertEqual(self.successResultOf(second), "X")

    def test_work_that_nobody_waits_for_any_more_is_not_begun(self) -> None:
        self.ask("a", "x")
        self.ask("a", "y")
        unwanted = self.ask("a", "unwanted")
        unwanted.cancel()
        self.failureResultOf(unwanted, CancelledError)
        self.ask("a", "z")
        self.finish()
        self.assertEqual(self.names(), ["y", "z"])

    def test_more_than_the_bound_do_not_wait(self) -> None:
        for n in range(12):
            self.ask("a", f"a{n}")
        self.failureResultOf(self.ask("b", "one more"), Unavailable)

    def test_stopping_answers_all(self) -> None:
        answers = [self.ask("a", f"a{n}") for n in range(4)]
        self.queue.stop()
        for answer in answers:
            self.failureResultOf(answer, Unavailable)
