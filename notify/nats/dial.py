"""How a client of NATS connects: credentials, TLS, and which servers are not good enough."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nkeys

from notify.brokers.jetstream.settings import JetStreamSettings
from notify.errors import StartError

MINIMUM = (2, 11)


def options(settings: JetStreamSettings, url: str) -> dict[str, Any]:
    """What nats-py's ``connect`` is told about logging in and TLS. Raises ``StartError``: a file is of no use."""
    s, told = settings, dict[str, Any]()
    if s.user or s.password:
        told.update(user=s.user, password=s.password)
    if s.token:
        told["token"] = s.token
    if s.nkey_seed_file:
        told["nkeys_seed_str"] = _seed(s.nkey_seed_file)
    if s.credentials_file:
        _read(s.credentials_file, "credentials_file")
        told["user_credentials"] = s.credentials_file
    if s.tls_ca or s.tls_cert or url.startswith(("tls:", "wss:")):
        told["tls"] = _context(s)
    return told


def _read(path: str, key: str) -> str:
    try:
        return Path(path).read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise StartError(f"[broker.jetstream] {key} {path} cannot be read: {reason}.") from None


def _seed(path: str) -> str:
    seed = _read(path, "nkey_seed_file").strip()
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception:
        raise StartError(
            f"[broker.jetstream] nkey_seed_file {path} does not hold the seed of an nkey (a line like SU...)."
        ) from None
    return seed


def _context(s: JetStreamSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=s.tls_ca or None)
        if s.tls_cert:
            context.load_cert_chain(s.tls_cert, s.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"[broker.jetstream] the TLS files cannot be used: {error.strerror or error}; "
            "check tls_ca, tls_cert and tls_key."
        ) from None
    return context


def refuse_old(version: str, url: str) -> None:
    """Raise ``StartError`` for a server that is too old, by name and number."""
    try:
        numbers = tuple(int(part) for part in version.split("-")[0].split("+")[0].split(".")[:2])
    except ValueError:
        numbers = (0, 0)
    if numbers < MINIMUM:
        raise StartError(
            f"the NATS server at {redacted(url)} is nats-server {version or 'of unknown version'}; "
            f"notify needs {MINIMUM[0]}.{MINIMUM[1]} or newer: upgrade it."
        )


def redacted(url: str) -> str:
    """An address without what stands before the ``@``."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
