"""The client's state machine, driven by the scenarios that the JavaScript machine runs too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import TestCase

from notify.client.actions import Position, Settings
from notify.client.machine import Machine

TABLE = json.loads((Path(__file__).parent.parent / "conformance" / "scenarios.json").read_text())
NEAR = 1e-6


def same(a: Any, b: Any) -> bool:
    """Deep equality; numbers may differ by less than a microsecond."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, bool) or isinstance(b, bool) or not isinstance(a, int | float):
        return type(a) is type(b) and a == b
    return isinstance(b, int | float) and abs(a - b) < NEAR


class Play:
    """Plays one scenario on one machine."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self.now = 0.0
        unix = scenario.get("unix", 0)
        self.machine = Machine(
            Settings(**scenario.get("settings", {})),
            lambda: float(scenario.get("random", 0.5)),
            lambda: unix + self.now,
        )
        self.steps = TABLE["preludes"].get(scenario.get("after"), []) + scenario["steps"]

    def event(self, name: str, *args: Any) -> None:
        machine, now = self.machine, self.now
        if name == "subscribe":
            chat, since, watch = (*args, None, False)[:3] if len(args) < 3 else args
            machine.subscribe(chat, now, since and Position(**since), bool(watch))
        elif name == "token":
            machine.token(args[0], args[1], now, *args[2:])
        else:
            names = {"open": "opened", "close": "closed", "frame": "received", "timer": "tick"}
            getattr(machine, names.get(name, name))(*args, now)

    def run(self, test: TestCase) -> None:
        for number, (at, event, expected) in enumerate(self.steps):
            where = f"step {number}, {event} at {at}"
            due = self.machine.deadline()
            if event[0] == "timer":
                test.assertIsNotNone(due, f"{where}: no timer is set")
                test.assertTrue(same(due, at), f"{where}: the timer is due at {due}")
                self.now = due
            else:
                test.assertTrue(due is None or due >= at - NEAR, f"{where}: a timer was due at {due}")
                self.now = at
            self.event(*event)
            actions = msgspec.to_builtins(self.machine.actions)
            self.machine.actions.clear()
            test.assertTrue(same(actions, expected), f"{where}\n  did: {actions}\n  not: {expected}")


class Conformance(TestCase):
    """One test for each scenario; the methods are added below."""

    def test_every_rule_has_a_scenario(self) -> None:
        self.assertGreater(len(TABLE["scenarios"]), 40)
        names = [scenario["name"] for scenario in TABLE["scenarios"]]
        self.assertEqual(len(names), len(set(names)))


def _add(scenario: dict[str, Any]) -> None:
    def test(self: TestCase) -> None:
        Play(scenario).run(self)

    words = "".join(letter if letter.isalnum() else "_" for letter in scenario["name"])
    setattr(Conformance, f"test_{words}", test)


for _scenario in TABLE["scenarios"]:
    _add(_scenario)
