"""How a NATS client connects: credentials, TLS, and which servers are refused."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nkeys

from notify.errors import StartError
from notify.nats.client import RawClient
from notify.nats.settings import NATSSettings

MINIMUM = (2, 11)
#: in these versions a stream locks up until a restart when batched direct gets run beside publishes; fixed in 2.12.2
HANGING = frozenset({(2, 12, 0), (2, 12, 1)})
#: prefix of the reply subjects of all clients, for permissions
INBOX = "_INBOX_notify"


async def dial(
    settings: NATSSettings,
    url: str,
    name: str,
    failed: Callable[[Exception], None],
    closed: Callable[[], None] = lambda: None,
    lame_duck: Callable[[], None] = lambda: None,
) -> RawClient:
    """Connect to one server and log in. Returns a client that does not reconnect.

    ``failed`` is called with later errors, ``closed`` when the client has ended, ``lame_duck`` when the server is about to
    shut down. Raises ``StartError`` if no attempt can succeed, and whatever nats-py raises.
    """
    client = RawClient()

    async def on_error(error: Exception) -> None:
        failed(error)

    async def on_close() -> None:
        closed()

    async def on_lame_duck() -> None:
        lame_duck()

    patience = settings.connect_timeout
    coming = client.connect(
        servers=[url],
        name=name,
        allow_reconnect=False,
        max_reconnect_attempts=1,
        reconnect_time_wait=0,
        connect_timeout=patience,  # type: ignore[arg-type] # seconds, fractions too
        ping_interval=max(1, round(settings.canary_interval)),
        max_outstanding_pings=2,
        # Without a bound, which also stops the pings: a server that reads nothing would never be found dead. Each entry belongs
        # to a command, and the bytes of these have a bound.
        flusher_queue_size=0,
        inbox_prefix=INBOX,
        error_cb=on_error,
        closed_cb=on_close,
        lame_duck_mode_cb=on_lame_duck,
        **options(settings, url),
    )
    try:
        await asyncio.wait_for(coming, patience + 1)
        refuse_unfit(client.version, url)
    except BaseException:
        await client.end()
        raise
    return client


def options(settings: NATSSettings, url: str) -> dict[str, Any]:
    """The options of nats-py's ``connect`` for login and TLS. Raises ``StartError`` if a file is unusable."""
    s, told = settings, dict[str, Any]()
    if s.user or s.password:
        told.update(user=s.user, password=s.password)
    if s.token:
        told["token"] = s.token
    if s.nkey_seed_file:
        told["nkeys_seed_str"] = _seed(s)
    if s.credentials_file:
        _read(s, "credentials_file")
        told["user_credentials"] = s.credentials_file
    if s.tls_ca or s.tls_cert or url.startswith("tls:"):
        told["tls"] = _context(s)
    return told


def _read(settings: NATSSettings, key: str) -> str:
    path = getattr(settings, key)
    try:
        return Path(path).read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise StartError(f"[{settings.table}] {key} {path} cannot be read: {reason}.") from None


def _seed(settings: NATSSettings) -> str:
    seed = _read(settings, "nkey_seed_file").strip()
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception:
        raise StartError(
            f"[{settings.table}] nkey_seed_file {settings.nkey_seed_file} does not hold the seed of an nkey "
            "(a line like SU...)."
        ) from None
    return seed


def _context(s: NATSSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=s.tls_ca or None)
        if s.tls_cert:
            context.load_cert_chain(s.tls_cert, s.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"[{s.table}] the TLS files cannot be used: {error.strerror or error}; "
            "check tls_ca, tls_cert and tls_key."
        ) from None
    return context


def release(version: str) -> tuple[int, ...]:
    """The numbers in a server's version, for comparison, without a pre-release suffix; (0, 0) if it is not a version."""
    try:
        return tuple(int(part) for part in version.split("-")[0].split("+")[0].split("."))
    except ValueError:
        return 0, 0


def refuse_unfit(version: str, url: str) -> None:
    """Raise ``StartError``, naming the version, for a server that is too old or that locks up."""
    numbers = release(version)
    if numbers in HANGING:
        raise StartError(
            f"the NATS server at {redacted(url)} is nats-server {version}, which hangs when history is read while "
            "messages are published: install 2.12.8 or newer (2.12.2 at least, or 2.11)."
        )
    if numbers < MINIMUM:
        raise StartError(
            f"the NATS server at {redacted(url)} is nats-server {version or 'of unknown version'}; "
            f"notify needs {MINIMUM[0]}.{MINIMUM[1]} or newer: upgrade it."
        )


def redacted(url: str) -> str:
    """An address without the credentials before the ``@``."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
