"""``notify disconnect``: close a user's connections on all nodes."""

from __future__ import annotations

import argparse

from notify.cli.api import call
from notify.cli.cluster import options_of, told
from notify.cli.terminal import Terminal, identifier

SUMMARY = "close a user's connections, on all nodes"
DESCRIPTION = """\
Close a user's connections with 4503, after which clients stay away, or with --reconnect have them come back in a moment.
First make sure that the user gets no new token: a client with a valid token may come back. The exit status is 3 if an
expected node did not answer."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify disconnect --workspace 1 --user 7
  notify disconnect --user 7 --reconnect"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the workspace (default: 1)"
    )
    parser.add_argument("--user", type=identifier, required=True, metavar="ID", help="the user")
    parser.add_argument(
        "--reconnect", action="store_true", help="have the clients come back within some seconds"
    )
    options_of(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    body = {"workspace_id": options.workspace, "user_id": options.user, "reconnect": options.reconnect}
    answer = call(options, terminal, "/v1/disconnect", body=body)
    return told(options, terminal, answer, f"{answer['closed']} closed")
