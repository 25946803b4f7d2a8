"""`make docs`: every page is on the site, and an error in a page ends the build."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.interface import InterfaceClass

from notify import client, interfaces
from tests.docs.test_docs import pages
from tests.support.programs import ROOT, UNMEASURED

CONF = ROOT / "packaging" / "site"


def build(source: Path, to: Path) -> tuple[int, str]:
    """Build the site; return the exit status and the errors."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-c",
        str(CONF),
        str(source),
        str(to),
    ]
    environ = {**os.environ, **UNMEASURED}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environ)
    return done.returncode, done.stderr


def text(page: Path) -> str:
    """The text of a page that a reader sees."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


class Site(SynchronousTestCase):
    def test_it_has_every_page_every_interface_and_every_name_of_the_client(self) -> None:
        to = Path(self.mktemp())
        status, said = build(ROOT, to)
        self.assertEqual((status, said), (0, ""))
        for page in pages():
            path = page.relative_to(ROOT)
            if path.parts[0] == "docs" and "examples" not in path.parts:
                self.assertTrue((to / path.with_suffix(".html")).exists(), path)
        reference = text(to / "docs" / "reference" / "interfaces.html")
        for name, interface in vars(interfaces).items():
            if isinstance(interface, InterfaceClass) and interface.__module__ == interfaces.__name__:
                self.assertIn(f"notify.interfaces.{name}", reference)
                for method in interface:
                    self.assertRegex(reference, rf"\b{method}\b", name)
        self.assertIn("publish(topic: Topic, payload: bytes", reference)
        python = text(to / "docs" / "reference" / "python.html")
        for name in client.__all__:
            self.assertIn(name, python)
        self.assertIn("export interface Position", text(to / "docs" / "reference" / "javascript.html"))

    def test_a_link_that_leads_nowhere_ends_the_build(self) -> None:
        source = Path(self.mktemp())
        source.mkdir()
        (source / "README.md").write_text("# A page\n\nOne [link](gone.md).\n")
        status, said = build(source, Path(self.mktemp()))
        self.assertEqual(status, 1)
        self.assertIn("gone.md", said)
