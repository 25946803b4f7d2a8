"""What holds for all clients together, over several workers."""

from __future__ import annotations

import os
import re
from typing import Literal

from msgspec.structs import replace

from notify.config import Config, Size

#: a node's name, as long as it may be
_NAME = 64


def count(workers: int | Literal["auto"]) -> int:
    """How many there are: a number, or as many as this process may use processors."""
    return len(os.sched_getaffinity(0)) if workers == "auto" else workers


def name(node: str, number: int) -> str:
    """The name of a worker of this node; a long one loses its end."""
    suffix = f"-w{number}"
    return re.sub(r"[_-]+$", "", node[: _NAME - len(suffix)]) + suffix


def shared(config: Config, workers: int) -> Config:
    """The configuration of one of so many workers: of what is for all together, it has its part, rounded up.

    How many sockets there may be, altogether and of one address, and how many connections a user may have is asked of the
    first process, which has the whole.
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
    """How many files all workers together may have open for clients, as one process with the same reserve would count them."""
    return max(1, workers) * (open_files - reserve) + reserve
