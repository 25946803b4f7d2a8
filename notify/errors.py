"""The errors that a plugin may raise or errback with, and what each means to the caller."""

from __future__ import annotations


class StartError(Exception):
    """The server cannot run with this setup. The text is one plain sentence: what is wrong and what to do."""


class Unauthorized(Exception):  # noqa: N818
    """The token is not accepted. The text says why, for the log; it never quotes the token."""


class Unavailable(Exception):  # noqa: N818
    """A dependency is unavailable. Nothing was done, and the same call may succeed later."""


class Unknown(Exception):  # noqa: N818
    """No answer came in time, so the message may or may not have been stored. Repeat with the same idempotency key."""


class TooLarge(Exception):  # noqa: N818
    """The broker can never accept a message of this size; nothing was done. The text states the size and the limit."""


class AtFault(Exception):  # noqa: N818
    """One message of a list was refused, so none of the list was stored.

    ``index`` is its place in the list, from 0; ``reason`` says why.
    """

    def __init__(self, index: int, reason: Exception) -> None:
        super().__init__(f"message {index}: {reason}")
        self.index, self.reason = index, reason


class Unsupported(Exception):  # noqa: N818
    """This plugin cannot do this, now or later; nothing was done. The text says what."""


class HistoryLost(Exception):  # noqa: N818
    """The messages after a position cannot be replayed without a gap: it is too old, too new, or of another epoch."""
