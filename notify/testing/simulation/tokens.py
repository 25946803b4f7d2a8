"""Tokens for simulated clients, as ``notify token`` creates them."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from functools import cache

import msgspec

#: when every life begins, in Unix time
START = 1_700_000_000.0
#: signs tokens, and is the API key
KEY = "k" * 32


@cache
def bearer(user: int, workspace: int) -> str:
    """A token for a user of a workspace that outlives the simulation (RFC 7515, HS256)."""
    claims = {"id": user, "workspace_id": workspace, "iat": int(START) - 3600, "exp": int(START) + 86400}
    parts = [msgspec.json.encode(part) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = urlsafe_b64encode(hmac.digest(KEY.encode(), signed, "sha256")).rstrip(b"=")
    return (signed + b"." + signature).decode()
