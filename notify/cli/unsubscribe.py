"""``notify unsubscribe``: end a user's subscriptions to a chat on all nodes."""

from __future__ import annotations

import argparse

from notify.cli.api import call
from notify.cli.cluster import options_of, told
from notify.cli.terminal import Terminal, identifier

SUMMARY = "end a user's subscriptions to a chat, on all nodes"
DESCRIPTION = """\
End a user's subscriptions to a chat. The clients get the error 'forbidden', and may ask again, so first make sure that
the authenticator refuses them; its earlier answers are forgotten. The exit status is 3 if an expected node did not
answer."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify unsubscribe --workspace 1 --user 7 --chat 10"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the workspace (default: 1)"
    )
    parser.add_argument("--user", type=identifier, required=True, metavar="ID", help="the user")
    parser.add_argument("--chat", type=identifier, required=True, metavar="ID", help="the chat")
    options_of(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    body = {"workspace_id": options.workspace, "user_id": options.user, "chat_id": options.chat}
    answer = call(options, terminal, "/v1/unsubscribe", body=body)
    return told(options, terminal, answer, f"{answer['ended']} ended")
