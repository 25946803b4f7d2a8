"""The format of a token: a JWS in compact serialization (RFC 7515), parsed strictly before anything is verified."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

from msgspec import Struct

from notify.errors import Unauthorized

_MAX_KEY_ID = 256
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


class Token(Struct, frozen=True):
    """The parts of a token, not verified yet. ``payload`` is its bytes; ``key_id`` is None if it names none."""

    algorithm: str
    key_id: str | None
    payload: bytes
    signed: bytes
    signature: bytes


def parse(token: str, types: frozenset[str] | None, most: int) -> Token:
    """Parse a token. Raises :class:`Unauthorized` for anything but a plain signed JWT of a type in ``types``.

    ``types`` are lower-case values of ``typ``, or None for any; a token without one counts as ``jwt``. ``most`` is the maximum length
    in characters.
    """
    if len(token) > most:
        raise Unauthorized(f"the token is longer than {most} characters")
    parts = token.split(".")
    if len(parts) != 3:
        raise Unauthorized("the token is not a signed JWT of three parts")
    header = _header(parts[0])
    algorithm, key_id, type = header.get("alg"), header.get("kid"), header.get("typ", "jwt")
    if not isinstance(algorithm, str):
        raise Unauthorized("the token's header has no alg")
    if not (key_id is None or (isinstance(key_id, str) and len(key_id) <= _MAX_KEY_ID)):
        raise Unauthorized(f"the token's kid is not text of up to {_MAX_KEY_ID} characters")
    # RFC 7515, section 4.1.11: critical extensions that are not understood must be refused; none are understood here.
    if "crit" in header or "b64" in header:
        raise Unauthorized("the token's header has an extension that is not supported")
    if types is not None and not (
        isinstance(type, str) and type.lower().removeprefix("application/") in types
    ):
        raise Unauthorized("the token is of another type (typ) than allowed")
    return Token(
        algorithm, key_id, _decode(parts[1]), f"{parts[0]}.{parts[1]}".encode("ascii"), _decode(parts[2])
    )


@lru_cache(64)
def _header(part: str) -> Mapping[str, Any]:
    """The header of a token. Cached, because nearly all tokens of an issuer have the same one."""
    return unique_object(_decode(part), "header")


def _decode(part: str) -> bytes:
    """Decode base64url without padding, in its canonical form only (RFC 7515, section 2)."""
    if _BASE64URL.fullmatch(part):
        try:
            decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        except binascii.Error:
            pass
        else:
            if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode("ascii") == part:
                return decoded
    raise Unauthorized("a part of the token is not base64url")


class _Twice(Exception):  # noqa: N818
    """A name occurs twice in an object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Twice
    return made


def _constant(name: str) -> NoReturn:
    raise ValueError(name)


_decode_json = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant).decode


def unique_object(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object without duplicate names (RFC 7519, section 4). Raises :class:`Unauthorized`."""
    try:
        decoded = _decode_json(data.decode("utf-8"))
    except _Twice:
        raise Unauthorized(f"a name occurs twice in the token's {what}") from None
    except (ValueError, RecursionError):
        raise Unauthorized(f"the token's {what} is not JSON") from None
    if not isinstance(decoded, dict):
        raise Unauthorized(f"the token's {what} is not a JSON object")
    return decoded
