"""The metrics of all processes of a server, combined under the names that one process uses, and those of each worker.

Most of the server's own metrics (``notify_``) are summed. For metrics whose sum says nothing, the worst value is
used, or that of the first process; metrics of the process and of Python are those of the first process. All metrics
of each worker are also given separately, with its number as a label, under names that begin with ``notify_worker_``,
so that a rule that sums the others counts nothing twice.

A sum of counters never falls: Prometheus takes a fall for a restart, and would count the whole value again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

#: not summed: the least or the most over all processes, or the first process's own
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

#: the kinds that only count up
_COUNTED = frozenset(("counter", "histogram"))

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
    """All metrics of a process."""
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
    """A registry for ``generate_latest``: combines ``first``, the workers by number, and what was ``counted`` before."""

    def __init__(
        self,
        first: list[Family],
        workers: Mapping[int, list[Family]],
        counted: Iterable[list[Family]],
        wanted: Iterable[int],
    ) -> None:
        self._first = first
        self._workers = workers
        self._counted = list(counted)
        self._wanted = sorted(wanted)

    def collect(self) -> Iterator[Metric]:
        """The metric families."""
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
        if not alone and about.type in _COUNTED:
            sources += self._counted
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


class Tally:
    """The workers' latest metrics. A worker's counts are kept when it does not answer, and after it has ended."""

    def __init__(self) -> None:
        self._told: dict[int, list[Family]] = {}
        self._ended: dict[str, Family] = {}

    def told(self, number: int, data: bytes) -> int:
        """Store a worker's :func:`dump` of what it has counted since it started. Returns its number."""
        self._told[number] = _decode(data)
        return number

    def ended(self, number: int) -> None:
        """A worker has ended, and its successor counts from zero. Does nothing if it has reported nothing."""
        for family in self._told.pop(number, ()):
            if family.type in _COUNTED and family.name.startswith(_OWN):
                there = self._ended.get(family.name)
                self._ended[family.name] = family if there is None else _added(there, family)

    def render(self, first: bytes, answered: Iterable[int], wanted: Iterable[int]) -> bytes:
        """The metrics of the whole server as text. Of the ``wanted`` workers, ``answered`` have just reported."""
        workers = {number: self._told[number] for number in answered if number in self._told}
        silent = [told for number, told in self._told.items() if number not in workers]
        counted = [*silent, list(self._ended.values())]
        combined: CollectorRegistry = _Combined(_decode(first), workers, counted, wanted)  # type: ignore[assignment]
        return generate_latest(combined)


def _added(one: Family, other: Family) -> Family:
    """The sum of the counts of two."""
    found: dict[_Key, list[float]] = {}
    for sample, labels, value in (*one.samples, *other.samples):
        found.setdefault((sample, tuple(labels.items())), []).append(value)
    samples = [(key[0], dict(key[1]), _combined(one.name, values, key[0])) for key, values in found.items()]
    return replace(one, samples=samples)
