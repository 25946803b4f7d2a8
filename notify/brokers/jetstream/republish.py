"""Delivery by plain subscriptions to what the stream republishes: one for each workspace with followed topics.

A node receives only the messages of its own workspaces. Messages of topics that it does not follow are dropped by their subject,
before anything else in them is read.

If NATS does not permit the subscription of one workspace, the others go on: the comparisons with the stream find its messages. The
subscription is requested again with each comparison, because the permission may have been granted.
"""

from __future__ import annotations

from notify import ids
from notify.brokers.jetstream.tail import Tail
from notify.ids import Id
from notify.nats import headers
from notify.nats.connection import Connection, Subscription
from notify.topics import Topic


class Republish:
    """The source for ``delivery = "republish"``."""

    def __init__(self, connection: Connection, tail: Tail) -> None:
        self._connection = connection
        self._tail = tail
        self._live = ""
        self._skip = 0
        self._probe: Subscription | None = None
        self._followed: dict[Id, int] = {}
        self._subscriptions: dict[Id, Subscription] = {}
        #: the workspaces whose subscriptions NATS has refused
        self._refused: set[Id] = set()

    @property
    def problem(self) -> str:
        """Which messages come late, in words for operators; empty if none do."""
        count = len(self._refused)
        return (
            f"the messages of {count} workspace(s) come late: NATS does not permit subscribing to them"
            if count
            else ""
        )

    def denied(self, words: str) -> bool:
        """Handle the server's words about a missing permission. Returns whether they concern the subscription of a workspace."""
        _, concerned, rest = words.partition(f'subscription to "{self._live}workspace.')
        if concerned:
            workspace = ids.parse(rest.partition(".")[0])
            if workspace in self._subscriptions:  # otherwise it has ended meanwhile
                self._refused.add(workspace)
        return bool(concerned)

    def add(self, topic: Topic) -> None:
        """A topic is followed."""
        workspace = topic.workspace_id
        self._followed[workspace] = self._followed.get(workspace, 0) + 1
        if workspace not in self._subscriptions and self._live:
            self._subscribe(workspace)

    def remove(self, topic: Topic) -> None:
        """A topic is no longer followed."""
        workspace = topic.workspace_id
        self._followed[workspace] -= 1
        if not self._followed[workspace]:
            del self._followed[workspace]
            self._refused.discard(workspace)
            if subscription := self._subscriptions.pop(workspace, None):
                self._connection.unsubscribe(subscription)

    def use(self, live: str) -> None:
        """Set the subject prefix of republished messages, including the dot. Called with each comparison."""
        refused, self._refused = self._refused, set()
        if live != self._live:
            self._live, self._skip = live, len(live)
            if self._probe is not None:
                self._connection.unsubscribe(self._probe)
            # Nothing is ever published here. A server that does not permit the subscription says so now, before any topic is followed.
            self._probe = self._connection.subscribe(
                f"{live}notify.probe", lambda subject, reply, data, block: None
            )
            for subscription in self._subscriptions.values():
                self._connection.unsubscribe(subscription)
            self._subscriptions.clear()
            for workspace in self._followed:
                self._subscribe(workspace)
            return
        for workspace in refused:
            self._connection.unsubscribe(self._subscriptions[workspace])
            self._subscribe(workspace)

    async def ready(self) -> None:
        """The connection is new. Its subscriptions were renewed with it."""

    async def stop(self) -> None:
        """Stop receiving."""
        for subscription in self._subscriptions.values():
            self._connection.unsubscribe(subscription)
        self._subscriptions.clear()

    def _subscribe(self, workspace: Id) -> None:
        subject = f"{self._live}workspace.{workspace}.>"
        self._subscriptions[workspace] = self._connection.subscribe(subject, self._arrived)

    def _arrived(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        state = self._tail.states.get(subject[self._skip :])
        if state is not None:
            seq = headers.number(block, headers.SEQUENCE)
            if seq:
                self._tail.arrived(state, seq, headers.number(block, headers.LAST_SEQUENCE), data, block)
