"""Explains connection failures in words for whoever has to fix them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable

#: what to do about a close code that ends the client (docs/protocol.md, Close codes)
_ENDS = {
    4500: "the server does not accept the token: its key, audience or expiry is not what the server is set up for, "
    "whose log says which",
    4501: "the server did not get the token in time, three times in a row",
    4502: "the server took what the client sent for invalid",
    4503: "an operator has disconnected this user",
    4504: "the client sent more than the server allows",
}

_ANSWERS = {
    401: "something in front of it wants other credentials",
    403: "it does not allow this Origin (listen.allowed_origins), or something in front of it refuses",
    404: "nothing is at this path, clients go to /ws",
    426: "what is there is no WebSocket server, or the proxy in front of it does not pass Upgrade on",
    429: "this address has as many connections as it may",
    502: "the proxy in front of it does not reach it",
    503: "it is full, or about to start or stop",
}


def ended(code: int | None, reason: str) -> str:
    """Why a client has ended. ``code`` is None if it had no token."""
    words = _ENDS.get(code or 0, "")
    if code is None:
        words = "the token function gave none, which means that the user has signed out"
    said = "" if reason in ("", "no token") else f" ({reason})"
    return f"closed{'' if code is None else f' with {code}'}{f': {words}' if words else ''}{said}"


def answered(status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> str:
    """Why no WebSocket was opened: the server gave another HTTP answer."""
    words = f"the server answered with HTTP {status}"
    place = next((value for name, value in headers if name.lower() == b"location"), None)
    if 300 <= status < 400 and place is not None:
        return f"{words}: it redirects to {place.decode('utf-8', 'replace')[:200]}, give that address"
    meaning = _ANSWERS.get(status, "what is there is no notify server" if status < 400 else "")
    return f"{words}: {meaning}" if meaning else words


def failed(error: BaseException, host: str, port: int) -> str:
    """Why the connection to a host failed."""
    words = str(error) or type(error).__name__
    if isinstance(error, socket.gaierror):
        return f"the name {host} cannot be looked up: {words}"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {host} is not accepted: {error.verify_message or words}"
    if isinstance(error, ssl.SSLError):
        return f"{host}:{port} does not speak TLS with us (is it ws:// rather than wss://?): {words}"
    return f"no connection to {host}:{port}: {words}"
