"""Keys from a JWK Set: which of them are used, and how they rotate, even while the URL is unreachable."""

import json
import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.server import Request

from notify.auth.backend import WebhookSettings
from notify.auth.http import Answer
from notify.auth.jwks import MOST_BYTES, URLKeys
from notify.auth.jwt import JWTAuthenticator, JWTSettings
from notify.auth.keys import FAMILIES, UnusableKey, jwks_keys
from notify.auth.webhook import WebhookAuthenticator
from notify.config import Duration
from notify.errors import Unauthorized, Unavailable
from notify.testing import make_context
from notify.testing.contracts.authenticator import PEER, AuthenticatorContract
from tests.support.auth import (
    RSA_1024,
    SECRET,
    jwk,
    jwks,
    oct_jwk,
    private_key,
    serve,
    temporary_file,
    token,
)

RS = frozenset({"RS256", "RS384", "RS512"})


class Choice(SynchronousTestCase):
    """Which keys of a set are used."""

    def ids(self, *keys: dict[str, Any], algorithms: frozenset[str] = RS) -> list[str | None]:
        return [key.id for key in jwks_keys(jwks(*keys), algorithms)[0].all]

    def why(self, *keys: Any, algorithms: frozenset[str] = RS) -> str:
        found, ignored = jwks_keys(jwks(*keys), algorithms)
        self.assertEqual(found.all, [])
        return "; ".join(ignored)

    def test_reads_every_family(self) -> None:
        for algorithm in FAMILIES:
            made = oct_jwk(kid="a") if algorithm.startswith("HS") else jwk(algorithm, kid="a")
            keys, ignored = jwks_keys(jwks(made), frozenset({algorithm}))
            self.assertEqual((keys.all[0].algorithms, ignored), ({algorithm}, []))

    def test_leaves_out_what_does_not_fit_and_says_why(self) -> None:
        good = jwk("RS256", kid="good")
        strangers = [
            (jwk("ES256"), "another family"),
            (oct_jwk(), "another family"),
            (jwk("RS256", use="enc"), "not for signatures"),
            (jwk("RS256", use=["sig"]), "not for signatures"),
            (jwk("RS256", key_ops=["encrypt"]), "not for verifying"),
            (jwk("RS256", key_ops="verify"), "not for verifying"),
            (jwk("RS256", alg="RSA-OAEP"), "another algorithm"),
            (jwk("RS256", alg="HS256"), "another algorithm"),
            (jwk("RS256", alg=None), "another algorithm"),
            (jwk("RS256", kid=7), "kid"),
            (jwk("RS256", d="AQAB"), "private"),
            (jwk("RS256", n="!"), "read"),
            (jwk("RS256", n=5), "read"),
            (jwk("RS256", e="A" * 100_000), "read"),
            ({"kty": "RSA"}, "read"),
            ({"kty": "quantum"}, "another family"),
            ({}, "another family"),
        ]
        keys, ignored = jwks_keys(jwks(*(stranger for stranger, _ in strangers), good), RS)
        self.assertEqual([key.id for key in keys.all], ["good"])
        for reason, (_, expected) in zip(ignored, strangers, strict=True):
            self.assertIn(expected, reason)

    def test_small_rsa_keys_are_left_out(self) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from jwt.algorithms import RSAAlgorithm

        small: Any = RSAAlgorithm.to_jwk(load_pem_public_key(RSA_1024), as_dict=True)  # type: ignore[arg-type]
        self.assertIn("1024 bits", self.why(small))

    def test_a_secret_is_never_read_for_public_keys_nor_a_public_key_as_a_secret(self) -> None:
        self.assertIn("family", self.why(oct_jwk(alg="RS256", kid="a")))
        hs = frozenset({"HS256"})
        self.assertIn("family", self.why(jwk("RS256", alg="HS256"), algorithms=hs))
        self.assertIn("another algorithm", self.why(jwk("RS256", alg="RS256"), algorithms=hs))
        self.assertIn("at least 32", self.why(oct_jwk("short"), algorithms=hs))

    def test_a_secret_serves_the_algorithms_it_is_long_enough_for(self) -> None:
        keys, _ = jwks_keys(jwks(oct_jwk("q" * 50)), frozenset({"HS256", "HS384", "HS512"}))
        self.assertEqual(keys.all[0].algorithms, {"HS256", "HS384"})

    def test_a_key_with_an_algorithm_serves_it_alone(self) -> None:
        keys, _ = jwks_keys(jwks(jwk("RS256", alg="RS384")), RS)
        self.assertEqual(keys.all[0].algorithms, {"RS384"})
        self.assertEqual(keys.candidates(None, "RS256"), [])

    def test_candidates_are_those_of_the_key_id_or_those_without_any(self) -> None:
        keys, _ = jwks_keys(jwks(jwk("RS256", kid="a"), jwk("RS256", 1, kid="b"), jwk("RS256", 2)), RS)
        for key_id, found in (("a", ["a"]), ("c", [None]), (None, ["a", "b", None])):
            self.assertEqual([key.id for key in keys.candidates(key_id, "RS256")], found)

    def test_a_document_that_is_no_set_or_too_large_is_refused(self) -> None:
        for data in (b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[1]}', b"\xff", b'{"keys":' + b"[" * 9999):
            with self.assertRaisesRegex(UnusableKey, "JWK Set"):
                jwks_keys(data, RS)
        with self.assertRaisesRegex(UnusableKey, "more than 100"):
            jwks_keys(jwks(*[jwk("RS256")] * 101), RS)

    @settings(max_examples=200)
    @given(
        st.dictionaries(
            st.sampled_from(
                ["kty", "n", "e", "x", "y", "crv", "k", "d", "kid", "use", "alg", "key_ops", "p"]
            ),
            st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "sig", "AQAB", "AA", "", "ES256"])
            | st.text()
            | st.integers()
            | st.none()
            | st.lists(st.text(), max_size=2),
        ),
        st.sampled_from(list(FAMILIES)),
    )
    def test_any_malformed_key_leaves_the_others(self, bad: dict[str, Any], algorithm: str) -> None:
        good = oct_jwk(kid="good") if algorithm.startswith("HS") else jwk(algorithm, kid="good")
        data = json.dumps({"keys": [bad, good]}).encode("utf-8", "surrogatepass")
        keys, _ = jwks_keys(data, frozenset({algorithm}))
        self.assertIn("good", [key.id for key in keys.all])


class FakeClient:
    """An HTTP client that answers when the test says so."""

    def __init__(self) -> None:
        self.pending: list[Deferred[Answer]] = []
        self.asked = 0

    def request(self, method: str, url: str) -> Deferred[Answer]:
        self.asked += 1
        self.pending.append(Deferred())
        return self.pending[-1]

    def give(self, *ids: str) -> None:
        self.pending.pop(0).callback(Answer(200, jwks(*(jwk("RS256", kid=id) for id in ids))))

    def answer(self, status: int, body: bytes = b"") -> None:
        self.pending.pop(0).callback(Answer(status, body))

    def away(self) -> None:
        self.pending.pop(0).errback(Unavailable("cannot connect"))

    def close(self) -> Deferred[None]:
        closed: Deferred[None] = Deferred()
        closed.callback(None)
        return closed


class Fixed:
    """No randomness: the middle of the spread."""

    def random(self) -> float:
        return 0.5


class Rotation(SynchronousTestCase):
    """A URL that is fetched every 300 s, and at most once in 10 s."""

    def setUp(self) -> None:
        self.clock, self.client = Clock(), FakeClient()
        self.clock.advance(1000)
        self.fetches = Counter("notify_key_fetches", "", ["result"], registry=CollectorRegistry())
        self.events: list[Any] = []
        self.patch(URLKeys, "log", Logger(observer=self.events.append))
        self.source = URLKeys(
            "https://id.example/keys",
            self.client,  # type: ignore[arg-type]
            lambda data: jwks_keys(data, RS)[0],
            self.clock,
            Fixed(),  # type: ignore[arg-type]
            refresh=300,
            cooldown=10,
            most_age=3600,
            fetches=self.fetches,
        )

    def ids(self) -> list[str | None]:
        return [key.id for key in self.source.keys().all]

    def start(self, *ids: str) -> None:
        started = self.source.start()
        self.assertNoResult(started)
        self.client.give(*ids)
        self.successResultOf(started)
        self.assertEqual(self.ids(), list(ids))

    def test_fetches_at_start_and_then_regularly(self) -> None:
        self.start("a")
        self.clock.advance(299)
        self.assertEqual(self.client.asked, 1)
        self.clock.advance(1)
        self.client.give("b")
        self.assertEqual(self.ids(), ["b"])
        self.clock.advance(300)
        self.assertEqual(self.client.asked, 3)

    def test_starts_while_the_url_is_away_and_tries_again(self) -> None:
        started = self.source.start()
        self.client.away()
        self.successResultOf(started)
        self.failureResultOf(self.source.look("a"), Unavailable)
        self.failureResultOf(self.source.look(None), Unavailable)
        self.clock.advance(10)
        self.client.give("a")
        self.assertEqual(self.ids(), ["a"])

    def test_known_keys_stay_good_while_the_url_is_away_or_broken(self) -> None:
        self.start("a")
        for trouble in (
            self.client.away,
            lambda: self.client.answer(500),
            lambda: self.client.answer(302, jwks(jwk("RS256", kid="evil"))),
            lambda: self.client.answer(200, b"<html>"),
        ):
            self.clock.advance(300)
            trouble()
            self.assertEqual(self.ids(), ["a"])
        self.assertEqual(self.fetches.labels("failed")._value.get(), 4)
        self.assertEqual(len(self.events), 4)
        self.assertIn("stay good", self.events[-1]["state"])
        self.clock.advance(10)
        self.client.give("a", "b")
        self.assertEqual(self.ids(), ["a", "b"])

    def test_they_do_not_stay_good_for_ever(self) -> None:
        self.start("a")
        while self.clock.seconds() < 1000 + 3600:
            self.clock.advance(10)
            if self.client.pending:
                self.client.away()
            self.assertEqual(self.ids(), ["a"])
        self.clock.advance(1)
        self.assertEqual(self.ids(), [])
        self.failureResultOf(self.source.look("a"), Unavailable)
        self.clock.advance(10)
        self.client.give("a")
        self.assertEqual(self.ids(), ["a"])

    def test_a_set_without_a_key_takes_all_keys_away(self) -> None:
        for empty in (jwks(), jwks(jwk("ES256"))):
            self.setUp()
            self.start("a")
            self.clock.advance(300)
            self.client.answer(200, empty)
            self.assertEqual(self.ids(), [])
            self.assertEqual(self.fetches.labels("failed")._value.get(), 0)
            self.failureResultOf(self.source.look(None), Unauthorized)

    def test_an_unknown_key_id_fetches_and_finds_the_key(self) -> None:
        self.start("a")
        self.clock.advance(10)
        looked = self.source.look("b")
        self.assertNoResult(looked)
        self.client.give("a", "b")
        self.successResultOf(looked)
        self.assertEqual(self.ids(), ["a", "b"])

    def test_unknown_key_ids_cannot_make_it_fetch_more_than_once_a_cooldown(self) -> None:
        self.start("a")
        for second in range(100):
            self.clock.advance(1)
            for number in range(20):
                self.source.look(f"made-up-{second}-{number}").addErrback(
                    lambda failure: failure.trap(Unauthorized, Unavailable)
                )
            if self.client.pending:
                self.client.give("a")
        self.assertEqual(self.client.asked, 1 + 10)

    def test_all_who_wait_share_one_fetch(self) -> None:
        self.start("a")
        self.clock.advance(10)
        looking = [self.source.look("b") for _ in range(50)]
        self.assertEqual(self.client.asked, 2)
        self.client.give("b")
        for looked in looking:
            self.successResultOf(looked)

    def test_one_who_gives_up_leaves_the_others_waiting(self) -> None:
        self.start("a")
        self.clock.advance(10)
        first, second = self.source.look("b"), self.source.look("b")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.client.give("b")
        self.successResultOf(second)

    def test_within_the_cooldown_a_new_key_id_is_told_to_retry_until_a_fetch_has_decided(self) -> None:
        self.start("a")
        self.clock.advance(1)
        for id in ("b", "made-up"):
            self.failureResultOf(self.source.look(id), Unavailable)
        self.clock.advance(8.9)
        self.assertEqual(self.client.asked, 1)
        self.clock.advance(0.1)
        self.client.give("a", "b")
        self.assertEqual(self.ids(), ["a", "b"])
        self.failureResultOf(self.source.look("made-up"), Unauthorized)
        self.failureResultOf(self.source.look("other"), Unavailable)

    def test_a_fetch_that_began_before_a_key_id_was_named_does_not_refuse_it(self) -> None:
        started = self.source.start()
        looked = self.source.look("b")
        self.client.give("a")
        self.successResultOf(started)
        self.failureResultOf(looked, Unavailable)
        self.clock.advance(10)
        self.client.give("a", "b")
        self.assertEqual(self.ids(), ["a", "b"])

    def test_while_the_url_fails_nobody_is_refused_for_an_unknown_key_id(self) -> None:
        self.start("a")
        self.clock.advance(10)
        looked = self.source.look("b")
        self.client.away()
        self.failureResultOf(looked, Unavailable)
        self.failureResultOf(self.source.look("b"), Unavailable)

    def test_a_known_key_id_that_does_not_fit_is_refused_without_a_fetch(self) -> None:
        self.start("a")
        self.clock.advance(10)
        self.failureResultOf(self.source.look("a"), Unauthorized)
        self.failureResultOf(self.source.look(None), Unauthorized)
        self.assertEqual(self.client.asked, 1)

    def test_what_is_remembered_of_made_up_key_ids_is_bounded(self) -> None:
        self.start("a")
        for number in range(5000):
            self.failureResultOf(self.source.look(f"k{number}"), Unavailable)
        self.clock.advance(10)
        self.client.give("a")
        self.assertLessEqual(len(self.source._absent), 1000)

    def test_fetches_no_more_once_stopped(self) -> None:
        self.start("a")
        self.successResultOf(self.source.stop())
        self.failureResultOf(self.source.look("b"), Unavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_fetch_under_way_when_stopped_plans_no_other(self) -> None:
        started = self.source.start()
        self.successResultOf(self.source.stop())
        self.client.away()
        self.successResultOf(started)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class JWKSContract(AuthenticatorContract, TestCase):
    """The jwt authenticator with keys from a real URL keeps the contract of authenticators, too."""

    async def make_authenticator(self) -> Any:
        url = await serve(self, lambda request: jwks(jwk("RS256", kid="a")))
        settings = JWTSettings(algorithms=("RS256",), jwks_url=url + "keys")
        return JWTAuthenticator(settings, make_context(reactor))

    async def make_token(self, user_id: int, workspace_id: int) -> str:
        return token(
            private_key("RS256"),
            "RS256",
            {"kid": "a"},
            id=user_id,
            workspace_id=workspace_id,
            exp=int(time.time()) + 60,
        )


class RealServer(TestCase):
    """Keys from a real HTTP server."""

    def token(self, number: int, kid: str | None) -> str:
        headers = {"kid": kid} if kid else {}
        exp = int(time.time()) + 60
        return token(private_key("RS256", number), "RS256", headers, exp=exp)

    async def make(self, handler: Any, **settings: Any) -> JWTAuthenticator:
        url = await serve(self, handler)
        made = JWTSettings(algorithms=("RS256",), jwks_url=url, **settings)
        authenticator = JWTAuthenticator(made, make_context(reactor))
        self.addCleanup(authenticator.stop)
        await authenticator.start()
        return authenticator

    async def test_a_new_key_is_found_and_one_that_was_taken_away_is_refused(self) -> None:
        published = [jwk("RS256", kid="old")]
        authenticator = await self.make(lambda request: jwks(*published), jwks_cooldown=Duration(0))
        await authenticator.authenticate(self.token(0, "old"), PEER)
        published[:] = [jwk("RS256", 1, kid="new")]
        await authenticator.authenticate(self.token(1, "new"), PEER)
        await self.assertFailure(authenticator.authenticate(self.token(0, "old"), PEER), Unauthorized)
        await self.assertFailure(authenticator.authenticate(self.token(0, "new"), PEER), Unauthorized)
        await authenticator.authenticate(self.token(1, None), PEER)

    async def test_a_successor_knows_the_keys_though_the_url_is_away_now(self) -> None:
        away = False

        def handler(request: Request) -> bytes:
            request.setResponseCode(503 if away else 200)
            return jwks(jwk("RS256", kid="a"))

        url = await serve(self, handler)
        algorithms = ("RS256",)

        async def successor(
            before: Any, url: str, algorithms: tuple[str, ...] = algorithms
        ) -> JWTAuthenticator:
            settings = JWTSettings(algorithms=algorithms, jwks_url=url)
            made = JWTAuthenticator(settings, make_context(reactor))
            self.addCleanup(made.stop)
            made.take_over(before)
            await made.start()
            return made

        first = await successor(None, url)
        away = True
        second = await successor(first, url)
        await first.stop()
        self.assertEqual((await second.authenticate(self.token(0, "a"), PEER)).user_id, 1)
        for stranger in (await successor(second, url + "other"), await successor(second, url, ("RS384",))):
            await self.assertFailure(
                stranger.authenticate(self.token(0, "a"), PEER), Unavailable, Unauthorized
            )
        more = await successor(second, url, ("RS256", "RS384"))
        self.assertEqual((await more.authenticate(self.token(0, "a"), PEER)).user_id, 1)

    async def test_a_successor_of_another_plugin_knows_them_too(self) -> None:
        away = False

        def handler(request: Request) -> bytes:
            request.setResponseCode(503 if away else 200)
            return jwks(jwk("RS256", kid="a"))

        jwt = JWTSettings(algorithms=("RS256",), jwks_url=await serve(self, handler))
        webhook = WebhookSettings(authorize_url="http://127.0.0.1:9/", jwt=jwt)
        before: Any = None
        for kind, of in (
            (JWTAuthenticator, jwt),
            (WebhookAuthenticator, webhook),
            (JWTAuthenticator, jwt),
        ):
            made = kind(of, make_context(reactor))  # type: ignore[arg-type]
            self.addCleanup(made.stop)
            made.take_over(before)
            await made.start()
            self.assertEqual((await made.authenticate(self.token(0, "a"), PEER)).user_id, 1)
            before, away = made, True

    async def test_does_not_follow_a_redirect(self) -> None:
        elsewhere = await serve(self, lambda request: jwks(jwk("RS256", kid="a")))

        def redirect(request: Request) -> bytes:
            request.setResponseCode(302)
            request.setHeader("Location", elsewhere)
            return jwks(jwk("RS256", kid="a"))

        authenticator = await self.make(redirect)
        await self.assertFailure(authenticator.authenticate(self.token(0, "a"), PEER), Unavailable)

    async def test_does_not_read_an_answer_beyond_its_bound(self) -> None:
        def announced(request: Request) -> bytes:
            return b" " * (MOST_BYTES + 1)

        def unannounced(request: Request) -> Deferred[bytes]:
            request.write(b" " * (MOST_BYTES + 1))
            return Deferred()  # never ends

        for handler in (announced, unannounced):
            authenticator = await self.make(handler, jwks_timeout=Duration(60))
            await self.assertFailure(authenticator.authenticate(self.token(0, "a"), PEER), Unavailable)

    async def test_gives_up_on_a_server_that_never_ends(self) -> None:
        authenticator = await self.make(lambda request: Deferred(), jwks_timeout=Duration(0.05))
        await self.assertFailure(authenticator.authenticate(self.token(0, "a"), PEER), Unavailable)

    async def test_nobody_listens(self) -> None:
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")  # type: ignore[attr-defined]
        free = port.getHost().port
        await port.stopListening()
        settings = JWTSettings(algorithms=("RS256",), jwks_url=f"http://127.0.0.1:{free}/")
        authenticator = JWTAuthenticator(settings, make_context(reactor))
        self.addCleanup(authenticator.stop)
        await authenticator.start()
        await self.assertFailure(authenticator.authenticate(self.token(0, "a"), PEER), Unavailable)

    async def test_a_secret_in_a_file_set_never_leaves_it(self) -> None:
        path = temporary_file(self, jwks(oct_jwk(SECRET, kid="a")))
        authenticator = JWTAuthenticator(JWTSettings(jwks_file=path), make_context(reactor))
        await authenticator.start()
        self.addCleanup(authenticator.stop)
        exp = int(time.time()) + 60
        found = await authenticator.authenticate(token(headers={"kid": "a"}, exp=exp), PEER)
        self.assertEqual(found.user_id, 1)
        self.assertNotIn(SECRET, repr(vars(authenticator)))
