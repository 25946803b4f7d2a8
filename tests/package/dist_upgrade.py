"""Upgrades a server from Debian 12 to 13 as docs/operations/upgrading.md says. Needs root. `make dist-upgrade-test`."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import copy

from tests.package.deb import build_elsewhere
from tests.package.installed import Installed
from tests.package.lifecycle import told
from tests.package.machine import Machine, check, require, say

BEFORE, AFTER = "bookworm", "trixie"

CONFIGURATION = """
[auth.jwt]
secret_file = "/etc/notify/jwt.secret"
[api]
keys_file = "/etc/notify/api.keys"
[log]
level = "debug"
"""


def upgrade(machine: Machine, old: Path, new: Path) -> None:
    """From the installation on the old release to a message that arrives on the new one."""
    for deb in (old, new):
        copy(deb, machine.root / "root")
    machine.call("apt-get", "install", "-y", f"/root/{old.name}")
    installed = Installed(machine)
    installed.configure(CONFIGURATION)
    machine.call("systemctl", "restart", "notify")
    installed.message_arrives()
    say(f"{old.name} serves on {BEFORE}")

    machine.connect(AFTER)
    update, *commands = told("upgrading.md", "From Debian 12 to 13", deb=new.name)
    machine.call("sh", "-c", update, online=True)
    planned = machine.call("apt-get", "--simulate", "full-upgrade", online=True)
    check(
        "Remv notify-server" in planned or "Inst python3 " not in planned,
        f"by itself, a full-upgrade {'removes it' if 'Remv notify-server' in planned else 'leaves Python as it was'}",
    )
    for command in commands:
        machine.call("sh", "-c", command, online="apt-get" in command)
        say(command)
    check(
        machine.call("python3", "--version").startswith("Python 3.13"),
        f"Python is that of {AFTER}",
    )
    version = machine.call(
        "dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Version}", "notify-server"
    )
    check(version.startswith("ii ") and version.endswith("+deb13"), f"notify-server is installed: {version}")
    check(machine.call("dpkg", "--audit") == "", "no package is left half-way")
    check(machine.read("/etc/notify/notify.toml") == CONFIGURATION, "the configuration stays")
    installed.message_arrives()
    check(True, f"with the same secrets, a message arrives on {AFTER}")
    machine.call("systemctl", "restart", "notify")
    installed.message_arrives()
    check(True, "after a restart, too")


def main() -> None:
    require("systemd-nspawn", "nsenter", "mmdebstrap")
    if len(sys.argv) == 3:
        old, new = map(Path, sys.argv[1:])
    else:
        old, new = (build_elsewhere(suite) for suite in (BEFORE, AFTER))
    with Machine(BEFORE) as machine:
        upgrade(machine, old, new)
    say("from Debian 12 to 13: passed")


if __name__ == "__main__":
    main()
