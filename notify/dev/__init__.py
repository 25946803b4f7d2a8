"""``twistd notify --dev``: a server to try out, with keys made for this run and commands to paste.

It hands a token to whoever asks. So it is for one machine alone, knows no key that is good anywhere else, and goes near
no broker that others use.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from notify import config
from notify.auth.tokens import issue
from notify.config import Config
from notify.ids import Id

TOKEN_SECONDS = 24 * 3600.0

#: tables that are not taken from the environment: real keys, and what others use
OWN = tuple(f"{config.PREFIX}{table}__" for table in ("AUTH", "API", "BROKER", "REGISTRY"))


def left_out(environ: Mapping[str, str]) -> list[str]:
    """The variables of the environment that would be obeyed without ``--dev``, and are not with it."""
    return sorted(name for name in environ if name.upper().startswith(OWN))


def configuration(environ: Mapping[str, str]) -> Config:
    """The defaults on loopback, with the demo page and fresh keys; the environment overrides what is not in :data:`OWN`.

    Raises ``ConfigError``.
    """
    made = {
        "NOTIFY_LISTEN__PUBLIC": "tcp:8080:interface=127.0.0.1",
        "NOTIFY_LISTEN__DEMO": "true",
        "NOTIFY_AUTH__JWT__SECRET": secrets.token_hex(32),
        "NOTIFY_API__KEYS": secrets.token_hex(16),
        "NOTIFY_DRAIN__DURATION": "0s",
    }
    unused = left_out(environ)
    return config.load(
        None, {**made, **{name: value for name, value in environ.items() if name not in unused}}
    )


def issue_token(settings: Config, user_id: Id, seconds: float = TOKEN_SECONDS, workspace_id: Id = 1) -> str:
    """A token for the server that runs with these settings."""
    secret = settings.auth.tables["jwt"]["secret"]
    return issue(str(secret), user_id, workspace_id, seconds, time.time())


def instructions(
    settings: Config, public_port: int, internal_port: int, environ: Mapping[str, str] = MappingProxyType({})
) -> str:
    """What to show on the console: the address, a token, and three lines that make a message arrive."""
    command = os.path.relpath(Path(sys.executable).parent / "notify")
    token, key = issue_token(settings, 1), settings.api.keys[0]
    listen = publish = ""
    if public_port != 8080:
        listen = f" --url ws://127.0.0.1:{public_port}/ws"
    if internal_port != 8081:
        publish = f" --url http://127.0.0.1:{internal_port}"
    unused = left_out(environ)
    note = f"\nNot used of the environment: {', '.join(unused)}.\n" if unused else ""
    return f"""
notify is ready, for you to try out: memory broker, keys made for this run, reachable from this machine only.
{note}
  WebSocket   ws://127.0.0.1:{public_port}/ws
  demo page   http://127.0.0.1:{public_port}/
  HTTP API    http://127.0.0.1:{internal_port}/openapi.json
  admin page  http://127.0.0.1:{internal_port}/admin
  token       {token}
              (user 1 of workspace 1, for a day)

Paste these three lines into a second terminal, in this folder, and a message arrives:

  export NOTIFY_TOKEN={token} NOTIFY_API_KEY={key}
  {command} listen --chat 1{listen} & sleep 2
  {command} publish --chat 1 --content 'Hello from notify'{publish}

Ctrl-C stops the server.
"""
