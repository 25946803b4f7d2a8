"""``notify doctor``: each check, on what is right and on what is wrong; and all of it against real servers."""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import nats
from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream.diagnose import lists
from notify.config import Config, load
from notify.doctor import Patient, examine, host, listeners
from notify.doctor.host import Unit, parse_span, parse_unit
from notify.findings import Finding, span
from notify.transport import fanout
from tests.support.certificates import Authority
from tests.support.natsd import Greeter, NatsServer, listening
from tests.support.ports import free_port
from tests.support.programs import need
from tests.support.running import BIN, LocalServer, in_asyncio

SECRET = "0123456789abcdef0123456789abcdef"
GOOD = {
    "NOTIFY_AUTH__JWT__SECRET": SECRET,
    "NOTIFY_LISTEN__PUBLIC": "tcp:0:interface=127.0.0.1",
    "NOTIFY_LISTEN__INTERNAL": "tcp:0:interface=127.0.0.1",
}


def config(**environ: str) -> Config:
    return load(None, {**GOOD, **{f"NOTIFY_{key}": value for key, value in environ.items()}})


def levels(found: list[Finding], check: str) -> list[str]:
    return [finding.level for finding in found if finding.check == check]


def unit(**fields: Any) -> Unit:
    return Unit(
        **{
            "name": "notify.service",
            "type": "notify",
            "user": "root",
            "files": 524288,
            "stop": 90.0,
            **fields,
        }
    )


class Units(TestCase):
    def test_time_spans_are_read_as_systemd_writes_them(self) -> None:
        for text, seconds in (
            ("1min 30s", 90),
            ("90s", 90),
            ("2h", 7200),
            ("500ms", 0.5),
            ("infinity", float("inf")),
        ):
            self.assertEqual((text, parse_span(text)), (text, seconds))

    def test_a_unit_is_read_and_one_that_is_missing_is_none(self) -> None:
        shown = "Type=notify\nUser=notify\nLimitNOFILE=524288\nTimeoutStopUSec=1min 30s\nLoadState=loaded\n"
        self.assertEqual(parse_unit("n.service", shown), Unit("n.service", "notify", "notify", 524288, 90))
        infinite = parse_unit(
            "n.service", "LoadState=loaded\nLimitNOFILE=infinity\nTimeoutStopUSec=infinity\n"
        )
        self.assertEqual(infinite, Unit("n.service", "", "root", 2**63, float("inf")))
        self.assertIsNone(parse_unit("n.service", "LoadState=not-found\n"))

    def test_the_environment_of_the_unit_and_of_its_files(self) -> None:
        file = Path(self.mktemp())
        file.write_text('# a comment\nNOTIFY_LIMITS__REPLAY="7"\n\nNOTIFY_AUTH__PLUGIN=jwt\n')
        shown = (
            'LoadState=loaded\nMainPID=0\nEnvironment=NOTIFY_LIMITS__REPLAY=6 "NOTIFY_API__KEYS=a b"\n'
            f"EnvironmentFiles={file} (ignore_errors=no)\nEnvironmentFiles=/nowhere (ignore_errors=yes)\n"
        )
        made = parse_unit("n.service", shown)
        assert made is not None
        self.assertEqual(
            made.environ,
            {"NOTIFY_LIMITS__REPLAY": "7", "NOTIFY_API__KEYS": "a b", "NOTIFY_AUTH__PLUGIN": "jwt"},
        )

    def test_a_process_that_runs_says_what_it_has(self) -> None:
        made = host.of_process(unit(pid=os.getpid(), files=1))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.assertEqual(made.files, 2**63 if hard == resource.RLIM_INFINITY else hard)
        self.assertEqual(made.environ["PATH"], os.environ["PATH"])
        self.assertIn(
            "the running ", next(f.text for f in host.limits(config(), made) if f.check == "file limit")
        )
        gone = unit(pid=os.getpid(), environ={"A": "b"})
        self.assertEqual(host.of_process(gone, Path("/nowhere")), unit(environ={"A": "b"}))

    def test_what_the_unit_has_in_its_environment_is_examined(self) -> None:
        self.patch(host, "read_unit", lambda name: unit(environ={"NOTIFY_LIMITS__REPLAY": "many", **GOOD}))
        (finding,) = examine(Patient((), {}, 60))
        self.assertIn("NOTIFY_LIMITS__REPLAY is wrong", finding.text)
        found = examine(Patient((), {"NOTIFY_LIMITS__REPLAY": "5"}, 60))
        self.assertEqual(levels(found, "configuration"), ["ok"])

    def test_our_own_unit_gives_the_drain_enough_time(self) -> None:
        text = (Path(__file__).parent.parent.parent / "debian" / "notify-server.notify.service").read_text()
        stop = next(line.split("=")[1] for line in text.splitlines() if line.startswith("TimeoutStopSec="))
        self.assertEqual(levels(host.drain(config(), unit(stop=parse_span(stop))), "drain"), ["ok"])


class Drain(TestCase):
    def test_the_unit_must_wait_longer_than_the_drain_takes_or_let_it_ask_for_more(self) -> None:
        long = config(DRAIN__DURATION="2m")
        for one, settings, expected in (
            (unit(), config(), "ok"),
            (unit(), long, "ok"),
            (unit(type="simple"), long, "fault"),
            (unit(type="simple", stop=200.0), long, "ok"),
            (None, config(), "note"),
        ):
            self.assertEqual(levels(host.drain(settings, one), "drain"), [expected], one)


class Limits(TestCase):
    def test_files_against_connections(self) -> None:
        for most, allowed, expected in (
            (1024, 5000, "fault"),
            (10_000, 5000, "ok"),
            (5100, 5000, "fault"),
            (1024, 0, "warning"),
            (524288, 0, "note"),
            (1024, "auto", "note"),
            (524288, "auto", "ok"),
        ):
            found = host.limits(config(LIMITS__MAX_CONNECTIONS=str(allowed)), unit(files=most))
            self.assertEqual((most, allowed, levels(found, "file limit")), (most, allowed, [expected]))

    def test_without_a_unit_this_process_is_looked_at(self) -> None:
        self.assertEqual(
            levels(host.limits(config(LIMITS__MAX_CONNECTIONS="10"), None), "file limit"), ["ok"]
        )

    def test_the_limit_that_counts_is_the_one_to_which_the_server_raises_its_own(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        need(hard > 4096, "this machine has too low a hard limit on open files: ulimit -Hn")
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        found = host.limits(config(LIMITS__MAX_CONNECTIONS="2000"), None)
        self.assertEqual(levels(found, "file limit"), ["ok"])

    def test_queues_must_fit_into_memory(self) -> None:
        found = host.limits(config(LIMITS__SEND_QUEUES="4096TiB"), unit())
        self.assertEqual(levels(found, "memory"), ["warning"])


class Clock(TestCase):
    def test_the_clock(self) -> None:
        now = 1_800_000_000.0
        for at, told, expected in (
            (0.0, True, "fault"),
            (now, True, "ok"),
            (now, False, "warning"),
            (now, None, "note"),
        ):
            self.assertEqual(levels(host.clock(at, told), "clock"), [expected])

    def test_which_way_messages_go_out(self) -> None:
        pure, usual = host.fan_out({"NOTIFY_PURE": "1"}), host.fan_out({})
        self.assertEqual(pure.level, "note")
        self.assertEqual(usual.level, "ok" if fanout.in_c else "note")
        for found in (pure, usual):
            self.assertIn("the C version" if found.level == "ok" else "the Python version", found.text)
            self.assertEqual(bool(found.mend), found.level == "note")

    def test_the_kernel_is_asked(self) -> None:
        self.assertIn(host.clock_is_synchronised(), (True, False, None))


class Files(TestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o755)
        self.keys = self.folder / "keys"
        self.keys.write_text("a-key-that-is-long-enough-0123456789\n")

    def found(self, user: str = "nobody") -> list[Finding]:
        return host.files(config(API__KEYS_FILE=str(self.keys)), unit(user=user))

    def test_a_secret_that_everyone_can_read(self) -> None:
        self.keys.chmod(0o644)
        (finding,) = self.found()
        self.assertEqual((finding.level, finding.mend), ("warning", f"chmod o-r {self.keys}"))

    def test_a_file_that_the_servers_user_cannot_read(self) -> None:
        self.keys.chmod(0o600)
        self.assertEqual([finding.level for finding in self.found()], ["fault"])
        self.assertEqual([finding.level for finding in self.found("root")], ["ok"])

    def test_a_folder_that_the_servers_user_cannot_enter(self) -> None:
        self.keys.chmod(0o640)
        nobody = pwd.getpwnam("nobody")
        need(os.geteuid() == 0, "only root can give files away")
        os.chown(self.keys, -1, nobody.pw_gid)
        self.assertEqual([finding.level for finding in self.found()], ["ok"])
        self.folder.chmod(0o700)
        self.assertEqual([finding.level for finding in self.found()], ["fault"])

    def test_a_file_that_is_not_there(self) -> None:
        self.keys.unlink()
        (finding,) = self.found()
        self.assertEqual(finding.level, "fault")
        self.assertIn("api.keys_file", finding.text)

    def test_each_of_several_configuration_files_is_looked_at(self) -> None:
        open_one, closed = self.folder / "a.toml", self.folder / "b.toml"
        open_one.write_text(f'[auth.jwt]\nsecret = "{SECRET}"\n')
        closed.write_text("")
        open_one.chmod(0o644)
        closed.chmod(0o600)
        found = host.files(load([str(open_one), str(closed)], {}), unit(user="nobody"))
        self.assertEqual([finding.level for finding in found], ["warning", "fault"])
        self.assertIn("a.toml", found[0].text)
        self.assertIn("b.toml", found[1].text)

    def test_a_key_that_systemd_copies_is_not_reloaded(self) -> None:
        copy = "/run/credentials/notify.service/jwt"
        for key in ("AUTH__JWT__SECRET_FILE", "AUTH__WEBHOOK__JWT__SECRET_FILE"):
            settings = config(**{key: copy, "AUTH__PLUGIN": key.split("__")[1].lower()})
            found = host.files(settings, unit())
            self.assertEqual([finding.level for finding in found], ["ok", "note"])
            self.assertIn(f"{copy} is a copy that systemd makes at a start", found[1].text)

    def test_a_configuration_with_a_secret_in_it(self) -> None:
        file = self.folder / "notify.toml"
        for text, expected in (
            (f'[auth.jwt]\nsecret = "{SECRET}"\n', "warning"),
            ("[drain]\ndelay = 1\n", "ok"),
        ):
            file.write_text(text)
            file.chmod(0o644)
            settings = load(str(file), {} if "secret" in text else {"NOTIFY_AUTH__JWT__SECRET": SECRET})
            self.assertEqual([finding.level for finding in host.files(settings, unit())], [expected])


class Ports(TestCase):
    timeout = 30

    def check(self, endpoint: str) -> list[str]:
        return levels(listeners.ports(config(LISTEN__PUBLIC=endpoint)), "port public")

    def test_a_free_port_one_that_is_taken_and_one_that_is_no_address_of_ours(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", free_port()))
            taken.listen()
            port = taken.getsockname()[1]
            self.assertEqual(self.check(f"tcp:{port}:interface=127.0.0.1"), ["fault"])
        self.assertEqual(self.check(f"tcp:{port}:interface=127.0.0.1"), ["ok"])
        self.assertEqual(self.check("tcp:0:interface=192.0.2.1"), ["fault"])
        self.assertEqual(self.check("systemd:domain=INET:index=0"), ["note"])

    async def test_a_port_that_is_notifys_own(self) -> None:
        server = await LocalServer().start(self)
        port = server.public.rpartition(":")[2]
        found = await deferToThread(self.check, f"tcp:{port}:interface=127.0.0.1")
        self.assertEqual(found, ["ok"])

    async def test_a_port_of_notify_that_speaks_tls(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        key, certificate = Authority(folder).issue(x509.DNSName("x"))
        endpoint = f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
        server = await LocalServer(LISTEN__PUBLIC=endpoint).start(self)
        port = server.service.public.number
        found = await deferToThread(self.check, endpoint.replace("ssl:0", f"ssl:{port}"))
        self.assertEqual(found, ["ok"])

    def test_a_port_that_only_root_may_bind(self) -> None:
        settings = config(LISTEN__PUBLIC="tcp:443:interface=192.0.2.1")
        for user, first, text in (
            ("notify", 1024, "only root may bind a port this low"),
            ("notify", 80, "192.0.2.1 port 443"),
            ("root", 1024, "192.0.2.1 port 443"),
        ):
            (finding,) = [f for f in listeners.ports(settings, user, first) if f.check == "port public"]
            self.assertIn(text, finding.text)

    def test_an_internal_port_that_everyone_can_reach(self) -> None:
        for endpoint, expected in (("tcp:0", "warning"), ("tcp:0:interface=\\:\\:1", "ok")):
            found = listeners.ports(config(LISTEN__INTERNAL=endpoint))
            self.assertIn(expected, levels(found, "port internal"), endpoint)


class Origins(TestCase):
    def check(self, allowed: str, origin: str = "", host: str = "") -> list[str]:
        return levels(listeners.origins(config(LISTEN__ALLOWED_ORIGINS=allowed), origin, host), "origins")

    def test_origins(self) -> None:
        self.assertEqual(self.check("*"), ["warning"])
        self.assertEqual(self.check("https://a.example, http://localhost:3000"), ["ok"])
        self.assertEqual(self.check("https://a.example/"), ["fault"])
        self.assertEqual(self.check("a.example"), ["fault"])
        self.assertEqual(levels(listeners.origins(config(), "", ""), "origins"), ["note"])

    def test_a_page_is_asked_about(self) -> None:
        self.assertEqual(self.check("https://a.example", "https://a.example"), ["ok", "ok"])
        self.assertEqual(self.check("https://a.example", "http://a.example"), ["ok", "fault"])
        same_host = listeners.origins(config(), "https://ws.example", "ws.example")
        self.assertEqual(levels(same_host, "origins"), ["note", "ok"])

    def test_behind_a_proxy_that_is_not_named(self) -> None:
        self.assertEqual(levels(listeners.origins(config(), "", ""), "proxies"), ["note"])
        named = config(LISTEN__TRUSTED_PROXIES="127.0.0.1")
        self.assertEqual(levels(listeners.origins(named, "", ""), "proxies"), [])


class MemoryBroker(TestCase):
    def found(self, window: float, **environ: str) -> list[Finding]:
        given = {**GOOD, **{f"NOTIFY_{key}": value for key, value in environ.items()}}
        return examine(Patient((), given, window, unit="no-such-unit"))

    def test_retention_against_the_resume_window(self) -> None:
        self.assertEqual(levels(self.found(86400), "retention"), ["ok"])
        self.assertEqual(levels(self.found(86400, BROKER__MEMORY__HISTORY_AGE="1h"), "retention"), ["fault"])
        self.assertEqual(levels(self.found(60, BROKER__MEMORY__HISTORY_SIZE="10"), "retention"), ["note"])

    def test_a_backend_that_is_asked_in_clear(self) -> None:
        webhook = {
            "AUTH__PLUGIN": "webhook",
            "AUTH__WEBHOOK__AUTHENTICATE_URL": "http://backend.internal/",
        }
        self.assertEqual(levels(self.found(60), "plugins"), [])
        self.assertEqual(levels(self.found(60, **webhook), "plugins"), ["warning"])

    def test_a_configuration_that_is_wrong_is_all_there_is_to_say(self) -> None:
        (finding,) = self.found(60, LIMITS__REPLAY="many")
        self.assertEqual((finding.level, finding.check), ("fault", "configuration"))

    def test_spans_are_readable(self) -> None:
        self.assertEqual(
            [span(n) for n in (3, 90, 7200, 86400, 604800)], ["3 s", "90 s", "2 hours", "24 hours", "7 days"]
        )


class JetStream(TestCase):
    """The checks against real NATS servers."""

    timeout = 90

    async def server(self, **options: Any) -> NatsServer:
        server = NatsServer(**options)
        server.start()
        self.addCleanup(server.remove)
        await server.up()
        return server

    def found(self, url: str, window: float = 86400, **environ: str) -> Deferred[list[Finding]]:
        given = {
            **GOOD,
            "NOTIFY_BROKER__PLUGIN": "jetstream",
            "NOTIFY_BROKER__JETSTREAM__SERVERS": url,
            **{f"NOTIFY_BROKER__JETSTREAM__{key}": value for key, value in environ.items()},
        }
        return deferToThread(examine, Patient((), given, window, unit="no-such-unit"))

    async def made(self, server: NatsServer) -> None:
        """Start a notify server, which makes the streams."""
        environ = {"BROKER__PLUGIN": "jetstream", "BROKER__JETSTREAM__SERVERS": server.url}
        running = await LocalServer(**environ).start(self)
        await running.publish(1)

    def with_client(self, server: NatsServer, work: Any) -> Deferred[Any]:
        async def run() -> Any:
            client = await nats.connect(server.url)
            try:
                return await work(client.jetstream())
            finally:
                await client.close()

        return in_asyncio(run())

    async def test_a_server_that_hangs_is_named_with_what_to_install(self) -> None:
        class Hanging(Greeter):
            version = "2.12.0"

        found = await self.found(f"nats://{listening(self, Hanging)}")
        (fault,) = [f for f in found if f.check == "broker"]
        self.assertEqual(fault.level, "fault")
        self.assertIn("is nats-server 2.12.0, which hangs", fault.text)
        self.assertIn("install 2.12.8", fault.text)

    async def test_a_new_server_is_well(self) -> None:
        server = await self.server()
        found = await self.found(server.url)
        self.assertEqual([f for f in found if f.level == "fault"], [])
        self.assertEqual(levels(found, "stream MESSAGES"), ["note"])
        self.assertEqual(levels(found, "permissions"), ["ok"])

    async def test_streams_that_notify_has_made_are_well_and_nothing_is_stored_by_looking(self) -> None:
        server = await self.server()
        await self.made(server)

        async def messages(js: Any) -> int:
            return int((await js.stream_info("MESSAGES")).state.messages)

        before = await self.with_client(server, messages)
        found = await self.found(server.url)
        self.assertEqual([f for f in found if f.level in ("fault", "warning") and f.check != "clock"], [])
        for check in ("stream MESSAGES", "stream MESSAGES_DEAD", "permissions", "retention", "holes"):
            self.assertEqual((check, levels(found, check)), (check, ["ok"]))
        self.assertEqual(await self.with_client(server, messages), before)

    async def test_numbers_that_are_missing_inside_the_stream(self) -> None:
        server = await self.server()
        await self.made(server)

        async def lack(js: Any) -> None:
            last = await js.publish("workspace.1.chat.1.messages", b"1")
            await js.publish("workspace.1.chat.1.messages", b"2")
            await js.delete_msg("MESSAGES", last.seq)

        await self.with_client(server, lack)
        [finding] = [f for f in await self.found(server.url) if f.check == "holes"]
        self.assertEqual(finding.level, "warning")
        self.assertIn("1 numbers are missing", finding.text)

    async def test_retention_and_settings_that_differ(self) -> None:
        server = await self.server()
        await self.made(server)
        self.assertEqual(levels(await self.found(server.url, window=30 * 86400), "retention"), ["fault"])
        found = await self.found(server.url, MAX_AGE="3d")
        self.assertEqual(levels(found, "stream MESSAGES"), ["warning"])

    async def test_a_stream_of_the_operators_that_cannot_be_used(self) -> None:
        server = await self.server()

        async def make(js: Any) -> None:
            await js.add_stream(name="MESSAGES", subjects=["workspace.*.chat.*.messages"])

        await self.with_client(server, make)
        found = await self.found(server.url, MANAGE_STREAM="false")
        (finding,) = [f for f in found if f.check == "stream MESSAGES"]
        self.assertEqual(finding.level, "fault")
        self.assertIn("subjects lack workspace.*.user.*.notifications", finding.text)
        self.assertEqual(levels(found, "stream MESSAGES_DEAD"), ["fault"])

    async def test_a_full_stream_that_reaches_back_too_short_a_time(self) -> None:
        server = await self.server()
        await self.made(server)

        async def fill(js: Any) -> None:
            for number in range(20):
                await js.publish("workspace.1.chat.1.messages", b"%d" % number)
            config = (await js.stream_info("MESSAGES")).config
            config.max_msgs = 10
            await js.update_stream(config)

        await self.with_client(server, fill)
        found = await self.found(server.url, MAX_MESSAGES="10")
        (finding,) = [f for f in found if f.check == "retention"]
        self.assertEqual(finding.level, "fault")
        self.assertIn("max_messages", finding.mend)

    def test_a_stream_that_takes_no_batches(self) -> None:
        self.assertEqual(lists({"config": {"num_replicas": 1, "allow_atomic": True}}), [])
        self.assertEqual(lists({"config": {"num_replicas": 3, "allow_atomic": True}}), [])
        for copies, slow in ((1, False), (3, True)):
            (finding,) = lists({"config": {"num_replicas": copies}})
            self.assertEqual(finding.level, "note")
            self.assertIn("all or nothing are refused", finding.text)
            self.assertIs("one after the other" in finding.text, slow)
            self.assertIn("allow_atomic", finding.mend)

    async def test_missing_permissions_are_named(self) -> None:
        accounts = 'authorization { users: [{user: "n", password: "p", permissions: {publish: ["$JS.API.INFO", "$JS.API.STREAM.>"], subscribe: ["_INBOX_notify.>"]}}] }'
        server = await self.server(accounts=accounts)
        found = await self.found(server.url, USER="n", PASSWORD="p")
        denied = [f for f in found if f.check == "permissions"]
        # A server works without signals.
        without = [f for f in denied if ".signals" in f.text]
        self.assertEqual([f.level for f in without], ["warning"] * 2)
        self.assertEqual({f.level for f in denied if f not in without}, {"fault"})
        said = " ".join(f.text for f in denied)
        self.assertIn("workspace.0.chat.0.messages", said)
        # In the case in which it must be granted.
        self.assertIn("$JS.API.DIRECT.GET.MESSAGES", said)

    async def test_a_stream_that_would_keep_signals_is_told(self) -> None:
        server = await self.server()
        await self.made(server)

        async def widen(js: Any) -> None:
            config = (await js.stream_info("MESSAGES")).config
            await js.update_stream(
                config, subjects=["workspace.*.chat.>", "workspace.*.user.*.notifications"]
            )

        await self.with_client(server, widen)
        found = [f for f in await self.found(server.url) if "signals" in f.text]
        self.assertEqual([(f.level, f.check) for f in found], [("warning", "stream MESSAGES")])

    async def test_a_server_that_is_away_and_a_wrong_password(self) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            url = f"nats://user:secret-word@127.0.0.1:{nobody.getsockname()[1]}"
            found = await self.found(url, CONNECT_TIMEOUT="1s")
        (finding,) = [f for f in found if f.check == "broker"]
        self.assertEqual(finding.level, "fault")
        self.assertNotIn("secret-word", finding.text)
        server = await self.server(accounts='authorization { user: "n", password: "p" }')
        found = await self.found(server.url, USER="n", PASSWORD="wrong", CONNECT_TIMEOUT="1s")
        self.assertEqual(levels(found, "broker"), ["fault"])


class Command(TestCase):
    timeout = 30

    def run_it(self, *arguments: str, **environ: str) -> Deferred[Any]:
        return deferToThread(
            subprocess.run,
            [str(BIN / "notify"), "doctor", *arguments],
            env={**os.environ, **GOOD, **environ},
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
        )

    async def test_without_a_key_the_configuration_is_a_fault(self) -> None:
        done = await self.run_it(NOTIFY_AUTH__JWT__SECRET="")
        self.assertEqual(done.returncode, 1)
        self.assertIn("FAULT    configuration: No key to verify tokens with", done.stdout)
        self.assertIn("1 fault, ", done.stdout)

    async def test_api_keys_that_are_none_are_a_fault(self) -> None:
        done = await self.run_it(NOTIFY_API__KEYS="short")
        self.assertEqual(done.returncode, 1)
        self.assertIn("FAULT    configuration: the environment: 'api.keys' is wrong", done.stdout)

    async def test_a_healthy_deployment_is_0_and_one_at_fault_is_1(self) -> None:
        done = await self.run_it("--resume-window", "1d")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("ok       configuration: the environment is good.", done.stdout)
        self.assertIn("0 faults", done.stdout)
        done = await self.run_it("--resume-window", "30d")
        self.assertEqual(done.returncode, 1)
        self.assertIn("FAULT    retention:", done.stdout)
        self.assertIn("-> Raise [broker.memory] history_age", done.stdout)

    async def test_json(self) -> None:
        done = await self.run_it("--json", "--origin", "https://a.example", "--host", "b.example")
        found = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertIn(("fault", "origins"), [(one["level"], one["check"]) for one in found])
        self.assertEqual(done.returncode, 1)

    async def test_secrets_are_not_shown(self) -> None:
        done = await self.run_it()
        self.assertNotIn(SECRET, done.stdout + done.stderr)

    async def test_a_window_that_is_none(self) -> None:
        done = await self.run_it("--resume-window", "soon")
        self.assertEqual(done.returncode, 2)
        self.assertIn("write a duration like", done.stderr)
