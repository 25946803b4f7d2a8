"""A Debian of its own: a root file system from the machine's apt sources, and a real systemd booted in it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from unittest import SkipTest

from tests.support.programs import need, program

TOP = Path(__file__).resolve().parent.parent.parent
BUILD = TOP / "build" / "package-test"
SUITE = platform.freedesktop_os_release().get("VERSION_CODENAME", "bookworm")

_CLONE_NEWNET = 0x40000000


def require(*tools: str) -> None:
    """End here, and say so, where root or a tool is missing: a failure if REQUIRE_ALL=1."""
    try:
        need(os.geteuid() == 0, "only root can do this")
        for tool in tools:
            program(tool)
    except (AssertionError, SkipTest) as missing:
        name, skipped = Path(sys.argv[0]).name, isinstance(missing, SkipTest)
        print(f"{name}: {'SKIPPED' if skipped else 'FAILED'}: {missing}", flush=True)
        sys.exit(0 if skipped else 1)


def run(*command: str | Path, **options: object) -> str:
    """Run a command; its output. Raises, with all that it said."""
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


def base() -> Path:
    """A minimal Debian as a tar file, made once, from the machine's own apt sources."""
    tar = BUILD / f"{SUITE}.tar"
    if not tar.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        folder = Path("/etc/apt")
        sources = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
        sources = [
            s for s in sources if s.suffix in (".list", ".sources") and s.exists() and SUITE in s.read_text()
        ]
        packages = "systemd,systemd-sysv,dbus,python3,python3-venv,procps,iproute2,ca-certificates"
        made = tar.with_suffix(".new.tar")
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", SUITE, made, *sources)
        made.rename(tar)
    return tar


class Machine:
    """A booted container without a network. This process, and what it starts, joins its loopback."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="notify-machine-"))
        run("tar", "-C", self.root, "-xf", base())
        (self.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        self._leader = ""

    def __enter__(self) -> Machine:
        began = time.monotonic()
        boot = (
            "mount -t tmpfs -o mode=755 tmpfs /run && exec systemd-nspawn --register=no --keep-unit --quiet --boot "
            '--directory="$1" --machine=notify --private-network --resolv-conf=off --console=pipe'
        )
        with (self.root.parent / f"{self.root.name}.log").open("wb") as log:
            self._log = Path(log.name)
            self._nspawn = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", boot, "sh", str(self.root)],
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
            # Of this thread, and of those that it starts.
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
        shutil.rmtree(self.root, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def command(self, *command: str) -> list[str]:
        """What runs a command inside."""
        inside = ["nsenter", "--target", self._leader, "--mount", "--uts", "--ipc", "--net", "--pid"]
        clean = [
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        ]
        return [*inside, *clean, *command]

    def call(self, *command: str, check: bool = True) -> str:
        """Run a command inside; its output."""
        done = subprocess.run(
            self.command(*command), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}")
        return done.stdout

    def journal(self, unit: str = "notify") -> str:
        """All that a unit has logged."""
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
