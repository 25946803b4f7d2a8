"""Checks the locked libraries for known vulnerabilities with pip-audit: python -m tests.security.audit PYTHON

PYTHON is the interpreter of an environment with pip-audit. If the vulnerability data cannot be reached, this prints
so and does not count as a failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from packaging.utils import canonicalize_name

from tests.deploy.test_lock import locked
from tests.support.programs import ROOT

LOCKS = ("requirements.lock", "requirements-build.lock")


def verdict(output: str) -> tuple[list[str], list[str]]:
    """The names that could be audited, and what was found; ``output`` is pip-audit's JSON, or empty.

    pip-audit skips libraries about which it finds no data, and then reports that it found nothing.
    """
    try:
        listed: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return [], []
    audited = [one["name"] for one in listed if "skip_reason" not in one]
    found = []
    for one in listed:
        for fault in one.get("vulns", ()):
            mended = ", ".join(fault["fix_versions"]) or "no version yet"
            found.append(f"{one['name']} {one['version']}: {fault['id']}, mended by {mended}")
    return audited, found


def main(python: str) -> int:
    """Run the command; return its exit status."""
    bad = 0
    for name in LOCKS:
        options = ["--requirement", str(ROOT / name), "--require-hashes", "--disable-pip", "--format=json"]
        done = subprocess.run(
            [python, "-m", "pip_audit", "--progress-spinner=off", *options],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        audited, found = verdict(done.stdout)
        missing = sorted({*locked(name)} - {*map(canonicalize_name, audited)})
        if missing:
            why = (
                ""
                if done.stdout
                else f" ({(done.stderr.strip().splitlines() or ['no reason given'])[-1][:300]})"
            )
            print(f"{name}: NOT AUDITED, for the data could not be had{why}: {', '.join(missing)}")
        if audited:
            print(f"{name}: {len(audited)} audited, {len(found)} known vulnerabilities")
        for one in found:
            print(f"  {one}")
        bad += len(found)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
