"""Every case of the Autobahn test suite passes, or is listed in :data:`NAMED` with the reason.

In an ordinary test run, a case of groups 12 and 13 sends :data:`FEW` messages; with ``make conformance``, which writes
docs/conformance.md, it sends all of its thousand. kosoku, which plays the cases, brings an ``autobahn`` of its own, so
it runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.autobahn.echo import serve
from tests.support.programs import ROOT, UNMEASURED, program

REPORT = ROOT / "docs" / "conformance.md"

#: what each group is about; 8 and 11 have no cases, and 9 measures speed
GROUPS = {
    "1": "framing",
    "2": "pings and pongs",
    "3": "reserved bits",
    "4": "opcodes",
    "5": "fragmentation",
    "6": "UTF-8",
    "7": "closing",
    "10": "automatic fragmentation",
    "12": "compression: sizes and fragments",
    "13": "compression: parameters",
}
#: messages (some 100 KB on average) in each case of groups 12 and 13: in an ordinary test run, and in the whole case
FEW, ALL = 20, 1000

#: the cases that do not simply pass, by a pattern of their ids, and why
NAMED = {
    r"6\.4\.[1-4]": "non-strict: text is validated a whole message at a time, so invalid UTF-8 is refused at the end of its "
    "message and not before",
}  # fmt: skip


class Verdict(NamedTuple):
    """The result of a case, in Autobahn's own words."""

    behavior: str
    close: str

    @property
    def kind(self) -> str:
        """``passed``, ``informational`` or ``named``; a ``named`` case must be listed in :data:`NAMED`."""
        words = {*self}
        return (
            "passed" if words == {"OK"} else "informational" if words <= {"OK", "INFORMATIONAL"} else "named"
        )


def play(address: str, count: int, folder: Path, cases: Iterable[str]) -> dict[str, Verdict]:
    """Play these cases (ids, ``*`` for any part), some at the same time. Blocks."""
    program("kosoku")
    command = [sys.executable, "-m", "tests.autobahn.player", str(count), str(folder), address]
    environ = {**os.environ, **UNMEASURED}
    subprocess.run([*command, *cases], cwd=ROOT, check=True, timeout=3500, env=environ)
    [found] = json.loads((folder / "index.json").read_text()).values()
    return {case: Verdict(one["behavior"], one["behaviorClose"]) for case, one in found.items()}


def reason(case: str) -> str | None:
    """Why a case is listed in :data:`NAMED`; None if it is not."""
    return next((why for pattern, why in NAMED.items() if re.fullmatch(pattern, case)), None)


def unnamed(found: dict[str, Verdict]) -> dict[str, tuple[str, ...]]:
    """The cases that did not pass and have no reason in :data:`NAMED`."""
    return {case: tuple(one) for case, one in found.items() if one.kind == "named" and not reason(case)}


def row(group: str, found: dict[str, Verdict]) -> str:
    """A group's line of the report."""
    kinds = Counter(verdict.kind for case, verdict in found.items() if case.split(".")[0] == group)
    counts = " | ".join(str(kinds[kind]) for kind in ("passed", "informational", "named"))
    return f"| {group} | {GROUPS[group]} | {sum(kinds.values())} | {counts} |"


def report(found: dict[str, Verdict]) -> str:
    """The whole text of docs/conformance.md."""

    def named(pattern: str) -> Iterable[str]:
        cases = [case for case, one in found.items() if one.kind == "named" and re.fullmatch(pattern, case)]
        return sorted(cases, key=lambda case: [int(part) for part in case.split(".")])

    lines = [f"- {', '.join(cases)}: {why}." for pattern, why in NAMED.items() if (cases := named(pattern))]
    return f"""# Conformance

Made by `make conformance`: kosoku (PyPI) plays the cases of the Autobahn test suite against notify's own listener, handshake,
reader, transport and compression. Only the session is replaced, by one that echoes what it receives. Informational cases have
no right answer. Group 9 measures speed and is left out. `make test` plays the same cases, with fewer messages in groups
12 and 13.

| group | about | cases | passed | informational | named below |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(row(group, found) for group in GROUPS if any(case.split(".")[0] == group for case in found))}

Named cases, with the reason:

{chr(10).join(lines)}
"""


class Cases(TestCase):
    timeout = 3600

    async def test_every_case(self) -> None:
        whole = bool(os.environ.get("CONFORMANCE"))
        address, folder = await serve(self), Path(self.mktemp()).resolve()

        async def played(folder: Path, cases: Iterable[str]) -> Any:
            return await deferToThread(play, address, ALL if whole else FEW, folder, cases)

        found = await played(folder, [f"{group}.*" for group in GROUPS])
        wrong = unnamed(found)
        if wrong:
            # kosoku waits only one second for a connection to end, and a busy machine may take longer: play these cases
            # once more, by themselves.
            found |= await played(folder / "again", wrong)
            wrong = unnamed(found)
        self.assertEqual(wrong, {}, "neither passed nor named")
        told = [case for case, one in found.items() if one.kind != "named" and reason(case)]
        self.assertEqual(told, [], "named, and passed")
        self.assertEqual(len(found), 463)
        kept, made = REPORT.read_text(), report(found)
        if whole:
            REPORT.write_text(made)
        self.assertEqual(made, kept, "docs/conformance.md is another one now")
