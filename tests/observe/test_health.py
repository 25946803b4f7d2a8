from twisted.trial.unittest import TestCase

from notify.interfaces import BrokerStatus
from notify.observe.health import Health


class HealthTest(TestCase):
    def setUp(self) -> None:
        self.broker = BrokerStatus(True, "connected")
        self.health = Health(lambda: self.broker, ["public", "internal"])

    def up(self) -> None:
        self.health.started()
        self.health.listening("public")
        self.health.listening("internal")

    def test_is_not_ready_while_starting_though_all_parts_are_up(self) -> None:
        self.health.listening("public")
        self.health.listening("internal")
        report = self.health.report()
        self.assertFalse(report.ready)
        self.assertEqual(report.status, "starting")

    def test_is_ready_once_started_with_every_listener_and_the_broker(self) -> None:
        self.up()
        report = self.health.report()
        self.assertTrue(report.ready)
        self.assertEqual(report.status, "ok")
        self.assertEqual(report.listeners, {"public": True, "internal": True})

    def test_is_not_ready_while_a_listener_is_down(self) -> None:
        self.up()
        self.health.listening("public", False)
        self.assertEqual(self.health.report().status, "not listening")
        self.assertFalse(self.health.report().ready)

    def test_follows_the_broker_away_and_back(self) -> None:
        self.up()
        self.broker = BrokerStatus(False, "reconnecting")
        report = self.health.report()
        self.assertFalse(report.ready)
        self.assertEqual((report.status, report.broker.detail), ("broker unavailable", "reconnecting"))
        self.broker = BrokerStatus(True, "connected")
        self.assertTrue(self.health.report().ready)

    def test_is_not_ready_while_draining_and_there_is_no_way_back(self) -> None:
        self.up()
        self.health.drain()
        self.health.drain()
        self.up()
        report = self.health.report()
        self.assertTrue(self.health.draining and report.draining)
        self.assertEqual((report.ready, report.status), (False, "draining"))

    def test_a_report_does_not_change_afterwards(self) -> None:
        self.up()
        report = self.health.report()
        self.health.listening("public", False)
        self.assertEqual(report.listeners, {"public": True, "internal": True})

    def test_knows_only_the_listeners_that_are_expected(self) -> None:
        self.assertRaises(KeyError, self.health.listening, "other")
