"""The jwt authenticator: the contract of all authenticators, every algorithm, and what attackers try."""

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import jwt
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.auth.jwks import FileKeys
from notify.auth.jwt import JWTAuthenticator, JWTSettings
from notify.config import Duration, Size
from notify.errors import StartError, Unauthorized
from notify.identity import Identity
from notify.ids import INT64_MAX, INT64_MIN
from notify.interfaces import IAuthenticator
from notify.testing import make_context
from notify.testing.contracts.authenticator import PEER, AuthenticatorContract
from notify.topics import chat, user
from tests.support.auth import (
    NOW,
    RSA_1024,
    SECRET,
    b64,
    claims,
    jwk,
    jwks,
    oct_jwk,
    private_key,
    private_pem,
    public_pem,
    raw_token,
    temporary_file,
    token,
)


def clock_at_now() -> Clock:
    clock = Clock()
    clock.advance(NOW)
    return clock


class JWTContract(AuthenticatorContract, TestCase):
    async def make_authenticator(self) -> IAuthenticator:
        return JWTAuthenticator(JWTSettings(secret=SECRET), make_context(clock_at_now()))

    async def make_token(self, user_id: int, workspace_id: int) -> str:
        return token(id=user_id, workspace_id=workspace_id)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = clock_at_now()

    def make(self, **settings: Any) -> JWTAuthenticator:
        if not any(name in settings for name in ("secret_file", "public_key_file", "jwks_file", "jwks_url")):
            settings.setdefault("secret", SECRET)
        return JWTAuthenticator(JWTSettings(**settings), make_context(self.clock))

    def accepted(self, authenticator: JWTAuthenticator, token: str) -> Identity:
        return self.successResultOf(authenticator.authenticate(token, PEER))

    def refused(self, authenticator: JWTAuthenticator, token: str) -> str:
        return str(self.failureResultOf(authenticator.authenticate(token, PEER), Unauthorized).value)

    def not_started(self, **settings: Any) -> str:
        with self.assertRaises(StartError) as error:
            JWTAuthenticator(JWTSettings(**settings), make_context(self.clock))
        text = str(error.exception)
        self.assertTrue(text.endswith("."), text)
        return text

    def file(self, data: bytes) -> str:
        return temporary_file(self, data)


class Algorithms(Case):
    def test_accepts_hmac_with_each_hash(self) -> None:
        for algorithm in ("HS256", "HS384", "HS512"):
            identity = self.accepted(self.make(algorithms=(algorithm,)), token(SECRET, algorithm))
            self.assertEqual(identity, Identity(1, 2, float(NOW + 3600)))

    def test_accepts_public_key_algorithms_with_a_key_file(self) -> None:
        for algorithm in ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"):
            key = private_key(algorithm)
            authenticator = self.make(algorithms=(algorithm,), public_key_file=self.file(public_pem(key)))
            self.assertEqual(self.accepted(authenticator, token(key, algorithm)).user_id, 1)
            other = private_key(algorithm if algorithm[:2] != "RS" else "RS256", 1)
            self.assertIn("signature", self.refused(authenticator, token(other, algorithm)))

    def test_accepts_ed448(self) -> None:
        key = private_key("EdDSA", 448)
        authenticator = self.make(algorithms=("EdDSA",), public_key_file=self.file(public_pem(key)))
        self.assertEqual(self.accepted(authenticator, token(key, "EdDSA")).user_id, 1)

    def test_accepts_several_algorithms_of_one_family_and_no_other_of_it(self) -> None:
        authenticator = self.make(algorithms=("HS256", "HS512"))
        self.accepted(authenticator, token(SECRET, "HS256"))
        self.accepted(authenticator, token(SECRET, "HS512"))
        self.assertIn("algorithm", self.refused(authenticator, token(SECRET, "HS384")))

    def test_accepts_any_of_several_keys_in_a_file_while_one_replaces_another(self) -> None:
        old, new = private_key("ES256"), private_key("ES256", 1)
        path = self.file(public_pem(old) + b"\n# the next one\n" + public_pem(new))
        authenticator = self.make(algorithms=("ES256",), public_key_file=path)
        for key in (old, new):
            self.accepted(authenticator, token(key, "ES256", {"kid": "whatever"}))

    def test_takes_a_secret_from_a_file_without_the_line_end(self) -> None:
        for end in (b"", b"\n", b"\r\n"):
            self.accepted(self.make(secret_file=self.file(SECRET.encode() + end)), token())


class Explained(Case):
    """How a refusal can be explained: see :class:`~notify.interfaces.IExplainer`."""

    def test_whom_a_refused_token_names_whatever_is_wrong_with_it(self) -> None:
        made = self.make(audience="here")
        for wrong in (
            token(id=7, workspace_id="acme", exp=1),
            token(id=7, workspace_id="acme"),
            token(id=7, workspace_id="acme", exp=1, aud="elsewhere"),
            token(id=7, workspace_id="acme", exp=NOW + 60)[:-4] + "AAAA",
            raw_token({"alg": "HS256", "typ": "at+jwt"}, {"id": 7, "workspace_id": "acme"}),
        ):
            self.refused(made, wrong)
            self.assertEqual(made.claims(wrong), ("acme", 7))

    def test_nobody_where_it_cannot_be_read(self) -> None:
        made = self.make(max_token=Size(400))
        for wrong in (
            "opaque", "a.b.c", token(id=7, workspace_id=1.5), token(id=True, workspace_id=1), token(id="no id!", workspace_id=1),
            token(id=7, workspace_id=1, more="x" * 400),
        ):  # fmt: skip
            self.assertIsNone(made.claims(wrong), wrong)

    def test_why_a_chat_is_not_somebodys(self) -> None:
        made = self.make(chats_claim="chats")
        self.assertEqual(
            made.why_not(Identity(7, 1, chats=frozenset()), chat(1, 2)), "the token does not name this chat"
        )


class Rotation(Case):
    def test_reads_a_changed_file_again(self) -> None:
        path = self.file(SECRET.encode())
        authenticator = self.make(secret_file=path)
        new = "n" * 40
        Path(path).write_text(new)
        os.utime(path, ns=(1, 1))
        self.clock.advance(1)
        self.accepted(authenticator, token(new))
        self.refused(authenticator, token())

    def test_keeps_the_keys_when_the_file_becomes_unusable_or_vanishes_and_says_so_once(self) -> None:
        path = self.file(SECRET.encode())
        authenticator = self.make(secret_file=path)
        events: list[Any] = []
        self.patch(FileKeys, "log", Logger(observer=events.append))
        for change in (lambda: Path(path).write_text("short"), lambda: Path(path).unlink()):
            change()
            for _ in range(3):
                self.clock.advance(1)
                self.accepted(authenticator, token())
        self.assertEqual([event["log_level"] for event in events], [LogLevel.error] * 2)
        Path(path).write_text("n" * 40)
        self.clock.advance(1)
        self.accepted(authenticator, token("n" * 40))

    def test_several_secrets_by_key_id_from_a_jwks_file(self) -> None:
        old, new = "o" * 32, "n" * 32
        path = self.file(jwks(oct_jwk(old, kid="old"), oct_jwk(new, kid="new")))
        authenticator = self.make(jwks_file=path)
        self.accepted(authenticator, token(old, headers={"kid": "old"}))
        self.accepted(authenticator, token(new, headers={"kid": "new"}))
        self.assertIn("signature", self.refused(authenticator, token(old, headers={"kid": "new"})))
        Path(path).write_bytes(jwks(oct_jwk(new, kid="new")))
        self.clock.advance(1)
        self.assertIn("key", self.refused(authenticator, token(old, headers={"kid": "old"})))


class Claims(Case):
    def test_needs_an_expiry_in_the_future(self) -> None:
        authenticator = self.make()
        self.assertIn("no exp", self.refused(authenticator, token(exp=None)))
        self.accepted(authenticator, token(exp=NOW + 1))
        for exp in (NOW, NOW - 1, 0):
            self.assertIn("expired", self.refused(authenticator, token(exp=exp)))

    def test_the_time_of_day_counts_and_not_what_measures_durations(self) -> None:
        context = msgspec.structs.replace(make_context(Clock()), now=self.clock.seconds)
        authenticator = JWTAuthenticator(JWTSettings(secret=SECRET), context)
        self.accepted(authenticator, token(exp=NOW + 1))
        self.assertIn("expired", self.refused(authenticator, token(exp=NOW)))

    def test_the_leeway_lets_no_token_live_longer(self) -> None:
        self.assertIn("expired", self.refused(self.make(leeway=Duration(60)), token(exp=NOW)))

    def test_refuses_an_expiry_too_far_away(self) -> None:
        authenticator = self.make(max_lifetime=Duration(3600))
        self.accepted(authenticator, token(exp=NOW + 3600))
        self.assertIn("3600 seconds", self.refused(authenticator, token(exp=NOW + 3601)))
        self.assertIn("2592000", self.refused(self.make(), token(exp=NOW + 31 * 86400)))

    def test_refuses_times_that_are_no_times(self) -> None:
        authenticator = self.make()
        for name in ("exp", "nbf", "iat"):
            for value in ("1", True, 1e20, 2**70, -1, [], {}):
                refusal = self.refused(authenticator, raw_token({"alg": "HS256"}, claims(**{name: value})))
                self.assertIn(f"{name} is not a Unix time", refusal)
            for text in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
                payload = json.dumps(claims(**{name: 77777})).encode().replace(b"77777", text)
                self.refused(authenticator, raw_token({"alg": "HS256"}, payload))

    def test_accepts_fractions_of_a_second(self) -> None:
        identity = self.accepted(self.make(), raw_token({"alg": "HS256"}, claims(exp=NOW + 0.5)))
        self.assertEqual(identity.expires_at, NOW + 0.5)

    def test_says_when_the_token_was_issued_where_it_does(self) -> None:
        for iat, issued_at in ((NOW - 5, NOW - 5.0), (NOW - 0.5, NOW - 0.5), (None, None)):
            identity = self.accepted(self.make(), raw_token({"alg": "HS256"}, claims(iat=iat)))
            self.assertEqual(identity.issued_at, issued_at)

    def test_waits_for_nbf_and_iat_but_for_the_leeway(self) -> None:
        authenticator = self.make(leeway=Duration(5))
        for name in ("nbf", "iat"):
            self.accepted(authenticator, raw_token({"alg": "HS256"}, claims(**{name: NOW + 5})))
            refusal = self.refused(authenticator, raw_token({"alg": "HS256"}, claims(**{name: NOW + 6})))
            self.assertIn(f"not valid yet ({name})", refusal)

    def test_ids_are_64_bit_integers_or_text_that_does_not_look_like_one(self) -> None:
        authenticator = self.make()
        for name in ("id", "workspace_id"):
            for good in (0, -1, INT64_MAX, INT64_MIN, "6f1c9a52-2c5e-4b43-9d7e-0f6c4a8d1b2e", "null", "-"):
                self.accepted(authenticator, token(**{name: good}))
            for bad in (
                INT64_MAX + 1,
                INT64_MIN - 1,
                1.0,
                "1",
                "-01",
                True,
                [],
                {},
                "",
                "a.b",
                "é",
                "a" * 65,
            ):
                self.assertIn(f"'{name}'", self.refused(authenticator, token(**{name: bad})))
            self.assertIn(f"'{name}'", self.refused(authenticator, token(**{name: None})))

    def test_ids_may_be_in_other_claims(self) -> None:
        authenticator = self.make(user_claim="uid", workspace_claim="https://chat.example/ws")
        found = self.accepted(authenticator, token(**{"uid": 7, "https://chat.example/ws": 8}))
        self.assertEqual((found.user_id, found.workspace_id), (7, 8))

    def test_sub_as_the_user_is_an_id_as_text_or_a_number(self) -> None:
        authenticator = self.make(user_claim="sub")
        for good, id in (
            ("42", 42),
            ("-1", -1),
            (42, 42),
            (str(INT64_MAX), INT64_MAX),
            ("auth0-x", "auth0-x"),
        ):
            found = self.accepted(authenticator, raw_token({"alg": "HS256"}, claims(sub=good)))
            self.assertEqual(found.user_id, id)
        for bad in ("042", "+1", "1.0", "", "٣", " 1", "-0", "auth0|x", True, 1.0, str(INT64_MAX + 1)):
            self.refused(authenticator, raw_token({"alg": "HS256"}, claims(sub=bad)))

    def test_a_sub_that_is_not_the_user_is_text(self) -> None:
        self.accepted(self.make(), token(sub="abc"))
        self.assertIn("sub", self.refused(self.make(), raw_token({"alg": "HS256"}, claims(sub=1))))

    def test_checks_the_issuer_where_one_is_configured(self) -> None:
        authenticator = self.make(issuer="https://id.example")
        self.accepted(authenticator, token(iss="https://id.example"))
        for bad in (None, "https://id.example/", "", ["https://id.example"], 1):
            payload = claims() if bad is None else claims(iss=bad)
            self.assertIn("issuer", self.refused(authenticator, raw_token({"alg": "HS256"}, payload)))

    def test_checks_the_audience_and_refuses_tokens_for_others(self) -> None:
        authenticator = self.make(audience="notify")
        self.accepted(authenticator, token(aud="notify"))
        self.accepted(authenticator, token(aud=["other", "notify"]))
        for bad in (None, "other", [], "", ["notify", 1], {"notify": 1}, 1):
            payload = claims() if bad is None else claims(aud=bad)
            self.assertIn("aud", self.refused(authenticator, raw_token({"alg": "HS256"}, payload)))
        for named in ("notify", [""], "", [], 0):
            refusal = self.refused(self.make(), raw_token({"alg": "HS256"}, claims(aud=named)))
            self.assertIn("aud", refusal)

    def test_needs_the_required_claims(self) -> None:
        authenticator = self.make(required_claims=("jti", "scope"))
        self.accepted(authenticator, token(jti="x", scope=""))
        self.assertIn("'scope'", self.refused(authenticator, token(jti="x")))
        refusal = self.refused(authenticator, raw_token({"alg": "HS256"}, {**claims(jti="x"), "scope": None}))
        self.assertIn("'scope'", refusal)

    def test_the_chats_claim_bounds_what_may_be_subscribed_to(self) -> None:
        authenticator = self.make(chats_claim="chats")
        identity = self.accepted(authenticator, token(chats=[10, 11]))
        self.assertEqual(identity.chats, frozenset({10, 11}))
        self.assertTrue(self.successResultOf(authenticator.authorize(identity, chat(2, 10))))
        self.assertFalse(self.successResultOf(authenticator.authorize(identity, chat(2, 12))))
        nothing = self.accepted(authenticator, token(chats=[]))
        self.assertFalse(self.successResultOf(authenticator.authorize(nothing, chat(2, 10))))
        for bad in (None, 10, "10", ["10"], [1.0], [True], [2**63], {"10": 1}):
            self.assertIn("'chats'", self.refused(authenticator, token(chats=bad)))

    def test_without_a_chats_claim_every_chat_of_the_workspace_is_open_but_nothing_else(self) -> None:
        authenticator = self.make()
        identity = self.accepted(authenticator, token(chats=[10]))
        self.assertTrue(self.successResultOf(authenticator.authorize(identity, chat(2, 12))))
        self.assertFalse(self.successResultOf(authenticator.authorize(identity, user(2, 1))))


class Attacks(Case):
    def test_none_is_no_algorithm(self) -> None:
        authenticator = self.make()
        for alg in ("none", "None", "NONE", "nOnE", ""):
            signed = raw_token({"alg": alg, "typ": "JWT"}, claims())
            for attempt in (signed, signed.rpartition(".")[0] + "."):
                self.assertIn("algorithm", self.refused(authenticator, attempt))

    def test_a_public_key_is_no_hmac_secret(self) -> None:
        key = private_key("RS256")
        pem = public_pem(key)
        for source in (
            {"public_key_file": self.file(pem)},
            {"jwks_file": self.file(jwks(jwk("RS256", kid="a")))},
        ):
            authenticator = self.make(algorithms=("RS256",), **source)
            for secret in (pem, pem.strip(), pem.replace(b"\n", b""), b"", json.dumps(jwk("RS256")).encode()):
                for headers in ({}, {"kid": "a"}):
                    header = b64(json.dumps({"alg": "HS256", **headers}).encode())
                    signed = f"{header}.{b64(json.dumps(claims()).encode())}"
                    mac = hmac.digest(secret, signed.encode(), hashlib.sha256)
                    self.assertIn("algorithm", self.refused(authenticator, f"{signed}.{b64(mac)}"))

    def test_a_token_cannot_bring_its_own_key(self) -> None:
        attacker = private_key("ES256", 9)
        authenticator = self.make(
            algorithms=("ES256",), public_key_file=self.file(public_pem(private_key("ES256")))
        )
        for headers in (
            {"jwk": jwk("ES256", 9)},
            {"jku": "http://127.0.0.1:1/keys"},
            {"x5u": "http://127.0.0.1:1/cert"},
            {"x5c": ["AAAA"]},
            {"kid": "../../../../dev/null"},
            {"kid": "' OR 1=1 --"},
        ):
            self.assertIn("signature", self.refused(authenticator, token(attacker, "ES256", headers)))

    def test_refuses_an_empty_signature_and_one_of_zeros(self) -> None:
        for algorithm in ("ES256", "RS256", "EdDSA"):
            path = self.file(public_pem(private_key(algorithm)))
            authenticator = self.make(algorithms=(algorithm,), public_key_file=path)
            signed = token(private_key(algorithm), algorithm).rpartition(".")[0]
            for size in (0, 1, 64, 256):
                attempt = f"{signed}.{b64(bytes(size))}"
                self.assertIn("signature", self.refused(authenticator, attempt))

    def test_refuses_other_types_of_token(self) -> None:
        authenticator = self.make()
        for typ in ("JWT", "jwt", "application/jwt"):
            self.accepted(authenticator, raw_token({"alg": "HS256", "typ": typ}, claims()))
        self.accepted(authenticator, raw_token({"alg": "HS256"}, claims()))
        for typ in ("at+jwt", "JWE", "", None, 1, ["JWT"], "secevent+jwt"):
            self.assertIn(
                "typ", self.refused(authenticator, raw_token({"alg": "HS256", "typ": typ}, claims()))
            )
        access = self.make(token_types=("at+jwt",))
        self.accepted(access, raw_token({"alg": "HS256", "typ": "application/at+jwt"}, claims()))
        self.assertIn("typ", self.refused(access, raw_token({"alg": "HS256"}, claims())))

    def test_refuses_critical_extensions(self) -> None:
        for header in ({"crit": ["exp"]}, {"crit": ["b64"], "b64": False}, {"crit": []}, {"b64": True}):
            refusal = self.refused(self.make(), raw_token({"alg": "HS256", **header}, claims()))
            self.assertIn("extension", refusal)

    def test_refuses_a_name_that_occurs_twice(self) -> None:
        for payload in (
            b'{"id":1,"workspace_id":2,"exp":%d,"id":3}' % (NOW + 9),
            b'{"id":1,"workspace_id":2,"exp":%d,"\\u0069d":3}' % (NOW + 9),
            b'{"id":1,"workspace_id":2,"exp":%d,"x":{"a":1,"a":1}}' % (NOW + 9),
        ):
            self.assertIn("twice", self.refused(self.make(), raw_token({"alg": "HS256"}, payload)))
        self.assertIn(
            "twice", self.refused(self.make(), raw_token(b'{"alg":"HS256","alg":"HS256"}', claims()))
        )

    def test_refuses_a_payload_that_is_no_json_object(self) -> None:
        inner = token().encode()
        for payload in (
            b"",
            b"[]",
            b"1",
            b'"x"',
            b"null",
            b"\xff",
            b"{",
            inner,
            b'{"id":' + b"9" * 5000 + b"}",
        ):
            self.assertIn("JSON", self.refused(self.make(), raw_token({"alg": "HS256"}, payload)))
        for header in (b"", b"[]", b"null", b"\xff\xfe", b"{", b"[" * 5000):
            self.assertIn("header", self.refused(self.make(), raw_token(header, claims())))

    def test_refuses_a_payload_that_is_nested_deeper_than_json_reads(self) -> None:
        # The depth that Python can read differs between its versions: from about a thousand to tens of thousands.
        deep = b'{"id":1,"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"
        authenticator = self.make(max_token=Size(4_000_000))
        self.assertIn("JSON", self.refused(authenticator, raw_token({"alg": "HS256"}, deep)))

    def test_refuses_a_token_that_is_too_long_without_looking_at_it(self) -> None:
        authenticator = self.make(max_token=Size(1024))
        self.accepted(authenticator, token(padding="x" * 500))
        self.assertIn("longer than 1024", self.refused(authenticator, token(padding="x" * 1024)))

    def test_refuses_base64_in_any_but_its_one_form(self) -> None:
        good = token()
        header, payload, signature = good.split(".")
        last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        # Decodes to the same bytes: only unused bits differ.
        other = signature[:-1] + last[last.index(signature[-1]) + 1]
        for bad in (
            f"{header}.{payload}.{other}",
            f"{header}.{payload}.{signature}=",
            f"{header}.{payload}.{signature}\n",
            f"{header}\n.{payload}.{signature}",
            f"{header}.{payload}.{signature[:-1]}é",
            f"{header}.{payload}.!{signature}",
            f"{header}.{payload}.{signature}.{signature}",
            f"{header}.{payload}",
            f"{header}=.{payload}=.{signature}=",
        ):
            self.refused(self.make(), bad)

    def test_refuses_a_key_id_that_is_no_short_text(self) -> None:
        for kid in (1, [], {}, "k" * 257, True):
            self.assertIn("kid", self.refused(self.make(), raw_token({"alg": "HS256", "kid": kid}, claims())))

    @settings(max_examples=150)
    @given(st.data())
    def test_a_changed_character_anywhere_is_refused(self, data: st.DataObject) -> None:
        good = token()
        at = data.draw(st.integers(0, len(good) - 1))
        changed = good[:at] + data.draw(st.characters()) + good[at + 1 :]
        if changed != good:
            self.refused(self.make(), changed)

    @settings(max_examples=150)
    @given(
        st.text()
        | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}", fullmatch=True)
    )
    def test_any_text_is_refused_and_not_quoted(self, text: str) -> None:
        refusal = self.refused(self.make(), text)
        if len(text) > 12:
            self.assertNotIn(text, refusal)

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )

    @settings(max_examples=150)
    @given(
        st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "cty", "zip"]), json_values),
        st.dictionaries(
            st.sampled_from(["id", "workspace_id", "exp", "nbf", "iat", "iss", "aud", "sub", "jti", "c"]),
            json_values,
        ),
    )
    def test_signed_claims_of_any_kind_are_accepted_only_with_right_ids_and_expiry(
        self, header: dict[str, Any], payload: dict[str, Any]
    ) -> None:
        authenticator = self.make(chats_claim="c")
        result = authenticator.authenticate(raw_token({"alg": "HS256", **header}, payload), PEER)
        outcomes: list[Any] = []
        result.addBoth(outcomes.append)
        [outcome] = outcomes
        if not isinstance(outcome, Identity):
            outcome.trap(Unauthorized)
            return
        self.assertEqual((outcome.user_id, outcome.workspace_id), (payload["id"], payload["workspace_id"]))
        self.assertGreater(outcome.expires_at, NOW)


class Start(Case):
    def test_needs_exactly_one_key_source(self) -> None:
        text = self.not_started()
        self.assertIn("secret, secret_file or jwks_file", text)
        self.assertIn("NOTIFY_AUTH__JWT__SECRET", text)
        self.assertIn("public_key_file, jwks_file or jwks_url", self.not_started(algorithms=("RS256",)))
        text = self.not_started(secret=SECRET, jwks_file="x")
        self.assertIn("secret and jwks_file", text)

    def test_the_key_source_fits_the_family(self) -> None:
        self.assertIn("does not go with RS256", self.not_started(algorithms=("RS256",), secret=SECRET))
        self.assertIn("does not go with HS256", self.not_started(public_key_file="x"))
        self.assertIn("does not go with HS256", self.not_started(jwks_url="https://id.example/keys"))

    def test_algorithms_are_known_and_of_one_family(self) -> None:
        for unknown in ("none", "HS1", "hs256", "PS256", "ES256K"):
            self.assertIn(
                "known algorithms are: HS256", self.not_started(algorithms=(unknown,), secret=SECRET)
            )
        self.assertIn("HS and RS", self.not_started(algorithms=("HS256", "RS256"), secret=SECRET))
        self.assertIn("one family", self.not_started(algorithms=(), secret=SECRET))

    def test_short_secrets_are_refused_without_being_quoted(self) -> None:
        for algorithm, least in (("HS256", 32), ("HS384", 48), ("HS512", 64)):
            secret = "q" * (least - 1)
            text = self.not_started(algorithms=(algorithm,), secret=secret)
            self.assertIn(f"at least {least}", text)
            self.assertNotIn(secret, text)
            self.make(algorithms=(algorithm,), secret="q" * least)
        self.assertIn("64", self.not_started(algorithms=("HS256", "HS512"), secret="q" * 63))
        self.assertIn("at least 32", self.not_started(secret_file=self.file(b"q" * 31 + b"\n")))

    def test_a_key_pair_is_no_secret(self) -> None:
        for pem in (public_pem(private_key("ES256")), private_pem(private_key("ES256"))):
            self.assertIn("not a secret", self.not_started(secret=pem.decode()))
            self.assertIn("not a secret", self.not_started(secret_file=self.file(pem)))

    def test_key_files_are_readable_and_hold_fitting_public_keys(self) -> None:
        def start(data: bytes, algorithm: str = "RS256") -> str:
            return self.not_started(algorithms=(algorithm,), public_key_file=self.file(data))

        self.assertIn(
            "No such file", self.not_started(algorithms=("RS256",), public_key_file="/nonexistent/key.pem")
        )
        self.assertIn("no PEM public key", start(b""))
        self.assertIn("no PEM public key", start(bytes(range(256))))
        self.assertIn("private key", start(private_pem(private_key("RS256"))))
        self.assertIn(
            "cannot be read", start(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
        )
        self.assertIn("other than", start(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
        self.assertIn("cannot use", start(public_pem(private_key("ES256"))))
        self.assertIn("cannot use", start(public_pem(private_key("ES256")), "ES384"))
        self.assertIn("longer than", start(bytes(300_000)))

    def test_small_rsa_keys_are_refused(self) -> None:
        text = self.not_started(algorithms=("RS256",), public_key_file=self.file(RSA_1024))
        self.assertIn("1024 bits", text)

    def test_claims_have_names(self) -> None:
        self.assertIn("user_claim", self.not_started(secret=SECRET, user_claim=""))
        self.assertIn("workspace_claim", self.not_started(secret=SECRET, workspace_claim=""))
        self.assertIn("token_types", self.not_started(secret=SECRET, token_types=()))

    def test_key_urls_are_encrypted(self) -> None:
        def start(url: str, **settings: Any) -> str:
            return self.not_started(algorithms=("RS256",), jwks_url=url, **settings)

        self.assertIn("use https", start("http://id.example/keys"))
        for bad in (
            "id.example/keys",
            "ftp://id.example",
            "https://",
            "https://[",
            "https://é.example",
            "x:y:z",
        ):
            self.assertIn("URL", start(bad))
        self.assertIn("user name", start("https://me:secret@id.example/"))
        self.assertNotIn("secret", start("https://me:secret@id.example/"))
        for good in ("https://id.example/k", "http://127.0.0.1:1/k", "http://[::1]/k", "http://localhost/k"):
            self.make(algorithms=("RS256",), jwks_url=good)
        self.make(algorithms=("RS256",), jwks_url="http://id.example/k", jwks_allow_http=True)


class Interoperation(Case):
    def test_reads_the_example_of_rfc_7515_and_refuses_it_as_expired(self) -> None:
        # RFC 7515, appendix A.1: typ before alg, line ends inside header and payload.
        example = (
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9."
            "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ."
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
        )
        k = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
        authenticator = self.make(jwks_file=self.file(jwks({"kty": "oct", "k": k})))
        self.assertIn("expired", self.refused(authenticator, example))
        self.clock.rightNow = 1300819379.0
        self.assertIn("'id'", self.refused(authenticator, example))

    def test_agrees_with_pyjwt_about_what_a_signature_is(self) -> None:
        made = token(SECRET, "HS512")
        self.assertEqual(jwt.decode(made, SECRET, ["HS512"], {"verify_exp": False})["id"], 1)
        self.accepted(self.make(algorithms=("HS512",)), made)
