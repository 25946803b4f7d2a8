"""``notify token``: create a token for one user, signed as a server's configuration requires."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from notify.cli.terminal import (
    CommandError,
    Terminal,
    duration,
    identifier,
    identifiers,
    read_file,
)

if TYPE_CHECKING:
    from notify.auth.jwt import JWTSettings

SUMMARY = "make a token for a user"
DESCRIPTION = """\
Make a token for one user of one workspace and print it. Its claims, and the secret that signs it, come from the
server's configuration: --config, and the environment (NOTIFY_AUTH__JWT__SECRET and so on). A server that has only
public keys cannot sign: give the private key with --private-key-file.

Before the token is printed, it is checked as the server would check it."""
EXAMPLES = """\
  notify token --config /etc/notify/notify.toml --user 1 --workspace 1
  notify token --secret-file secret --user 1 --ttl 7d
  export NOTIFY_TOKEN=$(notify token --config notify.toml --user 1 --chats 10,11)
  notify token --config notify.toml --private-key-file key.pem --key-id 2024-06 --user 1
  notify token --config notify.toml --user 1 --claim role='"admin"'"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--user", type=identifier, required=True, metavar="ID", help="the user's id")
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the user's workspace (default: 1)"
    )
    parser.add_argument(
        "--ttl",
        type=duration,
        default=3600.0,
        metavar="TIME",
        help="how long the token is valid: 90s, 12h, 7d (default: 1h)",
    )
    parser.add_argument(
        "--chats", type=identifiers, metavar="ID,ID...", help="limit the token to these chats"
    )
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="an additional claim; may be repeated",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="the server's configuration; may be repeated for several files",
    )
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--secret-file", metavar="FILE", help="sign with this secret ('-': standard input)")
    key.add_argument("--private-key-file", metavar="FILE", help="sign with this PEM key (RS, ES, EdDSA)")
    parser.add_argument(
        "--algorithm",
        metavar="ALG",
        help="the algorithm, such as HS512 (default: the first in the configuration)",
    )
    parser.add_argument("--key-id", metavar="KID", help="the key's id, if the server has several keys")


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`CommandError` and ``StartError``."""
    import jwt

    from notify.auth.tokens import issue

    settings = _settings(options, terminal)
    algorithm = options.algorithm or settings.algorithms[0]
    if options.chats is not None and options.config is not None and not settings.chats_claim:
        raise CommandError(
            "The server ignores chats in tokens: set chats_claim in its [auth.jwt], or leave out --chats."
        )
    key, key_id = _key(options, settings, algorithm, terminal)
    claims: dict[str, Any] = {}
    if settings.issuer:
        claims["iss"] = settings.issuer
    if settings.audience:
        claims["aud"] = settings.audience
    claims.update(map(_claim, options.claim))
    headers = {"typ": settings.token_types[0]} if settings.token_types else {}
    if key_id is not None:
        headers["kid"] = key_id
    try:
        token = issue(
            key,
            options.user,
            options.workspace,
            options.ttl,
            time.time(),
            options.chats,
            algorithm=algorithm,
            user_claim=settings.user_claim,
            workspace_claim=settings.workspace_claim,
            chats_claim=settings.chats_claim or "chats",
            headers=headers,
            claims=claims,
        )
    except (jwt.PyJWTError, ValueError, TypeError, NotImplementedError):
        raise CommandError(f"This key cannot sign with {algorithm}: check --algorithm and the key.") from None
    if not options.secret_file and not settings.jwks_url:
        _check(settings, token)
    terminal.out(token)
    return 0


def _settings(options: argparse.Namespace, terminal: Terminal) -> JWTSettings:
    """The server's configuration for tokens."""
    from notify.auth.backend import WebhookSettings
    from notify.auth.jwt import JWTSettings
    from notify.config import convert, load

    config = load(options.config, terminal.environ)
    name = config.auth.plugin
    table = config.auth.tables.get(name, {})
    if name == "webhook":
        webhook = convert(table, WebhookSettings, config.source, "auth.webhook")
        if webhook.authenticate_url:
            raise CommandError(
                f"{config.source}: the backend checks tokens here (authenticate_url): get one from the backend."
            )
        return webhook.jwt
    if name != "jwt":
        raise CommandError(
            f"{config.source}: notify cannot make tokens for the plugin '{name}': get one from the system that issues them."
        )
    return convert(table, JWTSettings, config.source, "auth.jwt")


def _key(
    options: argparse.Namespace, settings: JWTSettings, algorithm: str, terminal: Terminal
) -> tuple[Any, str | None]:
    """The signing key and its key id."""
    from notify.auth.keys import FAMILIES, UnusableKey, jwks_keys, secret_key

    if algorithm not in FAMILIES:
        raise CommandError(f"Unknown algorithm '{algorithm}'; known algorithms are: {', '.join(FAMILIES)}.")
    if FAMILIES[algorithm] != "HS":
        if options.private_key_file is None:
            raise CommandError(
                f"{algorithm} tokens are signed with a private key: use --private-key-file FILE."
            )
        return read_file(options.private_key_file, terminal), options.key_id
    if options.private_key_file is not None:
        raise CommandError(f"{algorithm} tokens are signed with a secret: use --secret-file FILE.")
    try:
        if path := options.secret_file or settings.secret_file:
            data = read_file(path, terminal).removesuffix(b"\n").removesuffix(b"\r")
        elif settings.jwks_file:
            keys, _ = jwks_keys(read_file(settings.jwks_file, terminal), frozenset({algorithm}))
            found = keys.candidates(options.key_id, algorithm)
            if not found:
                raise CommandError(f"{settings.jwks_file} has no key '{options.key_id}' for {algorithm}.")
            return found[-1].material, options.key_id or found[-1].id
        else:
            data = settings.secret.encode()
        if not data:
            raise CommandError(
                "There is no secret to sign with: give the server's configuration with --config FILE, or the "
                "secret with --secret-file FILE or in $NOTIFY_AUTH__JWT__SECRET."
            )
        return secret_key(data, frozenset({algorithm})).material, options.key_id
    except UnusableKey as error:
        raise CommandError(f"The secret {error}.") from None


def _claim(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise CommandError(f"'{text}' is not a claim: write NAME=JSON, such as --claim role='\"admin\"'.")
    try:
        return name, json.loads(value)
    except ValueError:
        raise CommandError(
            f"The value of the claim '{name}' is not JSON: write text as '\"text\"'."
        ) from None


def _check(settings: JWTSettings, token: str) -> None:
    """Refuse to print a token that this server would not accept."""
    from random import Random

    from twisted.internet.task import Clock

    from notify.auth.jwt import JWTAuthenticator
    from notify.components import Context
    from notify.config import Config
    from notify.errors import Unauthorized
    from notify.identity import Peer
    from notify.observe.metrics import Metrics

    context = Context(Clock(), Metrics(), Random(), "cli", Config())  # noqa: S311 - nothing here is random
    results: list[Any] = []
    JWTAuthenticator(settings, context).authenticate(token, Peer("127.0.0.1")).addBoth(results.append)
    error = getattr(results[0], "value", None)
    if isinstance(error, Unauthorized):
        raise CommandError(f"The server of this configuration would refuse this token: {error}.")
