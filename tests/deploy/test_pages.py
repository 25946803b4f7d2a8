"""The manual page and the completion know what the command line knows, and the programs they are for accept them."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import TestCase

from notify.cli import COMMANDS
from notify.tap import Options
from tests.support.programs import ROOT, program


class PagesTests(TestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        subprocess.run([sys.executable, ROOT / "packaging/pages.py", self.folder], check=True, cwd=ROOT)

    def complete(self, line: str) -> list[str]:
        words = line.split(" ")
        function = "_notify_server" if words[0] == "notify-server" else "_notify"
        script = (
            f". {self.folder}/notify; COMP_WORDS=({' '.join(repr(w) for w in words)}); COMP_CWORD={len(words) - 1}; "
            f'{function}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(
            [program("bash"), "-euc", script], text=True, capture_output=True, check=True, cwd=self.folder
        )
        return done.stdout.split()

    def test_the_page_describes_every_command_and_option(self) -> None:
        page = (self.folder / "notify.1").read_text().replace("\\-", "-")
        for name in COMMANDS:
            self.assertIn(f".SS {name}\n", page)
        helps = subprocess.run(
            [sys.executable, "-m", "notify.cli.main", "listen", "--help"],
            text=True,
            capture_output=True,
            check=True,
        )
        options = set(re.findall(r"(?m)^  (?:-\w, )?(--[a-z-]+)", helps.stdout)) - {"--help"}
        self.assertIn("--positions", options)
        for option in options:
            self.assertIn(f"\\fB{option}\\fP", page)

    def test_both_pages_are_roff_without_a_fault(self) -> None:
        groff = program("groff")
        for page in (self.folder / "notify.1", ROOT / "debian/notify-server.8"):
            done = subprocess.run(
                [groff, "-man", "-Tutf8", "-ww", "-z", page], text=True, capture_output=True, check=True
            )
            self.assertEqual(done.stderr, "")

    def test_the_server_s_page_describes_every_option(self) -> None:
        page = (ROOT / "debian/notify-server.8").read_text().replace("\\-", "-")
        for option in (*Options().longOpt, "help"):
            self.assertIn(f"--{option.rstrip('=')}", page)

    def test_completion_of_commands_and_options(self) -> None:
        self.assertEqual(self.complete("notify pu"), ["publish"])
        self.assertEqual(set(self.complete("notify ")), {*COMMANDS, "--help", "--version"})
        self.assertEqual(self.complete("notify publish --cont"), ["--content"])
        self.assertIn("--positions", self.complete("notify listen --"))
        self.assertEqual(self.complete("notify-server --co"), ["--config"])

    def test_completion_of_files(self) -> None:
        (self.folder / "a-file").touch()
        for line in ("notify token --config a-", "notify check-config a-", "notify-server --config a-"):
            self.assertEqual(self.complete(line), ["a-file"], line)
