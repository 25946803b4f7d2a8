"""``notify topics``: the chats of a workspace, the busiest first."""

from __future__ import annotations

import argparse

from notify.cli.api import call
from notify.cli.cluster import number, options_of, show, told
from notify.cli.terminal import Terminal, identifier
from notify.cli.terminal import number as whole

SUMMARY = "show the chats of a workspace that have connected members, the busiest first"
DESCRIPTION = """\
Ask any node which users are in which chats of a workspace, on all nodes. Rates are messages per second, measured over
one second. The exit status is 3 if an expected node did not answer."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify topics
  notify topics --workspace 7 --most 100"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the workspace (default: 1)"
    )
    parser.add_argument("--most", type=whole, default=20, metavar="N", help="rows of the table (default: 20)")
    options_of(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    answer = call(options, terminal, "/v1/topics", {"workspace_id": options.workspace})
    found = answer["topics"]
    if not options.json:
        rows = [
            (one["chat_id"], number(one["rate"]), one["members"], _where(one["nodes"]))
            for one in found[: max(0, options.most)]
        ]
        show(terminal, ("CHAT", "MESSAGES/S", "MEMBERS", "ON"), rows)
        if len(rows) < len(found) or not answer["complete"]:
            terminal.say(
                f"notify topics: {len(rows)} of {'' if answer['complete'] else 'more than '}{len(found)}."
            )
    return told(options, terminal, answer)


def _where(nodes: dict[str, int]) -> str:
    return ", ".join(f"{node}: {members}" for node, members in sorted(nodes.items()))
