"""Runs all tests on all cores, under both runners (``python -m tests``) or under one (``python -m tests trial``).

pytest distributes the tests over processes by itself. trial is started several times, each time with some of the
modules, because its own ``--jobs`` loses the asyncio reactor. The second runner runs even if the first one fails.
The exit status is 0 if both pass.

The server processes that tests start use uvloop under pytest, and asyncio's event loop under trial.

``SAMPLE=3`` in the environment: every third module only, each day others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from tests.support.programs import ROOT

BIN = Path(sys.executable).parent
#: more than there are cores: tests wait more than they compute
JOBS = min(2 * (os.cpu_count() or 1), 8)


def modules() -> list[str]:
    """The names of all test modules."""
    found = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "tests").rglob("test_*.py"))
    return sorted(".".join(path.parts) for path in found if "node_modules" not in path.parts)


def sample(names: list[str], share: int, day: int) -> list[str]:
    """One of ``share`` parts of the modules; each day it is the next."""
    return names[day % share :: share]


def run_pytest() -> bool:
    """Run all tests; return whether they passed."""
    command = [BIN / "pytest", "-q", f"--numprocesses={JOBS}", "--dist=worksteal"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def trial(number: int, names: list[str]) -> str:
    """Run trial with these modules; return its whole output."""
    command = [BIN / "trial", "--reactor=asyncio", f"--temp-directory=_trial_temp/{number}", *names]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "NOTIFY_SERVER__EVENT_LOOP": "asyncio", "SAMPLE": ""},
    )
    return done.stdout


def run_trial() -> bool:
    """Run all tests, a few processes at a time; return whether they passed. Prints the whole output of what failed."""
    began, counts, well = time.monotonic(), Counter[str](), True
    (ROOT / "_trial_temp").mkdir(exist_ok=True)
    names = sample(modules(), int(os.environ.get("SAMPLE") or 1), date.today().toordinal())
    shares = [names[n :: 3 * JOBS] for n in range(3 * JOBS)]
    with ThreadPoolExecutor(JOBS) as pool:
        for said in pool.map(trial, range(len(shares)), shares):
            end = re.search(r"^(PASSED|FAILED)(?: \((.*)\))?\s*\Z", said, re.MULTILINE)
            if end is None or end[1] != "PASSED":
                well = False
                print(said, flush=True)
            if end is not None:
                counts.update({what: int(count) for what, count in re.findall(r"(\w+)=(\d+)", end[2] or "")})
    told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(
        f"trial: {'PASSED' if well else 'FAILED'}: {len(names)} modules, {told} in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return well


if __name__ == "__main__":
    runners = {"pytest": run_pytest, "trial": run_trial}
    passed = [runners[name]() for name in sys.argv[1:] or runners]
    sys.exit(not all(passed))
