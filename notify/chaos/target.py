"""What a trial needs of the servers that it runs against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from notify.client import Settings
from notify.ids import Id


class TrialFailed(Exception):  # noqa: N818
    """A trial cannot be run. The text is one plain sentence: what is wrong, and what to do."""


class Seat(Struct, frozen=True):
    """The description of a client: where it connects, as whom, and which chats of its workspace it reads."""

    name: str
    url: str
    token: Callable[[], str]
    workspace: Id
    chats: tuple[Id, ...]


class Target(Protocol):
    """Servers, and how to break them."""

    #: a short description for the report
    name: str
    api_key: str
    #: the settings of its clients, such as timeouts
    settings: Settings

    @property
    def apis(self) -> Sequence[str]:
        """Addresses of the HTTP API, any of which accepts any message."""

    def seats(self, count: int) -> list[Seat]:
        """Descriptions of ``count`` clients."""

    async def start(self) -> None:
        """Get ready for clients. Raises :class:`TrialFailed`."""

    async def act(self, command: str) -> None:
        """Carry out a fault's command, and return when it is done. Raises :class:`TrialFailed` if it fails."""

    async def stop(self, undo: Sequence[str]) -> None:
        """Clean up everything that :meth:`start` or :meth:`act` began. ``undo``: the undo commands that are still due."""
