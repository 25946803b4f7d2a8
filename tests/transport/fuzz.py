"""Compares new random streams and opening handshakes with autobahn alone, for some seconds (``make fuzz SECONDS=600``).

If a stream fails, hypothesis shrinks it and raises. The seed of each round is printed.
"""

from __future__ import annotations

import sys
import time
from random import Random, SystemRandom

from hypothesis import HealthCheck, given, seed, settings

from tests.transport.test_frames_differential import check, cuts, streams
from tests.transport.test_handshake_differential import autobahn, beside, random_head

#: streams, and handshakes, in a round
ROUND = 500


def main(seconds: float, first: int | None = None) -> None:
    """Play rounds until the time is over, at least one; ``first`` is the seed of the first."""
    end, rounds, factory = time.monotonic() + seconds, 0, autobahn()
    healthy = [HealthCheck.too_slow, HealthCheck.data_too_large]
    limits = settings(max_examples=ROUND, database=None, suppress_health_check=healthy)
    while not rounds or time.monotonic() < end:
        number = SystemRandom().getrandbits(32) if first is None or rounds else first
        print(f"seed {number}", flush=True)
        seed(number)(limits(given(streams, cuts)(check)))()
        random = Random(number)
        for _ in range(ROUND):
            beside(factory, random_head(random))
        rounds += 1
    print(f"{rounds * ROUND} streams and as many handshakes, as by autobahn")


if __name__ == "__main__":
    main(float(sys.argv[1]), *map(int, sys.argv[2:]))
