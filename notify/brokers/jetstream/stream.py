"""The two streams: creates, updates or only checks them, and describes the one that holds the history.

The first stream holds the history, with the subjects of docs/protocol.md. It republishes every message that it has stored as a
plain message on ``{live_prefix}.{token}.{subject}``. The token is drawn when the stream is created, so that messages republished
by a later stream of the same name are never taken for this one's. The second stream holds dead letters, and the last canary of
each node.

:mod:`~notify.brokers.jetstream.history` tells which history the first stream holds, and its epoch.
"""

from __future__ import annotations

import calendar
import time
from base64 import b64decode
from collections.abc import Callable
from enum import Enum
from random import Random
from typing import Any, NamedTuple

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.signals import SUBJECTS as SIGNALS
from notify.errors import StartError, Unavailable
from notify.nats import headers
from notify.nats.dial import release
from notify.nats.jetstream import ApiError, JetStream, Requests, covers, meet

SUBJECTS = ("workspace.*.chat.*.messages", "workspace.*.user.*.notifications")
_NANO = 10**9
_ASKED = 10  # requests for the stream's state until its leader answers one
#: server versions whose atomic batches are sound: from each first version up to before the second
_BATCHES = (((2, 12, 12), (2, 13)), ((2, 14, 3), (1000,)))


class Together(Enum):
    """How several messages of a topic can be in flight at once without one overtaking another."""

    #: not possible: the next is sent when the one before it is settled
    NO = 0
    #: Each names its predecessor, and is stored directly after it or not at all. Only for a stream with one copy: a stream
    #: with several copies remembers the ids of messages that it refuses this way, as if it had stored them.
    CHAINED = 1
    #: As an atomic batch: all are stored, one directly after the other, or none.
    BATCHED = 2


class Mark(NamedTuple):
    """A message of the stream that was seen: its number, and what distinguishes it from another with the same number later.

    ``stamp`` is when it was stored, in nanoseconds; 0: unknown. ``id`` is the id it was published with, empty if it had none;
    None: unknown.
    """

    seq: int
    stamp: int = 0
    id: str | None = None

    def differs(self, other: Mark) -> bool:
        """Whether the known facts prove that they are different messages."""
        known = self.id is not None and other.id is not None
        return (0 < self.stamp != other.stamp > 0) or (known and self.id != other.id)


class StreamState(Struct, frozen=True):
    """The history stream as its leader describes it.

    - ``created`` is its creation time in digits.
    - ``copies`` is the number of servers that store it; ``lagging``: one of them is behind or away.
    - ``cluster`` changes with the leader, and when a copy is added or removed.
    - ``missing`` is how many numbers from ``first_seq`` to ``last_seq`` have no message.
    - ``live`` is the subject prefix of republished messages, including the dot; empty: none are republished.
    - ``faults`` says what keeps the stream from being fully usable.
    """

    created: str
    first_seq: int
    last_seq: int
    missing: int
    live: str
    copies: int = 1
    lagging: bool = False
    cluster: str = ""
    faults: tuple[str, ...] = ()
    #: whether its subjects overlap those of signals, which must not be stored
    keeps_signals: bool = False
    #: when the message with the last number was stored, in nanoseconds; 0: unknown
    stamp: int = 0
    #: whether it accepts several messages of one topic at once, and how
    together: Together = Together.NO
    #: whether it accepts atomic batches
    atomic: bool = False


class Plan:
    """How the two streams must be configured: ``wanted`` if the server manages them, ``required`` if the operator does."""

    def __init__(self, settings: JetStreamSettings, random: Random) -> None:
        self._settings = settings
        self._random = random

    @property
    def dead_subject(self) -> str:
        """The subject prefix of a dead letter, before ``{epoch}.{seq}``."""
        return f"dead.{self._settings.stream}"

    @property
    def history_subject(self) -> str:
        """The subject of the record that says which history the stream holds."""
        return f"{self.dead_subject}.history"

    def canary_subject(self, node: str) -> str:
        """The subject of a node's canary."""
        return f"canary.{self._settings.stream}.{node}"

    def _limits(self) -> dict[str, Any]:
        s = self._settings
        return {
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": s.replicas,
            "duplicate_window": round(s.duplicate_window * _NANO),
            "allow_direct": True,
        }

    def wanted_history(self, have: dict[str, Any]) -> dict[str, Any]:
        """The relevant keys of the configuration, based on the present ones."""
        s = self._settings
        others = [x for x in have.get("subjects", ()) if not any(covers(mine, x) for mine in SUBJECTS)]
        wanted = self._limits() | {
            "subjects": [*(x for x in SUBJECTS if not any(covers(o, x) for o in others)), *others],
            "max_age": round(s.max_age * _NANO),
            "max_bytes": int(s.max_bytes) or -1,
            "max_msgs": s.max_messages or -1,
            "max_msgs_per_subject": -1,
        }
        if not self._sends_on(have):
            token = f"{self._random.getrandbits(32):08x}"
            wanted["republish"] = {"src": ">", "dest": f"{s.live_prefix}.{token}.>"}
        if s.allow_atomic:
            wanted["allow_atomic"] = True
        return wanted

    def wanted_dead(self, have: dict[str, Any]) -> dict[str, Any]:
        """As :meth:`wanted_history`."""
        s = self._settings
        window = min(s.duplicate_window, s.dead_letter_age or s.duplicate_window, 120)
        return self._limits() | {
            "subjects": [f"{self.dead_subject}.>", self.canary_subject("*")],
            "max_age": round(s.dead_letter_age * _NANO),
            "max_msgs_per_subject": 1,
            "duplicate_window": round(window * _NANO),
        }

    def _sends_on(self, have: dict[str, Any]) -> bool:
        republish = have.get("republish") or {}
        dest = republish.get("dest", "")
        return (
            republish.get("src", ">") in (">", "")
            and dest.startswith(f"{self._settings.live_prefix}.")
            and dest.endswith(".>")
            and not republish.get("headers_only")
        )

    def required_history(self, have: dict[str, Any]) -> list[str]:
        """The problems of a stream managed by somebody else that keep notify from working."""
        wrong = [
            f"subjects lack {x}"
            for x in SUBJECTS
            if not any(covers(other, x) for other in have.get("subjects", ()))
        ]
        if have.get("retention") != "limits":
            wrong.append(f"retention is {have.get('retention')}, not limits")
        if not have.get("allow_direct"):
            wrong.append("allow_direct is off")
        if have.get("duplicate_window", 0) < self._settings.publish_patience * _NANO:
            wrong.append("duplicate_window is shorter than publish_patience")
        if self._settings.delivery == "republish" and not self._sends_on(have):
            prefix = self._settings.live_prefix
            wrong.append(f"republish does not send > on to {prefix}.> or {prefix}.TOKEN.>")
        if have.get("sealed"):
            wrong.append("it is sealed: nothing can be stored")
        if have.get("allow_msg_ttl"):
            # Messages that expire in the middle leave holes that cannot be told from losses.
            wrong.append("allow_msg_ttl is on: messages could expire out of their order")
        if have.get("max_msgs_per_subject", -1) > 0:
            wrong.append("max_msgs_per_subject is set: messages would go out of their order")
        if self._settings.allow_atomic and not have.get("allow_atomic"):
            wrong.append("allow_atomic is off")
        return wrong

    def required_dead(self, have: dict[str, Any]) -> list[str]:
        """As :meth:`required_history`."""
        wanted = self.wanted_dead({})["subjects"]
        return [
            f"subjects lack {x}"
            for x in wanted
            if not any(covers(other, x) for other in have.get("subjects", ()))
        ]


class Streams(JetStream):
    """See the module docstring. Methods raise ``Unavailable`` if the server cannot be asked now."""

    def __init__(
        self, settings: JetStreamSettings, connection: Requests, random: Random, version: Callable[[], str]
    ) -> None:
        """``version()`` is the version of the connected server."""
        super().__init__(connection, settings.request_timeout, manage=settings.manage_stream)
        self._settings = settings
        self._version = version
        self.name = settings.stream
        self.plan = Plan(settings, random)
        self._asking: list[Deferred[StreamState]] | None = None
        self._next: list[Deferred[StreamState]] = []

    async def ensure(self) -> StreamState:
        """Create, update or check both streams. Raises ``StartError`` if only an operator can help."""
        s = self._settings
        answer = await self.ensure_stream(s.stream, self._wanted_history, self.plan.required_history)
        await self.ensure_stream(s.dead_letter_stream, self.plan.wanted_dead, self.plan.required_dead)
        return self._describe(answer)

    def _wanted_history(self, have: dict[str, Any]) -> dict[str, Any]:
        wanted = self.plan.wanted_history(have)
        if wanted.get("allow_atomic") and not have.get("allow_atomic"):
            # Not if it is on already: a server that was downgraded to such a version is still usable.
            refuse_batches(self._version())
        return wanted

    async def info(self) -> StreamState:
        """The state of the history stream, from its leader, at some time after the call.

        Calls made while a request is in flight share the next request: the answer in flight may be too old for them.
        """
        mine: Deferred[StreamState] = Deferred(lambda _: None)
        self._next.append(mine)
        if self._asking is None:
            self._ask()
        return await mine

    async def mark(self, seq: int) -> Mark:
        """The message with a number, as the leader has it. If it is missing, only the number is known. Raises ``Unavailable``."""
        try:
            message = await self.message(self.name, {"seq": seq})
        except ApiError as error:
            raise Unavailable(f"stream {self.name}: {error}") from None
        if message is None:
            return Mark(seq)
        id = headers.text(b64decode(message.get("hdrs", "")), headers.MESSAGE_ID)
        return Mark(seq, nanoseconds(message.get("time", "")), id)

    async def look(self) -> StreamState:
        """As :meth:`info`, but not shared with other callers."""
        return self._describe(await self._info())

    async def deleted(self) -> list[int]:
        """The missing numbers inside the stream, from its leader. Raises ``Unavailable``."""
        answer = await self._info({"deleted_details": True})
        return [int(number) for number in answer["state"].get("deleted") or ()]

    def _ask(self) -> None:
        self._asking, self._next = self._next, []
        Deferred.fromCoroutine(self._info()).addBoth(self._answered)

    def _answered(self, outcome: Any) -> None:
        waiting, self._asking = self._asking or [], None
        if self._next:
            self._ask()
        if not isinstance(outcome, Failure):
            outcome = self._describe(outcome)
        for one in waiting:
            if not one.called:
                one.callback(outcome)  # a Failure makes it an errback

    async def _info(self, body: dict[str, Any] | None = None) -> Any:
        for _ in range(_ASKED):
            try:
                answer = await self.api(f"STREAM.INFO.{self.name}", body)
            except ApiError as error:
                raise Unavailable(f"stream {self.name}: {error}") from None
            if "state" not in answer or "config" not in answer:
                raise Unavailable(f"stream {self.name}: NATS does not say how it is")
            if not (cluster := answer.get("cluster")) or cluster.get("leader"):
                return answer
            # A server that stopped leading because it could not write to its disk still answers, as fast as the new leader
            # (nats-server 2.15.1), and lacks what the others have.
        raise Unavailable(f"stream {self.name}: it has no leader")

    def _describe(self, answer: dict[str, Any]) -> StreamState:
        """The state from an answer to STREAM.INFO, CREATE or UPDATE."""
        state, config = answer["state"], answer["config"]
        dest = (config.get("republish") or {}).get("dest", "")
        first, last, kept = state["first_seq"], state["last_seq"], state["messages"]
        cluster = answer.get("cluster") or {}
        replicas = cluster.get("replicas") or ()
        signs = sorted(f"{one.get('name')}{'+' if _is_well(one) else '-'}" for one in replicas)
        return StreamState(
            created="".join(character for character in answer["created"] if character.isdecimal()),
            first_seq=max(first, 1),
            last_seq=last,
            missing=last - first + 1 - kept if kept else 0,
            live=dest.removesuffix(">"),
            copies=1 + len(replicas),
            together=_together(config, len(replicas)),
            atomic=bool(config.get("allow_atomic")),
            lagging=not all(_is_well(one) for one in replicas),
            cluster=" ".join([cluster.get("leader", ""), *signs]) if replicas else "",
            faults=tuple(self.plan.required_history(config)),
            keeps_signals=keeps_signals(config),
            stamp=nanoseconds(state.get("last_ts", "")) if kept else 0,
        )


def _together(config: dict[str, Any], others: int) -> Together:
    if config.get("num_replicas", 1) == 1 and not others:
        return Together.CHAINED
    return Together.BATCHED if config.get("allow_atomic") else Together.NO


def refuse_batches(version: str) -> None:
    """Raise ``StartError`` for a server without atomic batches, or one where their errors could stop the stream."""
    if not any(first <= release(version) < end for first, end in _BATCHES):
        raise StartError(
            f"[broker.jetstream] allow_atomic needs NATS 2.12.12, 2.14.3 or newer on every server, and this one is "
            f"{version or 'of unknown version'}: upgrade, or take the line out."
        )


def keeps_signals(config: dict[str, Any]) -> bool:
    """Whether a stream stores messages sent to some subject of signals."""
    return any(meet(one, SIGNALS) for one in config.get("subjects", ()))


def _is_well(replica: dict[str, Any]) -> bool:
    return bool(replica.get("current")) and not replica.get("offline")


def nanoseconds(text: str) -> int:
    """A time of NATS (RFC 3339, UTC, up to nanoseconds) as nanoseconds since 1970; 0 for anything else."""
    head, _, fraction = text.removesuffix("Z").partition(".")
    try:
        seconds = calendar.timegm(time.strptime(head, "%Y-%m-%dT%H:%M:%S"))
        return max(0, seconds * 10**9 + int(f"{fraction:0<9}"[:9]))
    except ValueError:
        return 0
