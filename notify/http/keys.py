"""API keys: who may use /v1, for what, and in which workspaces."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Collection, Iterable
from hashlib import sha256
from http import HTTPStatus
from math import ceil
from pathlib import Path

from prometheus_client import Counter
from twisted.logger import Logger

from notify import ids
from notify.config import Api, ConfigError, having
from notify.core.live import SCOPES, ApiKey
from notify.http.answers import Refused
from notify.http.guesses import Guesses
from notify.ids import Id

_KEY = re.compile(r"[!-~]{16,512}", re.ASCII)
_OPTIONS = ("name", "scopes", "workspaces")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_BEARER = re.compile(rb"bearer +([!-~]+)", re.ASCII | re.IGNORECASE)

log = Logger()


def read_keys(api: Api, source: str) -> tuple[ApiKey, ...]:
    """All keys of ``[api]``, including those in its file. Raises ``ConfigError``, which never quotes a key."""
    lines = [(f"'api.keys' is wrong: key {number}", [key]) for number, key in enumerate(api.keys, 1)]
    if api.keys_file:
        try:
            text = Path(api.keys_file).read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(
                f"{having(source, 'api.keys_file')}: 'api.keys_file' is wrong: {api.keys_file} cannot be read: {reason}."
            ) from None
        lines += [
            (f"'api.keys_file' is wrong: line {number} of {api.keys_file}", line.split())
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip() and not line.strip().startswith("#")
        ]
    keys: list[ApiKey] = []
    for number, (where, (key, *options)) in enumerate(lines, 1):
        try:
            made = _key(key, options, f"#{number}")
            for other in keys:
                if other.name == made.name:
                    raise ValueError(f"has the same name as another key: '{made.name}'; choose another name")
                if other.digest == made.digest and (other.limited or made.limited):
                    raise ValueError("is listed twice with different permissions; remove one")
        except ValueError as error:
            key = where.split("'")[1]
            raise ConfigError(f"{having(source, key)}: {where} {error}.") from None
        keys.append(made)
    return tuple(keys)


def _key(key: str, options: list[str], name: str) -> ApiKey:
    """The key of a line ``KEY name=NAME scopes=SCOPE,... workspaces=ID,...``. Raises ``ValueError``."""
    if key.partition("=")[0] in _OPTIONS:
        # A line that was broken in two, or whose key was an empty variable; it would be valid for everything.
        raise ValueError("has no key: begin the line with the key")
    if not _KEY.fullmatch(key):
        raise ValueError("must be 16 to 512 visible ASCII characters; make one with: openssl rand -hex 32")
    given: dict[str, str] = {}
    for option in options:
        word, equals, value = option.partition("=")
        # It may be a key that contains a space, so it is not quoted.
        if not equals or word not in _OPTIONS or word in given:
            raise ValueError("may be followed only by name=, scopes= and workspaces=, each at most once")
        given[word] = value
    if given and "name" not in given:
        raise ValueError("has scopes or workspaces but no name: add name=")
    if given and not _NAME.fullmatch(given["name"]):
        raise ValueError("has an invalid name: use 1 to 64 letters, digits, '_', '.' and '-'")
    scopes, workspaces = SCOPES, None
    if "scopes" in given:
        scopes = frozenset(given["scopes"].split(","))
        if not scopes <= SCOPES:
            raise ValueError(f"has an unknown scope; known scopes are: {', '.join(sorted(SCOPES))}")
    if "workspaces" in given:
        try:
            workspaces = frozenset(map(ids.parse, given["workspaces"].split(",")))
        except ValueError as error:
            raise ValueError(f"has an invalid workspace: {error}") from None
    return ApiKey(_digest(key.encode()), given.get("name", name), scopes, workspaces)


def unlimited(keys: Iterable[str]) -> tuple[ApiKey, ...]:
    """Keys without options, which may do everything in all workspaces."""
    return tuple(_key(key, [], f"#{number}") for number, key in enumerate(keys, 1))


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


class ApiKeys:
    """Judges requests. ``in_force`` returns the keys that are valid now; ``refused`` counts by reason."""

    def __init__(
        self,
        in_force: Callable[[], Collection[ApiKey]],
        refused: Counter | None = None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._in_force, self._refused, self._seconds = in_force, refused, seconds
        self._guesses = Guesses()

    def check(self, authorization: bytes | None, host: str = "", scope: str = "") -> ApiKey:
        """The key in the header of a request from this host.

        Raises :class:`Refused`, also if the key lacks the scope. The comparison takes the same time for a near miss
        as for a far one. An address that guesses has to wait.
        """
        known = self._in_force()
        if not known:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                "api_disabled",
                "this server has no API keys, so nobody may use /v1; set api.keys or api.keys_file in its configuration",
            )
        match = _BEARER.fullmatch(authorization or b"")
        if match is None:
            self._count("missing")
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "an API key is required: send the header 'Authorization: Bearer KEY'",
                {b"WWW-Authenticate": b'Bearer realm="notify"'},
            )
        given, now = _digest(match[1]), self._seconds()
        if wait := self._guesses.wait(host, given, now):
            self._count("slowed")
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_wrong_keys",
                "too many wrong API keys came from this address, so this one was not checked; try again later",
                {b"Retry-After": b"%d" % ceil(wait)},
            )
        # No early exit: every key is compared, whichever one matches.
        found = [key for key in known if hmac.compare_digest(given, key.digest)]
        if not found:
            self._guesses.wrong(host, given, now)
            self._count("unknown")
            log.warn("a wrong API key from {peer}", peer=host)
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "this server does not know this API key",
                {b"WWW-Authenticate": b'Bearer realm="notify", error="invalid_token"'},
            )
        [key, *_] = found
        self._guesses.right(host, given)
        if scope and scope not in key.scopes:
            self._count("scope")
            raise forbidden(
                f"the API key '{key.name}' does not have the scope '{scope}' that this needs, "
                f"but {', '.join(sorted(key.scopes))}"
            )
        return key

    def stands(self, key: ApiKey) -> bool:
        """Whether a key is still valid, with the same rights, so that what it began may continue."""
        return key in self._in_force()

    def _count(self, reason: str) -> None:
        if self._refused is not None:
            self._refused.labels(reason).inc()


def forbidden(message: str) -> Refused:
    """403: the key is valid, but not for this."""
    return Refused(HTTPStatus.FORBIDDEN, "forbidden", message)


def permit(key: ApiKey, workspace_id: Id | None) -> None:
    """Raise :class:`Refused` unless the key is for this workspace. None: it must be for all workspaces."""
    if key.workspaces is None or workspace_id in key.workspaces:
        return
    raise forbidden(
        f"the API key '{key.name}' is for some workspaces only, "
        + (
            "and this request concerns all of them"
            if workspace_id is None
            else "and not for the one requested"
        )
    )
