"""Workers that start, die, hang and leave."""

from __future__ import annotations

import signal
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.errors import StartError
from notify.service.crew import (
    AT_MOST,
    GRACE,
    HOPELESS,
    HUNG,
    LAST_WORDS,
    LOADING,
    PING,
    RELOAD,
    SILENT,
    STEADY,
    Crew,
    Worker,
)
from notify.workers.frames import (
    Announce,
    Begin,
    Failed,
    Hurry,
    Leave,
    Left,
    Nothing,
    Ping,
    Pong,
    Ready,
    Reload,
    Wanted,
)
from tests.workers.joined import Joined


class Life:
    """One process of a worker: records the messages and signals that it gets. A signal that kills ends it."""

    def __init__(self, case: Crews, one: Worker) -> None:
        self.case, self.one = case, one
        self.joined = Joined(case.clock)
        one.link, one.process = self.joined.head, self
        self.told: list[object] = []
        self.signals: list[int] = []
        self.answers = True
        for kind in (Begin, Announce, Leave, Hurry):
            self.joined.worker.hear(kind, self.told.append)
        self.joined.worker.hear(Ping, lambda _: self.answers and self.joined.worker.say(Pong()))

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def say(self, what: Any) -> None:
        self.joined.worker.say(what)
        self.case.turns()

    def die(self, how: str = "signal 9") -> None:
        self.case.crew.ended(self.one, how)

    def kinds(self) -> list[type]:
        return [type(one) for one in self.told]


class Crews(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.lives: dict[int, list[Life]] = {1: [], 2: []}
        self.heard: list[tuple[str, object]] = []
        self.broken = False
        self.crew = Crew(
            self.clock,
            [Worker(1, "n-w1"), Worker(2, "n-w2")],
            self.spawn,
            lambda one: Begin(b"", one.node, one.number, 2),
            lambda one: self.heard.append(("serves", one.number)),
            lambda one: self.heard.append(("lost", one.number)),
            lambda what: self.heard.append(("wanted", what)),
            lambda: self.heard.append(("progress", None)),
        )
        self.started = self.crew.start()
        self.turns()

    def spawn(self, one: Worker) -> None:
        if self.broken:
            raise OSError(11, "no more processes")
        self.lives[one.number].append(Life(self, one))

    def turns(self) -> None:
        for _ in range(5):
            self.clock.advance(0)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.turns()

    def now(self, number: int) -> Life:
        return self.lives[number][-1]

    def serving(self) -> None:
        for number in (1, 2):
            self.now(number).say(Ready())
        self.successResultOf(self.started)
        self.heard.clear()

    def test_it_is_ready_once_all_serve(self) -> None:
        self.assertEqual(self.now(2).told, [Begin(b"", "n-w2", 2, 2)])
        self.now(1).say(Ready())
        self.assertNoResult(self.started)
        self.now(2).say(Ready())
        self.successResultOf(self.started)
        self.assertEqual(self.heard, [("serves", 1), ("serves", 2)])

    def test_what_one_cannot_start_with_the_server_cannot_start_with(self) -> None:
        self.now(1).say(Failed("the key is too short."))
        self.assertEqual(str(self.failureResultOf(self.started, StartError).value), "the key is too short.")

    def test_one_that_dies_during_the_start_is_started_again(self) -> None:
        self.now(1).die()
        self.wait(0.1)
        self.now(2).say(Ready())
        self.assertNoResult(self.started)
        self.now(1).say(Ready())
        self.successResultOf(self.started)

    def test_a_start_is_given_up_where_one_dies_whenever_it_is_started(self) -> None:
        for _ in range(HOPELESS - 1):
            self.now(1).die("status 1")
            self.wait(1.1)
        self.assertNoResult(self.started)
        self.now(1).die("status 1")
        said = str(self.failureResultOf(self.started, StartError).value)
        self.assertEqual(said, "n-w1 ends each time it is started (status 1): see the log for the reason.")
        self.crew.stop()
        self.assertEqual([one.timer for one in self.crew.workers], [None, None])

    def test_one_that_dies_is_started_anew_at_once_and_then_ever_more_slowly(self) -> None:
        self.serving()
        waits = []
        for _ in range(8):
            before, began = len(self.lives[1]), self.clock.seconds()
            self.now(1).die()
            while len(self.lives[1]) == before:
                self.wait(0.1)
            waits.append(round(self.clock.seconds() - began))
            self.now(1).say(Ready())
        self.assertEqual(waits, [0, 1, 2, 4, 8, 16, AT_MOST, AT_MOST])
        self.assertEqual(len(self.lives[2]), 1)
        self.wait(STEADY + 1)
        # The link ends before the process does.
        self.crew.gone(self.now(1).one)
        self.now(1).die()
        self.wait(0.1)
        self.assertEqual(len(self.lives[1]), 10)
        self.assertEqual(self.heard[:3], [("lost", 1), ("serves", 1), ("lost", 1)])

    def test_one_that_is_given_up_is_killed_and_lost_once(self) -> None:
        self.serving()
        life = self.now(1)
        self.crew.gone(life.one, "it does not read what it is told")
        self.assertEqual(life.signals, [signal.SIGKILL])
        self.assertEqual([one.number for one in self.crew.ready], [2])
        life.die()
        self.assertEqual(self.heard, [("lost", 1)])

    def test_one_that_cannot_be_spawned_is_tried_again(self) -> None:
        self.serving()
        self.broken = True
        self.now(1).die()
        self.wait(5)
        self.broken = False
        self.wait(AT_MOST)
        self.assertEqual(len(self.lives[1]), 2)

    def test_one_that_hangs_has_its_last_words_and_is_killed(self) -> None:
        self.serving()
        self.wait(3 * HUNG)
        self.assertEqual([life.signals for life in (self.now(1), self.now(2))], [[], []])
        hung = self.now(1)
        hung.answers = False
        self.wait(HUNG - 1)
        self.assertEqual(hung.signals, [])
        self.wait(1 + PING)
        self.assertEqual(hung.signals, [signal.SIGABRT])
        self.wait(LAST_WORDS)
        self.assertEqual(hung.signals, [signal.SIGABRT, signal.SIGKILL])
        self.assertEqual(self.now(2).signals, [])

    def test_one_that_is_behind_and_reads_does_not_hang(self) -> None:
        self.serving()
        behind = self.now(1)
        behind.answers = False  # the pings wait behind all that is queued for it
        for _ in range(5):
            self.wait(HUNG - 2 * PING)
            behind.joined.head.taken += 1000
        self.assertEqual(behind.signals, [])
        self.assertTrue(self.crew.silent(behind.joined.head))
        self.wait(HUNG + 2 * PING)
        self.assertEqual(behind.signals[:1], [signal.SIGABRT])

    def test_one_that_has_not_answered_for_a_while_is_silent_until_it_does_or_is_started_anew(self) -> None:
        self.serving()
        hung, well = self.now(1), self.now(2)

        def silent() -> list[bool]:
            return [self.crew.silent(one.link) for one in self.crew.workers if one.link is not None]

        self.wait(3 * HUNG)
        self.assertEqual(silent(), [False, False])
        hung.answers = False
        self.wait(SILENT)
        self.assertEqual(silent(), [True, False])
        hung.answers = True
        self.wait(PING)
        self.assertEqual(silent(), [False, False])
        hung.answers = False
        self.wait(HUNG + PING)
        self.assertEqual((hung.signals, well.signals), ([signal.SIGABRT], []))
        self.assertEqual(silent(), [True, False])

    def test_while_the_first_process_is_stopped_nobody_hangs(self) -> None:
        self.serving()
        self.wait(3 * PING)
        self.clock.advance(3 * HUNG)
        self.wait(3 * PING)
        self.assertEqual([life.signals for life in (self.now(1), self.now(2))], [[], []])

    def test_one_that_loads_may_take_longer_but_not_for_ever(self) -> None:
        one, other = self.now(1), self.now(2)
        one.answers = False
        self.wait(LOADING - 1)
        self.assertEqual((one.signals, other.signals), ([], []))
        self.wait(1 + PING)
        self.assertEqual((one.signals, other.signals), ([signal.SIGABRT], []))

    def test_they_reload_one_after_the_other(self) -> None:
        self.serving()
        asked: list[tuple[int, bytes, Deferred[Nothing]]] = []
        for number in (1, 2):

            def answer(said: Reload, number: int = number) -> Deferred[Nothing]:
                asked.append((number, said.config, Deferred()))
                return asked[-1][2]

            self.now(number).joined.worker.answer(Reload, answer)
        done = Deferred.fromCoroutine(self.crew.reload(b"{}"))
        self.turns()
        self.assertEqual([each[:2] for each in asked], [(1, b"{}")])
        asked[0][2].callback(Nothing())
        self.turns()
        self.assertEqual([each[:2] for each in asked], [(1, b"{}"), (2, b"{}")])
        asked[1][2].errback(StartError("its file is away."))
        self.turns()
        failure = self.failureResultOf(done, StartError)
        self.assertEqual(str(failure.value), "n-w2 could not reload: its file is away.")

    def test_one_that_is_just_starting_reloads_too(self) -> None:
        self.serving()
        self.now(1).die()
        self.turns()
        asked: list[bytes] = []
        for number in (1, 2):
            self.now(number).joined.worker.answer(Reload, lambda said: asked.append(said.config))
        done = Deferred.fromCoroutine(self.crew.reload(b"{}"))
        self.turns()
        self.successResultOf(done)
        self.assertEqual(asked, [b"{}", b"{}"])

    def test_a_reload_waits_for_nobody_for_ever_and_for_nobody_who_is_gone(self) -> None:
        self.serving()
        for number in (1, 2):
            self.now(number).joined.worker.answer(Reload, lambda _: Deferred())
        done = Deferred.fromCoroutine(self.crew.reload(b"{}"))
        self.wait(RELOAD)
        self.now(2).joined.end("")  # the link ends first
        self.now(2).die()
        failure = self.failureResultOf(done, StartError)
        self.assertEqual(str(failure.value), "n-w1 did not answer")

    def test_what_one_is_told_is_for_the_whole_server(self) -> None:
        self.serving()
        self.now(2).say(Wanted("drain"))
        self.assertEqual(self.heard, [("wanted", "drain")])

    def test_they_leave_together_and_none_is_started_anew(self) -> None:
        self.serving()
        self.crew.announce()
        self.crew.announce()
        left = self.crew.leave(30.0)
        self.turns()
        self.assertEqual(self.now(1).told[1:], [Announce(), Leave(30.0)])
        self.crew.hurry()
        self.now(1).say(Left())
        self.assertEqual(self.now(2).kinds(), [Begin, Announce, Leave, Hurry])
        self.assertIn(("progress", None), self.heard)
        self.now(1).die("status 0")
        self.assertNoResult(left)
        self.now(2).die("status 0")
        self.successResultOf(left)
        self.wait(AT_MOST)
        self.assertEqual([len(lives) for lives in self.lives.values()], [1, 1])
        self.assertEqual(self.now(1).signals, [])
        self.successResultOf(self.crew.stop())
        self.turns()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_does_not_leave_is_killed(self) -> None:
        self.serving()
        left = self.crew.leave(5.0)
        self.now(1).die("status 0")
        self.wait(6 + GRACE)
        self.assertEqual(self.now(2).signals, [signal.SIGKILL])
        self.now(2).die()
        self.successResultOf(left)

    def test_one_that_waits_to_be_started_is_not_when_all_leave(self) -> None:
        self.serving()
        for _ in range(2):
            self.now(1).die()
            self.wait(0.1)
        left = self.crew.leave(5.0)
        self.now(2).die("status 0")
        self.successResultOf(left)
        self.wait(AT_MOST)
        self.assertEqual(len(self.lives[1]), 2)

    def test_a_stop_ends_what_is_left(self) -> None:
        self.now(1).say(Ready())
        stopped = self.crew.stop()
        for number in (1, 2):
            self.assertEqual(self.now(number).signals, [signal.SIGKILL])
            self.now(number).die()
        self.successResultOf(stopped)
        self.turns()
        self.assertEqual(self.clock.getDelayedCalls(), [])
