"""``notify presence``: who is in a chat, on any node."""

from __future__ import annotations

import argparse
import json
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

from notify.cli.terminal import (
    API_URL,
    CommandError,
    Terminal,
    identifier,
    secret,
    secret_options,
    url,
    url_option,
)

SUMMARY = "show who is in a chat"
DESCRIPTION = """\
Ask the HTTP API who is connected and subscribed to a chat, on any node, and print one JSON line a user."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify presence --chat 1
  notify presence --workspace 7 --chat 1 --url http://10.0.0.5:8081"""

_TIMEOUT = 10.0
_MOST_BYTES = 16 * 1024 * 1024


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the workspace (default: 1)"
    )
    parser.add_argument("--chat", type=identifier, required=True, metavar="ID", help="the chat")
    url_option(parser, "the HTTP API's address", "NOTIFY_API_URL", API_URL)
    secret_options(parser, "api-key", "the API key", "NOTIFY_API_KEY")


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`CommandError`."""
    key = secret(options, terminal, "api-key", "API key", "NOTIFY_API_KEY")
    query = urlencode({"workspace_id": options.workspace, "chat_id": options.chat})
    address = url(options, terminal, "NOTIFY_API_URL", API_URL).rstrip("/")
    for user in ask(f"{address}/v1/presence?{query}", key)["users"]:
        terminal.out(json.dumps(user))
    return 0


class _NoRedirect(HTTPRedirectHandler):
    """The API key is for the server that was named and no other."""

    def redirect_request(self, *_: object) -> None:
        return None


def ask(address: str, key: str) -> dict[str, list[dict[str, int]]]:
    """The HTTP API's answer to a GET. Raises :class:`CommandError`."""
    if not address.startswith(("http://", "https://")):
        raise CommandError("--url is wrong: the address of the HTTP API is like http://127.0.0.1:8081.")
    request = Request(address, headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - http(s) only, see above
    try:
        with build_opener(_NoRedirect).open(request, timeout=_TIMEOUT) as response:
            found: dict[str, list[dict[str, int]]] = json.loads(response.read(_MOST_BYTES))
    except HTTPError as error:
        try:
            reason = json.loads(error.read(_MOST_BYTES))["error"]["message"]
        except (OSError, ValueError, KeyError, TypeError):
            reason = f"HTTP {error.code}"
        raise CommandError(f"The server refused: {reason}.") from None
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise CommandError(f"No answer ({reason}); is --url right, and does the server run?") from None
    except ValueError:
        raise CommandError(
            "The answer is not JSON: --url is not the address of an HTTP API of notify."
        ) from None
    return found
