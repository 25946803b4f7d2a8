"""News fragments: every one is of a known type and gets into the changelog."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.programs import ROOT, UNMEASURED, run

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
TYPES = {kind["directory"]: kind["name"] for kind in SETTINGS["type"]}
NAME = re.compile(rf"\+[a-z0-9-]+\.(?:{'|'.join(TYPES)})\.md")


def towncrier(folder: Path, *arguments: str) -> str:
    """The output of ``towncrier build``, in one line."""
    common = ("--version", "9.9.9", "--date", "2100-01-01")
    command = (sys.executable, "-m", "towncrier", "build", "--dir", folder, *common, *arguments)
    return flat(run(*command, environ=UNMEASURED))


def flat(text: str) -> str:
    return " ".join(text.split())


class News(SynchronousTestCase):
    def test_every_fragment_has_a_known_type_and_shows(self) -> None:
        shown = towncrier(ROOT, "--draft")
        for path in (ROOT / "changes").iterdir():
            if path.name != "README.md":
                self.assertTrue(
                    NAME.fullmatch(path.name), f"{path.name}: not +NAME.TYPE.md of {', '.join(TYPES)}"
                )
                self.assertTrue(path.read_text().strip(), path.name)
                self.assertIn(flat(path.read_text()), shown, path.name)

    def test_the_page_names_every_type(self) -> None:
        page = (ROOT / "changes" / "README.md").read_text()
        named = re.findall(r"`(\w+)`", page.partition("TYPE is one of")[2].partition(".")[0])
        self.assertEqual(named, list(TYPES))
        self.assertIn("protocol", TYPES)

    def test_a_release_puts_them_above_what_was_there(self) -> None:
        folder = Path(self.mktemp()).resolve()
        (folder / "changes").mkdir(parents=True)
        for name in ("pyproject.toml", "CHANGELOG.md", "changes/README.md"):
            shutil.copy(ROOT / name, folder / name)
        for kind in TYPES:
            (folder / "changes" / f"+one.{kind}.md").write_text(f"A change of the kind *{kind}*.\n")
        towncrier(folder, "--yes")
        before, after = (ROOT / "CHANGELOG.md").read_text(), (folder / "CHANGELOG.md").read_text()
        head, mark, rest = before.partition("<!-- towncrier release notes start -->\n")
        self.assertTrue(mark)
        self.assertEqual(
            (after[: len(head + mark)], after[-len(rest.strip()) - 1 :]), (head + mark, f"{rest.strip()}\n")
        )
        section = after.removeprefix(head + mark).partition(rest.strip())[0]
        told = "".join(f" ### {name} - A change of the kind *{kind}*." for kind, name in TYPES.items())
        self.assertEqual(flat(section), f"## 9.9.9 (2100-01-01){told}")
        self.assertEqual([path.name for path in (folder / "changes").iterdir()], ["README.md"])
