"""The plan of a simulated life, drawn from its seed before anything happens: the setting, and steps with their times.

A life can therefore be replayed with fewer steps, which is how the shrinker finds those that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import Any

from msgspec import Struct, structs

from notify.testing.simulation.network import Conditions
from notify.testing.simulation.tokens import KEY, bearer


class Someone(Struct, frozen=True):
    """A client: its user, the chats that it subscribes to, and its protocol options."""

    name: str
    workspace: int
    user: int
    chats: tuple[int, ...]
    events: bool
    batch: bool
    watches: bool
    window: int


class Plugins(Struct, frozen=True):
    """The plugins of a world, chosen by a plugin's author: their names (empty: drawn), and the table of settings for each, by its name.

    ``token(user, workspace)`` creates a token that the plugin in ``auth`` accepts. ``nodes`` is the maximum number of nodes for a
    custom broker; a broker that keeps its history in the process has one.
    """

    auth: str = "jwt"
    broker: str = ""
    registry: str = ""
    tables: dict[str, dict[str, Any]] = {}
    token: Callable[[int, int], str] = bearer
    nodes: int = 1


OURS = Plugins(tables={"jwt": {"secret": KEY}})


class Step(Struct, frozen=True):
    """Something that happens at a time, in seconds of the life. ``number`` identifies it permanently."""

    number: int
    at: float
    what: str
    about: dict[str, Any]

    def __str__(self) -> str:
        about = " ".join(f"{key}={value}" for key, value in self.about.items())
        return f"step {self.number} at {self.at:.3f}: {self.what} {about}"


class Plan(Struct, frozen=True):
    """A whole life."""

    seed: int
    plugins: Plugins
    seconds: float
    broker: str
    registry: str
    delivery: str
    servers: int
    nodes: tuple[str, ...]
    settings: dict[str, Any]
    limits: dict[str, Any]
    clients: tuple[Someone, ...]
    outside: Conditions
    inside: Conditions
    max_payload: int
    steps: tuple[Step, ...]

    def only(self, numbers: Collection[int]) -> Plan:
        """The same plan with only these steps."""
        return structs.replace(self, steps=tuple(step for step in self.steps if step.number in numbers))

    def without(self, kinds: Collection[str]) -> Plan:
        """The same plan without these kinds of steps. ``one name``, ``bounded history`` and ``oversized`` also count as kinds."""
        nodes = tuple(f"n{number}" for number in range(1, len(self.nodes) + 1))
        return structs.replace(
            self,
            nodes=nodes if "one name" in kinds else self.nodes,
            settings=self.settings | ({"max_messages": 0} if "bounded history" in kinds else {}),
            max_payload=2**20 if "oversized" in kinds else self.max_payload,
            steps=tuple(step for step in self.steps if step.what not in kinds),
        )


#: what can go wrong beyond clients and publishers, by the broker that it requires
TROUBLES = {
    "jetstream": (
        "faults",
        "server down",
        "server isolated",
        "no leader",
        "nats cut",
        "replica behind",
        "replica frozen",
        "replica with holes",
        "go back",
        "leader behind",
        "forged",
        "recreate",
        "purge",
        "delete",
        "kill",
        "pause",
        "restart",
        "reload",
        "clock",
    ),
    "memory": ("kill", "pause", "restart", "reload", "clock"),
}
_CLIENTS = (
    "cut",
    "silent",
    "slow",
    "half-closed",
    "resubscribe",
    "come again",
    "unsubscribe",
    "storm",
    "ask",
)


def draw(seed: int, plugins: Plugins = OURS) -> Plan:
    """The plan of a seed."""
    random = Random(f"plan {seed}")
    seconds = random.choice((12.0, 20.0, 30.0))
    broker = random.choice(("jetstream",) * 9 + ("memory",))
    broker = plugins.broker or broker
    nodes = random.choice((1, 1, 2, 2, 3))
    if broker != "jetstream":
        nodes = min(nodes, plugins.nodes)
    names = [f"n{number}" for number in range(1, nodes + 1)]
    if nodes > 1 and broker == "jetstream" and random.random() < 0.3:
        names[1] = names[0]
    servers = random.choice((1, 1, 3))
    replicas = min(servers, random.choice((1, 3)))
    delivery = random.choice(("republish", "republish", "consumer"))
    registry = "jetstream_kv" if nodes > 1 or (broker == "jetstream" and random.random() < 0.7) else "memory"
    registry = plugins.registry or registry
    settings: dict[str, Any] = {
        "replicas": replicas,
        "delivery": delivery,
        "max_messages": random.choice((0, 0, 0, 0, 3, 20)),
        "replay_reads": random.choice((1, 2, 32, 32)),
        "publish_window": random.choice((1, 2, 1024)),
        "check_interval": random.choice((1, 5)),
        "ack_wait": random.choice((1, 30)),
        "publish_patience": random.choice((3, 15)),
    }
    limits: dict[str, Any] = {
        "send_queue": random.choice((4 * 1024, 64 * 1024, 2**20, 2**20)),
        "replay": random.choice((3, 100, 1000, 1000)),
        "ping_interval": random.choice((2, 25)),
        "ping_timeout": 2,
        # From a separate random source, so that earlier plans of the same seed stay as they were.
        "linger": Random(f"linger {seed}").choice((0, 1, 60)),
    }
    workspaces = random.choice((1, 1, 2))
    chats = random.choice((1, 2, 4))
    clients = [
        Someone(
            f"c{number}",
            random.randint(1, workspaces),
            random.randint(1, 4),
            tuple(sorted(random.sample(range(1, chats + 1), random.randint(1, chats)))),
            random.random() < 0.4,
            random.random() < 0.6,
            random.random() < 0.3,
            random.choice((2048, 64 * 1024, 256 * 1024)),
        )
        for number in range(1, random.choice((3, 5, 8, 12)))
    ]
    outside = Conditions(
        random.choice((0.001, 0.005, 0.03)), random.choice((0.0, 0.0, 0.02)), random.choice((0.0, 0.1, 0.6))
    )
    inside = Conditions(random.choice((0.001, 0.003, 0.01)), random.choice((0.0, 0.002, 0.02)))
    # A life with every kind of trouble shows little: each has a few kinds, and many have none.
    known = TROUBLES.get(broker, TROUBLES["memory"])
    troubles = random.sample(known, random.choice((0, 1, 1, 2, 3, 5)) % (len(known) + 1))
    steps: list[tuple[float, str, dict[str, Any]]] = [
        (random.uniform(0.5, seconds), "publish", _publish(random, workspaces, chats, names))
        for _ in range(random.choice((5, 12, 25)))
    ]
    for _ in range(random.choice((2, 6, 12))):
        what = random.choice(_CLIENTS)
        steps.append((random.uniform(1.0, seconds), what, _client(random, what, clients, chats)))
    for what in troubles:
        about = [
            _trouble(random, what, nodes, servers, workspaces, chats)
            for _ in range(random.choice((1, 1, 2, 3)))
        ]
        steps += [(random.uniform(1.0, seconds), what, one) for one in about]
    steps.sort(key=lambda step: step[0])
    return Plan(
        seed,
        plugins,
        seconds,
        broker,
        registry,
        delivery,
        servers,
        tuple(names),
        settings,
        limits,
        tuple(clients),
        outside,
        inside,
        random.choice((2**20, 2**20, 2**20, 4096)),
        _numbered(steps + _sheds(seed, seconds, nodes)),
    )


def _sheds(seed: int, seconds: float, nodes: int) -> list[tuple[float, str, dict[str, Any]]]:
    """Shares of a node's clients that are sent elsewhere. They use a separate random source and are numbered after the other steps, so that
    earlier plans of the same seed stay as they were.
    """
    random = Random(f"shed {seed}")
    return [
        (
            random.uniform(1.0, seconds),
            "shed",
            {"node": random.randrange(nodes), "share": random.choice((0.3, 0.5, 1.0))},
        )
        for _ in range(random.choice((0, 0, 0, 1, 2)))
    ]


def _numbered(steps: list[tuple[float, str, dict[str, Any]]]) -> tuple[Step, ...]:
    """Sort the steps by time; their numbers are those of the given order."""
    made = [Step(n, round(at, 3), what, about) for n, (at, what, about) in enumerate(steps)]
    return tuple(sorted(made, key=lambda step: step.at))


def _publish(random: Random, workspaces: int, chats: int, names: list[str]) -> dict[str, Any]:
    return {
        "workspace": random.randint(1, workspaces),
        "kind": random.choice(("chat", "chat", "chat", "user")),
        "id": random.randint(1, chats),
        "count": random.choice((1, 1, 3, 8, 20)),
        "gap": random.choice((0.0, 0.001, 0.001, 0.02, 0.3)),
        "size": random.choice((10, 10, 10, 200, 200, 1500, 1500, 5000)),
        "way": random.choice(("http", "broker", "broker", "nats")),
        "events": random.choice((0.0, 0.0, 0.5)),
        "poison": random.choice((0.0, 0.0, 0.0, 0.2)),
        "node": random.randrange(len(names)),
    }


def _client(random: Random, what: str, clients: list[Someone], chats: int) -> dict[str, Any]:
    about: dict[str, Any] = {"client": random.randrange(len(clients))}
    if what == "cut":
        part = random.random()
        about["told"] = "both" if part < 0.5 else "client" if part < 0.8 else "nobody"
    elif what == "silent":
        about |= {"up": random.random() < 0.5, "seconds": random.choice((0.5, 5.0, 20.0))}
    elif what == "slow":
        about["seconds"] = random.choice((0.3, 3.0))
    elif what in ("storm", "resubscribe"):
        about |= {
            "chat": random.randint(1, chats),
            "times": random.choice((1, 5)),
            "burst": random.choice((0, 10, 40)),
            "spread": random.choice((0.0, 0.01)),
        }
    elif what == "unsubscribe":
        about |= {"chat": random.randint(1, chats), "seconds": random.choice((0.0, 0.01, 2.0))}
    return about


def _trouble(
    random: Random, what: str, nodes: int, servers: int, workspaces: int, chats: int
) -> dict[str, Any]:
    about: dict[str, Any] = {}
    if what == "faults":
        part = random.choice((0.05, 0.3, 1.0))
        kinds = ("republish_dropped", "republish_doubled", "republish_late", "ack_lost", "ack_late", "ack_refused",
                 "ack_refused_for_good", "reply_lost")  # fmt: skip
        about = dict.fromkeys(random.sample(kinds, random.randint(1, 3)), part)
        about |= {"by": random.choice((0.01, 0.3, 3.0)), "seconds": random.choice((1.0, 4.0, 10.0))}
    elif what in ("server down", "server isolated"):
        about = {"server": random.randrange(servers), "seconds": random.choice((0.2, 3.0, 8.0))}
    elif what == "no leader":
        about = {"seconds": random.choice((0.2, 3.0))}
    elif what == "nats cut":
        about = {"node": random.randrange(nodes), "seconds": random.choice((0.0, 1.0, 6.0))}
    elif what.startswith("replica"):
        about = {"server": random.randrange(servers), "seconds": random.choice((1.0, 6.0)), "by": random.choice((0.02, 0.5)),
                 "count": random.randint(1, 3)}  # fmt: skip
    elif what == "leader behind":
        about = {"count": random.choice((1, 3))}
    elif what == "forged":
        about = {
            "workspace": random.randint(1, workspaces),
            "chat": random.randint(1, chats),
            "seq": random.choice((10**9, 10**15)),
        }
    elif what == "go back":
        about = {"count": random.choice((1, 3, 10)), "seconds": random.choice((0.1, 2.0))}
    elif what in ("purge", "delete"):
        about = {
            "workspace": random.randint(1, workspaces),
            "chat": random.randint(1, chats) if random.random() < 0.7 else 0,
            "keep": random.choice((0, 2)),
        }
    elif what == "clock":
        about = {"node": random.randrange(nodes), "by": random.choice((-60.0, -2.0, 5.0, 30.0))}
    elif what in ("kill", "pause", "restart", "reload"):
        about = {"node": random.randrange(nodes), "seconds": random.choice((0.1, 1.0, 5.0))}
    return about
