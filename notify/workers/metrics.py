"""What all processes of a server have counted, under the names that one process has, and each worker's own beside it.

Most of what is the server's own (``notify_``) is summed. What a sum says nothing of is the worst of them, or what the first
process has; what is of a process and of Python is the first one's. Of each worker there is all of it again, with its number
as a label, under names that begin with ``notify_worker_``: so a rule that sums the others counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

#: not summed: the least or the most of all processes, or the first process's own
_LEAST = frozenset(("notify_broker_up",))
_MOST = frozenset(("notify_draining", "notify_broker_faults", "notify_history_holes"))
_FIRST = frozenset(
    (
        "notify_nodes",
        "notify_revocations",
        "notify_sockets",
        "notify_reloads",
        "notify_drain_left",
        "notify_build",
    )
)

_OWN, _WORKERS = "notify_", "notify_worker_"

_Key = tuple[str, tuple[tuple[str, str], ...]]


class Family(Struct, frozen=True, array_like=True):
    """One metric with its samples: name, labels, value."""

    name: str
    help: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


_decode = msgspec.msgpack.Decoder(list[Family]).decode


def dump(registry: CollectorRegistry) -> bytes:
    """All that a process has counted."""
    families = [
        Family(m.name, m.documentation, m.type, [(s.name, dict(s.labels), s.value) for s in m.samples])
        for m in registry.collect()
    ]
    return msgspec.msgpack.encode(families)


def _combined(name: str, values: list[float], sample: str) -> float:
    if name in _LEAST or sample.endswith("_created"):
        return min(values)
    return max(values) if name in _MOST else sum(values)


class _Combined:
    """A registry for ``generate_latest``: of ``first``, and of the workers by their numbers."""

    def __init__(self, first: bytes, workers: Mapping[int, bytes], wanted: Iterable[int]) -> None:
        self._first = _decode(first)
        self._workers = {number: _decode(data) for number, data in workers.items()}
        self._wanted = sorted(wanted)

    def collect(self) -> Iterator[Metric]:
        """The families."""
        here: dict[str, Family] = {family.name: family for family in self._first}
        for families in self._workers.values():
            for family in families:
                here.setdefault(family.name, family)
        for name, about in here.items():
            yield self._sum(name, about)
        for name, about in here.items():
            if name not in _FIRST:
                yield self._each(name, about)
        up = Metric(
            "notify_worker_up", "1 for a worker that serves, and has told what it has counted.", "gauge"
        )
        for number in self._wanted:
            up.add_sample(up.name, {"worker": str(number)}, float(number in self._workers))
        yield up

    def _sum(self, name: str, about: Family) -> Metric:
        found: dict[_Key, list[float]] = {}
        alone = name in _FIRST or not name.startswith(_OWN)
        sources = [self._first] if alone else [self._first, *self._workers.values()]
        for families in sources:
            for family in families:
                if family.name == name:
                    for sample, labels, value in family.samples:
                        found.setdefault((sample, tuple(labels.items())), []).append(value)
        metric = Metric(name, about.help, about.type)
        for (sample, pairs), values in found.items():
            metric.add_sample(sample, dict(pairs), _combined(name, values, sample))
        return metric

    def _each(self, name: str, about: Family) -> Metric:
        metric = Metric(_WORKERS + name.removeprefix(_OWN), f"Of one worker: {about.help}", about.type)
        for number, families in sorted(self._workers.items()):
            for family in families:
                if family.name == name:
                    for sample, labels, value in family.samples:
                        renamed = _WORKERS + sample.removeprefix(_OWN)
                        metric.add_sample(renamed, {**labels, "worker": str(number)}, value)
        return metric


def render(first: bytes, workers: Mapping[int, bytes], wanted: Iterable[int]) -> bytes:
    """The metrics of the whole server as text: ``workers`` are those that have told theirs, of ``wanted``."""
    combined: CollectorRegistry = _Combined(first, workers, wanted)  # type: ignore[assignment]
    return generate_latest(combined)
