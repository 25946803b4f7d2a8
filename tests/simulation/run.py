"""Plays simulated lives with faults of every kind, one after another: ``python -m tests.simulation.run``.

    --seconds 600          how long
    --seed 7               only this seed, with its trace if something was wrong
    --steps 1,4,9          only these steps of it, as the shrinker names them
    --trace                print the trace in any case
    --first 7              begin with this seed
    --once                 stop at the first life that goes wrong, and do not shrink it

Exits with 1 if something was wrong, or if a long run never reached one of the rare branches.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from notify.testing.simulation import MARKS, Outcome, Plan, draw, play, shrink

CORPUS = Path(__file__).with_name("corpus.txt")

#: Known failures, left out of lives until they are mended: kinds of steps, ``one name`` (two nodes with the same
#: name get different ones), and ``bounded history`` (history limited to a few messages). The corpus has a life for
#: each; a test checks that it still fails.
KNOWN: frozenset[str] = frozenset()

#: seconds spent on shrinking a failing life
SHRINKING = 60.0


class Kept(NamedTuple):
    """A line of the corpus. ``kind`` is the kind of step that caused the failure."""

    seed: int
    steps: tuple[int, ...]
    kind: str
    why: str

    @property
    def plan(self) -> Plan:
        """The plan of this life, known failures included."""
        plan = draw(self.seed)
        return plan.only(self.steps) if self.steps else plan


def corpus() -> Iterator[Kept]:
    """The lives that once failed."""
    for line in CORPUS.read_text().splitlines():
        if line and not line.startswith("#"):
            which, _, rest = line.partition("  ")
            seed, _, steps = which.partition(" ")
            kind, _, why = rest.partition(": ")
            yield Kept(int(seed), numbers(steps), kind, why)


def numbers(text: str) -> tuple[int, ...]:
    """Parse numbers separated by commas, such as ``1,4,9``."""
    return tuple(int(number) for number in text.split(",") if number)


def life(seed: int) -> Plan:
    """The plan of a seed, without known failures."""
    return draw(seed).without(KNOWN)


def command(plan: Plan, whole: bool) -> str:
    """The command that replays a plan."""
    steps = "" if whole else f" STEPS={','.join(str(step.number) for step in plan.steps)}"
    return f"make simulate SEED={plan.seed}{steps}"


def tell(outcome: Outcome) -> None:
    """Shrink a failing life, and print its violation and how to replay it."""
    plan = outcome.plan
    print(f"\nseed {plan.seed}: {outcome.violation}\n  {command(plan, True)}", flush=True)
    small = shrink(plan, SHRINKING)
    print(f"  made smaller, {len(small.steps)} of {len(plan.steps)} steps:\n  {command(small, False)}")
    for step in small.steps:
        print(f"    {step}")


def lives(seconds: float, first: int, once: bool = False) -> tuple[list[Outcome], Counter[str], int]:
    """Play one seed after another; return failed outcomes, the marks that were reached, and the number of lives."""
    wrong: list[Outcome] = []
    marks: Counter[str] = Counter()
    count = messages = handed = 0
    world = 0.0
    began = told = time.monotonic()
    busy = time.process_time()
    gc.collect()
    gc.freeze()
    gc.disable()
    while time.monotonic() - began < seconds and len(wrong) < 3:
        outcome = play(life(first + count))
        count += 1
        messages, handed, world = (
            messages + outcome.published,
            handed + outcome.handed_over,
            world + outcome.seconds,
        )
        marks.update(outcome.marks)
        if outcome.violation is not None:
            wrong.append(outcome)
            if once:
                print(f"seed {outcome.plan.seed}: {outcome.violation}", flush=True)
                break
            tell(outcome)
        if count % 20 == 0:
            gc.collect()
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"  {count} lives in {told - began:.0f} s, next seed {first + count}", flush=True)
    gc.enable()
    gc.unfreeze()
    took, busy = time.monotonic() - began, time.process_time() - busy
    print(
        f"{count} lives from seed {first} on in {took:.0f} s ({count / took:.1f} a second, {1000 * busy / count:.0f} ms of one core each, {world / 3600:.1f} simulated "
        f"hours): {messages} messages published, {handed} handed over, {len(wrong)} lives wrong"
    )
    return wrong, marks, count


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.run")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--first", type=int, help="the seed to begin with; else any")
    parser.add_argument("--steps", default="")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--once", action="store_true", help="end with the first life that goes wrong")
    given = parser.parse_args(arguments)
    if given.seed is not None:
        # A seed that is asked for by number is played whole, known failures included.
        outcome = play(Kept(given.seed, numbers(given.steps), "", "").plan, traced=True)
        if given.trace or outcome.violation is not None:
            print("\n".join(outcome.trace))
        print(f"seed {given.seed}: {outcome.violation or 'nothing was wrong'}; digest {outcome.digest}")
        return int(outcome.violation is not None)
    first = random.randrange(10**9) if given.first is None else given.first
    wrong, marks, count = lives(given.seconds, first, given.once)
    never = [mark for mark in MARKS if not marks[mark]] if count >= 500 else []
    for mark in never:
        print(f"never reached in {count} lives: {mark}")
    return int(bool(wrong or never))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
