"""docs/cookbook: its pages show the files that are tested, and its table has every page."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from tests.support.recipes import COOKBOOK, EXAMPLES, PAGES

SHOWN = re.compile(r"<!-- examples/(\S+) -->\n+```\w+\n(.*?)```", re.DOTALL)
MARKER = re.compile(r"<!-- examples/(\S+) -->")


class Pages(SynchronousTestCase):
    def test_what_is_shown_is_what_is_tested(self) -> None:
        shown = set()
        for page in PAGES.glob("*.md"):
            text = page.read_text()
            found = SHOWN.findall(text)
            self.assertEqual([name for name, _ in found], MARKER.findall(text), page.name)
            for name, code in found:
                self.assertEqual(code, (EXAMPLES / name).read_text(), f"{page.name}: {name}")
                shown.add(name)
        there = {path.relative_to(EXAMPLES).as_posix() for path in COOKBOOK.iterdir() if path.is_file()}
        self.assertEqual(there - shown, set(), "a recipe that no page shows")
        self.assertGreater(len(there), 10)

    def test_every_page_is_in_the_table(self) -> None:
        listed = re.findall(r"^\| \[.*?\]\((\S+\.md)\) \|", (PAGES / "README.md").read_text(), re.MULTILINE)
        self.assertEqual(sorted(listed), sorted({path.name for path in PAGES.glob("*.md")} - {"README.md"}))

    def test_every_page_says_what_happens_when_things_go_wrong_and_what_not_to_do(self) -> None:
        for page in PAGES.glob("*.md"):
            if page.name != "README.md":
                headings = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
                self.assertEqual(headings[-2:], ["When things go wrong", "What not to do"], page.name)
