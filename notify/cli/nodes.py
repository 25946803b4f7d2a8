"""``notify nodes``: the nodes and their state."""

from __future__ import annotations

import argparse
from typing import Any

from notify.cli.api import call
from notify.cli.cluster import duration, number, options_of, show, told
from notify.cli.terminal import Terminal

SUMMARY = "show the nodes and their state"
DESCRIPTION = """\
Ask any node for the state of all nodes. Rates are messages per second, measured over one second. The exit status is 3 if
an expected node did not answer."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify nodes
  notify nodes --url http://10.0.0.5:8081 --json"""

_COLUMNS = ("NODE", "VERSION", "UP", "CLIENTS", "TOPICS", "IN/S", "OUT/S", "STATE", "BROKER", "RELOADED")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    options_of(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    answer = call(options, terminal, "/v1/nodes")
    if not options.json:
        show(terminal, _COLUMNS, [_row(node) for node in answer["nodes"]])
    return told(options, terminal, answer)


def _row(node: dict[str, Any]) -> list[object]:
    broker = node["broker"]
    return [
        node["node"],
        node["version"],
        duration(node["uptime"]),
        node["connections"],
        node["topics"],
        number(node["published"]),
        number(node["delivered"]),
        node["stage"],
        "ready" if broker["ready"] else f"not ready: {broker['detail']}",
        _reloaded(node),
    ]


def _reloaded(node: dict[str, Any]) -> str:
    if node["reloaded"] is None:
        return "-"
    from datetime import datetime

    at = datetime.fromtimestamp(node["reloaded"]).astimezone().isoformat(" ", "seconds")
    return f"{at} {'failed: ' + node['reload_failed'] if node['reload_failed'] else 'ok'}"
