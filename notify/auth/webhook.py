"""``[auth] plugin = "webhook"``: asks a backend over HTTP who may subscribe and, if configured, whose token it is.

Every request is a POST of JSON, and only a complete response with status 200 in the following form counts::

    authorize_url      {"user_id": 1, "workspace_id": 2, "chat_id": 10, "claims": {}}
                       {"allowed": true}

    authorize_many_url {"questions": [{"user_id": 1, "workspace_id": 2, "chat_id": 10, "claims": {}}, ...]}
                       {"allowed": [true, ...]}

    authenticate_url   {"token": "...", "host": "192.0.2.7", "origin": "https://chat.example"}
                       {"authenticated": true, "user_id": 1, "workspace_id": 2, "expires_at": 1700000000,
                        "issued_at": 1699996400, "chats": [10], "claims": {"role": "guest"}}

``expires_at`` and ``issued_at`` (Unix time), ``chats`` and ``claims`` (text to text; sent back in ``authorize``) are optional.
Any other response, or none in time, is an error, and an error grants nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta, Struct
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.auth.backend import Backend, NoAnswer, WebhookSettings, urls
from notify.auth.http import is_plain
from notify.auth.jwt import JWTAuthenticator, JWTSettings
from notify.auth.paced import Paced
from notify.auth.sharing import Questions
from notify.components import Context
from notify.errors import StartError, Unauthorized, Unavailable
from notify.identity import Identity, Peer
from notify.ids import Id
from notify.interfaces import IAuthenticator, IExplainer, IReviewer, ISuccessor
from notify.topics import Topic

#: live subscriptions per request
MANY = 200


class _Authorization(Struct):
    allowed: bool


class _Authorizations(Struct):
    allowed: list[bool]


_Text = Annotated[str, Meta(max_length=1024)]


class _Authentication(Struct):
    authenticated: bool
    user_id: Id | None = None
    workspace_id: Id | None = None
    expires_at: Annotated[float, Meta(ge=0, le=2**53)] | None = None
    issued_at: Annotated[float, Meta(ge=0, le=2**53)] | None = None
    chats: frozenset[Id] | None = None
    claims: Annotated[dict[_Text, _Text], Meta(max_length=32)] = msgspec.field(default_factory=dict)


#: seconds that the backend's clock may be ahead of ours
AHEAD = 60.0


class _Refused(Struct, frozen=True):
    """The cached result for a token that the backend refused."""


#: whether this user, with these claims, may receive this chat
_Question = tuple[Id, Id, tuple[tuple[str, str], ...], Topic]


@implementer(IAuthenticator, IExplainer, IReviewer, ISuccessor)
class WebhookAuthenticator:
    """Leaves decisions to a backend, and keeps the requests to it cheap and limited."""

    Settings = WebhookSettings
    log = Logger()

    def __init__(self, settings: WebhookSettings, context: Context) -> None:
        """Raises ``StartError`` if the settings contradict each other or a key is missing."""
        self._settings = settings
        self._clock, self._now = context.reactor, context.now
        if not (settings.authorize_url or settings.authenticate_url):
            raise StartError("[auth.webhook] asks nobody: set authorize_url, authenticate_url, or both.")
        if settings.authorize_many_url and not settings.authorize_url:
            raise StartError(
                "[auth.webhook] has authorize_many_url without authorize_url: set both, or neither."
            )
        self._backend = Backend(settings, context)
        self._jwt: JWTAuthenticator | None = None
        if not settings.authenticate_url:
            self._jwt = JWTAuthenticator(settings.jwt, context, "auth.webhook.jwt")
        elif settings.jwt != JWTSettings():
            raise StartError(
                "[auth.webhook] has authenticate_url and [auth.webhook.jwt], but only one can verify tokens: "
                "remove one of them."
            )
        self._authentications: Questions[Identity | _Refused] = Questions(self._clock, settings.cache_size)
        self._authorizations: Questions[bool] = Questions(self._clock, settings.cache_size)
        self.recheck = float(settings.recheck) if settings.authorize_url else 0.0
        self.grace = float(settings.recheck_grace)
        self._reviews: Paced[_Question] = Paced(
            self._clock,
            self._review_many if settings.authorize_many_url else self._review_one,
            most=MANY if settings.authorize_many_url else 1,
            rate=settings.recheck_rate,
            # Leave connections for clients that subscribe now.
            at_once=max(1, settings.connections // 2),
            patience=max(1.0, self.recheck),
        )

    @staticmethod
    def cautions(settings: WebhookSettings) -> list[str]:
        """See :class:`~notify.interfaces.IPlugin`."""
        return [
            f"'{name}' is http:// to another machine: whoever is on the way reads and forges what is asked and "
            "answered; use https://, or let the way there be your own."
            for name, url in urls(settings)
            if is_plain(url)
        ]

    def take_over(self, before: object) -> None:
        """See :class:`~notify.interfaces.ISuccessor`."""
        if self._jwt is not None:
            self._jwt.take_over(before)

    @property
    def verifier(self) -> JWTAuthenticator | None:
        """The authenticator that verifies tokens here; None if the backend does."""
        return self._jwt

    def start(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        for caution in self.cautions(self._settings):
            self.log.warn("{caution}", caution=caution)
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
        # The digest stands for the token, so that the cached key is small and not secret.
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
        asked = self._authorizations.ask(question, lambda: self._ask_authorization(question))
        return asked.addErrback(self._no_answer_for_chat)

    def claims(self, token: str) -> tuple[Id, Id] | None:
        """See :class:`~notify.interfaces.IExplainer`."""
        return None if self._jwt is None else self._jwt.claims(token)

    def why_not(self, identity: Identity, topic: Topic) -> str:
        """See :class:`~notify.interfaces.IExplainer`."""
        if identity.chats is not None and topic.id not in identity.chats:
            return "the token does not name this chat"
        deny = self._settings.on_error == "deny"
        return "the webhook said no" + (", or gave no answer: on_error is deny" if deny else "")

    def review(self, identity: Identity, topics: Collection[Topic]) -> Deferred[Mapping[Topic, bool]]:
        """See :class:`~notify.interfaces.IReviewer`."""
        told = {topic: identity.chats is None or topic.id in identity.chats for topic in topics}
        if not self._settings.authorize_url:
            return succeed(told)
        asked: dict[_Question, Topic] = {
            (identity.user_id, identity.workspace_id, identity.claims, topic): topic
            for topic, possible in told.items()
            if possible
        }

        def answer(answers: Mapping[_Question, bool]) -> Mapping[Topic, bool]:
            no = {topic: False for topic, possible in told.items() if not possible}
            return {**no, **{asked[question]: allowed for question, allowed in answers.items()}}

        return self._reviews.ask(asked.keys()).addCallback(answer)

    def forget(self, workspace_id: Id, user_id: Id) -> None:
        """See :class:`~notify.interfaces.IReviewer`."""
        self._authentications.forget(
            lambda _, answer: (
                isinstance(answer, Identity)
                and (answer.workspace_id, answer.user_id) == (workspace_id, user_id)
            )
        )
        self._authorizations.forget(lambda question, _: question[:2] == (user_id, workspace_id))  # type: ignore[index]

    async def _ask_authentication(self, token: str, peer: Peer) -> tuple[Identity | _Refused, float]:
        answer = await self._backend.ask(
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
        if answer.issued_at is not None and answer.issued_at > self._now() + AHEAD:
            # Probably in milliseconds: no revocation would ever apply to it.
            raise Unavailable(
                "the webhook's answer has an issued_at in the future: it is Unix time in seconds"
            )
        identity = Identity(
            answer.user_id,
            answer.workspace_id,
            answer.expires_at,
            answer.chats,
            tuple(sorted(answer.claims.items())),
            answer.issued_at,
        )
        good: float = self._settings.allow_ttl
        if answer.expires_at is not None:
            good = min(good, answer.expires_at - self._now())
        return identity, self._clock.seconds() + good

    async def _ask_authorization(self, question: _Question, kind: str = "authorize") -> tuple[bool, float]:
        answer = await self._backend.ask(
            kind,
            self._settings.authorize_url,
            _asked(question),
            _Authorization,
            lambda answer: answer.allowed,
        )
        return answer.allowed, self._good_until(answer.allowed)

    def _good_until(self, allowed: bool) -> float:
        now: float = self._clock.seconds()
        return now + (self._settings.allow_ttl if allowed else self._settings.deny_ttl)

    async def _review_one(self, questions: list[_Question]) -> Mapping[_Question, bool]:
        [question] = questions
        age = self._authorizations.age
        try:
            allowed, until = await self._ask_authorization(question, "recheck")
        except NoAnswer:
            raise
        except Unavailable:
            return {}
        self._authorizations.remember(question, allowed, until, age)
        return {question: allowed}

    async def _review_many(self, questions: list[_Question]) -> Mapping[_Question, bool]:
        age = self._authorizations.age
        try:
            answer = await self._backend.ask(
                "recheck",
                self._settings.authorize_many_url,
                {"questions": [_asked(question) for question in questions]},
                _Authorizations,
                lambda answer: all(answer.allowed),
                lambda answer: len(answer.allowed) == len(questions),
            )
        except NoAnswer:
            raise
        except Unavailable:
            return {}
        told = dict(zip(questions, answer.allowed, strict=True))
        for question, allowed in told.items():
            self._authorizations.remember(question, allowed, self._good_until(allowed), age)
        return told

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
        self._reviews.stop()
        if self._jwt is not None:
            await self._jwt.stop()
        await self._backend.close()

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        return Deferred.fromCoroutine(self._stop())


def _asked(question: _Question) -> dict[str, Any]:
    user_id, workspace_id, claims, topic = question
    return {
        "user_id": user_id,
        "workspace_id": workspace_id,
        "chat_id": topic.id,
        "claims": dict(claims),
    }
