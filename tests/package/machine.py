"""A Debian system for tests: a root file system from the machine's apt sources, with a real systemd booted in it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from unittest import SkipTest

from tests.support.programs import need, program

TOP = Path(__file__).resolve().parent.parent.parent
BUILD = TOP / "build" / "package-test"
#: the Debian release of this machine, unless another one is asked for
SUITE = os.environ.get("SUITE") or platform.freedesktop_os_release().get("VERSION_CODENAME", "bookworm")
#: where nspawn finds its control group: version 2, or systemd's own hierarchy beside version 1
CGROUPS = [Path("/sys/fs/cgroup") / name for name in ("", "unified", "systemd")]

_CLONE_NEWNET = 0x40000000


_STARTED = time.monotonic()


def say(text: str) -> None:
    """Print a line about a step or a finding, with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:5.1f} s] {text}", flush=True)


def check(condition: object, what: str) -> None:
    """Print that a condition holds, or fail."""
    if not condition:
        raise AssertionError(what)
    say(f"ok: {what}")


def require(*tools: str) -> None:
    """Exit with a message if root or a tool is missing: a failure if REQUIRE_ALL=1, otherwise a skip."""
    try:
        need(os.geteuid() == 0, "only root can do this")
        for tool in tools:
            program(tool)
    except (AssertionError, SkipTest) as missing:
        name, skipped = Path(sys.argv[0]).name, isinstance(missing, SkipTest)
        print(f"{name}: {'SKIPPED' if skipped else 'FAILED'}: {missing}", flush=True)
        sys.exit(0 if skipped else 1)


def run(*command: str | Path, **options: object) -> str:
    """Run a command and return its output; a failure is raised with all output."""
    done = subprocess.run(
        [str(part) for part in command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}")
    return str(done.stdout)


def base(suite: str = SUITE) -> Path:
    """A minimal Debian as a tar file, made once, from this machine's package source."""
    tar = BUILD / f"{suite}.tar"
    if not tar.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        packages = "systemd,systemd-sysv,dbus,python3,python3-venv,procps,iproute2,ca-certificates"
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            made = Path(folder) / tar.name
            options = ["--quiet", "--variant=minbase", f"--include={packages}"]
            options += [f"--aptopt={line}" for line in proxies()]
            run("mmdebstrap", *options, suite, made, mirror())
            made.rename(tar)
    return tar


def mirror() -> str:
    """The repository from which this machine gets its Debian packages."""
    which = ("Created-By: Packages", "Origin: Debian", "Label: Debian")
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI)", *which).split()
    return min(found, default="http://deb.debian.org/debian")


def proxies() -> list[str]:
    """The proxies through which this machine gets packages: lines of apt's configuration."""
    lines = []
    for scheme in ("http", "https"):
        name = f"Acquire::{scheme}::Proxy"
        proxy = run("apt-config", "shell", "proxy", name).strip().removeprefix("proxy=").strip("'")
        if proxy:
            lines.append(f'{name} "{proxy}";')
    return lines


class Machine:
    """A booted container without a network. This process, and whatever it starts, joins the container's loopback."""

    def __init__(self, suite: str = SUITE) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="notify-machine-"))
        run("tar", "-C", self.root, "-xf", base(suite))
        (self.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        # The machine need not survive a power failure.
        self.write("/etc/dpkg/dpkg.cfg.d/unsafe-io", "force-unsafe-io\n")
        self._groups = [folder / self.root.name for folder in CGROUPS if (folder / "cgroup.procs").exists()]
        self._leader = ""

    def __enter__(self) -> Machine:
        began = time.monotonic()
        # A separate control group, so that no other systemd on this machine sees its units.
        boot = (
            'root=$1; shift; for group; do mkdir "$group"; echo $$ >"$group/cgroup.procs"; done; '
            "mount -t tmpfs -o mode=755 tmpfs /run && exec systemd-nspawn --register=no --keep-unit --quiet --boot "
            '--directory="$root" --machine=notify --private-network --resolv-conf=off --console=pipe'
        )
        with (self.root.parent / f"{self.root.name}.log").open("wb") as log:
            self._log = Path(log.name)
            self._nspawn = subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--propagation",
                    "private",
                    "sh",
                    "-c",
                    boot,
                    "sh",
                    self.root,
                    *self._groups,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while time.monotonic() < began + 60 and self._nspawn.poll() is None:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            if children:
                self._leader = children[0]
                state = self.call("systemctl", "is-system-running", "--wait", check=False).strip()
                if state in ("running", "degraded"):
                    print(f"booted in {time.monotonic() - began:.1f} s: {state}", flush=True)
                    break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"it did not boot:\n{self._log.read_text('utf-8', 'replace')[-3000:]}")
        with open(f"/proc/{self._leader}/ns/net") as namespace:
            # for this thread, and those that it starts
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and self._leader:
            print(self.call("journalctl", "--no-pager", "--lines=80", check=False), file=sys.stderr)
        if self._nspawn.poll() is None:
            self.call("systemctl", "poweroff", check=False)
            try:
                self._nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        for group in self._groups:
            for below in sorted(group.glob("**/"), reverse=True):
                with suppress(OSError):
                    below.rmdir()
        shutil.rmtree(self.root, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def connect(self, suite: str) -> None:
        """Give apt in the machine the packages of a suite, over this machine's network (``online``)."""
        self.write("/etc/apt/sources.list", f"deb {mirror()} {suite} main\n")
        self.write("/etc/apt/apt.conf.d/proxies", "\n".join(proxies()))
        for shared in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
            shutil.copy(shared, self.root / shared.lstrip("/"))

    def command(self, *command: str, online: bool = False) -> list[str]:
        """The full command line that runs a command inside; ``online``: with the host's network."""
        net = f"--net=/proc/{self._nspawn.pid if online else self._leader}/ns/net"
        inside = ["nsenter", "--target", self._leader, "--mount", "--uts", "--ipc", net, "--pid"]
        clean = [
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        ]
        return [*inside, *clean, *command]

    def call(self, *command: str, check: bool = True, online: bool = False) -> str:
        """Run a command inside; return its output."""
        status, said = self.attempt(*command, online=online)
        if check and status:
            raise RuntimeError(f"{' '.join(command)}: exit status {status}\n{said}")
        return said

    def attempt(self, *command: str, online: bool = False) -> tuple[int, str]:
        """Run a command inside, without a terminal; return its exit status and output."""
        done = subprocess.run(
            self.command(*command, online=online),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=900 if online else 300,
        )
        return done.returncode, done.stdout

    def journal(self, unit: str = "notify") -> str:
        """Everything that a unit has logged."""
        return self.call("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def show(self, name: str, unit: str = "notify") -> str:
        """A property of a unit."""
        return self.call("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def write(self, path: str, text: str) -> None:
        """Write a file inside."""
        (self.root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path.lstrip("/")).write_text(text)

    def read(self, path: str) -> str:
        """Read a file inside."""
        return (self.root / path.lstrip("/")).read_text()
