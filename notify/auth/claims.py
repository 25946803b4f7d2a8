"""Turns the claims of a verified token (RFC 7519, section 4) into an identity. Pure, and strict about types."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from notify import ids
from notify.errors import Unauthorized
from notify.identity import Identity
from notify.ids import Id

_LATEST = 2.0**53  # beyond it a float can no longer represent every second


class Rules(Struct, frozen=True):
    """The claims that a token must have. Empty text: not required. Times are in seconds."""

    issuer: str
    audience: str
    user_claim: str
    workspace_claim: str
    chats_claim: str
    required: tuple[str, ...]
    leeway: float
    max_lifetime: float


def identity(claims: dict[str, Any], rules: Rules, now: float) -> Identity:
    """The identity in a token. ``now`` is Unix time in seconds. Raises :class:`Unauthorized`, without quoting a claim's value."""
    for name in rules.required:
        if claims.get(name) is None:
            raise Unauthorized(f"the token has no claim '{name}'")
    if rules.issuer and claims.get("iss") != rules.issuer:
        raise Unauthorized("the token is from another issuer (iss)")
    _check_audience(claims, rules.audience)
    # RFC 7519, section 4.1.2 requires text; as the user's id an integer is unambiguous as well.
    if not isinstance(claims.get("sub", ""), str) and rules.user_claim != "sub":
        raise Unauthorized("the token's sub is not text")
    expires_at = _check_times(claims, rules, now)
    return Identity(
        user_id=_id(claims, rules.user_claim),
        workspace_id=_id(claims, rules.workspace_claim),
        expires_at=expires_at,
        chats=_chats(claims, rules.chats_claim) if rules.chats_claim else None,
        issued_at=_time(claims, "iat"),
    )


def whom(claims: dict[str, Any], rules: Rules) -> tuple[Id, Id]:
    """The workspace and the user that a token names, whether or not it is otherwise valid. Raises :class:`Unauthorized`."""
    return _id(claims, rules.workspace_claim), _id(claims, rules.user_claim)


def _check_audience(claims: dict[str, Any], audience: str) -> None:
    named = claims.get("aud")
    if named is None and not audience:
        return
    audiences = [named] if isinstance(named, str) else named
    if not isinstance(audiences, list) or not all(isinstance(each, str) for each in audiences):
        raise Unauthorized("the token's aud is missing, or neither text nor a list of text")
    # RFC 7519, section 4.1.3: a token with an audience is invalid for a server that does not identify itself with it.
    if audience not in audiences or not audience:
        raise Unauthorized("the token is for another audience (aud)")


def _check_times(claims: dict[str, Any], rules: Rules, now: float) -> float:
    expires_at = _time(claims, "exp")
    if expires_at is None:
        raise Unauthorized("the token has no exp")
    # The leeway is for an issuer whose clock is ahead; it never extends a token's lifetime.
    if expires_at <= now:
        raise Unauthorized("the token has expired")
    if expires_at > now + rules.max_lifetime:
        raise Unauthorized(f"the token expires more than {rules.max_lifetime:.0f} seconds from now")
    for name in ("nbf", "iat"):
        start = _time(claims, name)
        if start is not None and start > now + rules.leeway:
            raise Unauthorized(f"the token is not valid yet ({name})")
    return expires_at


def _time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        raise Unauthorized(f"the token's {name} is not a Unix time in seconds")
    return float(value)


def _id(claims: dict[str, Any], name: str) -> Id:
    value = claims.get(name)
    if name == "sub" and isinstance(value, str):
        # RFC 7519, section 4.1.2: sub is text, even if it spells an integer.
        try:
            return ids.parse(value)
        except ValueError:
            value = None
    if not isinstance(value, int | str) or not ids.valid(value):
        raise Unauthorized(f"the token's claim '{name}' is missing or not an id: {ids.FORM}")
    return value


def _chats(claims: dict[str, Any], name: str) -> frozenset[Id]:
    value = claims.get(name)
    if not isinstance(value, list) or not all(map(ids.valid, value)):
        raise Unauthorized(f"the token's claim '{name}' is missing or not a list of ids: {ids.FORM}")
    return frozenset(value)
