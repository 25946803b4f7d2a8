"""Who is connected, and who is present in a chat."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from notify import ids
from notify.ids import Id


class Peer(Struct, frozen=True):
    """What is known of a client before it authenticates.

    Its address, and what it said of itself: the Origin, the ``client_id`` (1 to 64 of ``A-Z a-z 0-9 _ -``) and the
    User-Agent (at most 200 characters). Each is empty if the client did not send it.
    """

    host: str
    origin: str = ""
    client_id: str = ""
    agent: str = ""


class Identity(Struct, frozen=True):
    """An authenticated user.

    ``expires_at`` is Unix time in seconds; ``None``: never. ``chats`` are the only chats that the user may subscribe
    to; ``None``: the authenticator decides otherwise. ``claims`` is for the authenticator's own use in ``authorize``.
    ``issued_at`` is when the token was issued (Unix time; ``None``: unknown). An authenticator that sets it allows a
    user whose old tokens were revoked to connect with a new one.
    """

    user_id: Id
    workspace_id: Id
    expires_at: float | None = None
    chats: frozenset[Id] | None = None
    claims: tuple[tuple[str, str], ...] = ()
    issued_at: float | None = None

    def same_user(self, other: Identity) -> bool:
        """Whether ``other`` is the same user of the same workspace, as ``refresh`` requires."""
        return (self.user_id, self.workspace_id) == (other.user_id, other.workspace_id)


class Presence(Struct, frozen=True):
    """A user who is connected and subscribed to a chat, over all nodes; ``connections`` is at least 1."""

    user_id: Id
    connections: int


def by_user(present: Iterable[Presence]) -> list[Presence]:
    """Sort presence in the order in which it is sent: by user, integers before text."""
    return sorted(present, key=lambda one: ids.order(one.user_id))
