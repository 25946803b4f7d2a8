"""Checks the promise against what was acknowledged: each message once and in order, or the client was told of the loss.

:class:`~tests.faults.harness.Verdict` takes what the stream holds as the truth. If the stream itself lost messages
that it had acknowledged, the acknowledgements are the truth.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from notify.brokers.jetstream import JetStreamBroker
from notify.errors import HistoryLost, Unavailable
from notify.messages import Position
from notify.topics import Topic
from tests.faults.harness import Follower, Got, Load, Told
from tests.support.natsd import pause

_PATIENCE = 100  # attempts of one resumption, a tenth of a second apart
_LIMIT = 100_000
_SIZE = 2**30


def uncovered(load: Load, follower: Follower, topic: Topic) -> list[int]:
    """The acknowledged messages of a topic that a client neither got nor was told about.

    When a client is told that history was lost, this covers the messages acknowledged by then, and those at or
    before the position where the client goes on: it reloads both from the backend. It does not cover a message that
    the client had already skipped without knowing, by getting a later one first.
    """
    story = follower.story[topic]
    have = {each.number for each in story if isinstance(each, Got)}
    missing = []
    for (where, number), position in load.acknowledged.items():
        if where != topic or number in have:
            continue
        accepted = load.accepted_at[topic, number]
        covered = False
        for each in story:
            if isinstance(each, Told):
                covered |= accepted <= each.when or _reaches(each.position, position)
            elif number < each.number and _reaches(each.position, position) and not covered:
                break
        if not covered:
            missing.append(number)
    return missing


def disorder(follower: Follower, topic: Topic) -> list[str]:
    """Messages that came twice, or after a later one, without the client being told in between."""
    wrong: list[str] = []
    seen: set[Any] = set()
    last: Position | None = None
    for each in follower.story[topic]:
        if isinstance(each, Told):
            seen, last = set(), None
            continue
        if each.number in seen:
            wrong.append(f"{topic}: {each.number} twice")
        if last is not None and (last.epoch != each.position.epoch or last.seq >= each.position.seq):
            wrong.append(f"{topic}: {each.number} at {each.position} after {last}")
        seen.add(each.number)
        last = each.position
    return wrong


def broken(load: Load, followers: list[Follower]) -> list[str]:
    """A sentence for each topic of each client where the promise is broken; empty if it is kept everywhere."""
    wrong: list[str] = []
    for index, follower in enumerate(followers):
        for topic in follower.topics:
            if missing := uncovered(load, follower, topic):
                wrong.append(
                    f"client {index}, {topic}: {len(missing)} neither came nor were told, {missing[:5]}"
                )
            wrong += [f"client {index}, {each}" for each in disorder(follower, topic)]
    return wrong


class Resumed(NamedTuple):
    """The outcomes of many resumptions: how many were complete, and how many reported lost history."""

    whole: int
    told: int
    #: a sentence for each resumption that claimed to be complete and was not
    wrong: list[str]


async def resume_everywhere(
    brokers: list[JetStreamBroker], load: Load, count: int, seed: int, broke: float
) -> Resumed:
    """Resume from the positions of ``count`` acknowledged messages, drawn with ``seed``, through each of the brokers.

    A resumption is whole if it has, once and in order, every message that was acknowledged behind the position. In
    the same epoch, "behind" is decided by number. From a position acknowledged before the fault at ``broke``, the
    messages acknowledged after the fault count as well.
    """
    random = Random(seed)
    whole = told = 0
    wrong: list[str] = []
    for drawn in random.choices(sorted(load.acknowledged, key=lambda key: key[1]), k=count):
        topic, number = drawn
        after = load.acknowledged[drawn]
        early = load.accepted_at[drawn] < broke
        expected = {
            other
            for (where, other), position in load.acknowledged.items()
            if where == topic
            and other != number
            and (
                (position.epoch == after.epoch and position.seq > after.seq)
                or (early and load.accepted_at[where, other] > broke)
            )
        }
        for index, broker in enumerate(brokers):
            got = await _resume(broker, topic, after)
            if got is None:
                told += 1
                continue
            numbers = [each.number for each in got]
            missing = sorted(expected - set(numbers))
            if missing or any(b.position.seq <= a.position.seq for a, b in pairwise(got)):
                where = f"node {index}, {topic} after {after}"
                wrong.append(
                    f"{where}: recovered without {missing[:5]} ({len(missing)}), {len(numbers)} came"
                )
            else:
                whole += 1
    return Resumed(whole, told, wrong)


async def _resume(broker: JetStreamBroker, topic: Topic, after: Position) -> list[Got] | None:
    for _ in range(_PATIENCE):
        try:
            replayed = await broker.replay(topic, after, _LIMIT, _SIZE)
        except HistoryLost:
            return None
        except Unavailable:
            await pause(0.1)
        else:
            return [Got(each.position, each.event.message_id) for each in replayed.messages]
    raise AssertionError(f"no answer to a resumption of {topic}")


def _reaches(position: Position, other: Position) -> bool:
    """Whether ``position`` is at or behind ``other`` in the same epoch."""
    return position.epoch == other.epoch and position.seq >= other.seq
