"""What a trial needs of whatever it is run against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from notify.client import Settings
from notify.ids import Id


class TrialFailed(Exception):  # noqa: N818
    """A trial cannot be run. The text is one plain sentence: what is wrong, and what to do."""


class Seat(Struct, frozen=True):
    """A client to be: where it connects, as whom, and which chats of its workspace it reads."""

    name: str
    url: str
    token: Callable[[], str]
    workspace: Id
    chats: tuple[Id, ...]


class Target(Protocol):
    """Servers, and how they are broken."""

    #: in a few words, for the report
    name: str
    api_key: str
    #: how patient its clients are
    settings: Settings

    @property
    def apis(self) -> Sequence[str]:
        """Addresses of the HTTP API, any of them good for any message."""

    def seats(self, count: int) -> list[Seat]:
        """So many clients."""

    async def start(self) -> None:
        """Be ready for clients. Raises :class:`TrialFailed`."""

    async def act(self, command: str) -> None:
        """Do a fault's command, and come back when it is done. Raises :class:`TrialFailed` where it fails."""

    async def stop(self, undo: Sequence[str]) -> None:
        """Leave nothing behind that :meth:`start` or :meth:`act` began. ``undo``: commands that are still due for that."""
