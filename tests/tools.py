"""Programs that a test needs and a machine may lack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest


def need(tool: str) -> str:
    """The path of a program. Skips the test where it is missing; with REQUIRE_ALL=1, fails it."""
    beside = Path(sys.executable).parent / tool
    found = (
        str(beside)
        if beside.exists()
        else shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    )
    if found is None:
        if os.environ.get("REQUIRE_ALL") == "1":
            raise AssertionError(f"{tool} is missing, and REQUIRE_ALL=1 allows no skip")
        raise SkipTest(f"{tool} is missing")
    return found


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
