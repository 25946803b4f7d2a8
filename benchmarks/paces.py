"""What one message costs at different paces: ``python -m benchmarks.paces [--seconds 10] [--members 2]``.

One process, one publisher that sends single messages over one HTTP connection, and a chat of a few members. The work is the same
at every pace. What differs is what it costs to reach memory that was not used since the message before: in the processor's
caches, and in the page tables of a virtual machine's host. So beside each figure stand two that have nothing to do with notify:
the CPU time of a loop that reads one byte in each of 1,000 pages at that pace, and that of one that reads the same byte 1,000 times.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time

from benchmarks import process
from benchmarks.__main__ import machine
from benchmarks.load import compile_generator
from benchmarks.servers import Notify
from benchmarks.work import pace

PACES = (5, 20, 100, 500, 2000)
PAGE, PAGES = 4096, 1000


def cost(per_second: float, members: int, seconds: float) -> float:
    """CPU of the server for a message, in microseconds."""
    with Notify() as server:
        clients = server.clients([server.plan(user + 1, (1,)) for user in range(members)])
        publisher = None
        try:
            clients.open()
            publisher = server.publisher()
            chat = itertools.repeat(1)
            pace(publisher, chat, 1, per_second, 1.0, 100)
            before = process.cpu(server.pid)
            sent = pace(publisher, chat, 1, per_second, seconds, 100).sent
            return (process.cpu(server.pid) - before) / len(sent) * 1e6
        finally:
            if publisher is not None:
                publisher.close()
            clients.close()


def reading(per_second: float, step: int, seconds: float) -> float:
    """CPU time of reading 1,000 bytes of memory, each ``step`` bytes behind the last, in microseconds; the median."""
    memory, took = bytearray(b"x" * PAGE * PAGES), list[int]()
    for _ in range(max(5, int(per_second * seconds))):
        time.sleep(1 / per_second)
        begun = time.thread_time_ns()
        for number in range(PAGES):
            memory[number * step]
        took.append(time.thread_time_ns() - begun)
    return statistics.median(took) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.paces", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--members", type=int, default=2)
    options = parser.parse_args()
    compile_generator()
    print(f"{machine()}; chat of {options.members}, {options.seconds:g} s at each pace\n")
    print("| messages/s | CPU a message, us | 1,000 pages read, us | 1 page read 1,000 times, us |")
    print("| ---: | ---: | ---: | ---: |")
    for per_second in PACES:
        message = cost(per_second, options.members, options.seconds)
        pages, page = (reading(per_second, step, options.seconds / 4) for step in (PAGE, 0))
        print(f"| {per_second:,} | {message:,.0f} | {pages:,.0f} | {page:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
