"""``notify connections``: where a user is connected."""

from __future__ import annotations

import argparse
import time
from typing import Any

from notify.cli.api import call
from notify.cli.cluster import duration, options_of, show, told
from notify.cli.terminal import Terminal, identifier

SUMMARY = "show a user's connections, on all nodes"
DESCRIPTION = """\
Ask any node where a user is connected, and to which chats. The exit status is 3 if an expected node did not answer."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify connections --user 7
  notify connections --workspace 1 --user 7 --json"""

_COLUMNS = (
    "NODE",
    "CONNECTION",
    "WORKSPACE",
    "SINCE",
    "FROM",
    "ENCODING",
    "QUEUED",
    "HEARD",
    "ID",
    "CLIENT",
    "CHATS",
)
_MOST_CHATS = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--workspace", type=identifier, metavar="ID", help="only in this workspace")
    parser.add_argument("--user", type=identifier, required=True, metavar="ID", help="the user")
    options_of(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    query = {"user_id": options.user}
    if options.workspace is not None:
        query["workspace_id"] = options.workspace
    answer = call(options, terminal, "/v1/connections", query)
    found = answer["connections"]
    if not options.json:
        now = time.time()
        show(terminal, _COLUMNS, [_row(one, now) for one in found])
        if answer["count"] > len(found):
            terminal.say(f"notify connections: the oldest {len(found)} of {answer['count']}.")
    return told(options, terminal, answer)


def _row(one: dict[str, Any], now: float) -> list[object]:
    chats = [str(chat_id) for chat_id in one["chats"][:_MOST_CHATS]]
    more = one["subscriptions"] - len(chats)
    return [
        one["node"],
        one["connection_id"],
        one["workspace_id"],
        f"{duration(max(0.0, now - one['opened']))} ago",
        one["peer"],
        one["encoding"],
        one["queued"],
        f"{duration(one['silent'])} ago",
        # A node of an older version does not report these.
        one.get("client_id", ""),
        one.get("client", ""),
        ", ".join(chats) + (f" and {more} more" if more > 0 else ""),
    ]
