"""``notify reload``: make a node read its configuration again."""

from __future__ import annotations

import argparse

from notify.cli.cluster import order, order_options
from notify.cli.terminal import Terminal

SUMMARY = "have a node read its configuration again"
DESCRIPTION = """\
Have a node read its configuration again, as SIGHUP does; `notify nodes` shows the result."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify reload --url http://10.0.0.5:8081
  notify reload --node node-2"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    order_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    return order(options, terminal, "reads its configuration again")
