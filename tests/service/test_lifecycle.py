"""What systemd, the health check and the log are told at each stage; with a clock that the test advances."""

from __future__ import annotations

from unittest.mock import patch

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from notify.interfaces import BrokerStatus
from notify.observe.health import Health
from notify.observe.metrics import Metrics
from notify.service.drain import Progress, Stage
from notify.service.lifecycle import PATIENCE, Lifecycle
from notify.service.systemd import Systemd


class Told(Systemd):
    """Records what systemd would be told."""

    def __init__(self, watchdog: bool = True) -> None:
        super().__init__({"NOTIFY_SOCKET": "/nowhere", **({"WATCHDOG_USEC": "20000000"} if watchdog else {})})
        self.said: list[str] = []

    def _send(self, *assignments: str) -> None:
        self.said.append(" ".join(assignments))

    def take(self) -> list[str]:
        said, self.said = self.said, []
        return said


class LifeCase(TestCase):
    def setUp(self) -> None:
        self.make()

    def make(self, watchdog: bool = True) -> None:
        self.clock = Clock()
        self.systemd = Told(watchdog)
        self.metrics = Metrics()
        self.clients = 0
        self.broker = BrokerStatus(True, "")
        self.health = Health(lambda: self.broker, ())
        self.fault = ""
        self.calls: list[str] = []
        self.life = Lifecycle(
            self.clock,
            self.systemd,
            self.health,
            self.metrics,
            lambda: self.clients,
            lambda: self.calls.append("leave"),
            lambda: self.fault,
        )


class LifecycleTests(LifeCase):
    def test_the_watchdog_is_answered_from_readiness_to_the_end(self) -> None:
        self.life.starting()
        self.clock.advance(PATIENCE - 1)
        self.assertEqual(self.systemd.take(), ["STATUS=Starting: waiting for the broker."])
        self.life.ready()
        self.systemd.take()
        self.clients = 2
        self.clock.advance(5)
        self.assertEqual(self.systemd.take(), ["WATCHDOG=1", "STATUS=Serving 2 clients."])
        self.life.drain()
        self.systemd.take()
        self.clock.advance(5)
        self.assertEqual(self.systemd.take(), ["WATCHDOG=1"])
        self.life.stopped()
        self.clock.advance(60)
        self.assertEqual(self.systemd.take(), [])

    def test_a_start_is_waited_for_only_so_long_and_then_it_runs_and_is_not_ready(self) -> None:
        with patch("notify.service.lifecycle.log") as log:
            self.life.starting()
            self.clock.advance(PATIENCE - 1)
            self.assertEqual((len(self.systemd.take()), log.warn.call_count), (1, 0))
            self.clock.advance(1)
            self.assertEqual(log.warn.call_count, 1)
        waiting = "STATUS=Starting: waiting for the broker."
        self.assertEqual(self.systemd.take(), [f"READY=1 {waiting}", "WATCHDOG=1", waiting])
        self.assertEqual(self.health.report().status, "starting")
        # From READY=1 on, systemd's watchdog expects signs of life.
        self.clock.advance(10)
        self.assertEqual(self.systemd.take(), ["WATCHDOG=1", waiting])
        self.life.reloading()
        self.life.reloaded()
        self.assertEqual((self.systemd.take(), self.health.report().status), ([], "starting"))
        self.life.ready()
        self.assertEqual(self.systemd.take(), ["READY=1 STATUS=Serving 0 clients."])
        self.assertEqual(self.health.report().status, "ok")
        self.life.stopped()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_leaves_or_fails_while_starting_does_not_run_later(self) -> None:
        for leave in (self.life.drain, self.life.stopped):
            self.life.starting()
            self.systemd.take()
            leave()
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertNotIn("READY", "".join(self.systemd.take()))

    def test_a_short_watchdog_is_answered_in_time(self) -> None:
        self.systemd._interval = 0.1
        self.life.ready()
        self.clock.pump([0.1] * 10)
        self.assertEqual(self.systemd.take().count("WATCHDOG=1"), 11)

    def test_without_a_watchdog_the_status_is_told_alone(self) -> None:
        self.make(watchdog=False)
        self.life.ready()
        self.systemd.take()
        self.clients = 1
        self.clock.advance(5)
        self.assertEqual(self.systemd.take(), ["STATUS=Serving 1 client."])
        self.life.stopped()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_systemd_nothing_runs(self) -> None:
        self.systemd._address = ""
        self.life.ready()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_status_tells_of_a_broker_that_goes_and_comes(self) -> None:
        self.life.ready()
        self.systemd.take()
        self.clients = 2
        for broker, expected in (
            (BrokerStatus(False, "NATS is away"), "STATUS=Not ready, with 2 clients: NATS is away."),
            (BrokerStatus(True, "connected"), "STATUS=Serving 2 clients."),
        ):
            self.broker = broker
            self.clock.advance(5)
            self.assertEqual(self.systemd.take(), ["WATCHDOG=1", expected])

    def test_the_status_tells_of_a_reload_that_failed_until_one_does_not(self) -> None:
        self.life.ready()
        for self.fault, expected in (
            (
                "The last reload changed nothing: FILE: unknown key 'x'.",
                "Serving 0 clients. The last reload changed nothing: FILE: unknown key 'x'.",
            ),
            ("", "Serving 0 clients."),
        ):
            self.systemd.take()
            self.life.reloading()
            self.life.reloaded()
            self.assertEqual(self.systemd.take()[1:], [f"READY=1 STATUS={expected}"])
            self.clock.advance(5)
            self.assertEqual(self.systemd.take(), ["WATCHDOG=1", f"STATUS={expected}"])

    def test_progress_is_in_the_metrics_and_asks_systemd_for_time(self) -> None:
        self.life.progress(Progress(Stage.CLOSING, 10, 7, 21.0))
        self.assertEqual(
            self.systemd.take(),
            ["STATUS=Draining: 7 of 10 clients left, 21 s to go.", "EXTEND_TIMEOUT_USEC=36000000"],
        )
        value = self.metrics.registry.get_sample_value
        self.assertEqual((value("notify_draining"), value("notify_drain_left")), (1, 7))

    def test_the_log_hears_of_each_stage_and_then_every_five_seconds(self) -> None:
        with patch("notify.service.lifecycle.log") as log:
            for _ in range(24):
                self.life.progress(Progress(Stage.CLOSING, 10, 7, 21.0))
                self.clock.advance(0.5)
            self.life.progress(Progress(Stage.FINISHING, 10))
            self.assertEqual(log.info.call_count, 4)

    def test_it_leaves_once(self) -> None:
        self.life.drain()
        self.life.drain()
        self.assertEqual((self.calls, self.systemd.take()), (["leave"], ["STOPPING=1 STATUS=Draining."]))

    def test_its_health_is_good_from_readiness_until_the_drain_begins(self) -> None:
        self.life.starting()
        self.assertEqual(self.health.report().status, "starting")
        self.life.ready()
        self.assertEqual(self.health.report().status, "ok")
        self.life.progress(Progress(Stage.ANNOUNCED))
        self.assertEqual(self.health.report().status, "draining")
