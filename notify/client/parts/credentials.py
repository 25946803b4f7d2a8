"""The token in use and the one that is to replace it: docs/client.md, rules 18 to 21."""

from __future__ import annotations

from collections.abc import Callable

from notify.client.actions import Action, Done, ErrorReceived, Failed, FetchToken, Frame, Settings
from notify.client.parts.backoff import Backoff
from notify.client.parts.requests import Refusal, Request, Requests


class Credentials:
    """The token in use, the one that is to replace it, and when that has to happen. Times as in the machine."""

    def __init__(
        self,
        settings: Settings,
        random: Callable[[], float],
        unix: Callable[[], float],
        requests: Requests,
        do: Callable[[Action], None],
    ) -> None:
        self.value: str | None = None
        #: the number of the last fetch, and by when it has to be done; None: none is under way
        self.fetch_number = 0
        self.fetch_due: float | None = None
        #: when to fetch the next one
        self.refresh_at: float | None = None
        self._settings, self._random, self._unix = settings, random, unix
        self._requests, self._do = requests, do
        self._backoff = Backoff(settings, random)
        self._accepted = False  # a server took this token once
        self._obtained = 0.0
        self._expires: float | None = None
        self._lifetime: float | None = None
        self._offered: tuple[str, float, float | None] | None = None
        self._renewing: dict[int, float] = {}  # who waits for a new token to be in force, since when
        self._stale = False  # the one that is on its way was fetched before that

    @property
    def aged(self) -> bool:
        """Whether a refusal can be for its age: a server took it once, and it is not its successor that is refused."""
        return self._accepted and self._offered is None

    def usable(self, now: float) -> bool:
        """Whether to try with the token at hand."""
        return self.value is not None and (self._expires is None or now < self._expires)

    # --- fetching -------------------------------------------------------------------------------------------

    def fetch(self, now: float) -> None:
        """Ask the program for a token."""
        self.fetch_number += 1
        self.fetch_due = now + self._settings.token_timeout
        self.refresh_at = None
        self._do(FetchToken(self.fetch_number))

    def fetched(self, n: int) -> bool:
        """The program's answer to a fetch has come, in time and for the first time; else false: ignore it."""
        if n != self.fetch_number or self.fetch_due is None:
            return False
        self.fetch_due = None
        return True

    # --- using ----------------------------------------------------------------------------------------------

    def adopt(self, value: str, now: float, expires_at: float | None) -> None:
        """Use this token; ``expires_at`` is Unix time, where it is known."""
        self.value, self._obtained, self._accepted = value, now, False
        self._expires = None if expires_at is None else now + expires_at - self._unix()

    def drop(self) -> None:
        """Use it no more."""
        self.value = None

    def confirmed(self, now: float, expires_at: float | None) -> None:
        """The server took it."""
        self._accepted = True
        self._backoff.reset()
        self._schedule(now, expires_at)
        if self._stale:
            self._stale = False
            self.fetch(now)
            return
        renewing, self._renewing = self._renewing, {}
        for n, since in renewing.items():
            self._do(Done(n, now - since))

    def disconnected(self) -> None:
        """Nothing is fetched or replaced without a connection."""
        self._offered = self.refresh_at = self.fetch_due = None
        self._stale = False
        if self._renewing:
            self.drop()

    def close(self) -> None:
        """It is over: fail those who wait for a new token."""
        self._fail("closed", "")

    # --- replacing ------------------------------------------------------------------------------------------

    def renew(self, n: int, now: float, state: str) -> None:
        """The program wants a token that is fetched from now on; ``Done`` or ``Failed`` with this ``n`` is the end of it."""
        self._renewing[n] = now
        if self.fetch_due is not None or (state == "connected" and self._offered is None):
            self.fetch(now)
        elif state == "waiting":
            self.drop()
        else:
            self._stale = True

    def offer(self, value: str, now: float, expires_at: float | None) -> None:
        """Ask the server to take this one instead."""
        self._offered = value, now, expires_at
        self._requests.ask(self, 0, {"type": "refresh", "token": value}, now)

    def answered(self, request: Request, frame: Frame, now: float) -> None:
        """The server took the one that was offered.

        Where nobody says when it expires, it is taken to live as long as the one before it.
        """
        if self._offered is not None:
            value, obtained, known = self._offered
            expires_at = frame.get("expires_at")
            self.adopt(value, obtained, None)
            if known is None and expires_at is None and self._lifetime is not None:
                self._expires = obtained + self._lifetime
            self._offered = None
            self.confirmed(now, expires_at if expires_at is not None else known)

    def refused(self, request: Request, refusal: Refusal, now: float) -> None:
        """The server did not take it."""
        self._do(ErrorReceived(refusal.code, refusal.message))
        self.not_replaced(now, refusal.code, refusal.message)

    def not_replaced(self, now: float, code: str, message: str) -> None:
        """Try again later."""
        self._offered, self.refresh_at = None, now + self._backoff.next()
        self._fail(code, message)

    def _fail(self, code: str, message: str) -> None:
        renewing, self._renewing, self._stale = self._renewing, {}, False
        for n in renewing:
            self._do(Failed(n, code, message))

    def _schedule(self, now: float, expires_at: float | None) -> None:
        """Replace it early enough, and not all clients at once.

        Where it has expired by our clock though the server took it, our clock is wrong: then 4002 will tell.
        """
        if expires_at is not None:
            self._expires = now + expires_at - self._unix()
            self._lifetime = self._expires - self._obtained
        self.refresh_at = None
        if self._expires is not None and self._expires <= now:
            self._expires = None
        if self._expires is not None:
            margin = min(self._settings.refresh_margin, (self._expires - now) / 4)
            self.refresh_at = self._expires - margin * (1 + self._random())
