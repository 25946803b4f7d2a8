"""Trials in a test: they are stopped when the test ends, whatever happens."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from notify.chaos import plan
from notify.chaos.report import Report
from notify.chaos.target import Target
from notify.chaos.trial import Trial


async def tried(case: TestCase, target: Target, *faults: str, **options: Any) -> Report:
    """Run a trial with these faults; return its report."""
    defaults: dict[str, Any] = {"clients": 6, "rate": 80, "seconds": 4.0, "settle": 40.0}
    trial = Trial(reactor, target, [plan.parse(fault) for fault in faults], **(defaults | options))
    case.addCleanup(trial.stop)
    return await trial.run()
