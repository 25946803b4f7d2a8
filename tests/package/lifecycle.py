"""The Debian package through its life, on a real systemd. Root. `make package-test`."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from notify.auth.tokens import issue
from notify.client import AsyncioClient
from notify.client.publisher import Publisher
from tests.package.machine import BUILD, TOP, Machine, require, run
from tests.support.inventory import wrong
from tests.support.process import Client, wait_for

STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", flush=True)


def check(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)
    say(f"ok: {what}")


def _queries(panels: Any) -> Iterator[str]:
    """All that a dashboard asks Prometheus."""
    if isinstance(panels, dict):
        if isinstance(panels.get("expr"), str):
            yield panels["expr"]
        panels = list(panels.values())
    if isinstance(panels, list):
        for part in panels:
            yield from _queries(part)


# --- building -------------------------------------------------------------------------------------------------


def archive(folder: Path) -> Path:
    """The source archive, made and unpacked."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, TOP)
    (made,) = folder.glob("*.tar.gz")
    run("tar", "-C", folder, "-xf", made)
    return folder / made.name.removesuffix(".tar.gz")


def build() -> tuple[Path, Path]:
    """The package, built from the source archive and from here for comparison, and a next version; checked by lintian."""
    with tempfile.TemporaryDirectory() as work:
        outs = []
        for place, tree in (("one", archive(Path(work) / "source")), ("another/deeper/path", TOP)):
            out = Path(work) / "out" / place
            run(tree / "packaging/build-deb", out, Path(work) / place)
            outs.append(out)
        old, other = (next(out.glob("*.deb")) for out in outs)
        same = [hashlib.sha256(deb.read_bytes()).hexdigest() for deb in (old, other)]
        check(
            same[0] == same[1],
            f"built from the source archive and here it is the same, bit by bit: {same[0][:16]}",
        )
        report = run(
            "lintian", "--fail-on=error,warning", "--tag-display-limit=0", *outs[0].glob("*.changes")
        )
        check("E:" not in report and "W:" not in report, "lintian has nothing to say")
        BUILD.mkdir(parents=True, exist_ok=True)
        kept = Path(shutil.copy(old, BUILD / "old.deb"))
        size = kept.stat().st_size / 2**20
        say(f"size: {size:.1f} MiB packed")
        # The next version: another version number, and a shipped configuration that has changed, too.
        tree = Path(work) / "next"
        run("dpkg-deb", "--raw-extract", old, tree)
        listed = (tree / "usr/share/doc/notify-server/sbom.cdx.json").read_text()
        check(not wrong(listed), f"the list of what is in it is that of the lock {wrong(listed)}")
        control = tree / "DEBIAN/control"
        version = re.search(r"(?m)^Version: (.*)$", control.read_text())
        assert version is not None
        control.write_text(control.read_text().replace(version[0], f"Version: {version[1]}+next"))
        shipped = tree / "etc/notify/notify.toml"
        shipped.write_text(shipped.read_text() + "# A line of the next version.\n")
        sums = tree / "DEBIAN/md5sums"
        sums.write_text(re.sub(r"(?m)^.*etc/notify/notify.toml\n", "", sums.read_text()))
        new = BUILD / "new.deb"
        run("dpkg-deb", "--root-owner-group", "--build", tree, new)
    return kept, new


# --- the server inside, from this side ------------------------------------------------------------------------


class Installed:
    """The installed service, on the machine's loopback."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.secret = machine.read("/etc/notify/jwt.secret").strip()
        self.key = machine.read("/etc/notify/api.keys").strip()

    def token(self, user_id: int = 1) -> str:
        return issue(self.secret, user_id, 1, 3600, time.time())

    def unknown_metrics(self) -> set[str]:
        """What the shipped alerts and the dashboard ask for, and the server does not have under its unit."""
        with urllib.request.urlopen("http://127.0.0.1:8081/metrics", timeout=10) as answer:
            text = answer.read().decode()
        has = set(re.findall(r"(?m)^# TYPE (\S+) ", text))
        has |= {f"{name}_{part}" for name in has for part in ("bucket", "sum", "count")}
        # A process's own are told of without a value where the unit hides what they are read from.
        has -= {name for name in has if name.startswith("process_") and f"\n{name} " not in text}
        rules = (TOP / "etc" / "prometheus" / "notify.rules.yaml").read_text()
        panels = json.loads((TOP / "etc" / "grafana" / "notify.json").read_text())
        asked = re.findall(
            r"\b(?:notify|process|python)_[a-z_]+\b(?=[{\[ )])", rules + " ".join(_queries(panels))
        )
        return set(asked) - has

    def health(self, port: int = 8081) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, http.client.HTTPException):
            return 0

    @contextmanager
    def client(self, user_id: int = 1, chat_id: int = 1) -> Iterator[Client]:
        with connect("ws://127.0.0.1:8080/ws", close_timeout=1) as connection:
            client = Client(connection)
            client.send(type="auth", token=self.token(user_id))
            assert client.receive()["success"]
            client.send(type="subscribe", chat_id=chat_id, id=1)
            assert client.receive()["type"] == "subscribed"
            yield client

    def publish(self, content: str, chat_id: int = 1) -> None:
        with Publisher("http://127.0.0.1:8081", self.key) as publisher:
            publisher.chat(1, chat_id, 1, content)

    def message_arrives(self) -> None:
        with self.client() as client:
            self.publish("hello")
            assert client.receive()["content"] == "hello"

    def configure(self, text: str) -> None:
        self.machine.write("/etc/notify/notify.toml", text)


class Follower(threading.Thread):
    """A client that stays in a chat whatever happens, while somebody publishes to it all the time."""

    def __init__(self, installed: Installed, chat_id: int) -> None:
        super().__init__()
        self.installed = installed
        self.chat_id = chat_id
        self.sent: list[str] = []
        self.got: list[str] = []
        self.lost: list[Any] = []
        self.states: list[str] = []
        self.longest = 0.0
        self.over = threading.Event()
        self.here = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        publishing = threading.Thread(target=self.publish)
        try:
            asyncio.run(asyncio.wait_for(self.follow(publishing), 180))
        except BaseException as error:
            self.error = error
        finally:
            self.over.set()
            self.here.set()

    def publish(self) -> None:
        with Publisher("http://127.0.0.1:8081", self.installed.key, tries=15) as publisher:
            while not self.over.wait(0.02):
                content = str(len(self.sent))
                publisher.chat(1, self.chat_id, 1, content)
                self.sent.append(content)

    async def follow(self, publishing: threading.Thread) -> None:
        client = AsyncioClient(
            "ws://127.0.0.1:8080/ws",
            self.installed.token(7),
            on_state=lambda state: self.states.append(state.name),
        )
        async with client:
            chat = client.chat(self.chat_id, on_lost=self.lost.append)
            await chat.ready()
            publishing.start()
            self.here.set()
            at = time.monotonic()
            while publishing.is_alive() or len(self.got) < len(self.sent):
                try:
                    message = await asyncio.wait_for(chat.__anext__(), 1)
                except TimeoutError:
                    continue
                now = time.monotonic()
                self.longest, at = max(self.longest, now - at), now
                self.got.append(message.content)

    def finish(self) -> None:
        self.over.set()
        self.join(60)
        if self.error is not None:
            raise self.error


# --- the life -------------------------------------------------------------------------------------------------

JETSTREAM = """
[auth.jwt]
secret_file = "/etc/notify/jwt.secret"
[api]
keys_file = "/etc/notify/api.keys"
[broker]
plugin = "jetstream"
[drain]
duration = "2s"
"""


def live(machine: Machine, old: Path, new: Path) -> None:
    shutil.copy(old, machine.root / "root/old.deb")
    shutil.copy(new, machine.root / "root/new.deb")
    keep = ("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")

    say("--- install")
    machine.call("apt-get", "install", "-y", "/root/old.deb")
    check(machine.call("systemctl", "is-enabled", "notify").strip() == "enabled", "installed, it is enabled")
    check(machine.show("ActiveState") == "active", "installed, it is active")
    modes = machine.call(
        "stat", "-c", "%a %U:%G", "/etc/notify", "/etc/notify/jwt.secret", "/etc/notify/api.keys"
    )
    check(
        modes.split("\n")[:3] == ["750 root:notify", *["640 root:notify"] * 2],
        "secrets are the service's alone",
    )
    check(machine.show("User") == "notify", "it runs as its own user")
    check(machine.call("ps", "-o", "user=", "-p", machine.show("MainPID")).strip() == "notify", "indeed")
    installed = Installed(machine)
    installed.message_arrives()
    check(True, "a client receives a message through the installed service")
    status = machine.show("StatusText")
    check(status.startswith("Serving"), f"systemctl status says: {status}")
    entry = machine.call("journalctl", "--unit=notify", "--output=json", "--no-pager", "--grep=ready: ")
    check(json.loads(entry.splitlines()[0])["PRIORITY"] == "6", "the journal has priorities")
    check("plugin" not in machine.journal(), "no complaint about plugin caches")
    score = machine.call("systemd-analyze", "security", "--no-pager", "notify.service").splitlines()[-1]
    level = re.search(r"([\d.]+) ", score)
    check(level and float(level[1]) <= 1.5, f"systemd-analyze security: {score.strip()}")
    template = machine.call(
        "systemd-analyze", "verify", "--man=no", "notify.service", "notify@x.service", "notify.socket"
    )
    check("notify" not in template, "systemd-analyze verify has nothing to say")
    check("--config" in machine.call("/usr/bin/notify-server", "--help"), "notify-server --help")

    say("--- NATS beside it, and an edited configuration")
    shutil.copy(Path(sys.executable).parent / "nats-server", machine.root / "usr/local/bin/nats-server")
    machine.call(
        "systemd-run", "--unit=nats", "--property=StateDirectory=nats",
        "/usr/local/bin/nats-server", "--addr", "127.0.0.1", "--jetstream", "--store_dir", "/var/lib/nats",
    )  # fmt: skip
    installed.configure(JETSTREAM)
    machine.call("systemctl", "restart", "notify")
    installed.message_arrives()
    check(True, "with JetStream, a message arrives")

    say("--- upgrade, with a client connected")
    follower = Follower(installed, 5)
    follower.start()
    follower.here.wait(30)
    wait_for("some messages", lambda: len(follower.got) > 20 or follower.error)
    machine.call("apt-get", "install", "-y", *keep, "/root/new.deb")
    version = machine.call("dpkg-query", "--show", "--showformat=${Version}", "notify-server")
    check(version.endswith("+next"), f"upgraded to {version}")
    check(machine.read("/etc/notify/notify.toml") == JETSTREAM, "the edited configuration stays")
    check(machine.show("ActiveState") == "active", "upgraded, it is active")
    before = len(follower.got)
    wait_for("messages afterwards", lambda: len(follower.got) > before + 20 or follower.error)
    follower.finish()
    check(
        "waiting" in follower.states or follower.states.count("connected") > 1,
        "the client was sent away and back",
    )
    check(
        follower.got == follower.sent and not follower.lost,
        f"the client resumed: {len(follower.sent)} messages, lost 0, doubled 0, in order; "
        f"longest gap {follower.longest:.2f} s",
    )

    say("--- metrics")
    lacking = installed.unknown_metrics()
    check(
        not lacking, f"every metric of the alerts and of the dashboard is there {' '.join(sorted(lacking))}"
    )

    say("--- reload")
    installed.configure(JETSTREAM + '[log]\nlevel = "debug"\n[listen]\npublic = "tcp:9999"\n')
    machine.call("systemctl", "reload", "notify")
    wait_for("reloaded", lambda: "reloaded; changed: log.level" in machine.journal())
    check(
        "only a restart applies it: listen.public" in machine.journal(), "a reload applies and names the rest"
    )
    installed.configure(JETSTREAM + "[limits]\nmax_frames = 1\n")
    told = machine.call("sh", "-c", "systemctl reload notify; echo status $?")
    check("status 0" not in told, "a reload of a bad file fails")
    wait_for("not tried", lambda: "unknown key 'limits.max_frames'" in machine.journal())
    machine.call("systemctl", "kill", "--signal=HUP", "notify")
    wait_for("not reloaded", lambda: "not reloaded, everything stays" in machine.journal())
    installed.message_arrives()
    check(machine.show("ActiveState") == "active", "a bad file changes nothing and the journal says why")

    say("--- several instances")
    installed.configure(JETSTREAM)
    machine.write(
        "/etc/notify/two.toml", '[listen]\npublic = "tcp:8090"\ninternal = "tcp:8091:interface=127.0.0.1"\n'
    )
    machine.call("systemctl", "start", "notify@two")
    check(
        installed.health(8091) == 200 and machine.show("User", "notify@two") == "notify",
        "notify@two runs beside it",
    )
    machine.call("systemctl", "stop", "notify@two")

    say("--- the watchdog")
    installed.configure(JETSTREAM)
    machine.write(
        "/etc/systemd/system/notify.service.d/test.conf", "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n"
    )
    machine.call("systemctl", "daemon-reload")
    machine.call("systemctl", "restart", "notify")
    # A file that never ends being opened: the event loop is stuck in the middle of a reload.
    keys = machine.root / "etc/notify/api.keys"
    kept = keys.rename(keys.with_name("api.keys.kept"))
    machine.call("mkfifo", "--mode=0640", "/etc/notify/api.keys")
    machine.call("chgrp", "notify", "/etc/notify/api.keys")
    blocked = machine.show("MainPID")
    machine.call("kill", "-HUP", blocked)
    wait_for("the watchdog", lambda: "Watchdog timeout" in machine.journal(), 30)
    keys.unlink()
    kept.rename(keys)
    wait_for("a new process", lambda: machine.show("MainPID") not in (blocked, "0"), 30)
    wait_for("ready again", lambda: installed.health() == 200, 30)
    installed.message_arrives()
    check(machine.show("NRestarts") == "1", "the watchdog ended a blocked process, and it serves again")
    journal = machine.journal()
    check(
        "Fatal Python error: Aborted" in journal and "in read_keys" in journal,
        "the journal tells where it was stuck",
    )
    (machine.root / "etc/systemd/system/notify.service.d/test.conf").unlink()
    machine.call("systemctl", "daemon-reload")

    say("--- socket activation")
    installed.configure(JETSTREAM + '[listen]\npublic = "systemd:domain=INET6:name=ws"\n')
    machine.call("systemctl", "stop", "notify")
    machine.call("systemctl", "enable", "--now", "notify.socket")
    machine.call("systemctl", "start", "notify")
    installed.message_arrives()
    restarting = subprocess.Popen(machine.command("systemctl", "restart", "notify"))
    tries = refused = 0
    while restarting.poll() is None:
        tries += 1
        try:
            with socket.create_connection(("127.0.0.1", 8080), 5):
                pass
        except ConnectionRefusedError:
            refused += 1
        time.sleep(0.005)
    check(refused == 0 and tries > 20, f"{tries} connections during a restart, refused: {refused}")
    installed.message_arrives()
    machine.call("systemctl", "disable", "--now", "notify.socket")

    say("--- drain")
    installed.configure(JETSTREAM)
    machine.call("systemctl", "restart", "notify")
    with installed.client(1) as one, installed.client(2) as two, installed.client(3) as three:
        stopping = subprocess.Popen(machine.command("systemctl", "stop", "notify"))
        wait_for("a status", lambda: machine.show("StatusText").startswith("Draining: "))
        say(f"systemctl status says: {machine.show('StatusText')}")
        closes = [client.closed() for client in (one, two, three)]
        check({code for code, _ in closes} == {1012}, f"clients were closed with {closes}")
        stopping.wait(30)
    check(
        machine.show("Result") == "success" and machine.show("ActiveState") == "inactive",
        "drained, it ends well",
    )
    check("Drained." in machine.journal(), "the journal tells of the drain")

    say("--- what the administrator disabled stays disabled")
    machine.call("systemctl", "disable", "notify")
    machine.call("apt-get", "install", "-y", "--reinstall", *keep, "/root/new.deb")
    check(machine.call("systemctl", "is-enabled", "notify", check=False).strip() == "disabled", "disabled")
    machine.call("systemctl", "enable", "--now", "notify")

    check("publish" in machine.call("/usr/bin/notify", "--help"), "notify --help")
    say("--- purge while it runs")
    machine.call("apt-get", "purge", "-y", "notify-server")
    (machine.root / "etc/notify/two.toml").unlink()
    left = [p for p in ("usr/lib/notify-server", "var/lib/notify", "etc/notify/jwt.secret", "etc/notify/notify.toml")
            if (machine.root / p).exists()]  # fmt: skip
    check(left == [], "purged, nothing is left")
    failed = machine.call("systemctl", "--failed", "--no-legend").strip()
    check(failed == "", "no unit has failed")


def main() -> None:
    require("systemd-nspawn", "nsenter", "mmdebstrap", "dpkg-buildpackage", "dh", "lintian")
    if len(sys.argv) == 3:
        old, new = map(Path, sys.argv[1:])
    else:
        old, new = build()
    with Machine() as machine:
        live(machine, old, new)
    say("package: passed")


if __name__ == "__main__":
    main()
