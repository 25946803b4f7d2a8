"""JetStream's management API over a connection: single calls, and a stream that is created, updated or only checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify.errors import StartError, Unavailable

# Error numbers of the server (nats-server, server/errors.json).
NO_MESSAGE = 10037
STREAM_NOT_FOUND = 10059
_NAME_IN_USE = 10058
#: attempts to read a message if the answer has neither a message nor an error
_ATTEMPTS = 3
#: temporary: the cluster is starting, or is short of resources
_TAKES_TIME = frozenset({10005, 10008, 10009, 10023, 10047, 10028})
#: permanent: more replicas than a single server can have; JetStream is switched off
_STAYS = frozenset({10074, 10076})


class Requests(Protocol):
    """The part of a connection that is used here."""

    def request(self, subject: str, payload: bytes, timeout: float | None = None) -> Deferred[Any]: ...  # noqa: D102


class ApiError(Exception):
    """JetStream refused a request. ``code`` is like an HTTP status, ``number`` is the server's error number."""

    def __init__(self, code: int, number: int, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.number = number


class JetStream:
    """Methods raise ``Unavailable`` if the server cannot be asked now.

    ``patience`` is the timeout of one request in seconds. With ``manage`` false, streams are checked but never changed; ``key`` is
    the name of that setting in the configuration.
    """

    log = Logger()

    def __init__(
        self, connection: Requests, patience: float, *, manage: bool, key: str = "manage_stream"
    ) -> None:
        self._connection = connection
        self._patience = patience
        self._manage = manage
        self._key = key

    async def api(self, call: str, body: dict[str, Any] | None = None, timeout: float | None = None) -> Any:
        """Make one call of the JetStream API. Returns the decoded answer; raises :class:`ApiError`."""
        payload = b"" if body is None else msgspec.json.encode(body)
        reply = await self._connection.request(f"$JS.API.{call}", payload, timeout)
        try:
            answer = msgspec.json.decode(reply.data)
        except msgspec.DecodeError:
            raise Unavailable(f"NATS gave no sense for an answer to {call}") from None
        if error := answer.get("error"):
            raise ApiError(error.get("code", 0), error.get("err_code", 0), error.get("description", ""))
        return answer

    async def message(self, stream: str, which: dict[str, Any]) -> Any:
        """A message as the stream's leader has it, or None. Raises :class:`ApiError`, ``Unavailable``.

        ``which`` selects the message: ``seq``, ``seq`` and ``next_by_subj``, or ``last_by_subj``.
        """
        call = f"STREAM.MSG.GET.{stream}"
        for _ in range(_ATTEMPTS):
            try:
                answer = await self.api(call, which)
            except ApiError as error:
                if error.number == NO_MESSAGE:
                    return None
                raise
            # A nats-server 2.15 was seen to answer with neither a message nor an error just after the newest message was deleted.
            if "message" in answer:
                return answer["message"]
        raise Unavailable(f"NATS gave no sense for an answer to {call}")

    async def ensure_stream(
        self,
        name: str,
        wanted: Callable[[dict[str, Any]], dict[str, Any]],
        required: Callable[[dict[str, Any]], list[str]],
    ) -> Any:
        """Create, update or check one stream. Returns the server's description of it.

        ``wanted`` returns the relevant keys, given the present configuration. ``required`` returns the problems of a stream that
        is managed by the operator. Raises ``StartError``, ``Unavailable``.
        """
        try:
            answer = await self.api(f"STREAM.INFO.{name}")
        except ApiError as error:
            if error.number != STREAM_NOT_FOUND:
                raise _translate(name, error) from None
            if not self._manage:
                raise StartError(
                    f"stream {name} does not exist and {self._key} is false: create it (docs/jetstream.md)."
                ) from None
            answer = await self._change("CREATE", name, {"name": name} | wanted({}))
        if self._manage:
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
            answer = await self.api(f"STREAM.{verb}.{name}", config, timeout=max(5.0, self._patience))
        except ApiError as error:
            if verb == "CREATE" and error.number == _NAME_IN_USE:  # another node was faster
                return await self.api(f"STREAM.INFO.{name}")
            raise _translate(name, error) from None
        self.log.info("stream {name}: {verb}d", name=name, verb=verb.lower())
        return answer


def _translate(name: str, error: ApiError) -> Exception:
    if (error.code >= 500 and error.number not in _STAYS) or error.number in _TAKES_TIME:
        return Unavailable(f"stream {name}: {error}")
    return StartError(f"stream {name} cannot be used: NATS says: {error}.")


def differences(asked: dict[str, Any], have: dict[str, Any]) -> list[str]:
    """The keys in which the server's configuration differs from the requested one."""
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
    """Whether a pattern matches everything that ``subject`` matches, which may itself be a pattern."""
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


def meet(one: str, other: str) -> bool:
    """Whether any subject matches both patterns."""
    ours, theirs = one.split("."), other.split(".")
    for mine, its in zip(ours, theirs, strict=False):
        if ">" in (mine, its):
            return True
        if mine != its and "*" not in (mine, its):
            return False
    return len(ours) == len(theirs)
