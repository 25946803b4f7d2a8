"""``[broker.jetstream]``: the broker's settings in addition to those of its connection, and the checks between them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from notify.config import Count, Duration, Size
from notify.errors import StartError
from notify.nats.settings import Name, NATSSettings

Prefix = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=64)]


class JetStreamSettings(NATSSettings, frozen=True):
    """``[broker.jetstream]``."""

    table: ClassVar[str] = "broker.jetstream"

    stream: Name = "MESSAGES"
    #: false: the operator manages the streams; they are checked, but never changed
    manage_stream: bool = True
    #: the first token of the subjects on which the stream republishes stored messages
    live_prefix: Prefix = "live"
    delivery: Annotated[str, Meta(pattern="^(republish|consumer)$")] = "republish"
    max_age: Duration = Duration(7 * 86400)
    #: 0: no limit
    max_bytes: Size = Size(0)
    max_messages: Count = 0
    duplicate_window: Duration = Duration(120)
    #: whether the stream is set to accept atomic batches, which all-or-nothing lists need; false: leave it as it is
    allow_atomic: bool = False
    #: the stream that stores undeliverable messages, and for how long
    dead_letter_stream: Name = "MESSAGES_DEAD"
    dead_letter_age: Duration = Duration(30 * 86400)

    #: where a node records across restarts how far the stream reached; empty: systemd's $STATE_DIRECTORY, or nowhere
    state_directory: str = ""

    #: how long a publish is retried before its outcome counts as unknown; at most the duplicate window
    publish_patience: Duration = Duration(15)
    #: publishes in flight to the server, and those that may wait behind them; one workspace is given at most four fifths of
    #: the places that the others leave
    publish_window: Annotated[int, Meta(ge=1, le=65536)] = 1024
    publish_queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 20_000
    #: concurrent reads of history; further reads wait in a queue that is fair between workspaces
    replay_reads: Annotated[int, Meta(ge=1, le=1024)] = 32
    #: how often followed topics are compared with the stream
    check_interval: Duration = Duration(5)

    #: the durable consumer for ``delivery = "consumer"``
    ack_wait: Duration = Duration(30)
    max_deliver: Annotated[int, Meta(ge=1, le=100)] = 5
    #: the server deletes the consumer of a node that is away for longer
    inactive_threshold: Duration = Duration(3600)

    def check(self) -> None:
        """Raise ``StartError`` if settings contradict each other."""
        super().check()
        if self.dead_letter_stream == self.stream:
            raise StartError(f"[{self.table}] stream and dead_letter_stream must be two different names.")
        if self.publish_patience > self.duplicate_window:
            raise StartError(
                f"[{self.table}] publish_patience must not be longer than duplicate_window: "
                "a later repeat could be stored twice."
            )
        if self.duplicate_window > self.max_age > 0:
            raise StartError(f"[{self.table}] duplicate_window must not be longer than max_age.")
        self.not_too_short("check_interval", "ack_wait")
