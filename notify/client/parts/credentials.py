"""The token in use and its replacement: docs/client.md, rules 18 to 21."""

from __future__ import annotations

from collections.abc import Callable

from notify.client.actions import Action, Done, ErrorReceived, Failed, FetchToken, Frame, Settings
from notify.client.parts.backoff import Backoff
from notify.client.parts.requests import Refusal, Request, Requests


class Credentials:
    """The token in use, the token that is to replace it, and the time of the replacement. Times are the machine's."""

    def __init__(
        self,
        settings: Settings,
        random: Callable[[], float],
        unix: Callable[[], float],
        requests: Requests,
        do: Callable[[Action], None],
    ) -> None:
        self.value: str | None = None
        #: the number of the last fetch, and its deadline; None: no fetch is in flight
        self.fetch_number = 0
        self.fetch_due: float | None = None
        #: when to fetch the next token
        self.refresh_at: float | None = None
        self._settings, self._random, self._unix = settings, random, unix
        self._requests, self._do = requests, do
        self._backoff = Backoff(settings, random)
        self._accepted = False  # a server has accepted this token
        self._obtained = 0.0
        self._expires: float | None = None
        self._lifetime: float | None = None
        self._offered: tuple[str, float, float | None] | None = None
        self._renewing: dict[int, float] = {}  # commands that wait for a new token, and since when
        self._stale = False  # the token in flight was fetched before the last of them

    @property
    def aged(self) -> bool:
        """Whether a refusal may be due to the token's age: a server accepted it before, and the refused token is not its replacement."""
        return self._accepted and self._offered is None

    def usable(self, now: float) -> bool:
        """Whether the token at hand is worth trying."""
        return self.value is not None and (self._expires is None or now < self._expires)

    # --- fetching -------------------------------------------------------------------------------------------

    def fetch(self, now: float) -> None:
        """Ask the application for a token."""
        self.fetch_number += 1
        self.fetch_due = now + self._settings.token_timeout
        self.refresh_at = None
        self._do(FetchToken(self.fetch_number))

    def fetched(self, n: int) -> bool:
        """The application answered a fetch. Returns whether the answer is in time and the first one; if not, ignore it."""
        if n != self.fetch_number or self.fetch_due is None:
            return False
        self.fetch_due = None
        return True

    # --- using ----------------------------------------------------------------------------------------------

    def adopt(self, value: str, now: float, expires_at: float | None) -> None:
        """Use this token. ``expires_at`` is its expiry in Unix seconds, if known."""
        self.value, self._obtained, self._accepted = value, now, False
        self._expires = None if expires_at is None else now + expires_at - self._unix()

    def drop(self) -> None:
        """Stop using the token."""
        self.value = None

    def confirmed(self, now: float, expires_at: float | None) -> None:
        """The server accepted the token."""
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
        """Without a connection no token is fetched or replaced."""
        self._offered = self.refresh_at = self.fetch_due = None
        self._stale = False
        if self._renewing:
            self.drop()

    def close(self) -> None:
        """The client has ended: fail the commands that wait for a new token."""
        self._fail("closed", "")

    # --- replacing ------------------------------------------------------------------------------------------

    def renew(self, n: int, now: float, state: str) -> None:
        """The application wants a token fetched from now on. The command ends with ``Done`` or ``Failed`` with this ``n``."""
        self._renewing[n] = now
        if self.fetch_due is not None or (state == "connected" and self._offered is None):
            self.fetch(now)
        elif state == "waiting":
            self.drop()
        else:
            self._stale = True

    def offer(self, value: str, now: float, expires_at: float | None) -> None:
        """Ask the server to accept this token in place of the current one."""
        self._offered = value, now, expires_at
        self._requests.ask(self, 0, {"type": "refresh", "token": value}, now)

    def answered(self, request: Request, frame: Frame, now: float) -> None:
        """The server accepted the offered token.

        If nobody says when it expires, it is assumed to live as long as the token before it.
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
        """The server refused the offered token."""
        self._do(ErrorReceived(refusal.code, refusal.message))
        self.not_replaced(now, refusal.code, refusal.message)

    def not_replaced(self, now: float, code: str, message: str) -> None:
        """The replacement failed: try again later."""
        self._offered, self.refresh_at = None, now + self._backoff.next()
        self._fail(code, message)

    def _fail(self, code: str, message: str) -> None:
        renewing, self._renewing, self._stale = self._renewing, {}, False
        for n in renewing:
            self._do(Failed(n, code, message))

    def _schedule(self, now: float, expires_at: float | None) -> None:
        """Schedule the next replacement early enough, and spread over time so that not all clients replace their tokens at once.

        If the server accepted a token that is expired by the client's clock, that clock is wrong. Then wait for the server's close code 4002.
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
