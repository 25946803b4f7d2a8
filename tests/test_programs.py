"""Tests that need a missing program are skipped, with a reason that says how to install it, or fail with REQUIRE_ALL=1."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.__main__ import modules, sample
from tests.support.programs import BUILT, PACKAGES, ROOT, WITHOUT_PROGRAM, find, packages, program


class Programs(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(os, "environ", {"PATH": self.mktemp()})

    def test_one_that_is_missing_is_skipped_with_the_command_that_installs_it(self) -> None:
        skipped = self.assertRaises(SkipTest, program, "promtool")
        self.assertEqual(str(skipped), "promtool is missing: apt-get install prometheus")

    def test_with_require_all_it_fails(self) -> None:
        os.environ["REQUIRE_ALL"] = "1"
        failed = self.assertRaises(AssertionError, program, "promtool")
        self.assertIn("promtool is missing: apt-get install prometheus", str(failed))

    def test_one_of_the_environment_needs_no_path(self) -> None:
        self.assertEqual(program("pytest"), str(Path(sys.executable).with_name("pytest")))

    def test_the_sbin_beside_a_bin_of_the_path_is_searched(self) -> None:
        folder = Path(self.mktemp()).resolve()
        (folder / "sbin").mkdir(parents=True)
        (folder / "sbin" / "haproxy").touch(0o755)
        os.environ["PATH"] = f"{folder}/bin"
        self.assertEqual(find("haproxy"), f"{folder}/sbin/haproxy")

    def test_the_newest_postgresql_is_where_debian_keeps_it(self) -> None:
        folder = Path(self.mktemp()).resolve()
        for version in ("9", "15", "17"):
            (folder / "lib" / "postgresql" / version / "bin").mkdir(parents=True)
            (folder / "lib" / "postgresql" / version / "bin" / "initdb").touch(0o755)
        os.environ["PATH"] = f"{folder}/bin"
        self.assertEqual(find("initdb"), f"{folder}/lib/postgresql/17/bin/initdb")

    def test_all_packages_are_missing_where_there_is_nothing(self) -> None:
        self.assertEqual(set(packages()) - set(WITHOUT_PROGRAM), set(PACKAGES.values()))

    def test_every_program_that_a_test_names_has_a_package_or_is_in_the_environment(self) -> None:
        named = {
            name
            for path in (ROOT / "tests").rglob("*.py")
            if "node_modules" not in path.parts
            for name in re.findall(r'\bprogram\("([\w.+-]+)"\)', path.read_text())
        }
        self.assertLess({"haproxy", "node", "nats-server", "chromium"}, named)
        for name in sorted(named - set(PACKAGES) - set(BUILT)):
            self.assertTrue(Path(sys.executable).with_name(name).exists(), name)


class Samples(SynchronousTestCase):
    def test_as_many_days_as_there_are_parts_run_every_module_once(self) -> None:
        names = modules()
        self.assertIn("tests.test_programs", names)
        self.assertEqual(sample(names, 1, 7), names)
        for share in (2, 3):
            self.assertEqual(
                sorted(one for day in range(share) for one in sample(names, share, day + 5)), names
            )
