"""The fair queue."""

from random import Random

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.fair import FairQueue, Places, Turns
from notify.errors import Unavailable


class Fairness(SynchronousTestCase):
    def setUp(self) -> None:
        self.queue: FairQueue[str] = FairQueue(8, 10)
        self.running: list[tuple[str, Deferred[str]]] = []
        self.cancelled: list[str] = []

    def ask(self, key: str, what: str) -> Deferred[str]:
        def work() -> Deferred[str]:
            done: Deferred[str] = Deferred(lambda _: self.cancelled.append(what))
            self.running.append((what, done))
            return done

        return self.queue.do(key, work)

    def finish(self, index: int = 0) -> None:
        what, done = self.running.pop(index)
        done.callback(what.upper())

    def names(self) -> list[str]:
        return [what for what, _ in self.running]

    def test_one_tenant_has_a_quarter_of_the_places(self) -> None:
        for n in range(4):
            self.ask("a", f"a{n}")
        self.assertEqual((self.names(), self.queue.waiting), (["a0", "a1"], 2))
        self.ask("b", "b0")
        self.assertEqual(self.names(), ["a0", "a1", "b0"])
        self.finish()
        self.assertEqual((self.names(), self.queue.waiting), (["a1", "b0", "a2"], 1))

    def test_no_more_run_at_once_than_allowed_and_tenants_take_turns(self) -> None:
        self.queue = FairQueue(2, 10)  # a quarter, but at least one place
        for n in range(4):
            self.ask("a", f"a{n}")
        for key in "bc":
            self.ask(key, f"{key}0")
        order = []
        while self.running:
            self.assertLessEqual(len(self.running), 2)
            order.append(self.running[0][0])
            self.finish()
        self.assertEqual(order, ["a0", "b0", "c0", "a1", "a2", "a3"])
        self.assertEqual((self.queue.waiting, self.queue.running), (0, 0))

    def test_each_gets_its_answer_and_a_failure_makes_room(self) -> None:
        first, second, third = (self.ask("a", what) for what in "xyz")
        self.running.pop(0)[1].errback(ZeroDivisionError())
        self.failureResultOf(first, ZeroDivisionError)
        self.assertEqual(self.names(), ["y", "z"])
        self.finish()
        self.assertEqual(self.successResultOf(second), "Y")
        self.assertNoResult(third)

    def test_who_gives_up_ends_what_runs_and_makes_room(self) -> None:
        first, _, third = (self.ask("a", what) for what in "xyz")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual((self.cancelled, self.queue.running, self.queue.waiting), (["x"], 2, 0))
        self.assertNoResult(third)

    def test_who_gives_up_while_waiting_is_never_begun(self) -> None:
        self.ask("a", "x")
        self.ask("a", "y")
        unwanted = self.ask("a", "unwanted")
        unwanted.cancel()
        self.failureResultOf(unwanted, CancelledError)
        self.assertEqual(self.queue.waiting, 0)
        self.ask("a", "z")
        self.finish()
        self.assertEqual(self.names(), ["y", "z"])

    def test_more_than_the_bound_do_not_wait(self) -> None:
        for n in range(12):
            self.ask("a", f"a{n}")
        self.failureResultOf(self.ask("b", "one more"), Unavailable)

    def test_stopping_answers_all_and_ends_what_runs(self) -> None:
        answers = [self.ask("a", f"a{n}") for n in range(4)]
        self.queue.stop()
        for answer in answers:
            self.failureResultOf(answer, Unavailable)
        self.assertEqual(self.cancelled, ["a0", "a1"])

    def test_any_order_of_asking_giving_up_and_finishing_keeps_the_bounds_and_ends(self) -> None:
        for seed in range(200):
            self.setUp()
            random, asked = Random(seed), list[Deferred[str]]()
            for n in range(60):
                choice = random.random()
                if choice < 0.5:
                    asked.append(self.ask(random.choice("abc"), str(n)))
                    asked[-1].addErrback(lambda failure: failure.trap(CancelledError, Unavailable))
                elif choice < 0.7 and asked:
                    random.choice(asked).cancel()
                    self.running = [(what, done) for what, done in self.running if not done.called]
                elif self.running:
                    self.finish(random.randrange(len(self.running)))
                self.assertLessEqual(self.queue.running, 8)
            while self.running:
                self.finish()
            self.assertEqual((self.queue.running, self.queue.waiting), (0, 0), f"seed {seed}")
            self.assertEqual([one.called for one in asked], [True] * len(asked))


class Queue(SynchronousTestCase):
    def test_workspaces_take_turns_and_each_keeps_its_order(self) -> None:
        turns = Turns[str]()
        self.assertFalse(turns)
        for workspace, one in ((1, "a"), (1, "b"), (1, "c"), (2, "d"), (3, "e"), (2, "f")):
            turns.add(workspace, one)
        self.assertEqual(list(turns), ["a", "b", "c", "d", "f", "e"])
        self.assertEqual([turns.next() for _ in range(4)], ["a", "d", "e", "b"])
        turns.add(3, "g")
        self.assertEqual([turns.next() for _ in range(3)], ["f", "c", "g"])
        self.assertFalse(turns)
        self.assertEqual(list(turns), [])


class Room(SynchronousTestCase):
    def setUp(self) -> None:
        self.places = Places(100)

    def fill(self, workspace: int) -> int:
        """Take places one by one, as long as there is room; returns how many that were."""
        count = 0
        while self.places.room(workspace):
            self.places.take(workspace)
            count += 1
        return count

    def test_one_alone_has_four_fifths_and_the_next_the_same_of_what_is_left(self) -> None:
        self.assertEqual([self.fill(workspace) for workspace in (1, 2, 3)], [80, 16, 4])
        self.assertEqual(self.places.taken, 100)

    def test_several_that_take_all_they_can_leave_room_for_the_next(self) -> None:
        for _ in range(100):
            for workspace in (1, 2, 3):
                if self.places.room(workspace):
                    self.places.take(workspace)
        self.assertTrue(self.places.room(4))
        self.assertLess(self.places.taken, 95)

    def test_what_is_given_back_makes_room(self) -> None:
        self.fill(1)
        self.places.give_back(1)
        self.assertEqual(self.fill(1), 1)
        for _ in range(80):
            self.places.give_back(1)
        self.assertEqual((self.places.taken, self.places._of), (0, {}))
        self.assertEqual(self.fill(2), 80)

    def test_a_few_places_can_all_be_taken(self) -> None:
        for most in range(1, 6):
            self.places = Places(most)
            self.assertEqual(self.fill(1), most if most < 5 else 4)

    def test_many_at_once_need_as_much_room_as_one_by_one(self) -> None:
        self.assertTrue(self.places.room(1, 80))
        self.assertFalse(self.places.room(1, 81))
        self.places.take(1, 80)
        self.assertTrue(self.places.room(2, 16))
        self.assertFalse(self.places.room(2, 17))
        self.assertFalse(self.places.room(2, 1000))
