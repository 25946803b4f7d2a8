"""Checks of the machine: files and their permissions, limits, clock, fan-out, and the server's systemd unit."""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import resource
import shlex
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from notify import components
from notify.config import PLUGIN_TABLES, Config
from notify.findings import Finding, span
from notify.transport import admission, fanout

#: seconds that a stop takes in addition to the drain: the last publishes, and leaving the broker
LAST_WORDS = 10.0
_SECRET_KEYS = ("secret", "password", "token", "keys")


class Unit(Struct, frozen=True):
    """A systemd service: its properties, and those of its process if it runs (``pid`` is 0 otherwise)."""

    name: str
    type: str
    user: str
    files: int
    stop: float
    pid: int = 0
    #: the server's environment, present or future
    environ: Mapping[str, str] = {}


def read_unit(name: str) -> Unit | None:
    """Read the unit. ``None`` if there is no systemd or no such unit."""
    name = name if name.endswith(".service") else f"{name}.service"
    wanted = "LoadState,Type,User,LimitNOFILE,TimeoutStopUSec,MainPID,Environment,EnvironmentFiles"
    try:
        shown = subprocess.run(  # noqa: S603 - the unit's name is one argument, and no shell reads it
            ["systemctl", "show", f"--property={wanted}", "--", name],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    unit = parse_unit(name, shown)
    # The process may have been started before the last edit of the unit. What counts is its present state.
    return unit if unit is None or not unit.pid else of_process(unit)


def parse_unit(name: str, shown: str) -> Unit | None:
    """Parse a unit from the output of ``systemctl show``."""
    lines = [(key, value) for key, _, value in (line.partition("=") for line in shown.splitlines())]
    values = dict(lines)
    if values.get("LoadState") != "loaded":
        return None
    environ = _assignments(shlex.split(values.get("Environment", "")))
    for key, value in lines:
        if key == "EnvironmentFiles":
            environ |= _environment_file(Path(value.rpartition(" (ignore_errors=")[0]))
    files, pid = values.get("LimitNOFILE", ""), values.get("MainPID", "")
    return Unit(
        name,
        values.get("Type", ""),
        values.get("User", "") or "root",
        int(files) if files.isdecimal() else 2**63,
        parse_span(values.get("TimeoutStopUSec", "")),
        int(pid) if pid.isdecimal() else 0,
        environ,
    )


def _environment_file(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return {}
    return _assignments(
        "".join(shlex.split(line)) for line in lines if "=" in line and line.lstrip()[:1] not in ("#", ";")
    )


def _assignments(texts: Iterable[str]) -> dict[str, str]:
    return dict(text.split("=", 1) for text in texts if "=" in text)


def of_process(unit: Unit, proc: Path = Path("/proc")) -> Unit:
    """The unit with the properties of its process, as far as the current user may see them."""
    process = proc / str(unit.pid)
    try:
        limit = re.search(r"(?m)^Max open files +\S+ +(\d+|unlimited) ", (process / "limits").read_text())
    except OSError:
        limit = None
    if limit is None:
        return structs.replace(unit, pid=0)
    unit = structs.replace(unit, files=int(limit[1]) if limit[1].isdecimal() else 2**63)
    try:
        environ = (process / "environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return unit
    return structs.replace(unit, environ=_assignments(environ))


def parse_span(text: str) -> float:
    """The seconds in a time span as systemd writes it: ``1min 30s``; ``infinity``."""
    units = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
    seconds = 0.0
    for part in text.split():
        number = part.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = part[len(number) :]
        if unit not in units:
            return float("inf")
        seconds += float(number) * units[unit]
    return seconds


# --- files


def files(config: Config, unit: Unit | None) -> list[Finding]:
    """Check that the server's user can read the configured files, and that others cannot read the secret ones."""
    user = unit.user if unit is not None else pwd.getpwuid(os.geteuid()).pw_name
    found = []
    for key, path, secret in named_files(config):
        try:
            mode = path.stat().st_mode
            readable = may_read(path, user)
        except OSError as error:
            if is_credential(path):
                continue  # it exists only while the service runs
            found.append(
                Finding(
                    "fault",
                    "files",
                    f"{key}: {path}: {error.strerror}.",
                    "Create the file, or correct the path in this key.",
                )
            )
            continue
        if not readable:
            mend = f"chgrp {_group(user)} {path} && chmod 640 {path}; that user must also be able to enter the folders above it."
            found.append(Finding("fault", "files", f"{key}: user {user} cannot read {path}.", mend))
        if secret and mode & stat.S_IROTH:
            found.append(
                Finding(
                    "warning",
                    "files",
                    f"{key}: everyone on this machine can read {path}, which holds a secret.",
                    f"chmod o-r {path}",
                )
            )
    if not found:
        text = f"user {user} can read all named files, and no secret can be read by everyone."
        found.append(Finding("ok", "files", text))
    return found + [Finding("note", "files", f"{copy}.", COPY_MEND) for copy in copies(config)]


def named_files(config: Config) -> Iterator[tuple[str, Path, bool]]:
    """For each configured file: its key in the configuration, its path, and whether it holds a secret."""
    for file in getattr(config.source, "files", ()):
        yield "the configuration", Path(file), _holds_secrets(Path(file))
    yield from _files_of("api", config.api)
    for kind in PLUGIN_TABLES:
        _, settings = components.find(kind, config)
        yield from _files_of(f"{kind}.{getattr(config, kind).plugin}", settings)


def _files_of(table: str, settings: Struct) -> Iterator[tuple[str, Path, bool]]:
    for field in msgspec.structs.fields(settings):
        value = getattr(settings, field.name)
        name = field.name
        if isinstance(value, Struct):
            yield from _files_of(f"{table}.{name}", value)
        if (
            isinstance(value, str)
            and value
            and (name.endswith("_file") or name in ("tls_ca", "tls_cert", "tls_key"))
        ):
            public = name.startswith(("public_", "jwks_")) or name in ("tls_ca", "tls_cert")
            yield f"{table}.{name}", Path(value), not public


def is_credential(path: Path) -> bool:
    """Whether systemd provides this file, through ``LoadCredential=`` or similar (systemd.exec(5))."""
    return path.is_relative_to("/run/credentials")


COPY_MEND = "Restart the server after the original file has changed; if a reload should suffice, name a file that the group notify can read."


def copies(config: Config) -> list[str]:
    """The files that a reload would read again without effect, one sentence each."""
    return [
        f"{key}: {path} is a copy that systemd makes at a start, so a reload does not see changes"
        for key, path, _ in named_files(config)
        if is_credential(path)
    ]


def _holds_secrets(file: Path) -> bool:
    """Whether the file itself contains a secret, rather than the name of another file."""
    try:
        import tomllib

        data: Mapping[str, Any] = tomllib.loads(file.read_text())
    except (OSError, ValueError):
        return False

    def within(table: Mapping[str, Any]) -> bool:
        return any(
            within(value) if isinstance(value, dict) else bool(value) and key in _SECRET_KEYS
            for key, value in table.items()
        )

    return within(data)


def may_read(path: Path, user: str) -> bool:
    """Whether a user may read a file, according to the permission bits of the file and its parent directories."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return True
    if entry.pw_uid == 0:
        return True
    groups = set(os.getgrouplist(user, entry.pw_gid))

    def allowed(one: Path, bit: int) -> bool:
        info = one.stat()
        if info.st_uid == entry.pw_uid:
            return bool(info.st_mode & (bit << 6))
        if info.st_gid in groups:
            return bool(info.st_mode & (bit << 3))
        return bool(info.st_mode & bit)

    whole = path.resolve()
    return allowed(whole, 4) and all(allowed(folder, 1) for folder in whole.parents)


def _group(user: str) -> str:
    try:
        return str(pwd.getpwnam(user).pw_gid)
    except KeyError:
        return user


# --- limits


def _hard_limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2**63 if hard == resource.RLIM_INFINITY else hard


def limits(config: Config, unit: Unit | None) -> list[Finding]:
    """Check that the allowed number of connections can be open, and that their queues fit into memory."""
    most, where = (
        (unit.files, f"LimitNOFILE of {unit.name}")
        if unit is not None and not unit.pid
        else (unit.files, f"the running {unit.name}'s limit on open files")
        if unit is not None
        # The server raises its soft limit to the hard limit.
        else (_hard_limit(), "this machine's limit on open files")
    )
    found = []
    allowed, fit = admission.most(config.limits, most), most - admission.reserve(most)
    if allowed > fit:
        found.append(
            Finding(
                "fault",
                "file limit",
                f"max_connections is {allowed}, but {where} is {most}, which is enough for {fit} connections.",
                f"Set LimitNOFILE={allowed + admission.RESERVE} (in systemd: `systemctl edit`), or lower max_connections.",
            )
        )
    elif config.limits.max_connections == "auto" and most < 10_000:
        found.append(
            Finding(
                "note",
                "file limit",
                f"{where} is {most}: the server accepts at most {allowed} connections.",
                "Raise the limit on open files if you expect more clients.",
            )
        )
    elif allowed:
        found.append(Finding("ok", "file limit", f"{where} is enough for {allowed} connections."))
    elif most < 10_000:
        found.append(
            Finding(
                "warning",
                "file limit",
                f"max_connections is 0 (no limit), but {where} is {most}, of which the server reserves some for other uses.",
                'Set limits.max_connections to "auto", or raise the limit on open files.',
            )
        )
    else:
        found.append(
            Finding(
                "note",
                "file limit",
                f"max_connections is 0 (no limit); {where} is {most if most < 2**62 else 'infinity'}.",
                "Set limits.max_connections to what this machine can carry: clients beyond that are then told to come back.",
            )
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = config.limits.send_queues + config.limits.recent_bytes
    if most > memory / 2:
        found.append(
            Finding(
                "warning",
                "memory",
                f"limits.send_queues and recent_bytes may grow to {most >> 20} MiB of this machine's {memory >> 20}.",
                "Lower them to at most a quarter of the memory together.",
            )
        )
    return found


# --- clock


class _Timex(ctypes.Structure):
    """The head of ``struct timex`` (adjtimex(2)); the rest is space that the kernel fills."""

    _fields_ = [("modes", ctypes.c_uint), ("rest", ctypes.c_char * 400)]


def clock_is_synchronised() -> bool | None:
    """Whether the kernel says that its clock is synchronised; ``None`` if it does not say."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(_Timex(modes=0)))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != 5


def clock(now: float | None = None, synchronised: bool | str | None = "ask") -> list[Finding]:
    """Check that tokens expire when they should."""
    now = time.time() if now is None else now
    told = clock_is_synchronised() if synchronised == "ask" else synchronised
    mend = "Run a time service: `apt install systemd-timesyncd` or chrony; `timedatectl` shows the state."
    if now < 1_735_689_600:
        text = f"this machine thinks that it is {time.strftime('%Y-%m-%d', time.gmtime(now))}: no token seems to have expired."
        return [Finding("fault", "clock", text, mend)]
    if told is False:
        text = "nothing synchronizes the clock: tokens expire early or late, and clients are disconnected because of it."
        return [Finding("warning", "clock", text, mend)]
    if told is None:
        return [
            Finding("note", "clock", "whether the clock is synchronized cannot be determined here.", mend)
        ]
    return [Finding("ok", "clock", "it is synchronized.")]


# --- drain


def fan_out(environ: Mapping[str, str]) -> Finding:
    """Check whether the cheaper fan-out in C is used by the Python that runs this: the server's, if they are installed together."""
    if fanout.choose(environ) is fanout.in_c:
        return Finding("ok", "fan-out", "the C version is used.")
    if fanout.in_c is not None:
        return Finding(
            "note",
            "fan-out",
            "NOTIFY_PURE=1 selects the Python version, which costs more CPU.",
            "Unset NOTIFY_PURE.",
        )
    mend = "Install a C compiler and Python's headers, then notify from its source: docs/performance.md."
    return Finding(
        "note",
        "fan-out",
        "the Python version is used, which costs more CPU, because the C version was not built here.",
        mend,
    )


def drain(config: Config, unit: Unit | None) -> list[Finding]:
    """Check that the server is given enough time for its drain."""
    takes = config.drain.delay + config.drain.duration + LAST_WORDS
    check = "drain"
    if unit is None:
        return [
            Finding(
                "note",
                check,
                f"a stop takes up to {span(takes)}, and no systemd unit was found here to compare it with.",
                "Make whatever stops the server wait longer than that: terminationGracePeriodSeconds, or `docker stop -t`.",
            )
        ]
    if takes <= unit.stop:
        return [Finding("ok", check, f"it takes up to {span(takes)}; {unit.name} waits {span(unit.stop)}.")]
    if unit.type.startswith("notify"):
        text = f"it takes up to {span(takes)}, longer than TimeoutStopSec ({span(unit.stop)}) of {unit.name}; the server asks systemd for more time as it drains."
        return [Finding("ok", check, text)]
    return [
        Finding(
            "fault",
            check,
            f"it takes up to {span(takes)}, but {unit.name} is killed after {span(unit.stop)}: clients are cut, not drained.",
            f"Set TimeoutStopSec={round(takes + 5)}s, or Type=notify, so that the server can ask for more time.",
        )
    ]
