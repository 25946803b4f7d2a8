"""Programs that some tests need beside Python, and running them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

ROOT = Path(__file__).parent.parent.parent
NODE_MODULES = ROOT / "tests" / "js" / "node_modules"


def need(found: object, what: str) -> None:
    """Skip a test, loudly, for what this machine lacks; with ``REQUIRE_ALL=1`` in the environment, fail it."""
    if not found:
        if os.environ.get("REQUIRE_ALL"):
            raise AssertionError(f"{what}, and REQUIRE_ALL is set")
        raise SkipTest(what)


def program(name: str) -> str:
    """The path of a program, from the test environment or the system."""
    beside = Path(sys.executable).parent / name
    everywhere = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    found = str(beside) if beside.exists() else shutil.which(name, path=everywhere)
    need(found, f"{name} is missing")
    return str(found)


def node_modules(package: str = "ws") -> Path:
    """Where what `make js` installs is, this package for one."""
    need((NODE_MODULES / package).is_dir(), f"tests/js/node_modules has no {package}: run `make js`")
    return NODE_MODULES


def run(*command: str | Path, environ: dict[str, str] | None = None, cwd: str | Path | None = None) -> str:
    """Run a program; all that it says. Fails the test, with that, where it does not succeed."""
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
