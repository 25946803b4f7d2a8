"""An unpacked source archive is as good as a clone: no step needs git, and errors name what is missing and a remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.programs import program

TOP = Path(__file__).resolve().parent.parent.parent
#: programs that the Makefile and scripts call by name, and that every machine has
PLAIN = (
    "cat",
    "cp",
    "dirname",
    "env",
    "expand",
    "grep",
    "ls",
    "mkdir",
    "mktemp",
    "rm",
    "sed",
    "sh",
    "tar",
    "touch",
)


class Archive(SynchronousTestCase):
    def setUp(self) -> None:
        # git, if needed to copy the tree here, and the few programs on the machine where the archive is unpacked.
        copying = ("git",) if (TOP / ".git").exists() else ()
        found = {name: program(name) for name in (*copying, *PLAIN, "make")}
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.tree = self.folder / "notify"
        subprocess.run([TOP / "packaging/copy-tree", self.tree], check=True)
        self.programs = self.folder / "bin"
        self.programs.mkdir()
        for name in (*PLAIN, "make"):
            (self.programs / name).symlink_to(found[name])

    def have(self, name: str, does: str) -> None:
        """Put a program into PATH: a shell script that does this."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{does}\n")
        path.chmod(0o755)

    def run_there(self, *command: str) -> tuple[int, str]:
        done = subprocess.run(
            command,
            cwd=self.tree,
            env={"PATH": str(self.programs), "HOME": str(self.folder), "LANG": "C.UTF-8"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout

    def test_every_target_can_be_read_without_git(self) -> None:
        self.have("python3", f'exec {sys.executable} "$@"')
        code, said = self.run_there("make", "help")
        self.assertEqual(code, 0, said)
        targets = [line.split()[0] for line in said.splitlines()]
        self.assertIn("deb", targets)
        for target in targets:
            code, said = self.run_there("make", "-n", target)
            self.assertEqual(code, 0, f"make -n {target}: {said}")

    def test_a_copy_of_it_is_the_same_and_leaves_out_what_was_made(self) -> None:
        def files(tree: Path) -> dict[str, tuple[int, bytes]]:
            return {
                str(path.relative_to(tree)): (path.stat().st_mode, path.read_bytes())
                for path in tree.rglob("*")
                if path.is_file()
            }

        before = files(self.tree)
        for made in (
            ".venv/bin/python", "build/lib/notify/old.py", "dist/a.deb", "notify/__pycache__/a.pyc", "debian/files",
            "notify/transport/_fanout.cpython-30-nowhere.so",
            "notify_realtime.egg-info/PKG-INFO", "tests/js/node_modules/a/index.js", "debian/notify-server/usr/a",
        ):  # fmt: skip
            path = self.tree / made
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made")
        copy = self.folder / "copy"
        code, said = self.run_there("packaging/copy-tree", str(copy))
        self.assertEqual((code, said), (0, ""))
        self.assertEqual(files(copy), before)

    def test_a_python_that_is_missing_or_too_old_is_named(self) -> None:
        for _ in range(2):
            code, said = self.run_there("make", "env")
            self.assertNotEqual(code, 0)
            self.assertIn("notify needs Python 3.11 or newer: make PYTHON=", said)
            self.have("python3", "exit 1")

    def test_a_python_without_venv_is_named_with_the_package_that_brings_it(self) -> None:
        self.have("python3", 'case "$2" in *ensurepip*) exit 1 ;; esac')
        for target in ("env", "run"):
            code, said = self.run_there("make", target)
            self.assertNotEqual(code, 0)
            self.assertIn("apt-get install python3-venv", said)

    def test_each_step_of_the_environment_says_what_it_does_and_a_server_waits_for_no_more_than_it_needs(
        self,
    ) -> None:
        made = 'mkdir -p .venv/bin; for it in python twistd; do printf "#!/bin/sh\\n" >.venv/bin/$it; done'
        self.have("chmod", f'exec {shutil.which("chmod")} "$@"')
        self.have("python3", f'case "$2" in venv) {made}; chmod +x .venv/bin/*;; esac')
        run = ".venv/bin/twistd --nodaemon --pidfile= notify --dev"
        server = [
            "making .venv, an environment of its own: about 5 s",
            "installing notify and the libraries that it runs on: about 15 s",
        ]
        tests = ["installing what tests, checks and examples need: about 40 s"]
        for target, says in (
            ("run", [*server, run]),
            ("run", [run]),
            ("env", tests),
            ("env", ["make: Nothing to be done for 'env'."]),
            ("run", [run]),
        ):
            code, said = self.run_there("make", target)
            self.assertEqual((code, said.splitlines()), (0, says))

    def test_what_the_debian_package_lacks_is_named_with_one_line(self) -> None:
        code, said = self.run_there("make", "deb")
        self.assertNotEqual(code, 0)
        self.assertIn("apt-get install dpkg-dev build-essential debhelper", said)
        self.have("dpkg-buildpackage", "exit 1")
        code, said = self.run_there("make", "deb")
        self.assertNotEqual(code, 0)
        self.assertIn("apt-get install debhelper", said)
        self.assertFalse((self.tree / "dist").exists(), os.listdir(self.tree))
