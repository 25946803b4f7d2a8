"""Figures over the rounds of a run: medians, and ratios within a round."""

from __future__ import annotations

import statistics
from typing import Any

#: the rounds of each server, in order
Rounds = dict[str, list[dict[str, Any]]]

#: figures under another name: from which key, in what unit
UNITS = {
    "memory_growth_mib": ("memory_growth", 2**20),
    "memory_peak_mib": ("memory_peak_growth", 2**20),
    "memory_kib": ("memory", 1024),
}


def good(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were measured."""
    return [each for each in rounds if "error" not in each]


def values(rounds: list[dict[str, Any]], key: str) -> list[float]:
    """One figure of all rounds that have it."""
    key, unit = UNITS.get(key, (key, 1))
    return [each[key] / unit for each in good(rounds) if key in each]


def median(rounds: list[dict[str, Any]], key: str) -> float:
    """Raises ``StatisticsError`` where no round has it."""
    return statistics.median(values(rounds, key))


def ratios(results: Rounds, one: str, other: str, key: str) -> list[float]:
    """What one took for each that the other took, in each round that has both."""
    return [
        a[key] / b[key]
        for a, b in zip(results.get(one, []), results.get(other, []), strict=False)
        if key in a and b.get(key)
    ]


def spread(found: list[float], form: str) -> str:
    """The median, and the least and the most in brackets."""
    low, high, middle = (format(each, form) for each in (min(found), max(found), statistics.median(found)))
    return middle if low == high else f"{middle} ({low}-{high})"
