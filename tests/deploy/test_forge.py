"""A forge and pre-commit run the same commands that everyone runs by hand."""

from __future__ import annotations

import re
from typing import Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

from tests.support.programs import ROOT


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


class PreCommit(SynchronousTestCase):
    def test_it_runs_make_check_once_and_installs_nothing(self) -> None:
        (repository,) = load(".pre-commit-config.yaml")["repos"]
        (hook,) = repository["hooks"]
        self.assertEqual(repository["repo"], "local")
        self.assertEqual(
            (hook["entry"], hook["language"], hook["pass_filenames"]), ("make check", "system", False)
        )
        self.assertLessEqual({"id", "name"}, set(hook))


class Workflow(SynchronousTestCase):
    flow = load(".github/workflows/ci.yml")

    def setUp(self) -> None:
        (self.job,) = self.flow["jobs"].values()

    def test_it_runs_ci_run_as_root_of_a_debian_12(self) -> None:
        self.assertEqual(self.job["steps"][-1], {"run": ".ci/run"})
        self.assertTrue((ROOT / ".ci" / "run").stat().st_mode & 0o100)
        self.assertEqual(self.job["container"]["image"], "debian:bookworm")
        self.assertNotIn("--user", self.job["container"]["options"])

    def test_it_ends_and_may_only_read(self) -> None:
        self.assertTrue(0 < self.job["timeout-minutes"] <= 120)
        self.assertEqual(self.flow["permissions"], {"contents": "read"})
        self.assertNotIn("permissions", self.job)
        self.assertNotIn("secrets.", (ROOT / ".github/workflows/ci.yml").read_text())

    def test_it_runs_for_main_and_for_every_proposal(self) -> None:
        # YAML 1.1 reads the key `on` as true.
        self.assertEqual(self.flow[True], {"push": {"branches": ["main"]}, "pull_request": None})

    def test_actions_of_others_are_pinned_to_a_commit(self) -> None:
        used = [step["uses"] for step in self.job["steps"] if "uses" in step]
        self.assertEqual(len(used), 1)
        for action in used:
            self.assertTrue(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), action)
