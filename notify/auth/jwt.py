"""``[auth] plugin = "jwt"``: self-contained tokens, verified without asking anyone."""

from __future__ import annotations

from msgspec import Struct
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from notify.auth import claims, http, jws
from notify.auth.jwks import MOST_BYTES, FileKeys, FixedKeys, KeySource, URLKeys
from notify.auth.keys import FAMILIES, Keys, UnusableKey, jwks_keys, pem_keys, secret_key
from notify.components import Context
from notify.config import Duration, Size
from notify.errors import StartError, Unauthorized
from notify.identity import Identity, Peer
from notify.ids import Id
from notify.interfaces import IAuthenticator, IExplainer, ISuccessor
from notify.topics import Topic

KEY_SOURCES = ("secret", "secret_file", "public_key_file", "jwks_file", "jwks_url")


class JWTSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[auth.jwt]``: exactly one of the keys from ``secret`` to ``jwks_url`` must be set."""

    #: of one family: HS256, HS384, HS512; RS256, RS384, RS512; ES256, ES384, ES512; or EdDSA
    algorithms: tuple[str, ...] = ("HS256",)
    #: HS: at least as many bytes as the hash has. Better kept in a file or in the environment
    secret: str = ""
    secret_file: str = ""
    #: RS, ES, EdDSA: one or more PEM public keys
    public_key_file: str = ""
    #: a JWK Set; the only way to use several HS secrets at once
    jwks_file: str = ""
    jwks_url: str = ""
    #: how often the URL is fetched, the minimum time between two fetches, and the timeout of one
    jwks_refresh: Duration = Duration(300)
    jwks_cooldown: Duration = Duration(10)
    jwks_timeout: Duration = Duration(3)
    #: how long the known keys stay valid while the URL is unreachable
    jwks_max_age: Duration = Duration(86400)
    #: allows a jwks_url of http:// on another host; whoever can modify its response can create tokens
    jwks_allow_http: bool = False
    #: the required iss, and the required aud (or one of its values); without an audience no token may have one
    issuer: str = ""
    audience: str = ""
    #: the claims with the ids, as integers or text; in "sub" an integer is text as well
    user_claim: str = "id"
    workspace_claim: str = "workspace_id"
    #: if set: the claim that lists the only chats a client may subscribe to
    chats_claim: str = ""
    #: further claims that must be present
    required_claims: tuple[str, ...] = ()
    #: the accepted typ in a token's header; a token without one counts as JWT
    token_types: tuple[str, ...] = ("JWT",)
    #: how far the issuer's clock may be ahead (nbf, iat); it never extends a token beyond its exp
    leeway: Duration = Duration(5)
    #: how far exp may be in the future
    max_lifetime: Duration = Duration(30 * 86400)
    #: longer tokens are refused without being parsed
    max_token: Size = Size(16 * 1024)


@implementer(IAuthenticator, IExplainer, ISuccessor)
class JWTAuthenticator:
    """Verifies signed JSON Web Tokens (RFC 7519) with the precautions of RFC 8725.

    A token must have ``exp`` and the ids of the user and the workspace; any other claim that is present must be valid.
    """

    Settings = JWTSettings
    log = Logger()

    def __init__(self, settings: JWTSettings, context: Context, table: str = "auth.jwt") -> None:
        """Raises ``StartError``. ``table`` is the table of the settings in the configuration, for error messages."""
        self._clock, self._now = context.reactor, context.now
        self._table = table
        self._algorithms = _algorithms(settings, table)
        self._types = frozenset(type.lower().removeprefix("application/") for type in settings.token_types)
        self._most = int(settings.max_token)
        for name in ("user_claim", "workspace_claim"):
            if not getattr(settings, name):
                raise StartError(f"'{table}.{name}' is empty: name the claim that holds the id.")
        if not self._types:
            raise StartError(f"'{table}.token_types' is empty, so that no token would do: use [\"JWT\"].")
        self._rules = claims.Rules(
            issuer=settings.issuer,
            audience=settings.audience,
            user_claim=settings.user_claim,
            workspace_claim=settings.workspace_claim,
            chats_claim=settings.chats_claim,
            required=settings.required_claims,
            leeway=settings.leeway,
            max_lifetime=settings.max_lifetime,
        )
        self._source = self._make_source(settings, context)

    @property
    def verifier(self) -> JWTAuthenticator:
        """The authenticator that verifies tokens: this one, or the JWT authenticator behind another one."""
        return self

    def take_over(self, before: object) -> None:
        """See :class:`~notify.interfaces.ISuccessor`. Takes over the keys that a predecessor with the same URL has fetched."""
        verifier = getattr(before, "verifier", None)
        if not isinstance(verifier, JWTAuthenticator):
            return
        source, known = self._source, verifier._source
        if isinstance(source, URLKeys) and isinstance(known, URLKeys) and source.url == known.url:
            source.take_over(known)

    def start(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        return self._source.start()

    def authenticate(self, token: str, peer: Peer) -> Deferred[Identity]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        try:
            parsed = jws.parse(token, self._types, self._most)
            if parsed.algorithm not in self._algorithms:
                raise Unauthorized("the token's algorithm is not one that is configured")
            if not self._source.keys().candidates(parsed.key_id, parsed.algorithm):
                return self._source.look(parsed.key_id).addCallback(lambda _: self._verify(parsed))
            return succeed(self._verify(parsed))
        except Unauthorized as error:
            return fail(error)

    def authorize(self, identity: Identity, topic: Topic) -> Deferred[bool]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        return succeed(topic.kind == "chat" and (identity.chats is None or topic.id in identity.chats))

    def claims(self, token: str) -> tuple[Id, Id] | None:
        """See :class:`~notify.interfaces.IExplainer`."""
        try:
            payload = jws.unique_object(jws.parse(token, None, self._most).payload, "payload")
            return claims.whom(payload, self._rules)
        except Unauthorized:
            return None

    def why_not(self, identity: Identity, topic: Topic) -> str:
        """See :class:`~notify.interfaces.IExplainer`."""
        return "the token does not name this chat"

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IAuthenticator`."""
        return self._source.stop()

    def _verify(self, token: jws.Token) -> Identity:
        candidates = self._source.keys().candidates(token.key_id, token.algorithm)
        if not candidates:
            raise Unauthorized("the token's key is not known")
        if not any(key.verify(token.algorithm, token.signed, token.signature) for key in candidates):
            raise Unauthorized("the token's signature is wrong")
        found = jws.unique_object(token.payload, "payload")
        return claims.identity(found, self._rules, self._now())

    def _make_source(self, settings: JWTSettings, context: Context) -> KeySource:
        table, algorithms = self._table, self._algorithms
        given = [name for name in KEY_SOURCES if getattr(settings, name)]
        symmetric = FAMILIES[settings.algorithms[0]] == "HS"
        fitting = ("secret", "secret_file", "jwks_file") if symmetric else KEY_SOURCES[2:]
        names = f"{', '.join(fitting[:-1])} or {fitting[-1]}"
        if not given:
            raise StartError(
                f"No key to verify tokens with: set one of {names} in [{table}]"
                + (
                    f" (or the environment variable NOTIFY_{table.upper().replace('.', '__')}__SECRET)"
                    if symmetric
                    else ""
                )
                + "."
            )
        if len(given) > 1:
            raise StartError(f"[{table}] has {' and '.join(given)}: keep one of them.")
        [name] = given
        if name not in fitting:
            raise StartError(f"'{table}.{name}' does not go with {settings.algorithms[0]}: set {names}.")
        key, value = f"{table}.{name}", str(getattr(settings, name))
        if name == "secret":
            try:
                return FixedKeys(Keys([secret_key(value.encode(), algorithms)]))
            except UnusableKey as error:
                raise StartError(f"'{key}' {error}.") from None
        if name == "secret_file":
            return FileKeys(value, key, lambda data: _secret_from_file(data, algorithms), self._clock)
        if name == "public_key_file":
            return FileKeys(value, key, lambda data: pem_keys(data, algorithms), self._clock)
        if name == "jwks_file":
            return FileKeys(value, key, self._read_jwks_file, self._clock)
        http.check_url(value, key, settings.jwks_allow_http)
        if settings.jwks_max_age <= settings.jwks_refresh:
            raise StartError(
                f"'{table}.jwks_max_age' is not longer than '{table}.jwks_refresh', so that keys would not stay good "
                "until they are fetched again."
            )
        return URLKeys(
            value,
            http.Client(self._clock, settings.jwks_timeout, MOST_BYTES),
            self._read_jwks,
            self._clock,
            context.random,
            refresh=settings.jwks_refresh,
            cooldown=settings.jwks_cooldown,
            most_age=settings.jwks_max_age,
            fetches=context.metrics.key_fetches,
        )

    def _read_jwks(self, data: bytes) -> Keys:
        keys, ignored = jwks_keys(data, self._algorithms)
        if ignored:
            self.log.debug("[{table}] JWK Set: {ignored}", table=self._table, ignored="; ".join(ignored))
        if not keys.all:
            self.log.error(
                "[{table}] the JWK Set holds no key that can be used, so no token is good: {reason}",
                table=self._table,
                reason="; ".join(ignored[:3]) or "it is empty",
            )
        return keys

    def _read_jwks_file(self, data: bytes) -> Keys:
        keys, ignored = jwks_keys(data, self._algorithms)
        if not keys.all:
            raise UnusableKey("holds no usable key" + (f": {'; '.join(ignored[:3])}" if ignored else ""))
        return keys


def _algorithms(settings: JWTSettings, table: str) -> frozenset[str]:
    for algorithm in settings.algorithms:
        if algorithm not in FAMILIES:
            raise StartError(
                f"'{table}.algorithms' has an unknown '{algorithm}'; known algorithms are: {', '.join(FAMILIES)}."
            )
    families = {FAMILIES[algorithm] for algorithm in settings.algorithms}
    if len(families) != 1:
        raise StartError(
            f"'{table}.algorithms' is of one family, HS, RS, ES or EdDSA, and not of "
            f"{' and '.join(sorted(families)) or 'none'}."
        )
    return frozenset(settings.algorithms)


def _secret_from_file(data: bytes, algorithms: frozenset[str]) -> Keys:
    """The secret is the content of the file without one trailing line break, which editors add."""
    return Keys([secret_key(data.removesuffix(b"\n").removesuffix(b"\r"), algorithms)])
