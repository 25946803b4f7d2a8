"""What systemd is told, received on a real datagram socket."""

import os
import shutil
import socket
import tempfile

from twisted.trial.unittest import TestCase

from notify.service.systemd import Systemd


class SystemdTests(TestCase):
    def listen(self, address: str) -> None:
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(self.manager.close)
        self.manager.bind(address)

    def heard(self) -> list[str]:
        return self.manager.recv(4096).decode().split("\n")

    def setUp(self) -> None:
        self.address = f"\0notify-test-{os.getpid()}-{id(self)}"
        self.listen(self.address)
        self.systemd = Systemd(
            {"NOTIFY_SOCKET": "@" + self.address[1:], "WATCHDOG_USEC": "30000000"}, lambda: 1_234_567_000
        )

    def test_ready_carries_the_status(self) -> None:
        self.systemd.ready("Serving on port 8080.")
        self.assertEqual(self.heard(), ["READY=1", "STATUS=Serving on port 8080."])

    def test_a_status_is_one_line(self) -> None:
        self.systemd.status("a\nREADY=1")
        self.assertEqual(self.heard(), ["STATUS=a READY=1"])

    def test_a_reload_names_its_time(self) -> None:
        self.systemd.reloading()
        self.assertEqual(self.heard(), ["RELOADING=1", "MONOTONIC_USEC=1234567"])

    def test_stopping_and_alive_and_longer(self) -> None:
        self.systemd.stopping("Draining.")
        self.assertEqual(self.heard(), ["STOPPING=1", "STATUS=Draining."])
        self.systemd.alive()
        self.assertEqual(self.heard(), ["WATCHDOG=1"])
        self.systemd.extend_timeout(1.5)
        self.assertEqual(self.heard(), ["EXTEND_TIMEOUT_USEC=1500000"])

    def test_a_socket_in_the_file_system(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        path = os.path.join(directory, "n")
        self.listen(path)
        Systemd({"NOTIFY_SOCKET": path}).alive()
        self.assertEqual(self.heard(), ["WATCHDOG=1"])

    def test_the_watchdog_is_answered_at_half_its_time(self) -> None:
        self.assertEqual(self.systemd.watchdog_interval, 15)

    def test_another_process_s_watchdog_is_not_ours(self) -> None:
        environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
        self.assertIsNone(Systemd(environ, pid=2).watchdog_interval)
        self.assertEqual(Systemd(environ, pid=1).watchdog_interval, 0.0005)

    def test_a_watchdog_that_is_off_or_nonsense_is_none(self) -> None:
        for usec in ("", "0", "soon", "-5"):
            self.assertIsNone(Systemd({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": usec}).watchdog_interval)

    def test_outside_systemd_nothing_happens(self) -> None:
        systemd = Systemd({"WATCHDOG_USEC": "1000"})
        systemd.ready("Serving.")
        self.assertIsNone(systemd.watchdog_interval)
        self.assertRaises(BlockingIOError, self.manager.recv, 1)

    def test_a_manager_that_is_gone_does_no_harm(self) -> None:
        Systemd({"NOTIFY_SOCKET": "/nowhere/at/all"}).alive()
