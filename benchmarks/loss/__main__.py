"""``python -m benchmarks.loss``: what clients of notify and its peers lose, side by side on the same schedules."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from benchmarks.__main__ import machine, versions
from benchmarks.load import HERE, Unmeasurable
from benchmarks.loss import report
from benchmarks.loss.ledger import Counts
from benchmarks.loss.peers import PEERS
from benchmarks.loss.run import Load, run
from benchmarks.loss.schedule import SCHEDULES


async def measure(peer: str, schedule: str, load: Load) -> Counts | str:
    """The counts, or why there are none."""
    try:
        counts = await run(PEERS[peer], schedule, load)
    except (Unmeasurable, OSError, RuntimeError, ExceptionGroup) as error:
        why = _why(error)
        print(f"{schedule} {peer}: NOT MEASURED: {why}", flush=True)
        return why
    print(f"{schedule} {peer}: {counts}", flush=True)
    return counts


def _why(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return str(error) or repr(error)


async def side_by_side(peers: list[str], schedules: list[str], load: Load, at_once: int) -> report.Results:
    """One schedule after the other, so many peers at once."""
    places = asyncio.Semaphore(at_once)

    async def one(peer: str, schedule: str) -> Counts | str:
        async with places:
            return await measure(peer, schedule, load)

    results: report.Results = {}
    for schedule in schedules:
        counts = await asyncio.gather(*(one(peer, schedule) for peer in peers))
        results[schedule] = dict(zip(peers, counts, strict=True))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.loss", description=__doc__)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--seconds", type=float, default=60.0, help="of traffic a schedule, 5 to 600")
    parser.add_argument("--rate", type=float, default=50.0, help="messages a second, up to 500")
    parser.add_argument("--clients", type=int, default=20, help="of each peer, up to 200")
    parser.add_argument("--rooms", type=int, default=5, help="that they are spread over")
    parser.add_argument("--seed", type=int, default=1, help="of the schedules")
    parser.add_argument("--at-once", type=int, default=2, help="peers at the same time")
    parser.add_argument(
        "--into", type=Path, default=HERE / "results", help="the folder for table, JSON, plot"
    )
    options = parser.parse_args()
    if not (5 <= options.seconds <= 600 and 0 < options.rate <= 500 and 0 < options.clients <= 200):
        parser.error("out of bounds: see --help")
    if not 0 < options.rooms <= options.clients or options.at_once < 1:
        parser.error("there must be a client for every room, and a place for a peer")
    load = Load(options.seconds, options.rate, options.clients, options.rooms, options.seed)
    results = asyncio.run(side_by_side(options.peers, options.schedules, load, options.at_once))
    head = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "versions": versions()}
    report.write(options.into, head, load, results)
    print(f"written to {options.into}/loss.md")
    lost = [counts for row in results.values() for peer, counts in row.items() if peer.startswith("notify")]
    return int(any(isinstance(c, str) or c.silent or c.doubled or c.disordered or c.foreign for c in lost))


if __name__ == "__main__":
    sys.exit(main())
