"""A store that keeps positions in a file."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import msgspec

from notify.client.actions import Position

try:
    import fcntl
except ImportError:  # not a Unix
    LOCKS = False
else:
    LOCKS = True

log = logging.getLogger("notify.client")


class FileStore:
    """Keeps positions in one small JSON file. The file is replaced as a whole, so a crash leaves either the old or the new version.

    A file serves one client of one user at a time. The store holds a lock on ``PATH.lock`` from its creation until :meth:`close`,
    which the client calls, or until the process ends. If another store holds the lock, ``BlockingIOError`` is raised, because two
    writers of one file would skip each other's messages. A file with other content raises ``ValueError`` instead of silently
    starting over. Writes are not synced to disk: after a power loss a few messages may arrive twice, but none is lost.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).resolve()  # resolved, so that all links to a file share one lock
        self._positions: dict[str, Position] | None = None
        self._release: weakref.finalize[..., FileStore] | None = None
        self._open()

    def _open(self) -> dict[str, Position]:
        if self._positions is not None:
            return self._positions
        self._hold()
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            text = b"{}"
        try:
            self._positions = msgspec.json.decode(text, type=dict[str, Position])
        except msgspec.DecodeError:
            self.close()
            raise ValueError(f"{self._path} is not a file of positions: remove it to start without") from None
        return self._positions

    def _hold(self) -> None:
        if not LOCKS:
            log.warning(
                "no file locks on this system: nothing keeps a second process from using %s", self._path
            )
            return
        handle = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            words = "another client keeps its positions in this file, give each a file of its own"
            raise BlockingIOError(errno.EAGAIN, words, str(self._path)) from None
        self._release = weakref.finalize(self, os.close, handle)

    def close(self) -> None:
        """Release the file for another client. Using this store again takes the lock again."""
        self._positions = None
        if self._release is not None:
            self._release()
            self._release = None

    def load(self, key: str) -> Position | None:
        """Return the position stored under a key, or None."""
        return self._open().get(key)

    def save(self, positions: Mapping[str, Position]) -> None:
        """Store these positions and keep those stored under other keys. Raises ``OSError``."""
        kept = self._open()
        kept.update(positions)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with open(handle, "wb") as file:
                file.write(msgspec.json.encode(kept))
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise
