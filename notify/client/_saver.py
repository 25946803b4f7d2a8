"""Saves positions to a store shortly after they have changed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from notify.client.actions import Id, Position
from notify.client.values import Store

log = logging.getLogger("notify.client")

#: positions are saved this long (seconds) after the first change
SAVING = 0.2


class Saver:
    """Connects the streams to a store, if there is one. ``later(delay, call)`` calls after ``delay`` seconds unless cancelled."""

    def __init__(
        self, store: Store | None, later: Callable[[float, Callable[[], None]], Callable[[], None]]
    ) -> None:
        self._store, self._later = store, later
        self._unsaved: dict[str, Position] = {}
        self._cancel: Callable[[], None] | None = None

    def load(self, chat: Id | None) -> Position | None:
        """The stored position of a chat, or of the notifications (None)."""
        return None if self._store is None else self._store.load(_key(chat))

    def changed(self, chat: Id | None, position: Position) -> None:
        """A message was handled, so the position has changed."""
        if self._store is not None:
            self._unsaved[_key(chat)] = position
            if self._cancel is None:
                self._cancel = self._later(SAVING, self._save)

    def flush(self) -> None:
        """Save now. Raises what the store raises; in that case the positions are saved with the next change."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        unsaved, self._unsaved = self._unsaved, {}
        if unsaved and self._store is not None:
            try:
                self._store.save(unsaved)
            except Exception:
                self._unsaved = {**unsaved, **self._unsaved}
                raise

    def close(self) -> None:
        """Save now, and close the store if it can be closed."""
        try:
            self.flush()
        finally:
            close = getattr(self._store, "close", None)
            if close is not None:
                close()

    def _save(self) -> None:
        try:
            self.flush()
        except Exception:
            log.exception("positions could not be saved")


def _key(chat: Id | None) -> str:
    return "notifications" if chat is None else f"chat:{chat}"
