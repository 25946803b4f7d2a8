"""Who is at the other end of a connection, and who is present in a chat."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from notify import ids
from notify.ids import Id


class Peer(Struct, frozen=True):
    """What is known of a client before it authenticates: its address; and the Origin, the ``client_id`` (1 to 64 of
    ``A-Z a-z 0-9 _ -``) and the User-Agent (at most 200 characters) that it named, each or an empty string.
    """

    host: str
    origin: str = ""
    client_id: str = ""
    agent: str = ""


class Identity(Struct, frozen=True):
    """An authenticated user.

    ``expires_at`` is Unix time in seconds (``None``: never). ``chats`` are the only chats that the user may
    subscribe to (``None``: the authenticator decides otherwise). ``claims`` is for the authenticator's own use
    in ``authorize``. ``issued_at`` is when the token was made (Unix time; ``None``: it does not say): who fills it lets new
    tokens of a user in whose old ones were revoked.
    """

    user_id: Id
    workspace_id: Id
    expires_at: float | None = None
    chats: frozenset[Id] | None = None
    claims: tuple[tuple[str, str], ...] = ()
    issued_at: float | None = None

    def same_user(self, other: Identity) -> bool:
        """Whether ``other`` is the same user of the same workspace, the rule of ``refresh``."""
        return (self.user_id, self.workspace_id) == (other.user_id, other.workspace_id)


class Presence(Struct, frozen=True):
    """One user who is connected and subscribed to a chat, over all nodes; ``connections`` is at least 1."""

    user_id: Id
    connections: int


def by_user(present: Iterable[Presence]) -> list[Presence]:
    """In the order that presence is told in: by user, integers before text."""
    return sorted(present, key=lambda one: ids.order(one.user_id))
