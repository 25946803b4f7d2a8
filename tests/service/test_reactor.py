"""The clock of the reactor that notify installs, in separate processes."""

from __future__ import annotations

import subprocess
import sys
from signal import SIGUSR2
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.service.reactor import steady
from tests.support.process import Server, service_manager, wait_for

#: start of a program in which ``step(seconds)`` moves the time of day
STEPPED = """
import time
offset, real = [0.0], time.time
time.time = lambda: real() + offset[0]
def step(seconds):
    offset[0] += seconds
"""

TIMERS = """
import sys
if sys.argv[1] == "asked":
    from twisted.internet import asyncioreactor
    asyncioreactor.install()
from notify.service import reactor
reactor.install()
from twisted.internet import reactor
from twisted.internet.task import LoopingCall

told, pending = [], []
loop = LoopingCall(lambda: told.append("tick"))

def after():
    del told[:]
    step(float(sys.argv[2]))
    reactor.callLater(0.1, told.append, "new")
    pending[1].reset(0.2)

def end():
    print(told.count("tick"), [word for word in told if word != "tick"])
    reactor.stop()

pending.append(reactor.callLater(0.3, told.append, "old"))
pending.append(reactor.callLater(60, told.append, "sooner"))
pending.append(reactor.callLater(0.7, end))
pending[2].delay(0.1)
loop.start(0.05)
reactor.callLater(0.1, after)
reactor.run()
"""

AT_ONCE = """
import sys
from notify.service import reactor
reactor.install(sys.argv[1])
from twisted.internet import reactor, task
from twisted.internet.error import AlreadyCalled, AlreadyCancelled

told = []

def again(left):
    told.append(f"again {left}")
    if left:
        reactor.callLater(0, again, left - 1)

def fail():
    told.append("failed")
    raise ValueError

def raised(act):
    try:
        act()
    except (AlreadyCalled, AlreadyCancelled) as error:
        return type(error).__name__
    return "nothing"

def begin():
    calls = {name: reactor.callLater(0, told.append, name) for name in ("first", "never", "late", "later", "kept", "second")}
    reactor.callLater(0, fail)
    reactor.callLater(0, lambda word, end: told.append(word + end), "third", end="!")
    calls["never"].cancel()
    calls["late"].reset(0.2)
    calls["later"].delay(0.4)
    calls["later"].delay(0.1)
    calls["kept"].delay(0.3)
    calls["kept"].reset(0)
    again(2)
    told.append(f"{calls['never'].active()} {calls['first'].active()} {0.4 < calls['later'].getTime() - reactor.seconds() <= 0.5}")
    reactor.callLater(0.05, told.append, "a timer")
    reactor.callLater(0.1, lambda: told.append(raised(calls["first"].cancel) + " " + raised(calls["never"].cancel)))
    moved = reactor.callLater(0, told.append, "put off and never")
    moved.reset(0.3)
    reactor.callLater(0.1, moved.cancel)
    sooner = reactor.callLater(0, told.append, "put off and taken back")
    sooner.reset(60)
    reactor.callLater(0.3, sooner.reset, 0)
    reactor.callLater(0.7, reactor.stop)

reactor.callWhenRunning(begin)
reactor.addSystemEventTrigger("before", "shutdown", lambda: task.deferLater(reactor, 0, told.append, "stopped"))
reactor.callLater(0, told.append, "before it runs")
reactor.run()
print(*told, sep="\\n")
"""

#: timers planned around one that the event loop waits for: later, sooner, and so many cancelled ones that the
#: reactor clears them out
PLANNED = """
import sys
from notify.service import reactor
reactor.install(sys.argv[1])
from twisted.internet import reactor

told, early, kept = [], [], []

def tell(word, planned):
    told.append(word)
    if reactor.seconds() < planned:
        early.append(word)

def plan(at, word):
    seconds = left(at)
    return reactor.callLater(seconds, tell, word, reactor.seconds() + seconds)

def left(at):
    # Counted from the beginning: on a busy machine a moment passes between two calls.
    return max(0, began + at - reactor.seconds())

def begin():
    global began
    began = reactor.seconds()
    plan(0.4, "fourth")
    plan(0.5, "fifth")
    plan(0.2, "second")
    plan(0.3, "third")
    plan(0.1, "first")
    moved = reactor.callLater(30, told.append, "moved")
    moved.reset(left(0.15))
    put_off = plan(0.45, "put off")
    put_off.delay(1.2)
    for _ in range(2000):
        plan(5, "never").cancel()
    kept.append(len([call for call in [*reactor._newTimedCalls, *reactor._pendingTimedCalls] if call.cancelled]))
    plan(0.55, "sixth")
    reactor.callLater(2, reactor.stop)

reactor.callWhenRunning(begin)
reactor.run()
print(*told, sep=", ")
print(early, kept[0] <= 512)
"""

TWISTD = """
import os, signal, sys
signal.signal(signal.SIGUSR2, lambda *_: step(-120))
from twisted.scripts.twistd import run
sys.argv[0] = "twistd"
sys.exit(run())
"""


class SteadyClock(TestCase):
    timeout = 60

    def run_timers(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", STEPPED + TIMERS, *arguments], capture_output=True, text=True, timeout=20
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_timers_go_on_when_the_time_of_day_is_set(self) -> None:
        for reactor in ("ours", "asked"):
            for seconds in ("-120", "3600"):
                ticks, _, words = self.run_timers(reactor, seconds).partition(" ")
                self.assertEqual(words.strip(), "['new', 'old', 'sooner']")
                self.assertGreater(int(ticks), 4)
                self.assertLess(int(ticks), 20)

    def test_the_watchdog_is_told_that_the_server_lives_when_the_time_of_day_is_set_back(self) -> Any:
        return deferToThread(self.whole)

    def whole(self) -> None:
        argv = [sys.executable, "-c", STEPPED + TWISTD, "--nodaemon", "--pidfile="]
        with service_manager() as (manager, environ), Server(environ=environ, argv=argv) as server:
            wait_for("alive", lambda: manager.recv(4096) == b"WATCHDOG=1")
            server.signal(SIGUSR2)
            manager.setblocking(False)
            try:
                while True:
                    manager.recv(4096)
            except BlockingIOError:
                manager.settimeout(10)
            for _ in range(5):
                wait_for("alive", lambda: manager.recv(4096) == b"WATCHDOG=1")
            server.publish(1, "after")


class Pending(SynchronousTestCase):
    def test_a_reactor_with_timers_keeps_the_clock_that_they_were_planned_by(self) -> None:
        busy, idle = Clock(), Clock()
        busy.callLater(1, lambda: None)
        steady(busy)
        steady(idle)
        self.assertEqual(busy.seconds(), 0)
        self.assertGreater(idle.seconds(), 0)


class AtOnce(SynchronousTestCase):
    def test_what_is_due_at_once_is_called_in_order_and_can_be_put_off(self) -> None:
        for loop in ("asyncio", "auto"):
            self.on(loop)

    def on(self, loop: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", AT_ONCE, loop], capture_output=True, text=True, timeout=20, check=True
        )
        begin = done.stdout.splitlines()
        begin.remove("before it runs")  # this call takes the longer path, through a timer
        self.assertEqual(
            begin,
            [
                "again 2",
                "False True True",
                "first",
                "second",
                "failed",
                "third!",
                "again 1",
                "kept",  # delayed by the moment that delaying it and undoing that took
                "again 0",
                "a timer",
                "AlreadyCalled AlreadyCancelled",
                "late",
                "put off and taken back",
                "later",
                "stopped",
            ],
        )

    def test_timers_ring_in_order_and_never_early_and_cancelled_ones_are_let_go_of(self) -> None:
        for loop in ("asyncio", "auto"):
            done = subprocess.run(
                [sys.executable, "-c", PLANNED, loop], capture_output=True, text=True, timeout=20, check=True
            )
            self.assertEqual(
                done.stdout.splitlines(),
                ["first, moved, second, third, fourth, fifth, sixth, put off", "[] True"],
                loop,
            )
