"""SIGTERM, SIGINT and SIGHUP: what each does, and when it does nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from unittest.mock import patch

from notify.service.signals import Signals
from tests.service.test_lifecycle import LifeCase


class SignalTests(LifeCase):
    def setUp(self) -> None:
        super().setUp()
        self.signals = Signals(
            self.life, lambda: self.calls.append("hurry"), lambda: self.calls.append("reload")
        )

    def test_the_first_signal_leaves_and_each_further_one_hurries(self) -> None:
        for _ in range(3):
            self.signals.terminate()
        self.assertEqual(self.calls, ["leave", "hurry", "hurry"])

    def test_a_drain_that_the_api_began_is_not_hurried_by_the_first_signal(self) -> None:
        self.life.drain()
        self.life.drain()
        self.signals.terminate()
        self.assertEqual(self.calls, ["leave"])
        self.signals.terminate()
        self.assertEqual(self.calls, ["leave", "hurry"])

    def test_a_reload_is_told_and_done_once_ready_again(self) -> None:
        self.life.ready()
        self.systemd.take()
        self.signals.hang_up()
        self.assertEqual(self.calls, ["reload"])
        self.assertTrue(self.systemd.take()[0].startswith("RELOADING=1 MONOTONIC_USEC="))
        self.life.ready()
        self.assertEqual(self.systemd.take(), ["READY=1 STATUS=Serving 0 clients."])

    def test_who_leaves_does_not_reload_and_is_not_ready(self) -> None:
        self.signals.terminate()
        self.systemd.take()
        self.signals.hang_up()
        self.life.ready()
        self.assertEqual((self.calls, self.systemd.take()), (["leave"], []))

    def test_signals_reach_the_reactor_s_thread(self) -> None:
        handlers: dict[int, Callable[..., None]] = {}
        handed: list[Callable[[], object]] = []
        with patch("signal.signal", handlers.__setitem__):
            self.signals.install(handed.append)
        handlers[signal.SIGHUP](signal.SIGHUP, None)
        handlers[signal.SIGINT](signal.SIGINT, None)
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(self.calls, [])
        for call in handed:
            call()
        self.assertEqual(self.calls, ["reload", "leave", "hurry"])
