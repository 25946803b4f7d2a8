"""twistd's daemon with workers: which session and user its processes have, where they log, and how the command ends."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography import x509
from websockets.sync.client import connect

from tests.service.test_daemon import DaemonCase, alive
from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.process import Client
from tests.support.programs import need
from tests.whole.test_revocation import end


class Workers(DaemonCase):
    def setUp(self) -> None:
        super().setUp()
        self.environ |= {"NOTIFY_SERVER__WORKERS": "2", "NOTIFY_SERVER__NODE": "n"}

    def workers(self, pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def refuse_at_each(self) -> None:
        """Connect until each worker has refused a client, which adds a line to the log.

        A new connection goes to the worker that has the fewest, as far as the first process knows.
        """

        def refused() -> bool:
            with connect(f"ws://127.0.0.1:{self.public}/ws", close_timeout=1) as socket:
                Client(socket).send(type="auth", token="no token")
                self.assertEqual(end(socket)[0], 4500)
            said = self.log.read_text()
            return all(f"authentication: {name}: " in said for name in ("n-w1", "n-w2"))

        await self.until("both workers have refused a client", refused)


class Daemon(Workers):
    async def test_the_first_process_is_the_daemon_and_the_others_go_with_it(self) -> None:
        pid = await self.started()
        self.assertEqual(await self.ready(), 200)
        self.assertEqual(len(self.processes()), 3)
        workers = self.workers(pid)
        self.assertEqual({os.getsid(one) for one in workers}, {os.getsid(pid)})
        await self.stop(pid)
        self.assertFalse(self.pid_file.exists())
        self.assertEqual([one for one in workers if alive(one)], [])

    async def test_the_log_of_all_is_one_file_which_is_opened_again(self) -> None:
        pid = await self.started(NOTIFY_LOG__LEVEL="debug")
        await self.refuse_at_each()
        moved = self.log.with_suffix(".1")
        self.log.rename(moved)
        os.kill(pid, signal.SIGUSR1)
        await self.logs("the log goes on here")
        # A service manager may signal all processes of a server; none ends because of this signal.
        workers = self.workers(pid)
        for one in workers:
            os.kill(one, signal.SIGUSR1)
        before = moved.read_text()
        await self.refuse_at_each()
        # The log also has what the interpreter prints when a worker crashes.
        os.kill(workers[0], signal.SIGABRT)
        await self.logs("n-w1: Fatal Python error: Aborted")
        await self.logs("n-w1 serves again")
        self.assertEqual(moved.read_text(), before)
        await self.stop(pid)

    async def test_a_broker_that_is_away_is_told_and_waited_for(self) -> None:
        url = f"nats://127.0.0.1:{free_port()}"
        environ = {"NOTIFY_BROKER__PLUGIN": "jetstream", "NOTIFY_BROKER__JETSTREAM__SERVERS": url}
        status, said = await self.command(**environ)
        self.assertEqual(status, 0, said)
        self.assertRegex(said, r"\Anotify: the server runs but is not ready yet: [^\n]+\n\Z")
        self.assertEqual(await self.ready(), 503)
        await self.stop(int(self.pid_file.read_text()))
        await self.until("the processes are gone", lambda: not self.processes())

    async def test_another_root_is_refused(self) -> None:
        need(os.geteuid() == 0, "only root can change it: run the tests as root")
        said = await self.refused(f"--chroot={self.folder}")
        self.assertEqual(said, "notify: --chroot works with one process only: leave out [server] workers.\n")


class AsAnotherUser(Workers):
    """Started by root, and run as another user."""

    def setUp(self) -> None:
        need(os.geteuid() == 0, "only root can become another user: run the tests as root")
        super().setUp()
        self.user = pwd.getpwnam("nobody")
        self.as_nobody = f"--uid={self.user.pw_name}"
        os.chown(self.folder, self.user.pw_uid, self.user.pw_gid)

    def may_run(self) -> bool:
        try:
            return subprocess.run([sys.executable, "-c", ""], user=self.user.pw_uid).returncode == 0
        except PermissionError:
            return False

    async def hopeless(self) -> None:
        """Only root can run this Python: the command says so, and leaves nothing behind."""
        said = await self.refused(self.as_nobody)
        self.assertRegex(
            said, rf"n-w. ends each time it is started \({re.escape(sys.executable)}: Permission denied\)"
        )

    def place(self) -> Path:
        # Other users cannot enter the folders of the test runners.
        folder = Path(tempfile.mkdtemp(prefix="notify-test-"))
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o755)
        return folder

    async def test_the_workers_are_that_users(self) -> None:
        if not self.may_run():
            await self.hopeless()
            return
        pid = await self.started(self.as_nobody)
        processes = [pid, *self.workers(pid)]
        self.assertEqual(len(processes), 3)
        for one in processes:
            status = Path(f"/proc/{one}/status").read_text()
            self.assertIn(f"\nUid:{f'{chr(9)}{self.user.pw_uid}' * 4}\n", status)
            self.assertIn(f"\nGid:{f'{chr(9)}{self.user.pw_gid}' * 4}\n", status)
        await self.refuse_at_each()
        await self.stop(pid)

    async def test_a_key_that_only_root_can_read_is_none_for_the_workers(self) -> None:
        if not self.may_run():
            await self.hopeless()
            return
        key, certificate = Authority(self.folder).issue(x509.DNSName("localhost"))
        key.chmod(0o600)
        endpoint = f"ssl:{self.public}:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
        said = await self.refused(self.as_nobody, NOTIFY_LISTEN__PUBLIC=endpoint)
        self.assertEqual(said, f"notify: listen.public: {key} cannot be read: Permission denied.\n")
        os.chown(key, 0, self.user.pw_gid)
        key.chmod(0o640)
        pid = await self.started(self.as_nobody, NOTIFY_LISTEN__PUBLIC=endpoint)
        await self.stop(pid)
