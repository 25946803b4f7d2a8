"""Creates tokens that the JWT authenticator accepts: for the command line, the demo page and tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jwt

from notify import ids
from notify.ids import Id


def issue(
    key: Any,
    user_id: Id,
    workspace_id: Id,
    seconds: float,
    now: float,
    chats: Collection[Id] | None = None,
    algorithm: str = "HS256",
    user_claim: str = "id",
    workspace_claim: str = "workspace_id",
    chats_claim: str = "chats",
    headers: Mapping[str, Any] | None = None,
    claims: Mapping[str, Any] | None = None,
) -> str:
    """Return a signed token that is valid for ``seconds`` from ``now`` (Unix time).

    ``headers`` and ``claims`` are added as they are, and override the defaults.

    ``key`` is a key that PyJWT accepts for ``algorithm``. Raises ``jwt.PyJWTError`` or ``ValueError`` if it does not.
    """
    payload: dict[str, Any] = {
        user_claim: user_id,
        workspace_claim: workspace_id,
        "sub": str(user_id),
        "iat": int(now),
        "exp": int(now + seconds),
    }
    if chats is not None:
        payload[chats_claim] = sorted(chats, key=ids.order)
    return jwt.encode({**payload, **(claims or {})}, key, algorithm, headers=dict(headers or {}))
