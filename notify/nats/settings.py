"""How to reach NATS: the settings that come first in the table of every plugin that uses NATS."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from notify.config import Duration, Settings
from notify.errors import StartError

#: the name of a stream or bucket
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class NATSSettings(Settings, frozen=True):
    """Servers, login, TLS and timeouts, and the settings that all streams of a cluster share."""

    #: the table that contains these keys, for error messages
    table: ClassVar[str] = "nats"

    #: nats:// or tls:// addresses of any servers of the cluster, from which the others are learnt
    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    #: how to log in: one of these; a user may also be part of the address
    user: str = ""
    password: str = ""
    token: str = ""
    #: a file with the seed of an nkey user
    nkey_seed_file: str = ""
    #: a .creds file
    credentials_file: str = ""
    #: the authority that signed the servers' certificates; empty: the system's authorities
    tls_ca: str = ""
    #: this node's own certificate and key, if the servers require one
    tls_cert: str = ""
    tls_key: str = ""

    connect_timeout: Duration = Duration(5)
    #: the timeout of one request to the server
    request_timeout: Duration = Duration(2)
    #: how often the server is pinged and asked to store a canary; after two failures in a row another server is tried
    canary_interval: Duration = Duration(2)
    #: the number of copies of each stream, each on another server
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1

    def check(self) -> None:
        """Raise ``StartError`` if settings contradict each other."""
        if not self.servers:
            raise StartError(f"[{self.table}] servers is empty: name at least one NATS server.")
        for url in self.servers:
            scheme, found, _ = url.partition("://")
            if found and scheme not in ("nats", "tls"):
                # Not WebSockets: nats-py would need aiohttp for them, and its own parser would read what arrives. Whoever may
                # publish could confuse that one (see :mod:`notify.nats.splitter`).
                raise StartError(
                    f"[{self.table}] servers takes nats:// and tls:// addresses, not {scheme}://: use NATS's port for clients."
                )
        ways = [self.user or self.password, self.token, self.nkey_seed_file, self.credentials_file]
        if sum(1 for way in ways if way) > 1:
            raise StartError(
                f"[{self.table}] takes one way to log in: user and password, token, nkey_seed_file or credentials_file."
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise StartError(f"[{self.table}] tls_cert and tls_key belong together: give both or none.")
        self.not_too_short("connect_timeout", "request_timeout", "canary_interval")

    def not_too_short(self, *keys: str) -> None:
        """Raise ``StartError`` for a duration under 50 ms."""
        for key in keys:
            if getattr(self, key) < 0.05:
                raise StartError(f"[{self.table}] {key} must be at least 50ms.")
