"""The whole life of the Debian package, on a real systemd. Needs root. `make package-test`; SUITE=trixie: on that
Debian.

The commands are those that the pages tell an operator to type.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from notify.service.lifecycle import PATIENCE
from tests.package.deb import REFUSED, build, build_elsewhere, later
from tests.package.installed import Follower, Installed
from tests.package.machine import SUITE, TOP, Machine, check, require, say
from tests.support.process import wait_for

PAGES = TOP / "docs" / "operations"

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

#: a setting that one version accepts, and the next one refuses
GONE = "[log]\nburst = 7\n"


def told(page: str, about: str, deb: str = "") -> list[str]:
    """The command lines in a section of a page, as an operator would paste them; ``deb`` is the package's name."""
    section = (PAGES / page).read_text().partition(f"\n## {about}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"(?m)^    ((?:DEBIAN_FRONTEND=|apt-get |notify |systemctl ).*)", section)
    assert lines, f"{page} has no section {about} with commands"
    return [re.sub(r"\./notify-server\S+\.deb", f"/root/{deb}", line) for line in lines]


def instance(number: int) -> str:
    """The configuration of one of several instances: settings that the shared file lacks, or that override it."""
    return (
        f'[listen]\npublic = "tcp:80{number}0"\ninternal = "tcp:80{number}1:interface=127.0.0.1"\n'
        "[log]\nburst = 8\n"
    )


class Life:
    """One machine, from installation to purge. Its methods are the stages; ``STAGES`` has their order."""

    def __init__(self, machine: Machine, deb: Path) -> None:
        self.machine = machine
        changed = {"etc/notify/notify.toml": "# A line of the next version.\n"}
        refusing = {**changed, "usr/lib/notify-server/lib/python3*/site-packages/notify/config.py": REFUSED}
        folder = machine.root / "root"
        shutil.copy(deb, folder / "old.deb")
        later(deb, folder / "new.deb", changed)
        later(deb, folder / "newer.deb", refusing)

    def install(self, deb: str, *options: str) -> str:
        """Install as the page says, without a terminal; returns apt's output."""
        (command,) = [line for line in told("upgrading.md", "Debian", deb=deb) if "confold" in line]
        return self.machine.call("sh", "-c", " ".join((command, *options)))

    def version(self) -> str:
        return self.machine.call("dpkg-query", "--show", "--showformat=${Version}", "notify-server")

    def pid(self, unit: str = "notify") -> str:
        return self.machine.show("MainPID", unit)

    def clock(self, name: str, unit: str) -> int:
        """When a unit last entered that state, on systemd's clock, in µs."""
        return int(self.machine.show(f"{name}TimestampMonotonic", unit))

    def starting(self) -> float:
        """Seconds that the last start took while the broker was away: the server's patience plus its imports."""
        took = (self.clock("ActiveEnter", "notify") - self.clock("InactiveExit", "notify")) / 1_000_000
        assert PATIENCE <= took < PATIENCE + 30, took
        return took

    def nats(self) -> None:
        self.machine.call(
            "systemd-run", "--unit=nats", "--property=StateDirectory=nats",
            "/usr/local/bin/nats-server", "--addr", "127.0.0.1", "--jetstream", "--store_dir", "/var/lib/nats",
        )  # fmt: skip

    # --- the stages

    def installation(self) -> None:
        machine = self.machine
        machine.call("apt-get", "install", "-y", "/root/old.deb")
        check(
            machine.call("systemctl", "is-enabled", "notify").strip() == "enabled", "installed, it is enabled"
        )
        check(machine.show("ActiveState") == "active", "installed, it is active")
        modes = machine.call(
            "stat", "-c", "%a %U:%G", "/etc/notify", "/etc/notify/jwt.secret", "/etc/notify/api.keys"
        )
        check(
            modes.split("\n")[:3] == ["750 root:notify", *["640 root:notify"] * 2],
            "secrets are the service's alone",
        )
        check(machine.show("User") == "notify", "it runs as its own user")
        check(machine.call("ps", "-o", "user=", "-p", self.pid()).strip() == "notify", "indeed")
        self.installed = Installed(machine)
        self.installed.message_arrives()
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
        check("publish" in machine.call("/usr/bin/notify", "--help"), "notify --help")

    def nats_beside_it_and_an_edited_configuration(self) -> None:
        shutil.copy(
            Path(sys.executable).parent / "nats-server", self.machine.root / "usr/local/bin/nats-server"
        )
        self.nats()
        self.installed.configure(JETSTREAM)
        self.machine.call("systemctl", "restart", "notify")
        self.installed.message_arrives()
        check(True, "with JetStream, a message arrives")

    def upgrade_with_a_client_connected(self) -> None:
        machine, installed = self.machine, self.installed
        follower = Follower(installed, 5)
        follower.start()
        follower.here.wait(30)
        wait_for("some messages", lambda: len(follower.got) > 20 or follower.error)
        before = self.pid()
        status, said = machine.attempt("apt-get", "install", "-y", "/root/new.deb")
        check(
            status != 0 and "end of file on stdin at conffile prompt" in said,
            "without a terminal, dpkg cannot ask about a changed configuration, and stops",
        )
        check(
            (self.pid(), installed.health(), machine.show("ActiveState")) == (before, 200, "active"),
            "what ran before goes on serving",
        )
        self.install("new.deb")
        check(self.version().endswith("+new"), f"as the page says it goes on from there, to {self.version()}")
        check(machine.read("/etc/notify/notify.toml") == JETSTREAM, "the edited configuration stays")
        check(machine.show("ActiveState") == "active", "upgraded, it is active")
        check(self.pid() != before, "upgraded, it was restarted")
        got = len(follower.got)
        wait_for("messages afterwards", lambda: len(follower.got) > got + 20 or follower.error)
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

    def upgrade_that_refuses_one_configuration_of_three(self) -> None:
        machine, installed = self.machine, self.installed
        for number, name in ((9, "two"), (7, "three")):
            machine.write(f"/etc/notify/{name}.toml", instance(number))
            machine.call("systemctl", "start", f"notify@{name}")
        check(
            installed.health(8091) == 200 and machine.show("User", "notify@two") == "notify",
            "two instances run beside it",
        )
        # A setting that only this version accepts: the next one does not know the key.
        installed.configure(JETSTREAM + GONE)
        machine.call("systemctl", "restart", "notify")
        before = {unit: self.pid(unit) for unit in ("notify", "notify@two", "notify@three")}
        said = self.install("newer.deb")
        check(self.version().endswith("+newer"), f"upgraded to {self.version()}")
        check(
            "notify.service WAS NOT RESTARTED" in said and "unknown key 'log.burst'" in said,
            "apt shows that a configuration was refused, and why",
        )
        check(self.pid() == before["notify"], "the service with that configuration was left alone")
        check(
            all(self.pid(unit) != before[unit] for unit in ("notify@two", "notify@three")),
            "the others were restarted",
        )
        first, second = sorted(
            ("notify@two", "notify@three"), key=lambda unit: self.clock("ActiveEnter", unit)
        )
        check(
            self.clock("ActiveEnter", first) <= self.clock("ActiveExit", second),
            f"one after the other: {second} left only when {first} was ready",
        )

    def life_of_a_process_whose_files_are_gone(self) -> None:
        machine, installed = self.machine, self.installed
        (site,) = machine.root.glob("usr/lib/notify-server/lib/python3*/site-packages")
        away = site.rename(site.with_name("away"))
        installed.message_arrives()
        machine.call("systemctl", "stop", "nats")
        wait_for("it notices that the broker is away", lambda: installed.health() == 503, 30)
        self.nats()
        wait_for("it has its broker again", lambda: installed.health() == 200, 60)
        installed.message_arrives()
        for path in ("/metrics", "/openapi.json", "/v1/nodes"):
            check(installed.get(path) == 200, f"without its files, {path} is served")
        with installed.client(1) as client:
            machine.call("systemctl", "stop", "notify")
            check(client.closed()[0] == 1012, "without its files, it drains")
        check(
            machine.show("Result") == "success" and "Traceback" not in machine.journal(),
            "without its files, it ends well",
        )
        away.rename(site)
        told = machine.attempt("systemctl", "start", "notify")
        check(told[0] != 0, "the refused configuration does not start, and systemctl says so")
        installed.configure(JETSTREAM)
        machine.call("systemctl", "restart", "notify")
        installed.message_arrives()
        check(True, "mended, it serves")

    def boot_and_downgrade_while_the_broker_is_away(self) -> None:
        machine, installed = self.machine, self.installed
        machine.call("systemctl", "stop", "notify@two", "notify@three", "notify", "multi-user.target", "nats")
        machine.call("systemctl", "start", "multi-user.target")
        check(True, f"with its broker away, a boot waits {self.starting():.1f} s for it")
        check(
            (machine.show("ActiveState"), installed.health(), installed.refusal()) == ("active", 503, 503),
            "it runs and is not ready: health 503, WebSockets 503",
        )
        check("broker" in machine.show("StatusText"), f"systemctl status says: {machine.show('StatusText')}")
        before = self.pid()
        (command,) = [line for line in told("upgrading.md", "Back", deb="old.deb") if "downgrades" in line]
        machine.call("sh", "-c", command)
        check(
            "+" not in self.version().replace("+deb", "") and self.pid() != before,
            f"as the page says, back to {self.version()}; apt waited {self.starting():.1f} s for it",
        )
        check(machine.read("/etc/notify/notify.toml") == JETSTREAM, "the edited configuration stays, too")
        self.nats()
        wait_for("ready", lambda: installed.health() == 200, 60)
        wait_for("the status", lambda: machine.show("StatusText").startswith("Serving"), 30)
        installed.message_arrives()
        check(True, "when the broker comes, it serves")

    def start_that_fails_for_good(self) -> None:
        machine, installed = self.machine, self.installed
        taken = JETSTREAM + '[listen]\npublic = "tcp:4222:interface=127.0.0.1"\n'
        installed.configure(taken)
        status, said = machine.attempt("/usr/lib/notify-server/restart-all")
        check(
            status == 1
            and "notify.service DOES NOT START" in said
            and "cannot be bound: Address already in use" in said,
            "a start that fails is told to systemd, and to whoever restarts, with the reason",
        )
        installed.configure(JETSTREAM)
        machine.call("systemctl", "restart", "notify")
        installed.message_arrives()

    def metrics_with_workers(self) -> None:
        machine, installed = self.machine, self.installed
        installed.configure(JETSTREAM + "[server]\nworkers = 2\n")
        machine.call("systemctl", "restart", "notify")
        installed.message_arrives()
        check(True, "with two workers, a message arrives")
        check(installed.fans_out_in() == "C", "messages go out in C")
        lacking = installed.unknown_metrics()
        check(
            not lacking,
            f"every metric of the alerts and of the dashboard is there {' '.join(sorted(lacking))}",
        )
        installed.configure(JETSTREAM)
        machine.call("systemctl", "restart", "notify")

    def reload(self) -> None:
        machine, installed = self.machine, self.installed
        installed.configure(JETSTREAM + '[log]\nlevel = "debug"\n[listen]\npublic = "tcp:9999"\n')
        machine.call("systemctl", "reload", "notify")
        wait_for("reloaded", lambda: "reloaded; changed: log.level" in machine.journal())
        check(
            "only a restart applies it: listen.public" in machine.journal(),
            "a reload applies and names the rest",
        )
        installed.configure(JETSTREAM + "[limits]\nmax_frames = 1\n")
        status, _ = machine.attempt("systemctl", "reload", "notify")
        check(status != 0, "a reload of a bad file fails")
        wait_for("not tried", lambda: "unknown key 'limits.max_frames'" in machine.journal())
        machine.call("systemctl", "kill", "--signal=HUP", "notify")
        wait_for("not reloaded", lambda: "not reloaded, the old configuration stays" in machine.journal())
        installed.message_arrives()
        check(machine.show("ActiveState") == "active", "a bad file changes nothing and the journal says why")

    def watchdog(self) -> None:
        machine, installed = self.machine, self.installed
        installed.configure(JETSTREAM)
        machine.write(
            "/etc/systemd/system/notify.service.d/test.conf",
            "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n",
        )
        machine.call("systemctl", "daemon-reload")
        machine.call("systemctl", "restart", "notify")
        # Opening this file blocks forever, so the event loop hangs in the middle of a reload.
        keys = machine.root / "etc/notify/api.keys"
        kept = keys.rename(keys.with_name("api.keys.kept"))
        machine.call("mkfifo", "--mode=0640", "/etc/notify/api.keys")
        machine.call("chgrp", "notify", "/etc/notify/api.keys")
        blocked = self.pid()
        machine.call("kill", "-HUP", blocked)
        wait_for("the watchdog", lambda: "Watchdog timeout" in machine.journal(), 30)
        keys.unlink()
        kept.rename(keys)
        wait_for("a new process", lambda: self.pid() not in (blocked, "0"), 30)
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

    def socket_activation(self) -> None:
        machine, installed = self.machine, self.installed
        installed.configure(JETSTREAM + '[listen]\npublic = "systemd:domain=INET6:name=ws"\n')
        *on, off = told("debian.md", "Socket activation")
        for line in on:
            machine.call("sh", "-c", line)
        installed.message_arrives()
        check(True, "socket activation, as pasted from the page")
        machine.call("systemctl", "reload", "notify")
        check(True, "a reload takes the endpoint that the page names")
        restarting = subprocess.Popen(machine.command("systemctl", "restart", "notify"))
        tries = refused = 0
        while restarting.poll() is None:
            tries += 1
            refused += not _connects()
            time.sleep(0.005)
        check(refused == 0 and tries > 20, f"{tries} connections during a restart, refused: {refused}")
        installed.message_arrives()
        before = self.pid()
        machine.call("/usr/lib/notify-server/restart-all")
        check(self.pid() != before and _connects(), "as an upgrade does it, too")
        # If only the service is stopped, the first connection to the socket starts it again, as socket activation
        # is meant to.
        machine.call("sh", "-c", off)
        check(not any(_connects() for _ in range(20)), "stopped, nobody gets a connection")
        check(
            [machine.show("ActiveState", unit) for unit in ("notify.socket", "notify.service")]
            == ["inactive"] * 2,
            f"stopped as the page says ({off}), it stays stopped, whoever connects",
        )
        status, _ = machine.attempt("systemctl", "start", "notify")
        check(
            status != 0 and "systemd has handed over no socket" in machine.journal(),
            "without its socket it does not start, and the journal says what to do",
        )
        machine.call("systemctl", "start", "notify.socket", "notify.service")
        installed.message_arrives()
        machine.call("systemctl", "disable", "--now", "notify.socket")

    def drain(self) -> None:
        machine, installed = self.machine, self.installed
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

    def what_the_administrator_disabled_stays_disabled(self) -> None:
        machine = self.machine
        machine.call("systemctl", "disable", "notify")
        self.install("old.deb", "--reinstall")
        check(
            machine.call("systemctl", "is-enabled", "notify", check=False).strip() == "disabled", "disabled"
        )
        check(machine.show("ActiveState") == "inactive", "and stopped")

    def purge_while_it_runs(self) -> None:
        machine, installed = self.machine, self.installed
        installed.configure(JETSTREAM + '[listen]\npublic = "systemd:domain=INET6:name=ws"\n')
        machine.write("/etc/notify/two.toml", instance(9))
        machine.call("systemctl", "enable", "--now", "notify.socket", "notify.service", "notify@two.service")
        machine.call("apt-get", "purge", "-y", "notify-server")
        check(not _connects(), "purged, nothing listens")
        for name in ("two", "three"):
            (machine.root / f"etc/notify/{name}.toml").unlink(missing_ok=True)
        places = (
            "usr/lib/notify-server", "var/lib/notify", "etc/notify/jwt.secret", "etc/notify/notify.toml",
            "etc/systemd/system/multi-user.target.wants/notify.service",
            "etc/systemd/system/sockets.target.wants/notify.socket",
        )  # fmt: skip
        left = [
            place
            for place in places
            if (machine.root / place).is_symlink() or (machine.root / place).exists()
        ]
        check(left == [], f"purged, nothing is left {left}")
        failed = machine.call("systemctl", "--failed", "--no-legend").strip()
        check(failed == "", f"no unit has failed {failed}")


STAGES = (
    Life.installation,
    Life.nats_beside_it_and_an_edited_configuration,
    Life.upgrade_with_a_client_connected,
    Life.upgrade_that_refuses_one_configuration_of_three,
    Life.life_of_a_process_whose_files_are_gone,
    Life.boot_and_downgrade_while_the_broker_is_away,
    Life.start_that_fails_for_good,
    Life.metrics_with_workers,
    Life.reload,
    Life.watchdog,
    Life.socket_activation,
    Life.drain,
    Life.what_the_administrator_disabled_stays_disabled,
    Life.purge_while_it_runs,
)

#: the stages in which another systemd or another Python could make a difference
FEW = (
    Life.installation,
    Life.nats_beside_it_and_an_edited_configuration,
    Life.upgrade_with_a_client_connected,
    Life.metrics_with_workers,
    Life.socket_activation,
    Life.drain,
    Life.purge_while_it_runs,
)


def _connects() -> bool:
    """Whether the public port accepts connections."""
    try:
        with socket.create_connection(("127.0.0.1", 8080), 5):
            return True
    except ConnectionRefusedError:
        return False


def main() -> None:
    require("systemd-nspawn", "nsenter", "mmdebstrap", "dpkg-buildpackage", "dh", "lintian")
    if len(sys.argv) == 2:
        deb = Path(sys.argv[1])
    else:
        deb = build_elsewhere(SUITE) if "SUITE" in os.environ else build()
    with Machine() as machine:
        life = Life(machine, deb)
        for stage in FEW if os.environ.get("STAGES") == "few" else STAGES:
            say(f"--- {stage.__name__.replace('_', ' ')}")
            stage(life)
    say(f"package on {SUITE}: passed")


if __name__ == "__main__":
    main()
