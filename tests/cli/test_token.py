"""``notify token``: a server with the same configuration accepts the tokens that it makes."""

import io
import json
from contextlib import redirect_stderr
from typing import Any

import jwt
from twisted.trial.unittest import SynchronousTestCase

from tests.support.auth import (
    SECRET,
    jwk,
    jwks,
    oct_jwk,
    private_key,
    private_pem,
    public_pem,
    temporary_file,
)
from tests.support.cli import Result, command


class Token(SynchronousTestCase):
    def config(self, text: str) -> str:
        return temporary_file(self, text.encode())

    def made(self, result: Result) -> tuple[dict[str, Any], dict[str, Any]]:
        self.assertEqual((result.status, result.err), (0, ""))
        token = result.out.strip()
        return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})

    def refused(self, *arguments: str, **environ: str) -> str:
        result = command("token", *arguments, **environ)
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertTrue(result.err.startswith("notify token: "), result.err)
        self.assertEqual(result.err.count("\n"), 1)
        return result.err

    def test_signs_with_the_secret_of_the_environment(self) -> None:
        result = command("token", "--user", "7", "--ttl", "90s", NOTIFY_AUTH__JWT__SECRET=SECRET)
        header, claims = self.made(result)
        self.assertEqual(header, {"alg": "HS256", "typ": "JWT"})
        self.assertEqual((claims["id"], claims["workspace_id"], claims["sub"]), (7, 1, "7"))
        self.assertEqual(claims["exp"] - claims["iat"], 90)
        jwt.decode(result.out.strip(), SECRET, ["HS256"])

    def test_a_plain_number_is_one_of_seconds(self) -> None:
        result = command("token", "--user", "7", "--ttl", "90", NOTIFY_AUTH__JWT__SECRET=SECRET)
        claims = jwt.decode(result.out.strip(), SECRET, algorithms=["HS256"])
        self.assertEqual(claims["exp"] - claims["iat"], 90)

    def test_says_what_the_configuration_asks_for(self) -> None:
        path = self.config(
            f"""
            [auth.jwt]
            algorithms = ["HS384"]
            secret_file = "{temporary_file(self, SECRET.encode())}"
            issuer = "me"
            audience = "notify"
            user_claim = "sub"
            workspace_claim = "ws"
            chats_claim = "rooms"
            required_claims = ["role"]
            token_types = ["at+jwt"]
            """
        )
        header, claims = self.made(
            command(
                "token",
                *("--config", path, "--user", "-7", "--workspace", "9"),
                *("--chats", "11,10", "--claim", 'role="admin"'),
            )
        )
        self.assertEqual(header, {"alg": "HS384", "typ": "at+jwt"})
        found = {name: claims[name] for name in claims if name not in ("iat", "exp")}
        self.assertEqual(
            found, {"iss": "me", "aud": "notify", "sub": "-7", "ws": 9, "rooms": [10, 11], "role": "admin"}
        )

    def test_signs_with_a_private_key(self) -> None:
        for algorithm in ("RS256", "ES512", "EdDSA"):
            key = private_key(algorithm)
            path = self.config(
                f"""
                [auth.jwt]
                algorithms = ["{algorithm}"]
                public_key_file = "{temporary_file(self, public_pem(key))}"
                """
            )
            result = command(
                "token",
                *("--config", path, "--user", "1", "--key-id", "k1"),
                *("--private-key-file", temporary_file(self, private_pem(key))),
            )
            header, _ = self.made(result)
            self.assertEqual((header["alg"], header["kid"]), (algorithm, "k1"))

    def test_takes_a_secret_of_a_set_by_its_id(self) -> None:
        keys = temporary_file(self, jwks(oct_jwk("o" * 32, kid="old"), oct_jwk("n" * 32, kid="new")))
        path = self.config(f'[auth.jwt]\njwks_file = "{keys}"')
        header, _ = self.made(command("token", "--config", path, "--user", "1"))
        self.assertEqual(header["kid"], "new")
        header, _ = self.made(command("token", "--config", path, "--user", "1", "--key-id", "old"))
        self.assertEqual(header["kid"], "old")
        self.assertIn("no key 'x'", self.refused("--config", path, "--user", "1", "--key-id", "x"))

    def test_reads_a_secret_from_a_file_or_standard_input(self) -> None:
        for path in (temporary_file(self, SECRET.encode() + b"\n"), "-"):
            result = command("token", "--user", "1", "--secret-file", path, stdin=SECRET.encode())
            self.made(result)
            jwt.decode(result.out.strip(), SECRET, ["HS256"])

    def test_with_a_secret_alone_the_chats_are_in_the_claim_chats(self) -> None:
        path = temporary_file(self, SECRET.encode())
        _, claims = self.made(command("token", "--user", "1", "--secret-file", path, "--chats", "5"))
        self.assertEqual(claims["chats"], [5])

    def test_serves_the_webhook_plugin_that_verifies_tokens_itself(self) -> None:
        table = f'[auth]\nplugin = "webhook"\n[auth.webhook]\nauthorize_url = "http://b/"\n[auth.webhook.jwt]\nsecret = "{SECRET}"'
        self.made(command("token", "--config", self.config(table), "--user", "1"))
        backend = '[auth]\nplugin = "webhook"\n[auth.webhook]\nauthenticate_url = "http://b/"'
        self.assertIn(
            "get one from the backend", self.refused("--config", self.config(backend), "--user", "1")
        )

    def test_prints_no_token_that_the_server_would_refuse(self) -> None:
        path = self.config(f'[auth.jwt]\nsecret = "{SECRET}"\nmax_lifetime = "1h"')
        self.assertIn("3600 seconds", self.refused("--config", path, "--user", "1", "--ttl", "2h"))
        path = self.config(f'[auth.jwt]\nsecret = "{SECRET}"\nrequired_claims = ["role"]')
        self.assertIn("'role'", self.refused("--config", path, "--user", "1"))
        other = temporary_file(self, private_pem(private_key("ES256", 1)))
        keys = temporary_file(self, jwks(jwk("ES256")))
        path = self.config(f'[auth.jwt]\nalgorithms = ["ES256"]\njwks_file = "{keys}"')
        self.assertIn("signature", self.refused("--config", path, "--user", "1", "--private-key-file", other))

    def test_says_what_is_missing_or_wrong(self) -> None:
        self.assertIn("--config FILE", self.refused("--user", "1"))
        secret = temporary_file(self, b"short")
        self.assertIn("at least 32", self.refused("--user", "1", "--secret-file", secret))
        self.assertIn("No such file", self.refused("--user", "1", "--secret-file", "/nonexistent"))
        good = {"NOTIFY_AUTH__JWT__SECRET": SECRET}
        self.assertIn("--private-key-file", self.refused("--user", "1", "--algorithm", "RS256", **good))
        self.assertIn("known algorithms are", self.refused("--user", "1", "--algorithm", "none", **good))
        self.assertIn("NAME=JSON", self.refused("--user", "1", "--claim", "role", **good))
        self.assertIn("not JSON", self.refused("--user", "1", "--claim", "role=admin", **good))
        self.assertIn("use --secret-file", self.refused("--user", "1", "--private-key-file", secret))
        path = self.config(f'[auth.jwt]\nsecret = "{SECRET}"')
        self.assertIn("chats_claim", self.refused("--config", path, "--user", "1", "--chats", "1"))
        self.assertIn(
            "unknown key", self.refused("--config", self.config("[auth.jwt]\nkey = 1"), "--user", "1")
        )
        junk = temporary_file(self, b"junk")
        arguments = ("--user", "1", "--algorithm", "RS256", "--private-key-file", junk)
        self.assertIn("cannot sign", self.refused(*arguments))

    def test_ids_and_durations_are_checked_by_the_command_line(self) -> None:
        for arguments in (
            ["--user", "x."],
            ["--user", "-0"],
            ["--user", str(2**63)],
            ["--user", "1", "--ttl", "soon"],
            [],
        ):
            with redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit) as end:
                command("token", *arguments)
            self.assertIn("error: ", said.getvalue())
            self.assertEqual(end.exception.code, 2)

    def test_what_it_prints_is_one_line_for_a_shell(self) -> None:
        result = command("token", "--user", "1", NOTIFY_AUTH__JWT__SECRET=SECRET)
        self.assertEqual(len(result.out.split()), 1)
        self.assertNotIn(SECRET, json.dumps(result.__dict__))
