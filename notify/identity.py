"""Who is at the other end of a connection, and who is present in a chat."""

from __future__ import annotations

from msgspec import Struct


class Peer(Struct, frozen=True):
    """What is known of a client before it authenticates: its address, and the Origin it named or an empty string."""

    host: str
    origin: str = ""


class Identity(Struct, frozen=True):
    """An authenticated user.

    ``expires_at`` is Unix time in seconds (``None``: never). ``chats`` are the only chats that the user may
    subscribe to (``None``: the authenticator decides otherwise). ``claims`` is for the authenticator's own use
    in ``authorize``.
    """

    user_id: int
    workspace_id: int
    expires_at: float | None = None
    chats: frozenset[int] | None = None
    claims: tuple[tuple[str, str], ...] = ()

    def same_user(self, other: Identity) -> bool:
        """Whether ``other`` is the same user of the same workspace, the rule of ``refresh``."""
        return (self.user_id, self.workspace_id) == (other.user_id, other.workspace_id)


class Presence(Struct, frozen=True, order=True):
    """One user who is connected and subscribed to a chat, over all nodes; ``connections`` is at least 1."""

    user_id: int
    connections: int
