"""pytest runs the tests in a folder of its own, as trial does, and lists at the end why tests were skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from tests.__main__ import sample
from tests.support.programs import packages


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    yield
    os.chdir(before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``SAMPLE`` in the environment, run a part of the modules (:mod:`tests.__main__`)."""
    share = int(os.environ.pop("SAMPLE", "") or 1)  # not for programs that tests start
    chosen = set(sample(sorted({str(item.path) for item in items}), share, date.today().toordinal()))
    left_out = [item for item in items if str(item.path) not in chosen]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if str(item.path) in chosen]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped: list[pytest.TestReport] = terminalreporter.getreports("skipped")
    if not skipped:
        return
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)  # type: ignore[index]
    terminalreporter.section("skipped")
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count:4} {reason}")
    if any("apt-get install" in reason for reason in reasons):
        wanted = " ".join(packages())
        terminalreporter.write_line(
            f"To skip none of these (Debian, root): make test ALL=1, which installs {wanted}"
        )
