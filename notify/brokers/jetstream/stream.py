"""The streams: made, brought up to date, or only checked; and what is known of the one that holds the history.

Two streams. The history, with the subjects of docs/protocol.md, sends every message that it has stored on as a
plain message on ``{live_prefix}.{token}.{subject}`` (``republish``). The token is drawn when the stream is made:
what a later stream of the same name sends on is never taken for this one's. The second stream keeps dead
letters, and the canary's last word of each node.

A stream's epoch is the time of its creation.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify.brokers.jetstream.settings import JetStreamSettings
from notify.errors import StartError, Unavailable

SUBJECTS = ("workspace.*.chat.*.messages", "workspace.*.user.*.notifications")
_NOT_FOUND = 10059
_NAME_IN_USE = 10058
_TAKES_TIME = frozenset(
    {10005, 10008, 10009, 10023, 10047, 10028}
)  # the cluster is coming up, or is short of room
_NANO = 10**9


class Reply(Protocol):
    """What a request fires with, as far as it matters here."""

    @property
    def data(self) -> bytes: ...  # noqa: D102


class Requests(Protocol):
    """The part of a connection that is used here."""

    def request(self, subject: str, payload: bytes, timeout: float | None = None) -> Deferred[Any]: ...  # noqa: D102


class ApiError(Exception):
    """JetStream refused a request."""

    def __init__(self, code: int, number: int, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.number = number


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


class Streams:
    """Speaks JetStream's management API. Methods raise ``Unavailable`` where the server cannot be asked now."""

    log = Logger()

    def __init__(self, settings: JetStreamSettings, connection: Requests, random: Random) -> None:
        self._settings = settings
        self._connection = connection
        self._random = random
        self._asking: list[Deferred[StreamState]] | None = None

    @property
    def dead_subject(self) -> str:
        """What stands before ``{epoch}.{seq}`` in the subject of a dead letter."""
        return f"dead.{self._settings.stream}"

    def canary_subject(self, node: str) -> str:
        """Where a node's canary sings."""
        return f"canary.{self._settings.stream}.{node}"

    async def api(self, call: str, body: dict[str, Any] | None = None, timeout: float | None = None) -> Any:
        """One call of the JetStream API; gives the decoded answer, raises :class:`ApiError`."""
        payload = b"" if body is None else msgspec.json.encode(body)
        reply = await self._connection.request(f"$JS.API.{call}", payload, timeout)
        try:
            answer = msgspec.json.decode(reply.data)
        except msgspec.DecodeError:
            raise Unavailable(f"NATS gave no sense for an answer to {call}") from None
        if error := answer.get("error"):
            raise ApiError(error.get("code", 0), error.get("err_code", 0), error.get("description", ""))
        return answer

    async def ensure(self) -> StreamState:
        """Make, update or check both streams. Raises ``StartError`` where only an operator can help."""
        s = self._settings
        answer = await self.ensure_stream(s.stream, self._wanted_history, self._required_history)
        await self.ensure_stream(s.dead_letter_stream, self._wanted_dead, self._required_dead)
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

    # ------------------------------------------------------------------ what is wanted, and what is there

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

    def _wanted_history(self, have: dict[str, Any]) -> dict[str, Any]:
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

    def _wanted_dead(self, have: dict[str, Any]) -> dict[str, Any]:
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

    def _required_history(self, have: dict[str, Any]) -> list[str]:
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

    def _required_dead(self, have: dict[str, Any]) -> list[str]:
        wanted = self._wanted_dead({})["subjects"]
        return [
            f"subjects lack {x}"
            for x in wanted
            if not any(covers(other, x) for other in have.get("subjects", ()))
        ]

    async def ensure_stream(
        self,
        name: str,
        wanted: Callable[[dict[str, Any]], dict[str, Any]],
        required: Callable[[dict[str, Any]], list[str]],
    ) -> Any:
        """Make, update or check one stream; gives what the server says of it.

        ``wanted`` makes the keys that matter from those that there are, ``required`` says what is wrong with a
        stream that is not ours to change. Raises ``StartError``, ``Unavailable``.
        """
        try:
            answer = await self.api(f"STREAM.INFO.{name}")
        except ApiError as error:
            if error.number != _NOT_FOUND:
                raise self._translate(name, error) from None
            if not self._settings.manage_stream:
                raise StartError(
                    f"stream {name} does not exist and manage_stream is false: create it (docs/jetstream.md)."
                ) from None
            answer = await self._change("CREATE", name, {"name": name} | wanted({}))
        if self._settings.manage_stream:
            have = answer["config"]
            asked = wanted(have)
            if differences(asked, have):
                answer = await self._change("UPDATE", name, have | asked)
            if wrong := differences(asked, answer["config"]):
                raise StartError(f"stream {name} is not as it was asked for: {'; '.join(wrong)}.")
        if wrong := required(answer["config"]):
            raise StartError(
                f"stream {name} cannot be used: {'; '.join(wrong)}. Change it, then start again."
            )
        return answer

    async def _change(self, verb: str, name: str, config: dict[str, Any]) -> Any:
        try:
            answer = await self.api(
                f"STREAM.{verb}.{name}", config, timeout=max(5.0, self._settings.request_timeout)
            )
        except ApiError as error:
            if verb == "CREATE" and error.number == _NAME_IN_USE:  # another node was faster
                return await self.api(f"STREAM.INFO.{name}")
            raise self._translate(name, error) from None
        self.log.info("stream {name}: {verb}d", name=name, verb=verb.lower())
        return answer

    def _translate(self, name: str, error: ApiError) -> Exception:
        if (error.code >= 500 and error.number not in (10074, 10076)) or error.number in _TAKES_TIME:
            return Unavailable(f"stream {name}: {error}")
        return StartError(f"stream {name} cannot be used: NATS says: {error}.")


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


def differences(asked: dict[str, Any], have: dict[str, Any]) -> list[str]:
    """What the server made of a configuration, where it is not what was asked for."""
    wrong = []
    for key, value in asked.items():
        other = have.get(key)
        if key == "subjects":
            same = sorted(value) == sorted(other or ())
        elif key == "republish":
            same = (other or {}).get("dest") == value["dest"]
        else:
            same = value == other
        if not same:
            wrong.append(f"{key} is {other!r}, not {value!r}")
    return wrong


def covers(pattern: str, subject: str) -> bool:
    """Whether a pattern matches everything that ``subject``, itself perhaps a pattern, matches."""
    theirs = subject.split(".")
    ours = pattern.split(".")
    for index, part in enumerate(ours):
        if part == ">":
            return len(theirs) > index
        if index >= len(theirs) or theirs[index] == ">":
            return False
        if part not in ("*", theirs[index]):
            return False
    return len(ours) == len(theirs)
