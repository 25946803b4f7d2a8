"""twistd as an operator runs it: its output and its exit status."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import jwt
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.programs import need, program
from tests.support.running import API_KEY, SECRET, RawClient, Twistd

FREE = {
    "NOTIFY_LISTEN__PUBLIC": "tcp:0:interface=127.0.0.1",
    "NOTIFY_LISTEN__INTERNAL": "tcp:0:interface=127.0.0.1",
}


class Running(TestCase):
    timeout = 60

    def twistd(self, *arguments: str, by: tuple[str, ...] = (), **environ: str) -> Twistd:
        self.folder = Path(self.mktemp())
        self.folder.mkdir(parents=True)
        process = Twistd(*arguments, cwd=self.folder, by=by, **{**FREE, **environ})
        self.addCleanup(process.kill)
        return process

    def write(self, text: str) -> str:
        path = Path(self.mktemp())
        path.write_text(text)
        return str(path.resolve())

    async def test_dev_prints_an_address_a_token_and_commands_that_work(self) -> None:
        server = self.twistd("--nodaemon", "--pidfile=", "notify", "--dev")
        printed = await server.says(r"WebSocket +(\S+)[\s\S]*HTTP API +(\S+)openapi.json[\s\S]*admin page +\S+/admin[\s\S]*"
                                    r"export NOTIFY_TOKEN=(\S+) NOTIFY_API_KEY=(\S+)[\s\S]*Ctrl-C")  # fmt: skip
        url, api, token, key = printed.groups()

        def session() -> list[Any]:
            client = RawClient(url)
            client.send_json(type="auth", token=token)
            client.send_json(type="subscribe", chat_id=1, id=1)
            seen = [json.loads(client.receive()[1]) for _ in range(2)]
            body = {
                "message_id": 1,
                "chat_id": 1,
                "workspace_id": 1,
                "sender_id": 2,
                "content": "hi",
                "timestamp": 3,
            }
            request = urllib.request.Request(
                f"{api}v1/publish",
                json.dumps({"subject": "workspace.1.chat.1.messages", "payload": body}).encode(),
                {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
            )
            urllib.request.urlopen(request, timeout=10).close()
            seen.append(json.loads(client.receive()[1]))
            client.close()
            return seen

        seen = await deferToThread(session)
        self.assertEqual([frame["type"] for frame in seen], ["auth_result", "subscribed", "chat_message"])
        server.process.signalProcess("TERM")
        await server.ended
        logged = [line for line in server.output.splitlines() if re.match(r"\d{4}-", line)]
        self.assertTrue(logged)
        self.assertNotIn(token, "\n".join(logged))
        self.assertNotIn(key, "\n".join(logged))

    async def test_dev_takes_no_key_and_no_broker_from_the_environment(self) -> None:
        server = self.twistd(
            *("--nodaemon", "--pidfile=", "notify", "--dev"),
            NOTIFY_AUTH__JWT__SECRET=SECRET,
            NOTIFY_API__KEYS=API_KEY,
            NOTIFY_AUTH__PLUGIN="webhook",
            NOTIFY_BROKER__PLUGIN="jetstream",
        )
        said = await server.says(r"(Not used .*)[\s\S]* NOTIFY_TOKEN=(\S+) NOTIFY_API_KEY=(\S+)")
        names = "NOTIFY_API__KEYS, NOTIFY_AUTH__JWT__SECRET, NOTIFY_AUTH__PLUGIN, NOTIFY_BROKER__PLUGIN"
        self.assertEqual(said[1].strip(), f"Not used of the environment: {names}.")
        with self.assertRaises(jwt.InvalidSignatureError):
            jwt.decode(said[2], SECRET, algorithms=["HS256"], audience="notify")
        self.assertNotEqual(said[3], API_KEY)

    async def test_a_configuration_file_is_read(self) -> None:
        path = self.write(f'[auth.jwt]\nsecret = "{SECRET}"\n[broker.memory]\nhistory_size = 5\n')
        server = self.twistd("--nodaemon", "--pidfile=", "notify", "--config", path)
        await server.says("ready: public")
        server.process.signalProcess("INT")
        await server.ended
        self.assertIn("Server Shut Down", server.output)

    async def test_it_leaves_no_core_dump_unless_it_is_told_to(self) -> None:
        allowed = resource.getrlimit(resource.RLIMIT_CORE)[1] != 0 or os.geteuid() == 0
        need(allowed and sys.platform == "linux", "no core dumps here: `ulimit -H -c` is 0")
        by = (program("prlimit"), "--core=unlimited:unlimited")
        dumped = []
        for dumpable in ("true", "false"):
            environ = {"NOTIFY_AUTH__JWT__SECRET": SECRET, "NOTIFY_SERVER__DUMPABLE": dumpable}
            server = self.twistd("--nodaemon", "--pidfile=", "notify", by=by, **environ)
            await server.says("ready: public")
            server.process.signalProcess(signal.SIGABRT)
            await server.ended
            dumped.append(server.dumped)
        self.assertEqual(dumped, [True, False])

    async def test_daemonised_it_writes_its_pid_and_leaves_on_sigterm(self) -> None:
        path = self.write(f'[auth.jwt]\nsecret = "{SECRET}"\n')
        server = self.twistd("--pidfile=notify.pid", "--logfile=notify.log", "notify", "--config", path)
        self.assertEqual(await server.ended, 0)
        pid = int((self.folder / "notify.pid").read_text())
        self.addCleanup(_kill, pid)
        log = self.folder / "notify.log"
        await deferToThread(_wait_for, lambda: log.exists() and "ready: public" in log.read_text())
        os.kill(pid, signal.SIGTERM)
        # twistd removes the file before it writes its last line.
        await deferToThread(_wait_for, lambda: not (self.folder / "notify.pid").exists())
        await deferToThread(_wait_for, lambda: "Server Shut Down" in log.read_text())


_HAND_OVER = """
import os, socket, sys
one = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=1)
os.dup2(one.fileno(), 3)
os.set_inheritable(3, True)
print("port", one.getsockname()[1], flush=True)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="ws", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"""


class Activated(TestCase):
    timeout = 60

    async def test_a_socket_that_is_handed_over_is_served_and_whoever_waited_on_it_too(self) -> None:
        server = Twistd(
            "-n",
            "--pidfile=",
            "notify",
            cwd=Path.cwd(),
            by=(sys.executable, "-c", _HAND_OVER),
            NOTIFY_LISTEN__PUBLIC="systemd:domain=INET6:name=ws",
            NOTIFY_LISTEN__INTERNAL="tcp:0:interface=127.0.0.1",
            NOTIFY_AUTH__JWT__SECRET=SECRET,
        )
        self.addCleanup(server.kill)
        port = int((await server.says(r"port (\d+)")).group(1))
        client = await deferToThread(RawClient, f"ws://[::1]:{port}/ws")
        self.assertEqual(client.status, 101)
        client.close()


class Refusing(TestCase):
    """A server that cannot run says why in one plain sentence, and exits with a status other than 0."""

    timeout = 60

    async def refused(self, *arguments: str, **environ: str) -> str:
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        server = Twistd("--nodaemon", "--pidfile=", *arguments, cwd=folder, **{**FREE, **environ})
        self.addCleanup(server.kill)
        status = await server.ended
        self.assertNotEqual(status, 0, server.output)
        self.assertNotIn("Traceback", server.output)
        [sentence] = [line for line in server.output.splitlines() if line.startswith("notify: ")]
        return sentence

    async def test_a_configuration_that_is_wrong(self) -> None:
        path = Path(self.mktemp()).resolve()
        path.write_text("[limits]\nreplays = 1")
        sentence = await self.refused("notify", "--config", str(path))
        self.assertIn(f"{path}: unknown key 'limits.replays'; known keys are: auth_timeout", sentence)

    async def test_no_secret(self) -> None:
        self.assertIn("secret", await self.refused("notify"))

    async def test_an_endpoint_that_is_none(self) -> None:
        sentence = await self.refused("notify", "--dev", NOTIFY_LISTEN__PUBLIC="fax:1")
        self.assertIn("listen.public: 'fax:1' is not a server endpoint", sentence)

    async def test_an_endpoint_whose_key_is_missing(self) -> None:
        sentence = await self.refused(
            "notify", "--dev", NOTIFY_LISTEN__PUBLIC="ssl:0:privateKey=/nowhere.key"
        )
        self.assertEqual(
            sentence, "notify: listen.public: /nowhere.key cannot be read: No such file or directory."
        )

    async def test_an_endpoint_whose_key_is_none(self) -> None:
        endpoint = f"ssl:0:privateKey={__file__}"
        sentence = await self.refused("notify", "--dev", NOTIFY_LISTEN__PUBLIC=endpoint)
        self.assertIn(f"listen.public: '{endpoint}' is not a server endpoint", sentence)

    async def test_a_socket_that_systemd_has_not_handed_over(self) -> None:
        for how in ("name=ws", "index=0"):
            endpoint = f"systemd:domain=INET6:{how}"
            sentence = await self.refused("notify", "--dev", NOTIFY_LISTEN__PUBLIC=endpoint)
            self.assertIn(f"listen.public: systemd has handed over no socket for '{endpoint}'", sentence)

    async def test_an_origin_that_can_never_match(self) -> None:
        environ = {"NOTIFY_AUTH__JWT__SECRET": SECRET, "NOTIFY_LISTEN__ALLOWED_ORIGINS": "chat.example"}
        sentence = await self.refused("notify", **environ)
        self.assertIn("'listen.allowed_origins' is wrong: 'chat.example' has no scheme: write it", sentence)

    async def test_an_endpoint_that_weakens_tls(self) -> None:
        endpoint = "ssl:0:privateKey=x:sslmethod=TLSv1_METHOD"
        sentence = await self.refused(
            "notify", NOTIFY_AUTH__JWT__SECRET=SECRET, NOTIFY_LISTEN__INTERNAL=endpoint
        )
        self.assertIn("listen.internal: 'sslmethod' has no use", sentence)

    async def test_a_file_that_cannot_be_read(self) -> None:
        sentence = await self.refused("notify", "--config", "/nowhere/notify.toml")
        self.assertIn("/nowhere/notify.toml: cannot be read: No such file", sentence)

    async def test_a_wrong_environment_variable(self) -> None:
        sentence = await self.refused("notify", NOTIFY_LIMITS__REPLAY="x")
        self.assertIn("NOTIFY_LIMITS__REPLAY is wrong", sentence)

    async def test_dev_with_a_configuration(self) -> None:
        self.assertIn("give either", await self.refused("notify", "--dev", "--config", "x"))

    async def test_dev_where_other_machines_are(self) -> None:
        for key, endpoint in (
            ("PUBLIC", "tcp:0"),
            ("INTERNAL", "tcp:0:interface=0.0.0.0"),
            ("PUBLIC", "tcp6:0"),
        ):
            sentence = await self.refused("notify", "--dev", **{f"NOTIFY_LISTEN__{key}": endpoint})
            self.assertIn(
                f"'{endpoint}' can be reached from other machines, and --dev accepts anyone", sentence
            )

    async def test_another_reactor(self) -> None:
        sentence = await self.refused("--reactor=select", "notify", "--dev")
        self.assertIn("notify needs the asyncio reactor and cannot run on SelectReactor", sentence)

    async def test_a_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            endpoint = f"tcp:{port}:interface=127.0.0.1"
            for key in ("PUBLIC", "INTERNAL"):
                sentence = await self.refused("notify", "--dev", **{f"NOTIFY_LISTEN__{key}": endpoint})
                self.assertRegex(
                    sentence,
                    rf"listen.{key.lower()}: '{endpoint}' cannot be bound: Address already in use; stop",
                )


def _wait_for(condition: Any) -> None:
    import time

    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not happen within 20 s")
        time.sleep(0.02)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
