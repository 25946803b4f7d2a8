"""What signals cost, beside messages, and what they cost where there are none: ``python -m benchmarks.signals [--quick]``.

One process, the memory broker, and everything but sockets: who is in a chat takes what is written and does nothing with it. So
what is shown is what a node does for a message and for a signal; the kernel's part, a send for each member, is alike for both.

For chats of 10, 100 and 1,000: the CPU of a message where nobody was granted signals, where all were and none is sent, and of a
signal, each as microseconds and beside the first; the median of rounds in which the three take turns. Signals come one a turn, as
from people who type.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Raw
from twisted.internet.task import Clock

from notify.brokers.memory import MemoryBroker, MemorySettings
from notify.config import Limits
from notify.core.dispatcher import Dispatcher
from notify.core.live import InForce, Live
from notify.core.signals import Signals
from notify.core.timers import Wheel
from notify.identity import Identity, Peer
from notify.messages import Signal
from notify.registries.memory import MemoryRegistry
from notify.registries.memory import MemorySettings as RegistrySettings
from notify.testing import chat_payload, make_context
from notify.topics import chat
from notify.wire.encodings import encoding, featured

SIZES = (10, 100, 1000)
TOPIC = chat(1, 10)


class Member:
    """A connection without a socket."""

    blocked = False
    queued = 0

    def __init__(self, user_id: int, features: frozenset[str]) -> None:
        self.id = str(user_id)
        self.peer = Peer("")
        self.identity = Identity(user_id, 1)
        self.encoding = featured(encoding("notify.v1.json"), features)
        self.written = 0

    def write(self, frame: bytes) -> None:
        """Count it."""
        self.written += 1


class Node:
    """What a node has of it, and one chat with so many members."""

    def __init__(self, members: int, features: frozenset[str]) -> None:
        self.clock = Clock()
        context = make_context(self.clock)
        live = Live(InForce(None, Limits(signals_fan_out=0)))  # type: ignore[arg-type]
        self.broker = MemoryBroker(MemorySettings(), context)
        registry = MemoryRegistry(RegistrySettings(), context)

        def soon(call: Callable[[], None]) -> None:
            self.clock.callLater(0, call)

        dispatcher = Dispatcher(
            self.broker,
            registry,
            context.metrics,
            live,
            soon,
            Wheel(self.clock).after,
            self.clock.seconds,
        )
        self.signals = Signals(self.broker, context.metrics, live, soon, self.clock.seconds)
        self.broker.hear(self.signals.heard)
        self.broker.start(dispatcher.deliver, dispatcher.lost)
        self.members = [Member(number, features) for number in range(members)]
        for member in self.members:
            dispatcher.subscribe(member, TOPIC, None)
            self.signals.join(member, TOPIC)
        self.payload = chat_payload(TOPIC)
        self.signal = Signal(1, 10, 0, "typing", Raw(msgspec.json.encode({"until": 5})))

    def message(self) -> None:
        """One message, and its turn."""
        self.broker.publish(TOPIC, self.payload)
        self.clock.advance(0)

    def say(self) -> None:
        """One signal, and its turn."""
        self.signals.send(self.signal)
        self.clock.advance(0)


def cpu(call: Callable[[], None], times: int) -> float:
    """Microseconds of CPU for one call."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times * 1e6


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a first impression")
    quick = parser.parse_args(arguments).quick
    rounds, work = (3, 20_000) if quick else (15, 200_000)
    print("| members | message, us | all were granted signals | a signal |")
    print("| --- | --- | --- | --- |")
    for size in SIZES:
        plain, granted = Node(size, frozenset()), Node(size, frozenset(("signals",)))
        times = max(1, work // size)
        taken = [
            (cpu(plain.message, times), cpu(granted.message, times), cpu(granted.say, times))
            for _ in range(rounds)
        ]
        first = statistics.median(one[0] for one in taken)
        ratios = [statistics.median(one[column] / one[0] for one in taken) for column in (1, 2)]
        if plain.members[1].written != rounds * times or granted.members[1].written != 2 * rounds * times:
            raise AssertionError("not everybody got everything")
        print(f"| {size:,} | {first:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
