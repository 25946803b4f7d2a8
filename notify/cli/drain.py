"""``notify drain``: make a node drain and leave."""

from __future__ import annotations

import argparse

from notify.cli.cluster import order, order_options
from notify.cli.terminal import Terminal

SUMMARY = "have a node leave and send its clients to other nodes in small steps"
DESCRIPTION = """\
Have a node leave, as SIGTERM does: it reports that it is not ready, sends its clients away in small steps, and exits. Under
systemd it stays stopped; `systemctl start` brings it back."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify drain --url http://10.0.0.5:8081
  notify drain --node node-2"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    order_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    return order(options, terminal, "drains")
