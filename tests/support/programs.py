"""Programs other than Python that some tests need: which are installed, which packages have them, and running them.

``python3 -m tests.support.programs`` lists what this machine lacks; ``python3 -m tests.support.programs install``
installs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

ROOT = Path(__file__).parent.parent.parent
NODE_MODULES = ROOT / "tests" / "js" / "node_modules"

#: the Debian package of each program that a test or .ci/run needs and that a minimal Debian lacks
PACKAGES = {
    "bash": "bash",
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "curl": "curl",
    "dh": "debhelper",
    "dpkg-buildpackage": "dpkg-dev",
    "find": "findutils",
    "g++": "build-essential",
    "git": "git",
    "go": "golang-go",
    "groff": "groff-base",
    "haproxy": "haproxy",
    "initdb": "postgresql",
    "ip": "iproute2",
    "lintian": "lintian",
    "logrotate": "logrotate",
    "make": "make",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "podman": "podman",
    "postgres": "postgresql",
    "prlimit": "util-linux",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "runc": "runc",
    "systemd-nspawn": "systemd-container",
    "tar": "tar",
    "umount": "mount",
}

#: packages without a program, and code that Debian's Python runs only if they are installed; `make env` and `make
#: deb` need them
WITHOUT_PROGRAM = {
    "python3-dev": "import sysconfig; open(sysconfig.get_path('include') + '/Python.h')",
    "python3-venv": "import ensurepip",
}

#: programs that no Debian package has, built with Go: the newest version that is tried, and one for the oldest
#: supported Go
BUILT = {"helm": ("helm.sh/helm/v3/cmd/helm@v3.22.0", "helm.sh/helm/v3/cmd/helm@v3.11.3")}
TOOLS = ROOT / "build" / "tools"

#: environment of a Python program that runs none of notify's code: with coverage it would take about twice as long
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}


def need(found: object, what: str) -> None:
    """Skip a test, with a message, for what this machine lacks; with ``REQUIRE_ALL=1`` in the environment, fail it."""
    if not found:
        if os.environ.get("REQUIRE_ALL"):
            raise AssertionError(f"{what} (and REQUIRE_ALL is set)")
        raise SkipTest(what)


def find(name: str) -> str | None:
    """The path of a program, if there is one.

    Searches the test environment, the built programs, the PATH, the sbin beside each bin of the PATH, and Debian's
    folders for PostgreSQL, newest version first.
    """
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    sbin = [str(Path(folder).with_name("sbin")) for folder in path if folder]
    lib = [Path(folder).with_name("lib") / "postgresql" for folder in path if folder]
    versions = sorted((one for there in lib for one in there.glob("[0-9]*")), key=lambda one: -int(one.name))
    postgresql = [str(one / "bin") for one in versions]
    folders = [str(Path(sys.executable).parent), str(TOOLS), *path, *sbin, *postgresql]
    return shutil.which(name, path=os.pathsep.join(folders))


def lack(name: str) -> str:
    """A sentence that names the missing program and the command that installs it."""
    remedy = f"apt-get install {PACKAGES[name]}" if name in PACKAGES else "make env"
    if name in BUILT:
        remedy = "make programs"
    return f"{name} is missing: {remedy}"


def program(name: str) -> str:
    """The path of a program; skips the test if it is missing."""
    found = find(name)
    need(found, lack(name))
    return str(found)


def node_modules(package: str = "ws") -> Path:
    """The folder where `make js` installs packages; skips the test if this package is missing."""
    program("npm")
    need((NODE_MODULES / package).is_dir(), f"tests/js/node_modules has no {package}: make js")
    return NODE_MODULES


def run(*command: str | Path, environ: dict[str, str] | None = None, cwd: str | Path | None = None) -> str:
    """Run a program; return all its output. Fails the test, with that output, if the program fails."""
    done = subprocess.run(
        [str(part) for part in command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        env={**os.environ, **(environ or {})},
        cwd=cwd,
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def packages() -> list[str]:
    """The Debian packages of the programs that this machine lacks."""
    missing = {PACKAGES[name] for name in PACKAGES if not find(name)}
    for package, test in WITHOUT_PROGRAM.items():
        if subprocess.run(["/usr/bin/python3", "-c", test], capture_output=True, check=False).returncode:
            missing.add(package)
    return sorted(missing)


def install() -> None:
    """Install what is missing: on Debian, as root. Programs built with Go go into the project's own folder."""
    wanted = packages()
    if wanted:
        if not shutil.which("apt-get") or os.geteuid():
            sys.exit(f"only root, on Debian, can do this: apt-get install {' '.join(wanted)}")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=quiet)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted]
        subprocess.run(command, check=True, env=quiet, stdout=subprocess.DEVNULL)
    for name, versions in BUILT.items():
        if not find(name) and not any(build(version) for version in versions):
            sys.exit(f"{name} cannot be built: go install {versions[0]}")


def build(version: str) -> bool:
    """Build this version of a program with the installed Go; return whether that worked."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "GOBIN": str(TOOLS), "GOTOOLCHAIN": "local"}
    done = subprocess.run(["go", "install", version], check=False, env=environ, stderr=subprocess.DEVNULL)
    return done.returncode == 0


if __name__ == "__main__":
    if sys.argv[1:] == ["install"]:
        install()
    else:
        print(*packages())
