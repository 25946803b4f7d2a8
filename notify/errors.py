"""What a plugin may raise or errback, and what each means to its caller."""

from __future__ import annotations


class StartError(Exception):
    """The server cannot run like this. The text is one plain sentence: what is wrong and what to do."""


class Unauthorized(Exception):  # noqa: N818
    """The token does not let its bearer in. The text says why, for the log; it never quotes the token."""


class Unavailable(Exception):  # noqa: N818
    """A part that is needed is away; nothing was done, and the same call may succeed later."""


class Unknown(Exception):  # noqa: N818
    """No answer came in time: the message may have been stored or not. Repeat with the same idempotency key."""


class TooLarge(Exception):  # noqa: N818
    """The broker can never take a message of this size; nothing was done. The text says the size and the limit."""


class AtFault(Exception):  # noqa: N818
    """One of several messages is refused, for which none of them was stored: the one at ``index``, from 0, for this ``reason``."""

    def __init__(self, index: int, reason: Exception) -> None:
        super().__init__(f"message {index}: {reason}")
        self.index, self.reason = index, reason


class Unsupported(Exception):  # noqa: N818
    """This plugin cannot do it, now or later; nothing was done. The text says what."""


class HistoryLost(Exception):  # noqa: N818
    """The messages after a position cannot be given without a gap: too old, too new, or of another epoch."""
