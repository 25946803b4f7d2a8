"""Requests to NATS and their replies, independent of the transport. A connection builds on this.

Replies use bytes and raw header blocks (:mod:`notify.nats.headers`). Each has its own subject below the inbox of the client that
sent the request, so that a later client never takes a message for the reply to an earlier client's request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, fail

from notify.errors import TooLarge, Unavailable
from notify.nats import headers


class Reply(NamedTuple):
    """One reply to a request. The subject on which it arrived does not matter."""

    data: bytes
    block: bytes


class NoResponders(Unavailable):
    """Nobody listens on the subject of a request, so it was certainly not acted on."""


class Asking:
    """See the module docstring. ``clock`` is an IReactorTime; ``patience`` is the timeout in seconds without a reply to a request.

    A subclass says whether it is ``connected`` and how much the server accepts, and sends a request (:meth:`post`). It
    sets ``_inbox`` for each new client, passes what arrives there to :meth:`answered`, and calls :meth:`lose` when the client
    has ended.
    """

    def __init__(self, clock: Any, patience: float) -> None:
        self._clock = clock
        self._patience = patience
        self._replies: dict[bytes, Callable[[Reply], None]] = {}
        self._asked: dict[Callable[[Exception], None], None] = {}
        self._next_token = 0
        self._inbox = b""

    @property
    def connected(self) -> bool:
        """Whether there is a client that is not known to be dead."""
        raise NotImplementedError

    @property
    def max_payload(self) -> int:
        """The bytes that the server accepts in one message, headers included; 0: unknown."""
        raise NotImplementedError

    def post(
        self,
        subject: str,
        payload: bytes,
        inbox: str,
        fields: dict[str, str] | None,
        failed: Callable[[Exception], None],
    ) -> None:
        """Send a request. ``failed`` is called if it cannot be sent."""
        raise NotImplementedError

    def expect(self, handler: Callable[[Reply], None]) -> tuple[bytes, str]:
        """Return a token, and a reply subject whose messages go to ``handler`` until ``forget(token)``."""
        self._next_token += 1
        token = b"%x" % self._next_token
        self._replies[token] = handler
        return token, (self._inbox + token).decode()

    def forget(self, token: bytes) -> None:
        """Pass on no more replies for a token."""
        self._replies.pop(token, None)

    def answered(self, token: bytes, data: bytes, block: bytes) -> None:
        """A reply arrived on the subject of a token."""
        handler = self._replies.get(token)
        if handler is not None:
            handler(Reply(data, block))

    def request(
        self, subject: str, payload: bytes, timeout: float | None = None, fields: dict[str, str] | None = None
    ) -> Deferred[Reply]:
        """Send a request. Fires with its single reply. ``timeout`` in seconds replaces that of the settings.

        Errback ``Unavailable``: no client, no reply in time, or (``NoResponders``) nobody listens. Errback ``TooLarge``: the message
        is larger than :attr:`max_payload`.
        """
        return self._ask(subject, payload, timeout, fields, lambda _: True).addCallback(lambda got: got[0])

    def gather(
        self, subject: str, payload: bytes, timeout: float | None = None, limit: int | None = None
    ) -> Deferred[list[Reply]]:
        """Send a request with many replies. Fires once a reply with a status has arrived, which is the last in the list.

        ``timeout``: seconds without a reply. ``limit``: the maximum size of all replies in bytes, headers included.
        Errback as :meth:`request`, and ``Unavailable`` if the limit is exceeded.
        """
        size = 0

        def complete(reply: Reply) -> bool:
            nonlocal size
            size += len(reply.data) + len(reply.block)
            if limit is not None and size > limit:
                raise Unavailable(f"NATS sent more than {limit} bytes on {subject}")
            return headers.status(reply.block) > 0

        return self._ask(subject, payload, timeout, None, complete)

    def lose(self) -> None:
        """The client has ended: its requests fail."""
        for finish in list(self._asked):
            finish(Unavailable("the connection to NATS was lost"))
        self._replies.clear()

    def _ask(
        self,
        subject: str,
        payload: bytes,
        timeout: float | None,
        fields: dict[str, str] | None,
        complete: Callable[[Reply], bool],
    ) -> Deferred[list[Reply]]:
        if not self.connected:
            return fail(Unavailable("not connected to NATS"))
        try:
            headers.check_size(payload, fields, self.max_payload)
        except TooLarge as error:
            return fail(error)
        got: list[Reply] = []

        def arrived(reply: Reply) -> None:
            got.append(reply)
            if headers.status(reply.block) == 503 and not reply.data:
                finish(NoResponders(f"nobody answers on {subject}"))
                return
            try:
                last = complete(reply)
            except Unavailable as error:
                finish(error)
                return
            if last:
                finish(None)
            elif call.active():
                call.reset(patience)  # replies keep coming: only silence is a failure

        def finish(error: Exception | None) -> None:
            self.forget(token)
            self._asked.pop(finish, None)
            if call.active():
                call.cancel()
            # These functions refer to each other, so what they hold would stay until the next, rare garbage collection.
            replies = got[:]
            got.clear()
            if not answer.called:
                if error is None:
                    answer.callback(replies)
                else:
                    answer.errback(error)

        answer: Deferred[list[Reply]] = Deferred(lambda _: finish(CancelledError()))
        patience = self._patience if timeout is None else timeout
        token, inbox = self.expect(arrived)
        call = self._clock.callLater(
            patience, lambda: finish(Unavailable(f"no answer from NATS on {subject} in time"))
        )
        self._asked[finish] = None
        self.post(subject, payload, inbox, fields, finish)
        return answer
