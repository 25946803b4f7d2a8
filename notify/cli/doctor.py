"""``notify doctor``: what is wrong with this deployment, and how to fix it."""

from __future__ import annotations

import argparse

from notify.cli.terminal import Terminal, duration
from notify.config import Duration

SUMMARY = "check a deployment, and say how to fix what is wrong"
DESCRIPTION = """\
Check the configuration and the machine as the server would find them: files and permissions, ports, origins, the
limit on open files, the clock, and whether the unit's stop timeout is long enough for a drain; and check the broker:
its version, streams, retention and permissions. Nothing is started, changed or published. Run it on the server's
machine, as root or as the server's user. The exit status is 0 if there is no fault, and 1 otherwise."""
EXAMPLES = """\
  notify doctor /etc/notify/notify.toml
  notify doctor /etc/notify/notify.toml --resume-window 7d --origin https://chat.example --host ws.chat.example"""

_MARKS = {"ok": "ok     ", "note": "note   ", "warning": "WARNING", "fault": "FAULT  "}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="the configuration files, of which later ones override earlier ones; without any, only the environment is read",
    )
    parser.add_argument(
        "--resume-window",
        type=duration,
        default=Duration(86400),
        metavar="TIME",
        help="how long a client may be away and miss nothing (default: 1d)",
    )
    parser.add_argument("--unit", default="notify", metavar="NAME", help="the systemd unit (default: notify)")
    parser.add_argument(
        "--origin", default="", metavar="ORIGIN", help="check whether a page of this origin may connect"
    )
    parser.add_argument("--host", default="", metavar="HOST", help="the host that this page connects to")
    parser.add_argument("--json", action="store_true", help="print one JSON line per finding")


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Problems are printed as findings; none is raised."""
    import msgspec

    from notify.doctor import Patient, examine

    found = examine(
        Patient(
            tuple(options.files),
            terminal.environ,
            options.resume_window,
            options.unit,
            options.origin,
            options.host,
        )
    )
    for finding in found:
        if options.json:
            terminal.out(msgspec.json.encode(finding).decode())
        else:
            terminal.out(f"{_MARKS[finding.level]}  {finding.check}: {finding.text}")
            if finding.mend:
                terminal.out(f"         -> {finding.mend}")
    faults = sum(finding.level == "fault" for finding in found)
    warnings = sum(finding.level == "warning" for finding in found)
    if not options.json:
        terminal.out(f"{_count(faults, 'fault')}, {_count(warnings, 'warning')}.")
    return 1 if faults else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
