"""Users whose tokens issued before a certain time are refused: a table without I/O, eventually equal on all nodes.

Tokens are compared by when they were issued (:attr:`~notify.identity.Identity.issued_at`). A revocation is kept for
as long as a token may be old (``[limits] token_age``), so once it is dropped, every token that it covered has
expired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from notify.identity import Identity
from notify.ids import Id

#: the most users with a revocation, over all workspaces
MOST = 100_000

#: the most users of one workspace, so that a tenant that revokes without end leaves space for the others
MOST_OF_ONE = MOST // 2

#: the prefix of the keys of revocations
PREFIX = "revoked."

#: seconds between two sweeps of expired revocations
SWEEP = 3600.0


class Revocation(Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens of a user that were issued before ``before`` are refused until ``until``, both Unix time in seconds."""

    workspace_id: Id
    user_id: Id
    before: float
    until: float

    @property
    def key(self) -> str:
        """The key of the record; each user has one."""
        return f"{PREFIX}{self.workspace_id}.{self.user_id}"

    def joined(self, other: Revocation | None) -> Revocation:
        """The union of two revocations of one user: the later of each time."""
        if other is None:
            return self
        return replace(self, before=max(self.before, other.before), until=max(self.until, other.until))

    def over(self, record: bytes | None) -> bytes:
        """The record to keep in place of this one, joined with it."""
        kept = None if record is None else read(self.key, record)
        return msgspec.json.encode(self.joined(kept))


_decode = msgspec.json.Decoder(Revocation).decode


def read(key: str, record: bytes) -> Revocation | None:
    """Parse a kept revocation; None: it is not one, whoever wrote it."""
    try:
        revocation = _decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return revocation if revocation.key == key else None


class Revocations:
    """The table. ``now`` returns Unix time in seconds; ``counted`` is told the number of users."""

    def __init__(self, now: Callable[[], float], counted: Callable[[float], object] = lambda _: None) -> None:
        self._now = now
        self._counted = counted
        self._table: dict[tuple[Id, Id], Revocation] = {}
        self._of_workspace: Counter[Id] = Counter()
        self._swept = now()

    def __len__(self) -> int:
        return len(self._table)

    def add(self, revocation: Revocation) -> None:
        """Put a revocation in force, joined with the user's previous one. An expired one is ignored."""
        now = self._now()
        if not -SWEEP < now - self._swept < SWEEP:
            self._sweep(now)
        if revocation.until <= now:
            return
        user = (revocation.workspace_id, revocation.user_id)
        before = self._table.get(user)
        self._table[user] = revocation.joined(before)
        if before is None:
            self._of_workspace[revocation.workspace_id] += 1
            self._counted(len(self._table))

    def with_known(self, revocation: Revocation) -> Revocation:
        """This revocation, joined with the one that the user already has here."""
        return revocation.joined(self._table.get((revocation.workspace_id, revocation.user_id)))

    def has_room(self, revocation: Revocation) -> bool:
        """Whether a new revocation is within the bounds on the number of users.

        One that is already kept is always accepted.
        """
        if (revocation.workspace_id, revocation.user_id) in self._table:
            return True
        if len(self._table) >= MOST or self._of_workspace[revocation.workspace_id] >= MOST_OF_ONE:
            self._sweep(self._now())
        return len(self._table) < MOST and self._of_workspace[revocation.workspace_id] < MOST_OF_ONE

    def refuses(self, identity: Identity) -> str:
        """Why this token is refused, for the log; empty: it is not refused."""
        revocation = self._table.get((identity.workspace_id, identity.user_id))
        if revocation is None or revocation.until <= self._now():
            return ""
        if identity.issued_at is None:
            return "it does not say when it was issued, and tokens of this user are revoked"
        if identity.issued_at < revocation.before:
            return "it was issued before those of this user were revoked"
        return ""

    def _sweep(self, now: float) -> None:
        self._swept = now
        for user in [user for user, one in self._table.items() if one.until <= now]:
            del self._table[user]
            self._of_workspace[user[0]] -= 1
            if not self._of_workspace[user[0]]:
                del self._of_workspace[user[0]]
        self._counted(len(self._table))
