"""``[broker.jetstream]``: every key, its default, and what contradicts what."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from notify.config import Count, Duration, Settings, Size
from notify.errors import StartError

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Prefix = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=64)]


class JetStreamSettings(Settings, frozen=True):
    """``[broker.jetstream]``."""

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

    stream: Name = "MESSAGES"
    #: false: the operator owns the streams; they are checked, and never changed
    manage_stream: bool = True
    #: the first part of the subjects on which the stream sends stored messages on
    live_prefix: Prefix = "live"
    delivery: Annotated[str, Meta(pattern="^(republish|consumer)$")] = "republish"
    max_age: Duration = Duration(7 * 86400)
    #: 0: no limit
    max_bytes: Size = Size(0)
    max_messages: Count = 0
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    duplicate_window: Duration = Duration(120)
    #: where payloads that cannot be delivered are kept, and for how long
    dead_letter_stream: Name = "MESSAGES_DEAD"
    dead_letter_age: Duration = Duration(30 * 86400)

    connect_timeout: Duration = Duration(5)
    #: one request to the server
    request_timeout: Duration = Duration(2)
    #: how long a publish is tried before its outcome is called unknown; within the duplicate window
    publish_patience: Duration = Duration(15)
    #: publishes on their way to the server at once, and those that may wait behind them
    publish_window: Annotated[int, Meta(ge=1, le=65536)] = 1024
    publish_queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 20_000
    #: reads of history at once; the others wait in a queue that is fair between workspaces
    replay_reads: Annotated[int, Meta(ge=1, le=1024)] = 32
    #: followed topics are compared with the stream this often
    check_interval: Duration = Duration(5)
    #: the server is asked to store something this often; two failures in a row and another is tried
    canary_interval: Duration = Duration(2)

    #: the durable consumer of ``delivery = "consumer"``
    ack_wait: Duration = Duration(30)
    max_deliver: Annotated[int, Meta(ge=1, le=100)] = 5
    #: the server forgets the consumer of a node that is away for longer
    inactive_threshold: Duration = Duration(3600)

    def check(self) -> None:
        """Raise ``StartError`` where settings contradict each other."""
        if not self.servers:
            raise StartError("[broker.jetstream] servers is empty: name at least one NATS server.")
        if self.dead_letter_stream == self.stream:
            raise StartError("[broker.jetstream] stream and dead_letter_stream must be two different names.")
        if self.publish_patience > self.duplicate_window:
            raise StartError(
                "[broker.jetstream] publish_patience must not be longer than duplicate_window: "
                "a later repeat could be stored twice."
            )
        ways = [self.user or self.password, self.token, self.nkey_seed_file, self.credentials_file]
        if sum(1 for way in ways if way) > 1:
            raise StartError(
                "[broker.jetstream] takes one way to log in: user and password, token, nkey_seed_file or credentials_file."
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise StartError("[broker.jetstream] tls_cert and tls_key belong together: give both or none.")
        if self.duplicate_window > self.max_age > 0:
            raise StartError("[broker.jetstream] duplicate_window must not be longer than max_age.")
        for key in ("connect_timeout", "request_timeout", "check_interval", "canary_interval", "ack_wait"):
            if getattr(self, key) < 0.05:
                raise StartError(f"[broker.jetstream] {key} must be at least 50ms.")
