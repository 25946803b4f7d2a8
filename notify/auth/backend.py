"""The backend of the webhook authenticator: its settings, and one request to it with everything that can go wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify.auth.http import Client, check_url
from notify.auth.jwt import JWTSettings
from notify.components import Context
from notify.config import Count, Duration, Size
from notify.errors import StartError, Unavailable

_MOST_BYTES = 256 * 1024
_LEAST_SECRET = 16

A = TypeVar("A")


class WebhookSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[auth.webhook]``: which backend is asked, with which timeout, and how often."""

    #: called for every subscription; empty: the token's list of chats decides, as with the jwt plugin
    authorize_url: str = ""
    #: called for up to 200 live subscriptions at once; empty: authorize_url is called for each
    authorize_many_url: str = ""
    #: called for every token; empty: tokens are verified here, by [auth.webhook.jwt]
    authenticate_url: str = ""
    #: sent as "Authorization: Bearer ...", so that the backend knows that the server is calling
    secret: str = ""
    secret_file: str = ""
    #: the timeout of one whole request
    timeout: Duration = Duration(2)
    #: concurrent requests; further ones wait within their timeout
    connections: Annotated[int, Meta(ge=1, le=1000)] = 20
    #: requests in flight and waiting; beyond that a request fails with an error
    max_pending: Annotated[int, Meta(ge=1, le=1_000_000)] = 5000
    #: how many answers of each kind are cached, and for how long; a token's answer at most until the token expires
    cache_size: Count = 10_000
    allow_ttl: Duration = Duration(60)
    deny_ttl: Duration = Duration(5)
    #: how often a live subscription is checked again; 0: only when its client presents a new token
    recheck: Duration = Duration(300)
    #: how long a subscription continues while the backend does not answer
    recheck_grace: Duration = Duration(600)
    #: rate limit of these checks, in requests per second
    recheck_rate: Annotated[int, Meta(ge=1, le=100_000)] = 100
    #: what a client is told when the backend does not answer: to retry, or that access is denied
    on_error: Literal["unavailable", "deny"] = "unavailable"
    #: longer tokens are refused without a request
    max_token: Size = Size(16 * 1024)
    jwt: JWTSettings = JWTSettings()


class NoAnswer(Unavailable):
    """The backend could not be reached, or did not answer in time.

    A plain ``Unavailable`` means an invalid answer, or too many waiting requests.
    """


class Backend:
    """Sends requests with the shared secret, counts them, and logs when they begin to fail and when they succeed again."""

    log = Logger()

    def __init__(self, settings: WebhookSettings, context: Context) -> None:
        """Raises ``StartError`` for an invalid URL or secret."""
        for name, url in urls(settings):
            check_url(url, name, plain=True)
        secret = _secret(settings)
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._client = Client(context.reactor, settings.timeout, _MOST_BYTES, settings.connections)
        self._count = context.metrics.webhook
        self._most, self._pending = settings.max_pending, 0
        self._failing = False

    async def ask(
        self,
        name: str,
        url: str,
        question: dict[str, Any],
        kind: type[A],
        yes: Callable[[A], bool],
        whole: Callable[[A], bool] = lambda answer: True,
    ) -> A:
        """Send a request and return the answer, of type ``kind``. Raises :class:`Unavailable` for anything else.

        ``name`` is the name of the request in metrics. ``yes`` says how to count the answer, ``whole`` whether it is valid.
        """
        try:
            answer = await self._put(url, question, kind)
            if not whole(answer):
                raise Unavailable("its answer is not what docs/auth.md asks for")
        except Unavailable as error:
            self._count.labels(name, "error").inc()
            if not self._failing:
                self._failing = True
                self.log.error("auth webhook {url}: {reason}", url=url, reason=error)
            raise type(error)(f"the webhook gave no answer: {error}") from None
        if self._failing:
            self._failing = False
            self.log.info("auth webhook {url}: answers again", url=url)
        self._count.labels(name, "yes" if yes(answer) else "no").inc()
        return answer

    async def _put(self, url: str, question: dict[str, Any], kind: type[A]) -> A:
        if self._pending >= self._most:
            raise Unavailable("too many questions are waiting")
        self._pending += 1
        try:
            answer = await self._client.request("POST", url, msgspec.json.encode(question), self._headers)
        except Unavailable as error:
            raise NoAnswer(str(error)) from None
        finally:
            self._pending -= 1
        if answer.status != 200:
            raise Unavailable(f"it answered with status {answer.status}")
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Unavailable("its answer is not what docs/auth.md asks for") from None

    def close(self) -> Deferred[None]:
        """End the requests in flight."""
        return self._client.close()


def urls(settings: WebhookSettings) -> list[tuple[str, str]]:
    """The configured URLs, each preceded by the name of its key."""
    names = ("authorize_url", "authorize_many_url", "authenticate_url")
    return [(f"auth.webhook.{name}", getattr(settings, name)) for name in names if getattr(settings, name)]


def _secret(settings: WebhookSettings) -> str:
    """The shared secret, or empty. Raises ``StartError``."""
    if settings.secret and settings.secret_file:
        raise StartError("[auth.webhook] has secret and secret_file: keep one of them.")
    key, secret = "auth.webhook.secret", settings.secret
    if settings.secret_file:
        key = f"'auth.webhook.secret_file' {settings.secret_file}"
        try:
            secret = Path(settings.secret_file).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not plain ASCII"
            raise StartError(f"{key} cannot be read: {reason}.") from None
        if not secret:
            raise StartError(f"{key} is empty.")
    if secret and not (len(secret) >= _LEAST_SECRET and secret.isascii() and secret.isprintable()):
        raise StartError(
            f"{key} is not {_LEAST_SECRET} or more printable ASCII characters: `openssl rand -hex 32` prints a good one."
        )
    return secret
