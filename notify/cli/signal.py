"""``notify signal``: send a user's signal to the members of a chat through the HTTP API."""

from __future__ import annotations

import argparse
import json

from notify.cli.api import api_options, call
from notify.cli.terminal import CommandError, Terminal, identifier

SUMMARY = (
    "send a chat's members a signal in a user's name, for example that they are typing; it is not stored"
)
DESCRIPTION = """\
Send a signal to the members of a chat whose clients have the feature 'signals', on all nodes, but not to the user who
signals. Status 0 means that the signal was handed to the broker; it does not mean that anybody received it."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify signal --chat 10 --user 7 --kind typing
  notify signal --workspace 1 --chat 10 --user 7 --kind cursor --data '{"x": 3, "y": 4}'"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the workspace (default: 1)"
    )
    parser.add_argument("--chat", type=identifier, required=True, metavar="ID", help="the chat")
    parser.add_argument("--user", type=identifier, required=True, metavar="ID", help="the user who signals")
    parser.add_argument("--kind", required=True, metavar="TEXT", help="the signal's kind, such as typing")
    parser.add_argument("--data", metavar="JSON", help="the signal's data (default: null)")
    api_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`CommandError`."""
    try:
        data = json.loads(options.data or "null", parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise CommandError("--data is not JSON: write text as '\"text\"'.") from None
    body = {"workspace_id": options.workspace, "chat_id": options.chat, "user_id": options.user}
    call(options, terminal, "/v1/signal", body={**body, "kind": options.kind, "data": data})
    return 0


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
