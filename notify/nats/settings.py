"""How NATS is reached: the keys that the table of every plugin on NATS begins with."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from notify.config import Duration, Settings
from notify.errors import StartError

#: of a stream, or of a bucket
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class NATSSettings(Settings, frozen=True):
    """Servers, login, TLS and patience; and what one cluster's streams have in common."""

    #: the table that these keys stand in, for errors
    table: ClassVar[str] = "nats"

    #: nats://, tls://, ws:// or wss:// addresses of any servers of the cluster; the others are learnt from them
    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    #: how to log in: one of these ways; a user may also stand in the address
    user: str = ""
    password: str = ""
    token: str = ""
    #: a file that holds the seed of an nkey user
    nkey_seed_file: str = ""
    #: a .creds file
    credentials_file: str = ""
    #: the authority that signed the servers' certificates; empty: the system's
    tls_ca: str = ""
    #: this node's own certificate and key, where the servers ask for one
    tls_cert: str = ""
    tls_key: str = ""

    connect_timeout: Duration = Duration(5)
    #: one request to the server
    request_timeout: Duration = Duration(2)
    #: the server is pinged, and asked to store something, this often; two failures in a row and another is tried
    canary_interval: Duration = Duration(2)
    #: copies of each stream, on as many servers
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1

    def check(self) -> None:
        """Raise ``StartError`` where settings contradict each other."""
        if not self.servers:
            raise StartError(f"[{self.table}] servers is empty: name at least one NATS server.")
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
