"""twistd's daemon as real processes: what the command prints and leaves behind, its log and its pid file."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import signal
import socket
import syslog
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.config import Log
from notify.errors import StartError
from notify.observe import logging
from notify.service import daemon
from notify.service.daemon import User
from tests.support.natsd import Greeter, listening
from tests.support.ports import free_port
from tests.support.process import wait_for
from tests.support.programs import ROOT, need, program, run
from tests.support.running import SECRET, Twistd

PAGE = ROOT / "docs" / "operations" / "twistd.md"


def alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class DaemonCase(TestCase):
    timeout = 90

    def setUp(self) -> None:
        self.folder = self.place()
        self.pid_file, self.log = self.folder / "notify.pid", self.folder / "notify.log"
        self.public, self.internal = free_port(), free_port()
        self.environ = {
            "NOTIFY_LISTEN__PUBLIC": f"tcp:{self.public}:interface=127.0.0.1",
            "NOTIFY_LISTEN__INTERNAL": f"tcp:{self.internal}:interface=127.0.0.1",
            "NOTIFY_AUTH__JWT__SECRET": SECRET,
            "NOTIFY_DRAIN__DURATION": "0s",
        }
        self.addCleanup(self.end)

    def place(self) -> Path:
        """A folder for the daemon."""
        folder = Path(self.mktemp()).resolve()
        folder.mkdir(parents=True)
        return folder

    def end(self) -> None:
        if self.pid_file.exists():
            os.kill(int(self.pid_file.read_text()), signal.SIGKILL)

    async def command(self, *options: str, notify: tuple[str, ...] = (), **environ: str) -> tuple[int, str]:
        """Run the command that starts the daemon; return its exit status and output."""
        made = Twistd(
            *(f"--pidfile={self.pid_file}", f"--logfile={self.log}", *options, "notify", *notify),
            cwd=self.folder,
            **{**self.environ, **environ},
        )
        self.addCleanup(made.kill)
        return await made.ended, made.output

    async def started(self, *options: str, notify: tuple[str, ...] = (), **environ: str) -> int:
        """Start the daemon; return its process id."""
        status, said = await self.command(*options, notify=notify, **environ)
        self.assertEqual((status, said), (0, ""))
        return int(self.pid_file.read_text())

    async def refused(self, *options: str, notify: tuple[str, ...] = (), **environ: str) -> str:
        """Check that the daemon does not start, prints one sentence and leaves nothing behind; return the sentence."""
        status, said = await self.command(*options, notify=notify, **environ)
        self.assertEqual(status, 1, said)
        self.assertRegex(said, r"\Anotify: [^\n]+\n\Z")
        self.assertFalse(os.path.lexists(self.pid_file))
        await self.until("the process is gone", lambda: not self.processes())
        return said

    def processes(self) -> list[str]:
        """The ids of the processes that run in this test's folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "cwd") == str(self.folder):
                    found.append(process.name)
            except OSError:
                pass
        return found

    async def stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGTERM)
        await self.until("the process is gone", lambda: not alive(pid))

    async def until(self, what: str, condition: Any) -> None:
        await deferToThread(wait_for, what, condition)

    async def logs(self, text: str) -> None:
        await self.until(f"the log says {text!r}", lambda: self.log.exists() and text in self.log.read_text())

    async def ready(self) -> int:
        """The HTTP status of the health check."""

        def ask() -> int:
            try:
                return int(
                    urllib.request.urlopen(
                        f"http://127.0.0.1:{self.internal}/health/ready", timeout=10
                    ).status
                )
            except urllib.error.HTTPError as error:
                return error.code

        return await deferToThread(ask)


class Starting(DaemonCase):
    async def test_the_command_ends_once_the_server_is_ready_and_the_pid_file_with_the_server(self) -> None:
        pid = await self.started()
        self.assertEqual(await self.ready(), 200)
        self.assertNotIn(pid, (os.getpid(), os.getppid()))
        self.assertEqual(os.getsid(pid), os.getpgid(pid))
        await self.stop(pid)
        self.assertFalse(self.pid_file.exists())
        self.assertIn("Server Shut Down", self.log.read_text())

    async def test_a_taken_port_is_one_sentence_and_leaves_nothing(self) -> None:
        for key in ("PUBLIC", "INTERNAL"):
            with socket.create_server(("127.0.0.1", 0)) as taken:
                endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
                said = await self.refused(**{f"NOTIFY_LISTEN__{key}": endpoint})
            self.assertIn(f"listen.{key.lower()}: '{endpoint}' cannot be bound: Address already in use", said)
        self.assertIn("cannot start: listen.internal", self.log.read_text())

    async def test_in_the_foreground_a_taken_port_leaves_no_pid_file_either(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            said = await self.refused("--nodaemon", NOTIFY_LISTEN__PUBLIC=endpoint)
        self.assertIn("Address already in use", said)

    async def test_a_wrong_key(self) -> None:
        self.assertIn(
            "'auth.jwt.secret' is 5 bytes long", await self.refused(NOTIFY_AUTH__JWT__SECRET="short")
        )

    async def test_a_configuration_that_is_wrong(self) -> None:
        self.assertIn("NOTIFY_LIMITS__REPLAY is wrong", await self.refused(NOTIFY_LIMITS__REPLAY="x"))

    async def test_a_broker_that_is_too_old(self) -> None:
        url = f"nats://{listening(self, Greeter)}"
        said = await self.refused(NOTIFY_BROKER__PLUGIN="jetstream", NOTIFY_BROKER__JETSTREAM__SERVERS=url)
        self.assertIn("nats-server 2.10.7", said)

    async def test_a_broker_that_is_away_is_told_and_waited_for_by_the_server_alone(self) -> None:
        url = f"nats://127.0.0.1:{free_port()}"
        environ = {"NOTIFY_BROKER__PLUGIN": "jetstream", "NOTIFY_BROKER__JETSTREAM__SERVERS": url}
        status, said = await self.command(**environ)
        self.assertEqual(status, 0, said)
        self.assertRegex(said, r"\Anotify: the server runs but is not ready yet: [^\n]+\n\Z")
        self.assertEqual(await self.ready(), 503)
        await self.stop(int(self.pid_file.read_text()))
        self.assertFalse(self.pid_file.exists())

    async def test_a_process_that_is_killed_while_it_starts_is_told(self) -> None:
        url = f"nats://127.0.0.1:{free_port()}"
        made = Twistd(
            *(f"--pidfile={self.pid_file}", f"--logfile={self.log}", "notify"),
            cwd=self.folder,
            **self.environ,
            NOTIFY_BROKER__PLUGIN="jetstream",
            NOTIFY_BROKER__JETSTREAM__SERVERS=url,
        )
        self.addCleanup(made.kill)
        await self.until("it has a pid", lambda: self.pid_file.exists() and self.pid_file.read_text())
        os.kill(int(self.pid_file.read_text()), signal.SIGKILL)
        self.assertEqual(await made.ended, 1)
        self.assertEqual(
            made.output,
            "notify: the server ended before it was running; see the end of its log for the reason.\n",
        )
        self.pid_file.unlink()

    async def test_dev_needs_a_terminal(self) -> None:
        self.assertIn("twistd --nodaemon notify --dev", await self.refused(notify=("--dev",)))

    async def test_a_configuration_that_is_named_from_here_is_read_again_from_elsewhere(self) -> None:
        (self.folder / "here.toml").write_text("[limits]\nreplay = 5\n")
        (self.folder / "else").mkdir()
        pid = await self.started("--rundir=else", notify=("-c", "here.toml"))
        (self.folder / "here.toml").write_text("[limits]\nreplay = 6\n")
        os.kill(pid, signal.SIGHUP)
        await self.logs("reloaded; changed: limits.replay")
        await self.stop(pid)


class Logs(DaemonCase):
    async def test_the_settings_hold_in_the_file_of_twistd(self) -> None:
        pid = await self.started(NOTIFY_LOG__FORMAT="json")
        await self.stop(pid)
        said = [json.loads(line) for line in self.log.read_text().splitlines()]
        self.assertIn("Server Shut Down.", [line["message"] for line in said])
        self.assertEqual({"time", "level", "part", "message"} - said[0].keys(), set())

    async def test_without_an_option_it_is_twistds_own_file(self) -> None:
        made = Twistd(f"--pidfile={self.pid_file}", "notify", cwd=self.folder, **self.environ)
        self.addCleanup(made.kill)
        self.assertEqual(await made.ended, 0)
        self.log = self.folder / "twistd.log"
        await self.logs("is ready: public")
        await self.stop(int(self.pid_file.read_text()))

    async def test_in_the_foreground_the_settings_hold_in_a_file_too(self) -> None:
        made = Twistd(
            *("-n", "--pidfile=", f"--logfile={self.log}", "notify"),
            cwd=self.folder,
            **self.environ,
            NOTIFY_LOG__FORMAT="json",
        )
        self.addCleanup(made.kill)
        await self.logs("is ready: public")
        self.assertEqual(made.output, "")
        for line in self.log.read_text().splitlines():
            json.loads(line)

    async def test_a_file_that_cannot_be_written_is_named(self) -> None:
        said = await self.refused("--logfile=/nowhere/notify.log")
        self.assertIn("cannot write /nowhere/notify.log: No such file or directory", said)

    async def test_a_daemon_has_no_standard_output(self) -> None:
        self.assertIn("a daemon has no terminal", await self.refused("--logfile=-"))

    async def test_where_there_is_no_file_sigusr1_ends_nothing(self) -> None:
        made = Twistd("-n", "--pidfile=", "notify", cwd=self.folder, **self.environ)
        self.addCleanup(made.kill)
        await made.says("is ready: public")
        made.process.signalProcess(signal.SIGUSR1)
        await made.says("no log file to open again")

    async def test_a_file_that_cannot_be_opened_again_is_gone_on_with(self) -> None:
        pid = await self.started()
        moved = self.log.with_suffix(".1")
        self.log.rename(moved)
        self.log.mkdir()
        os.kill(pid, signal.SIGUSR1)
        await self.until("it is said", lambda: "cannot be opened again" in moved.read_text())
        await self.stop(pid)
        self.assertIn("Server Shut Down", moved.read_text())


class AsAnotherUser(DaemonCase):
    """Started by root, and run as another user."""

    def setUp(self) -> None:
        need(os.geteuid() == 0, "only root can become another user: run the tests as root")
        super().setUp()
        self.user = pwd.getpwnam("nobody")
        self.group = grp.getgrgid(self.user.pw_gid).gr_name
        self.as_nobody = (f"--uid={self.user.pw_name}", f"--gid={self.group}")
        os.chown(self.folder, self.user.pw_uid, self.user.pw_gid)

    def place(self) -> Path:
        # Other users cannot enter the folders of the test runners.
        folder = Path(tempfile.mkdtemp(prefix="notify-test-"))
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o755)
        return folder

    async def test_the_page_s_logrotate_rotates_and_the_server_goes_on_in_the_new_file(self) -> None:
        pid = await self.started(*self.as_nobody, NOTIFY_LOG__LEVEL="debug")
        self.assertEqual({Path(f"/proc/{pid}").stat().st_uid, self.log.stat().st_uid}, {self.user.pw_uid})
        (snippet,) = re.findall(r"(?ms)^    # /etc/logrotate.d/notify\n(.*?^    }\n)", PAGE.read_text())
        for of_page, here in (
            ("/var/log/notify/notify.log", str(self.log)),
            ("/run/notify/notify.pid", str(self.pid_file)),
            ("0640 notify notify", f"0640 {self.user.pw_name} {self.group}"),
        ):
            self.assertIn(of_page, snippet)
            snippet = snippet.replace(of_page, here)
        rules = self.folder / "rules"
        rules.write_text(snippet)
        rules.chmod(0o644)
        before = self.log.read_text()
        for number in (1, 2):
            command = (program("logrotate"), "--force", "--state", self.folder / "state", rules)
            await deferToThread(run, *command)
            await self.logs("the log goes on here")
            self.assertEqual(before in self.log.with_suffix(".log.1").read_text(), number == 1)
        self.assertTrue(self.log.with_suffix(".log.2.gz").exists())
        self.assertNotIn("is ready", self.log.read_text())
        await self.stop(pid)
        self.assertIn("Server Shut Down", self.log.read_text())
        self.assertFalse(self.pid_file.exists())

    async def test_the_file_is_opened_as_the_user_and_no_other_way(self) -> None:
        # As root, it would follow this user's link to any file, and give that file to the user.
        target = Path(self.mktemp()).resolve()
        target.write_text("root's")
        target.chmod(0o600)
        self.log.symlink_to(target)
        self.assertIn(f"user {self.user.pw_name} cannot write", await self.refused(*self.as_nobody))
        self.assertEqual(target.read_text(), "root's")

    async def test_a_port_below_1024(self) -> None:
        for port in range(1023, 600, -1):
            try:
                socket.create_server(("127.0.0.1", port)).close()
                break
            except OSError:
                continue
        pid = await self.started(*self.as_nobody, NOTIFY_LISTEN__PUBLIC=f"tcp:{port}:interface=127.0.0.1")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            self.assertEqual(answer.status, 200)
        await self.stop(pid)

    async def test_keys_of_root_do_for_the_start_and_those_of_the_user_for_a_reload(self) -> None:
        key, file = self.folder / "jwt.secret", self.folder / "notify.toml"
        key.write_text(SECRET)
        key.chmod(0o600)
        file.write_text(f'[auth.jwt]\nsecret_file = "{key}"\n')
        del self.environ["NOTIFY_AUTH__JWT__SECRET"]
        pid = await self.started(*self.as_nobody, notify=("-c", str(file)))
        os.kill(pid, signal.SIGHUP)
        await self.logs("not reloaded, the old configuration stays in force")
        self.assertRegex(self.log.read_text(), rf"{re.escape(str(key))}[^\n]*Permission denied")
        self.assertEqual(await self.ready(), 200)
        os.chown(key, 0, self.user.pw_gid)
        key.chmod(0o640)
        os.kill(pid, signal.SIGHUP)
        await self.logs("secrets were read again")
        await self.stop(pid)

    async def test_a_start_that_fails_after_root_is_left_behind_leaves_nothing_either(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            await self.refused(*self.as_nobody, NOTIFY_LISTEN__PUBLIC=endpoint)

    async def test_a_pid_file_that_the_user_could_not_remove_is_refused(self) -> None:
        inner = self.folder / "run"
        inner.mkdir()
        said = await self.refused(*self.as_nobody, f"--pidfile={inner / 'notify.pid'}")
        self.assertIn(f"user {self.user.pw_name} cannot create {inner}/notify.pid: Permission denied", said)
        self.assertEqual(list(inner.iterdir()), [])

    async def test_in_a_folder_of_everyone_the_pid_file_is_the_user_s_and_gone_at_the_end(self) -> None:
        self.folder.chmod(0o1777)
        pid = await self.started(*self.as_nobody)
        self.assertEqual(self.pid_file.stat().st_uid, self.user.pw_uid)
        await self.stop(pid)
        self.assertFalse(self.pid_file.exists())

    async def test_a_link_in_place_of_the_pid_file_is_not_followed(self) -> None:
        # As root, it would write where this user cannot.
        self.pid_file.symlink_to("/notify-test-of-a-link")
        status, said = await self.command(*self.as_nobody)
        self.pid_file.unlink()
        self.assertEqual(status, 1)
        self.assertIn("notify.pid: File exists", said)
        self.assertFalse(Path("/notify-test-of-a-link").exists())

    async def test_another_group_alone(self) -> None:
        pid = await self.started(f"--gid={self.group}")
        about = Path(f"/proc/{pid}").stat()
        self.assertEqual((about.st_uid, about.st_gid), (0, self.user.pw_gid))
        await self.stop(pid)


class Users(SynchronousTestCase):
    def test_whoever_is_not_root_becomes_nobody_else(self) -> None:
        self.patch(os, "geteuid", lambda: 1000)
        self.assertEqual(daemon.user({"uid": None, "gid": None}), User())
        with self.assertRaisesRegex(StartError, "only when root starts"):
            daemon.user({"uid": 1, "gid": None})

    def test_a_user_that_the_machine_does_not_know_needs_a_group(self) -> None:
        self.patch(os, "geteuid", lambda: 0)
        with self.assertRaisesRegex(StartError, "has no user 54321"):
            daemon.user({"uid": 54321, "gid": None})
        self.assertEqual(daemon.user({"uid": 54321, "gid": 7}), User(54321, 7))

    def test_root_is_root_again_after_it_acted_as_another(self) -> None:
        need(os.geteuid() == 0, "only root can become another user: run the tests as root")
        before = (os.geteuid(), os.getegid(), os.getgroups())
        with self.assertRaises(ZeroDivisionError), User(65534, 65534).acting():
            self.assertEqual((os.geteuid(), os.getegid()), (65534, 65534))
            self.assertNotIn(0, os.getgroups())
            raise ZeroDivisionError
        self.assertEqual((os.geteuid(), os.getegid(), os.getgroups()), before)


class SyslogTests(SynchronousTestCase):
    def test_each_line_has_its_priority_and_the_settings_hold(self) -> None:
        said: list[tuple[int, str]] = []
        self.patch(syslog, "openlog", lambda ident, *_: said.append((0, ident)))
        self.patch(syslog, "syslog", lambda priority, line: said.append((priority, line)))
        output = logging.Syslog("notify")
        output.configure(Log(level="warn"))
        for level, text in ((LogLevel.info, "kept back"), (LogLevel.error, "one\ntwo\0")):
            output({"log_namespace": "notify.x", "log_level": level, "log_format": "{t}", "t": text})
        self.assertEqual(said, [(0, "notify"), (syslog.LOG_ERR, "x: one"), (syslog.LOG_ERR, "two")])
