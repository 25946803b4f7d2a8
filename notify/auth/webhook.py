"""``[auth] plugin = "webhook"``: asks a backend over HTTP who may subscribe, and if wanted whose a token is.

Every question is a POST of JSON, and only a whole answer of status 200 and the form below counts::

    authorize_url      {"user_id": 1, "workspace_id": 2, "chat_id": 10, "claims": {}}
                       {"allowed": true}

    authenticate_url   {"token": "...", "host": "192.0.2.7", "origin": "https://chat.example"}
                       {"authenticated": true, "user_id": 1, "workspace_id": 2, "expires_at": 1700000000,
                        "chats": [10], "claims": {"role": "guest"}}

``expires_at`` (Unix time), ``chats`` and ``claims`` (text to text; asked back in ``authorize``) may be left out. Any
other answer, or none in time, is an error, and an error lets nobody in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar

import msgspec
from msgspec import Meta, Struct
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.auth.http import Client, check_url
from notify.auth.jwt import JWTAuthenticator, JWTSettings
from notify.auth.sharing import Answers, Shared
from notify.components import Context
from notify.config import Count, Duration, Size
from notify.errors import StartError, Unauthorized, Unavailable
from notify.identity import Identity, Peer
from notify.ids import Id
from notify.interfaces import IAuthenticator
from notify.topics import Topic

_MOST_BYTES = 256 * 1024
_LEAST_SECRET = 16

A = TypeVar("A")


class WebhookSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[auth.webhook]``: which backend is asked, how long, and how often."""

    #: asked for every subscription; empty: the chats of the token decide, as with the jwt plugin
    authorize_url: str = ""
    #: asked for every token; empty: tokens are verified here, by [auth.webhook.jwt]
    authenticate_url: str = ""
    #: sent as "Authorization: Bearer ...", so that the backend knows who asks
    secret: str = ""
    secret_file: str = ""
    #: for one whole question
    timeout: Duration = Duration(2)
    #: questions under way at once; others wait for their turn within their timeout
    connections: Annotated[int, Meta(ge=1, le=1000)] = 20
    #: questions under way and waiting; more are answered as errors
    max_pending: Annotated[int, Meta(ge=1, le=1_000_000)] = 5000
    #: answers remembered, of each kind, and for how long; a token's no longer than the token lives
    cache_size: Count = 10_000
    allow_ttl: Duration = Duration(60)
    deny_ttl: Duration = Duration(5)
    #: what a client is told when the backend gives no answer: to retry, or that it may not
    on_error: Literal["unavailable", "deny"] = "unavailable"
    #: longer tokens are refused without asking
    max_token: Size = Size(16 * 1024)
    jwt: JWTSettings = JWTSettings()


class _Authorization(Struct):
    allowed: bool


_Text = Annotated[str, Meta(max_length=1024)]


class _Authentication(Struct):
    authenticated: bool
    user_id: Id | None = None
    workspace_id: Id | None = None
    expires_at: Annotated[float, Meta(ge=0, le=2**53)] | None = None
    chats: frozenset[Id] | None = None
    claims: Annotated[dict[_Text, _Text], Meta(max_length=32)] = msgspec.field(default_factory=dict)


class _Refused(Struct, frozen=True):
    """What is remembered of a token that the backend refused."""


class _Questions(Generic[A]):
    """One kind of question: remembered answers first, then whoever asks the same now, then the backend."""

    def __init__(self, clock: IReactorTime, size: int) -> None:
        self._answers: Answers[Hashable, A] = Answers(clock, size)
        self._asked: dict[Hashable, Shared[A]] = {}

    def pending(self) -> int:
        return len(self._asked)

    def ask(self, question: Hashable, call: Callable[[], Awaitable[tuple[A, float]]]) -> Deferred[A]:
        """``call`` asks the backend: the answer, and until when (seconds) it may be remembered."""
        answer = self._answers.get(question)
        if answer is not None:
            return succeed(answer)
        shared = self._asked.get(question)
        if shared is None:
            shared = Shared(Deferred.fromCoroutine(self._remember(question, call)))
            if not shared.done:
                self._asked[question] = shared
        return shared.wait()

    async def _remember(self, question: Hashable, call: Callable[[], Awaitable[tuple[A, float]]]) -> A:
        try:
            answer, until = await call()
        finally:
            self._asked.pop(question, None)
        self._answers.put(question, answer, until)
        return answer


@implementer(IAuthenticator)
class WebhookAuthenticator:
    """Leaves decisions to a backend, and takes care that asking it stays cheap and bounded."""

    Settings = WebhookSettings
    log = Logger()

    def __init__(self, settings: WebhookSettings, context: Context) -> None:
        """Raises ``StartError`` where the settings contradict each other or a key is missing."""
        self._settings = settings
        self._clock, self._now = context.reactor, context.now
        self._count = context.metrics.webhook
        if not (settings.authorize_url or settings.authenticate_url):
            raise StartError("[auth.webhook] asks nobody: set authorize_url, authenticate_url, or both.")
        for name in ("authorize_url", "authenticate_url"):
            if url := getattr(settings, name):
                check_url(url, f"auth.webhook.{name}", plain=True)
        self._jwt: JWTAuthenticator | None = None
        if not settings.authenticate_url:
            self._jwt = JWTAuthenticator(settings.jwt, context, "auth.webhook.jwt")
        elif settings.jwt != JWTSettings():
            raise StartError(
                "[auth.webhook] has authenticate_url and [auth.webhook.jwt], but only one can verify tokens: "
                "remove one of them."
            )
        secret = _secret(settings)
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._client = Client(context.reactor, settings.timeout, _MOST_BYTES, settings.connections)
        self._authentications: _Questions[Identity | _Refused] = _Questions(self._clock, settings.cache_size)
        self._authorizations: _Questions[bool] = _Questions(self._clock, settings.cache_size)
        self._failing = False

    def start(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        return self._jwt.start() if self._jwt is not None else succeed(None)

    def authenticate(self, token: str, peer: Peer) -> Deferred[Identity]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        if self._jwt is not None:
            return self._jwt.authenticate(token, peer)
        if len(token) > self._settings.max_token:
            return fail(Unauthorized(f"the token is longer than {self._settings.max_token} characters"))
        try:
            data = token.encode("utf-8")
        except UnicodeEncodeError:
            return fail(Unauthorized("the token is not valid Unicode"))
        # The digest stands for the token, so that what is remembered is small and no secret.
        question = (hashlib.sha256(data).digest(), peer)
        asked = self._authentications.ask(question, lambda: self._ask_authentication(token, peer))
        return asked.addCallbacks(self._let_in, self._no_answer_for_token)

    def authorize(self, identity: Identity, topic: Topic) -> Deferred[bool]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        if topic.kind != "chat" or (identity.chats is not None and topic.id not in identity.chats):
            return succeed(False)
        if not self._settings.authorize_url:
            return succeed(True)
        question = (identity.user_id, identity.workspace_id, identity.claims, topic)
        asked = self._authorizations.ask(question, lambda: self._ask_authorization(identity, topic))
        return asked.addErrback(self._no_answer_for_chat)

    async def _ask_authentication(self, token: str, peer: Peer) -> tuple[Identity | _Refused, float]:
        answer = await self._ask(
            "authenticate",
            self._settings.authenticate_url,
            {"token": token, "host": peer.host, "origin": peer.origin},
            _Authentication,
            lambda answer: answer.authenticated,
        )
        if not answer.authenticated:
            return _Refused(), self._clock.seconds() + self._settings.deny_ttl
        if answer.user_id is None or answer.workspace_id is None:
            raise Unavailable("the webhook's answer has no user_id or no workspace_id")
        identity = Identity(
            answer.user_id,
            answer.workspace_id,
            answer.expires_at,
            answer.chats,
            tuple(sorted(answer.claims.items())),
        )
        good: float = self._settings.allow_ttl
        if answer.expires_at is not None:
            good = min(good, answer.expires_at - self._now())
        return identity, self._clock.seconds() + good

    async def _ask_authorization(self, identity: Identity, topic: Topic) -> tuple[bool, float]:
        question = {
            "user_id": identity.user_id,
            "workspace_id": identity.workspace_id,
            "chat_id": topic.id,
            "claims": dict(identity.claims),
        }
        answer = await self._ask(
            "authorize",
            self._settings.authorize_url,
            question,
            _Authorization,
            lambda answer: answer.allowed,
        )
        ttl = self._settings.allow_ttl if answer.allowed else self._settings.deny_ttl
        return answer.allowed, self._clock.seconds() + ttl

    async def _ask(
        self, name: str, url: str, question: dict[str, Any], kind: type[A], yes: Callable[[A], bool]
    ) -> A:
        """The backend's answer. Raises :class:`Unavailable`; the log says so when it begins and when it ends."""
        try:
            if self._authentications.pending() + self._authorizations.pending() >= self._settings.max_pending:
                raise Unavailable("too many questions are waiting")
            answer = await self._client.request("POST", url, msgspec.json.encode(question), self._headers)
            if answer.status != 200:
                raise Unavailable(f"it answered with status {answer.status}")
            try:
                decoded = msgspec.json.decode(answer.body, type=kind)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise Unavailable("its answer is not what docs/auth.md asks for") from None
        except Unavailable as error:
            self._count.labels(name, "error").inc()
            if not self._failing:
                self._failing = True
                self.log.error("auth webhook {url}: {reason}", url=url, reason=error)
            raise Unavailable(f"the webhook gave no answer: {error}") from None
        if self._failing:
            self._failing = False
            self.log.info("auth webhook {url}: answers again", url=url)
        self._count.labels(name, "yes" if yes(decoded) else "no").inc()
        return decoded

    def _no_answer_for_token(self, failure: Failure) -> NoReturn:
        if not self._denies(failure):
            failure.raiseException()
        raise Unauthorized(str(failure.value))

    def _no_answer_for_chat(self, failure: Failure) -> bool:
        if not self._denies(failure):
            failure.raiseException()
        return False

    def _denies(self, failure: Failure) -> bool:
        return self._settings.on_error == "deny" and isinstance(failure.value, Unavailable)

    def _let_in(self, answer: Identity | _Refused) -> Identity:
        if isinstance(answer, _Refused):
            raise Unauthorized("the webhook refused the token")
        if answer.expires_at is not None and answer.expires_at <= self._now():
            raise Unauthorized("the token has expired, says the webhook")
        return answer

    async def _stop(self) -> None:
        if self._jwt is not None:
            await self._jwt.stop()
        await self._client.close()

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        return Deferred.fromCoroutine(self._stop())


def _secret(settings: WebhookSettings) -> str:
    """The shared secret, or nothing. Raises ``StartError``."""
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
