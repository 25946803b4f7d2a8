"""The streams: made, brought up to date, or only checked; and what is known of the one that holds the history.

Two streams. The history, with the subjects of docs/protocol.md, sends every message that it has stored on as a
plain message on ``{live_prefix}.{token}.{subject}`` (``republish``). The token is drawn when the stream is made:
what a later stream of the same name sends on is never taken for this one's. The second stream keeps dead
letters, and the canary's last word of each node.

A stream's epoch is the time of its creation.
"""

from __future__ import annotations

from random import Random
from typing import Any

from msgspec import Struct
from twisted.internet.defer import Deferred

from notify.brokers.jetstream.settings import JetStreamSettings
from notify.errors import Unavailable
from notify.nats.jetstream import ApiError, JetStream, Requests, covers

SUBJECTS = ("workspace.*.chat.*.messages", "workspace.*.user.*.notifications")
_NANO = 10**9


class StreamState(Struct, frozen=True):
    """The history stream as its leader describes it.

    ``whole`` says that nothing from the middle is gone: all numbers from ``first_seq`` to ``last_seq`` are there.
    ``live`` is what stands before the subjects of messages that are sent on, with the dot; empty: none are.
    """

    epoch: str
    first_seq: int
    last_seq: int
    whole: bool
    live: str


class Plan:
    """What the two streams have to be like: ``wanted`` where they are ours to change, ``required`` where they are not."""

    def __init__(self, settings: JetStreamSettings, random: Random) -> None:
        self._settings = settings
        self._random = random

    @property
    def dead_subject(self) -> str:
        """What stands before ``{epoch}.{seq}`` in the subject of a dead letter."""
        return f"dead.{self._settings.stream}"

    def canary_subject(self, node: str) -> str:
        """Where a node's canary sings."""
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
        """The keys that matter, made from those that there are."""
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
        return wanted

    def wanted_dead(self, have: dict[str, Any]) -> dict[str, Any]:
        """As :meth:`wanted_history`."""
        s = self._settings
        return self._limits() | {
            "subjects": [f"{self.dead_subject}.>", self.canary_subject("*")],
            "max_age": round(s.dead_letter_age * _NANO),
            "max_msgs_per_subject": 1,
            "duplicate_window": min(round(s.duplicate_window * _NANO), 120 * _NANO),
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
        """What keeps notify from working with a stream that somebody else looks after."""
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
    """See the module. Methods raise ``Unavailable`` where the server cannot be asked now."""

    def __init__(self, settings: JetStreamSettings, connection: Requests, random: Random) -> None:
        super().__init__(connection, settings.request_timeout, manage=settings.manage_stream)
        self._settings = settings
        self.plan = Plan(settings, random)
        self._asking: list[Deferred[StreamState]] | None = None

    async def ensure(self) -> StreamState:
        """Make, update or check both streams. Raises ``StartError`` where only an operator can help."""
        s = self._settings
        answer = await self.ensure_stream(s.stream, self.plan.wanted_history, self.plan.required_history)
        await self.ensure_stream(s.dead_letter_stream, self.plan.wanted_dead, self.plan.required_dead)
        return describe(answer)

    async def info(self) -> StreamState:
        """How the history stream is now, from its leader. Many callers at once share one request."""
        mine: Deferred[StreamState] = Deferred()
        if self._asking is not None:
            self._asking.append(mine)
            return await mine
        waiting = self._asking = []
        try:
            answer = await self.api(f"STREAM.INFO.{self._settings.stream}")
            state = describe(answer)
        except ApiError as error:
            failure = Unavailable(f"stream {self._settings.stream}: {error}")
            self._asking = None
            for other in waiting:
                other.errback(failure)
            raise failure from None
        except Exception as error:
            self._asking = None
            for other in waiting:
                other.errback(error)
            raise
        self._asking = None
        for other in waiting:
            other.callback(state)
        return state


def describe(answer: dict[str, Any]) -> StreamState:
    """The state in an answer to STREAM.INFO, CREATE or UPDATE."""
    state, config = answer["state"], answer["config"]
    dest = (config.get("republish") or {}).get("dest", "")
    first, last, kept = state["first_seq"], state["last_seq"], state["messages"]
    return StreamState(
        epoch="".join(character for character in answer["created"] if character.isdecimal()),
        first_seq=max(first, 1),
        last_seq=last,
        whole=kept == 0 or last - first + 1 == kept,
        live=dest.removesuffix(">"),
    )
