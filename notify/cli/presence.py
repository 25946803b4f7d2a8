"""``notify presence``: who is in a chat, on any node."""

from __future__ import annotations

import argparse
import json

from notify.cli.api import api_options, call
from notify.cli.terminal import Terminal, identifier

SUMMARY = "show who is in a chat"
DESCRIPTION = """\
Ask the HTTP API who is connected and subscribed to a chat, on any node, and print one JSON line per user."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify presence --chat 1
  notify presence --workspace 7 --chat 1 --url http://10.0.0.5:8081"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the workspace (default: 1)"
    )
    parser.add_argument("--chat", type=identifier, required=True, metavar="ID", help="the chat")
    api_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    query = {"workspace_id": options.workspace, "chat_id": options.chat}
    for user in call(options, terminal, "/v1/presence", query)["users"]:
        terminal.out(json.dumps(user))
    return 0
