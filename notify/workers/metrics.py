"""What all processes of a server have counted, under the names that one process has, and each worker's own beside it.

Most of what is the server's own (``notify_``) is summed. What a sum says nothing of is the worst of them, or what the first
process has; what is of a process and of Python is the first one's. Of each worker there is all of it again, with its number
as a label, under names that begin with ``notify_worker_``: so a rule that sums the others counts nothing twice.

A sum that counts up never falls: Prometheus takes a fall for a restart, and all that is there afterwards for new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace
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

#: what counts up
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
    """A registry for ``generate_latest``: of ``first``, of the workers by their numbers, and what else was ``counted``."""

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
    """What the workers have told of themselves. What one had counted stays when it does not answer, and when it has ended."""

    def __init__(self) -> None:
        self._told: dict[int, list[Family]] = {}
        self._ended: dict[str, Family] = {}

    def told(self, number: int, data: bytes) -> int:
        """This worker has told what it has counted since it began, a :func:`dump`. Its number."""
        self._told[number] = _decode(data)
        return number

    def ended(self, number: int) -> None:
        """It has ended, and who comes in its place begins anew. Harmless when it has told nothing."""
        for family in self._told.pop(number, ()):
            if family.type in _COUNTED and family.name.startswith(_OWN):
                there = self._ended.get(family.name)
                self._ended[family.name] = family if there is None else _added(there, family)

    def render(self, first: bytes, answered: Iterable[int], wanted: Iterable[int]) -> bytes:
        """The metrics of the whole server as text: of the ``wanted`` workers these have just told theirs."""
        workers = {number: self._told[number] for number in answered if number in self._told}
        silent = [told for number, told in self._told.items() if number not in workers]
        counted = [*silent, list(self._ended.values())]
        combined: CollectorRegistry = _Combined(_decode(first), workers, counted, wanted)  # type: ignore[assignment]
        return generate_latest(combined)


def _added(one: Family, other: Family) -> Family:
    """The sum of what two have counted."""
    found: dict[_Key, list[float]] = {}
    for sample, labels, value in (*one.samples, *other.samples):
        found.setdefault((sample, tuple(labels.items())), []).append(value)
    samples = [(key[0], dict(key[1]), _combined(one.name, values, key[0])) for key, values in found.items()]
    return replace(one, samples=samples)
