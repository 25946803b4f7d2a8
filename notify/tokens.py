"""Makes tokens that the JWT authenticator accepts: for the command line, the demo page and tests."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jwt


def issue(
    key: Any,
    user_id: int,
    workspace_id: int,
    seconds: float,
    now: float,
    chats: Collection[int] | None = None,
    algorithm: str = "HS256",
    user_claim: str = "id",
    workspace_claim: str = "workspace_id",
    chats_claim: str = "chats",
    **claims: Any,
) -> str:
    """A signed token that is good for ``seconds`` from ``now`` (Unix time); ``claims`` are added as they are.

    ``key`` is what PyJWT takes for ``algorithm``. Raises ``jwt.PyJWTError`` or ``ValueError`` for one it does not.
    """
    payload: dict[str, Any] = {
        "sub": str(user_id),
        user_claim: user_id,
        workspace_claim: workspace_id,
        "iat": int(now),
        "exp": int(now + seconds),
        **claims,
    }
    if chats is not None:
        payload[chats_claim] = sorted(chats)
    return jwt.encode(payload, key, algorithm)
