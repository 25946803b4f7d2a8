"""Rare branches that a long run of simulated lives must reach. If one never is, the simulation has lost its effect."""

from __future__ import annotations

from collections.abc import Iterator

from notify.observe.metrics import Metrics

#: each of these must be reached at times
MARKS = (
    "a position was recovered",
    "a position was not recovered",
    "a batch was stored",
    "a list was stored as one",
    "a list was refused as one",
    "a loss was told",
    "a replica that is behind was asked",
    "a repeated publish is a duplicate",
    "a republished message was dropped",
    "what was to be stored behind another was refused",
    "closed with 1006",
    "closed with 1012",
    "closed with 1013",
    "closed with 4001",
    "closed with 4003",
    "closed with 4004",
    "error unavailable",
    "publish answered with 200",
    "publish answered with 207",
    "publish answered with 503",
    "publish answered with 504",
    "metric broker_gaps",
    "metric broker_filled",
    "metric broker_lost",
    "metric poison",
    "metric presence_orphans",
    "metric slow_clients",
    "metric dead_letters kept",
    "metric dead_letters known",
    "metric dead_letters failed",
    "metric replays recovered",
    "metric replays lost",
    "metric replays too_long",
    "metric replays unavailable",
)
_METERS = ("broker_gaps", "broker_filled", "broker_lost", "poison", "presence_orphans", "slow_clients", "dead_letters",
           "replays")  # fmt: skip


def metered(metrics: Metrics) -> Iterator[str]:
    """The marks that are evident from a node's metrics."""
    for name in _METERS:
        for family in getattr(metrics, name).collect():
            for sample in family.samples:
                if sample.name.endswith("_total") and sample.value:
                    yield " ".join(("metric", name, *sample.labels.values()))
