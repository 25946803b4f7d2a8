"""What ``sync_interval: always`` costs: ``python -m benchmarks.sync [--seconds 5] [--rounds 5]``.

A loop of publishes to a stream of one server and of three (three replicas), each awaited, with 1 and with 64 on their
way at once, where NATS syncs every two minutes (its default) and where it syncs before it acknowledges. Settings take
turns within a round; figures are medians over the rounds. The three servers share one disk here, which three machines do
not. ``TMPDIR`` says on which disk they write.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from itertools import product
from statistics import median

import nats
from nats.aio.client import Client
from nats.errors import Error

from benchmarks.jetstream import CONTENT, PAYLOAD, Nats

SYNCS = {"default": "", "always": "jetstream { sync_interval: always }"}
SIZES = (1, 3)
INFLIGHT = (1, 64)


async def create(client: Client, replicas: int) -> None:
    """Make the stream, as soon as the cluster is able to."""
    stream = {"name": "BENCH", "subjects": ["workspace.>"], "num_replicas": replicas, "storage": "file"}
    for _ in range(100):
        try:
            answer = await client.request(
                "$JS.API.STREAM.CREATE.BENCH", json.dumps(stream).encode(), timeout=1
            )
        except Error:
            continue  # no leader yet, so no answer
        if "error" not in json.loads(answer.data):
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("the servers make no stream")


async def publish(client: Client, inflight: int, seconds: float) -> tuple[float, float]:
    """Publishes a second, and the median of the seconds that one takes."""
    taken: list[float] = []
    begin = time.monotonic()

    async def one_by_one(chat: int) -> None:
        subject, number = f"workspace.1.chat.{chat}.messages", 0
        while (sent := time.monotonic()) < begin + seconds:
            number += 1
            answer = await client.request(
                subject, (PAYLOAD % (number, chat, 1, CONTENT)).encode(), timeout=30
            )
            if b'"seq"' not in answer.data:
                raise RuntimeError(answer.data.decode())
            taken.append(time.monotonic() - sent)

    await asyncio.gather(*(one_by_one(chat) for chat in range(1, inflight + 1)))
    return len(taken) / (time.monotonic() - begin), median(taken)


async def measure(size: int, sync: str, seconds: float) -> dict[int, tuple[float, float]]:
    """Figures by the number of publishes on their way, from servers of their own."""
    with Nats(size, SYNCS[sync]) as servers:
        client = await nats.connect(servers.urls.split(","))
        await create(client, size)
        await publish(client, 1, 0.5)
        figures = {inflight: await publish(client, inflight, seconds) for inflight in INFLIGHT}
        await client.close()
        return figures


def fdatasync() -> float:
    """The median of the seconds that the disk takes to sync 200 bytes."""
    taken = []
    with tempfile.TemporaryFile() as file:
        for _ in range(300):
            os.write(file.fileno(), b"x" * 200)
            begin = time.monotonic()
            os.fdatasync(file.fileno())
            taken.append(time.monotonic() - begin)
    return median(taken)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[tuple[int, str, int], list[tuple[float, float]]] = {}
    print(f"fdatasync of this disk: {fdatasync() * 1000:.2f} ms", flush=True)
    for _, size, sync in product(range(arguments.rounds), SIZES, SYNCS):
        for inflight, figures in asyncio.run(measure(size, sync, arguments.seconds)).items():
            found.setdefault((size, sync, inflight), []).append(figures)
    print("| servers | on their way | default, /s | ms | always, /s | ms | always / default |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size, inflight in product(SIZES, INFLIGHT):
        pairs = [found[size, sync, inflight] for sync in SYNCS]
        cells = [f"{median(r for r, _ in p):,.0f} | {median(s for _, s in p) * 1000:.2f}" for p in pairs]
        ratio = median(a / d for (d, _), (a, _) in zip(*pairs, strict=True))
        print(f"| {size} | {inflight} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
