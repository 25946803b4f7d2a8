"""The API keys: who may use /v1."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Collection, Iterable
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

from notify.config import Api, ConfigError
from notify.http.answers import Refused

_KEY = re.compile(r"[!-~]{16,512}", re.ASCII)
_BEARER = re.compile(rb"bearer +([!-~]+)", re.ASCII | re.IGNORECASE)


def read_keys(api: Api, source: str) -> tuple[str, ...]:
    """All keys of ``[api]``, those in its file included. Raises ``ConfigError``, which never quotes a key."""
    keys = list(api.keys)
    if api.keys_file:
        try:
            lines = Path(api.keys_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(
                f"{source}: 'api.keys_file' is wrong: {api.keys_file} cannot be read: {reason}."
            ) from None
        keys += [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"{source}: 'api.keys' is wrong: key {number} must be 16 to 512 visible ASCII characters; "
                f"make one with: openssl rand -hex 32"
            )
    return tuple(keys)


def digests(keys: Iterable[str]) -> tuple[bytes, ...]:
    """What is kept of keys: their SHA-256."""
    return tuple(sha256(key.encode()).digest() for key in keys)


class ApiKeys:
    """Judges requests. ``in_force`` gives the digests of the keys that are good now."""

    def __init__(self, in_force: Callable[[], Collection[bytes]]) -> None:
        self._in_force = in_force

    def check(self, authorization: bytes | None) -> None:
        """Raise :class:`Refused` unless the header carries a key. Takes as long for a near miss as for a far one."""
        known = self._in_force()
        if not known:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                "api_disabled",
                "this server has no API keys, so nobody may use /v1; set api.keys or api.keys_file in its configuration",
            )
        match = _BEARER.fullmatch(authorization or b"")
        if match is None:
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "an API key is needed: send the header 'Authorization: Bearer KEY'",
                {b"WWW-Authenticate": b'Bearer realm="notify"'},
            )
        given = sha256(match[1]).digest()
        # No early end: every key is compared, whichever one matches.
        if not sum([hmac.compare_digest(given, digest) for digest in known]):
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "this API key is not known here",
                {b"WWW-Authenticate": b'Bearer realm="notify", error="invalid_token"'},
            )
