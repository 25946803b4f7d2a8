"""``notify revoke``: make all nodes refuse a user's tokens."""

from __future__ import annotations

import argparse
import math

from notify.cli.api import call
from notify.cli.cluster import options_of, told
from notify.cli.terminal import Terminal, identifier

SUMMARY = "refuse a user's existing tokens, on all nodes"
DESCRIPTION = """\
Have all nodes refuse a user's tokens that were issued before now, or before a given time. Connections that use such a
token are closed with 4002, after which clients ask for a new one. If the user should stay out, first make sure that
they get no new token. The exit status is 1 if the revocation could not be stored for nodes that start later, and 3 if
an expected node did not answer."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify revoke --workspace 1 --user 7
  notify revoke --user 7 --before 1700000000"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the workspace (default: 1)"
    )
    parser.add_argument("--user", type=identifier, required=True, metavar="ID", help="the user")
    parser.add_argument(
        "--before", type=_time, metavar="TIME", help="tokens issued before this Unix time (default: now)"
    )
    options_of(parser)


def _time(text: str) -> float:
    try:
        time = float(text)
    except ValueError:
        time = math.nan
    if not 0 <= time < math.inf:
        raise argparse.ArgumentTypeError("a Unix time in seconds")
    return time


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    body = {"workspace_id": options.workspace, "user_id": options.user}
    if options.before is not None:
        body["before"] = options.before
    answer = call(options, terminal, "/v1/revoke", body=body)
    status = told(options, terminal, answer, f"{answer['closed']} closed")
    if not answer["kept"]:
        terminal.say(
            "notify revoke: the server has no state directory, so this holds only until it restarts."
        )
    return status
