"""Divides among the workers the limits that hold for all clients together."""

from __future__ import annotations

import os
import re
from typing import Literal

from msgspec.structs import replace

from notify.config import Config, Size

#: the most characters of a node's name
_NAME = 64


def count(workers: int | Literal["auto"]) -> int:
    """The number of workers: a given one, or as many as the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if workers == "auto" else workers


def name(node: str, number: int) -> str:
    """The name of a worker of this node; a long one is cut off at the end."""
    suffix = f"-w{number}"
    return re.sub(r"[_-]+$", "", node[: _NAME - len(suffix)]) + suffix


def shared(config: Config, workers: int) -> Config:
    """The configuration of one of several workers: each limit for all clients together is divided, rounded up.

    Three limits are not divided, because the first process checks them as a whole: sockets in total, sockets of one
    address, and connections of one user.
    """
    limits = config.limits

    def part(whole: int, least: int = 0) -> int:
        return max(least, -(-whole // workers))

    mine = replace(
        limits,
        max_arriving=part(limits.max_arriving),
        send_queues=Size(part(limits.send_queues)),
        recent_messages=part(limits.recent_messages, 1000),
        recent_bytes=Size(part(limits.recent_bytes)),
        signals_fan_out=part(limits.signals_fan_out),
    )
    return replace(config, limits=mine)


def files(workers: int, open_files: int, reserve: int) -> int:
    """How many files all workers may have open for clients, as one process with the same reserve would count them."""
    return max(1, workers) * (open_files - reserve) + reserve
