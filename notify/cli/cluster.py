"""What the commands for all nodes share: tables, and the report of nodes that were not reached."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from notify.cli.api import api_options, call
from notify.cli.terminal import Terminal

#: the exit status if a node that should be running did not answer
NOT_ALL = 3

#: the width of a table that does not go to a terminal, so that no line is wrapped
_WIDE = 10_000


def options_of(parser: argparse.ArgumentParser) -> None:
    """Declare the options of all these commands."""
    parser.add_argument("--json", action="store_true", help="print the server's answer unchanged, as JSON")
    api_options(parser)


def order_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a command for one node."""
    parser.add_argument("--node", default="", metavar="NAME", help="the node (default: the one at --url)")
    options_of(parser)


def order(options: argparse.Namespace, terminal: Terminal, line: str) -> int:
    """Send one node the command, and print the answer, or a line that begins with the node's name."""
    answer = call(options, terminal, f"/v1/{options.command}", body={"node": options.node})
    terminal.out(json.dumps(answer) if options.json else f"{answer['node']} {line}")
    return 0


def show(terminal: Terminal, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table. Its contents may come from strangers: none of them is interpreted as markup or control characters."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = None if terminal.stdout.isatty() else _WIDE
    console = Console(file=terminal.stdout, width=width, highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(str(cell))) for cell in row))
    console.print(table)


def plain(text: str) -> str:
    """Text without control characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def told(options: argparse.Namespace, terminal: Terminal, answer: Any, line: str = "") -> int:
    """Print the answer, or a line about it. Returns the exit status, which says whether all nodes were reached."""
    if options.json:
        terminal.out(json.dumps(answer))
    elif line:
        terminal.out(line)
    reached = answer["reached"]
    if reached["detail"]:
        terminal.say(f"notify {options.command}: {plain(reached['detail'])}.")
    if reached["missing"]:
        terminal.say(f"notify {options.command}: no answer from {plain(', '.join(reached['missing']))}.")
    return NOT_ALL if reached["missing"] or reached["detail"] else 0


def duration(seconds: float) -> str:
    """Seconds in human-readable form."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def number(value: float) -> str:
    """A rate without superfluous digits."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
