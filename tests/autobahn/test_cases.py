"""Every case of the Autobahn test suite passes, or is named here with the reason.

A part of them with every run of the tests; all of them by ``make conformance``, which writes docs/conformance.md. kosoku, which plays them, brings an ``autobahn`` of its own: so it is a process of its own, too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.autobahn.echo import serve
from tests.support.programs import ROOT, program

REPORT = ROOT / "docs" / "conformance.md"

#: what is told of, by group; 8 and 11 have no cases, and 9 measures speed
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
PLAIN = [group for group in GROUPS if group not in ("12", "13")]
#: of the compressed groups, with every run of the tests
SAMPLE = ("12.1.3", "12.3.4", "12.4.4")

#: what is not plainly passed, by a pattern of its id, and why
NAMED = {
    r"6\.4\.[1-4]": "non-strict: text is judged by whole messages, so what cannot become UTF-8 any more is refused at the end "
    "of its message and not before",
    r"1[23]\.\d+\.1|12\.[2345]\.2|12\.[25]\.3|12\.5\.([456]|11)": "not run to an end by kosoku 0.1: some of these messages do not "
    "get smaller by compression, so we send them as they are (RFC 7692, section 6, allows it), and kosoku hands such echoes to "
    "its case as text and not as bytes",
}  # fmt: skip


class Verdict(NamedTuple):
    """What a case came to: Autobahn's own words."""

    behavior: str
    close: str

    @property
    def kind(self) -> str:
        """``passed``, ``informational`` or ``named``: the last one must be."""
        words = {*self}
        return (
            "passed" if words == {"OK"} else "informational" if words <= {"OK", "INFORMATIONAL"} else "named"
        )


def play(address: str, cases: Sequence[str], folder: Path, seconds: float) -> dict[str, Verdict]:
    """Play cases, some at once; blocks."""
    command = [program("kosoku"), *(word for case in cases for word in ("-i", case))]
    subprocess.run(
        [*command, "-p", "4", "-o", str(folder), address], capture_output=True, timeout=seconds, check=False
    )
    [found] = json.loads((folder / "index.json").read_text()).values()
    return {case: Verdict(one["behavior"], one["behaviorClose"]) for case, one in found.items()}


def reason(case: str) -> str | None:
    """Why a case is named."""
    return next((why for pattern, why in NAMED.items() if re.fullmatch(pattern, case)), None)


def row(group: str, found: dict[str, Verdict]) -> str:
    """A group's line of the report."""
    kinds = Counter(verdict.kind for case, verdict in found.items() if case.split(".")[0] == group)
    counts = " | ".join(str(kinds[kind]) for kind in ("passed", "informational", "named"))
    return f"| {group} | {GROUPS[group]} | {sum(kinds.values())} | {counts} |"


def report(found: dict[str, Verdict]) -> str:
    """All of docs/conformance.md."""

    def named(pattern: str) -> Iterable[str]:
        cases = [case for case, one in found.items() if one.kind == "named" and re.fullmatch(pattern, case)]
        return sorted(cases, key=lambda case: [int(part) for part in case.split(".")])

    lines = [f"- {', '.join(cases)}: {why}." for pattern, why in NAMED.items() if (cases := named(pattern))]
    return f"""# Conformance

Made by `make conformance`: the cases of the Autobahn test suite, played by kosoku (PyPI)
against notify's own listener, handshake, reader, transport and compression. Only the session is another one: it sends back
what it gets. Informational cases have no right answer. Group 9 measures speed and is left out.

| group | about | cases | passed | informational | named below |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(row(group, found) for group in GROUPS if any(case.split(".")[0] == group for case in found))}

Named, with the reason:

{chr(10).join(lines)}
"""


class Cases(TestCase):
    timeout = 3600

    async def play(self, *cases: str, seconds: float = 300) -> dict[str, Verdict]:
        address, folder = await serve(self), Path(self.mktemp()).resolve()
        found: Any = await deferToThread(play, address, cases, folder, seconds)
        wrong = {case: tuple(one) for case, one in found.items() if one.kind == "named" and not reason(case)}
        self.assertEqual(wrong, {}, "neither passed nor named")
        mine = [case for case in found if case.split(".")[0] in PLAIN]
        told = [case for case in mine if found[case].kind != "named" and reason(case)]
        self.assertEqual(told, [], "named, and passed")
        return found  # type: ignore[no-any-return]

    async def test_all_but_compression(self) -> None:
        found = await self.play(*(f"{group}.*" for group in PLAIN))
        self.assertEqual(len(found), 247)
        kept = REPORT.read_text().splitlines()
        for group in PLAIN:
            self.assertIn(row(group, found), kept)

    async def test_some_of_compression(self) -> None:
        found = await self.play(*SAMPLE)
        self.assertEqual({*found}, {*SAMPLE})
        self.assertEqual({one.kind for one in found.values()}, {"passed"})

    async def test_all_for_the_report(self) -> None:
        kept = REPORT.read_text()
        if os.environ.get("CONFORMANCE"):
            made = report(await self.play(*(f"{group}.*" for group in GROUPS), seconds=3500))
            REPORT.write_text(made)
            self.assertEqual(made, kept, "docs/conformance.md is another one now")
        else:
            told = re.findall(r"(?m)^\| (\d+) \|", kept)
            self.assertEqual(told[: len(PLAIN)], PLAIN)
