"""``notify shed``: move a share of a node's clients to other nodes."""

from __future__ import annotations

import argparse
import json

from notify.cli.api import call
from notify.cli.cluster import options_of
from notify.cli.terminal import Terminal

SUMMARY = "send a share of a node's clients to the others"
DESCRIPTION = """\
Have a share of a node's clients reconnect with another `client_id`, which the proxy hashes, so that most of them reach
other nodes. Use it when a node has more than its share, for example after a rolling restart. The clients are chosen at
random, leave at the rate of a drain, and miss nothing."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify nodes
  notify shed --node node-2 --share 0.3"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--node", required=True, metavar="NAME", help="the node")
    parser.add_argument(
        "--share", required=True, type=_share, metavar="SHARE", help="the share: above 0, and at most 1"
    )
    options_of(parser)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError("a number above 0 and at most 1")
    return share


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    answer = call(options, terminal, "/v1/shed", body={"node": options.node, "share": options.share})
    line = (
        f"{answer['node']} is sending {answer['clients']} of its clients away, over {answer['seconds']:.0f} s"
    )
    terminal.out(json.dumps(answer) if options.json else line)
    return 0
