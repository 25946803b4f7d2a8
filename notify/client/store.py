"""A file as a store of positions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from notify.client.actions import Position


class FileStore:
    """Positions in one small JSON file, replaced whole so that a crash leaves the old or the new.

    For one client of one user at a time. A file that is not ours raises ``ValueError``, rather than starting over
    without a word. Not synced to disk: after a power loss a few messages may come twice, none is lost.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            text = b"{}"
        try:
            self._positions = msgspec.json.decode(text, type=dict[str, Position])
        except msgspec.DecodeError:
            raise ValueError(f"{self._path} is not a file of positions: remove it to start without") from None

    def load(self, key: str) -> Position | None:
        """The position kept under a key."""
        return self._positions.get(key)

    def save(self, positions: Mapping[str, Position]) -> None:
        """Keep these, beside what is kept already. Raises ``OSError``."""
        self._positions.update(positions)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with open(handle, "wb") as file:
                file.write(msgspec.json.encode(self._positions))
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise
