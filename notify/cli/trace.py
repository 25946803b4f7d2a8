"""``notify trace``: follow live what happens to a user's clients, or in a chat."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from notify.cli.api import lines
from notify.cli.cluster import NOT_ALL, duration, options_of, plain
from notify.cli.terminal import CommandError, Terminal, identifier, number

SUMMARY = "watch what happens to a user's clients, or in a chat, on all nodes"
DESCRIPTION = """\
Ask any node to report what happens from now on with one user's clients, or in one chat, on all nodes: who connects or
is refused, and why; subscriptions; frames and messages by type, size and position, never their content; closes. Events
that may be unrelated are marked '?'. The exit status is 3 if an expected node did not answer."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify trace --workspace 1 --user 7
  notify trace --chat 10 --seconds 600
  notify trace --user 7 --peer 192.0.2.7 --json"""

#: the colour of each outcome
_COLOURS = {"ok": "green", "recovered": "green", "": "default"}
_TROUBLE = ("missing", "alone", "busy", "left_out")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the workspace (default: 1)"
    )
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--user", type=identifier, metavar="ID", help="the user")
    whom.add_argument("--chat", type=identifier, metavar="ID", help="the chat")
    parser.add_argument(
        "--peer", metavar="ADDRESS", help="of clients without a known user, show only those from this address"
    )
    parser.add_argument(
        "--seconds",
        type=number,
        default=60,
        metavar="N",
        help="end after this many seconds (default: 60; up to 600)",
    )
    options_of(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`~notify.cli.terminal.CommandError`."""
    query = {"workspace_id": options.workspace, "seconds": options.seconds}
    query |= {"user_id": options.user} if options.user is not None else {"chat_id": options.chat}
    if options.peer:
        query["peer"] = options.peer
    status, what = 0, ""
    show = _json if options.json else Shown(terminal, options).show
    for event in _events(lines(options, terminal, "/v1/trace", query)):
        what = event["what"]
        if what in ("missing", "alone", "busy"):
            status = NOT_ALL
        show(terminal, event)
    if what != "end":
        raise CommandError("The server ended the trace early. Start it again to go on watching.")
    return status


def _events(stream: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The events of our own event stream: one line of data each."""
    for line in stream:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _json(terminal: Terminal, event: dict[str, Any]) -> None:
    terminal.out(json.dumps(event))


class Shown:
    """Prints one line per event. Its contents may come from strangers: none of them is interpreted as markup or control characters."""

    def __init__(self, terminal: Terminal, options: argparse.Namespace) -> None:
        from rich.console import Console

        width = None if terminal.stdout.isatty() else 10_000
        self._console = Console(
            file=terminal.stdout, width=width, highlight=False, emoji=False, soft_wrap=True
        )
        self._workspace, self._user = options.workspace, options.user

    def show(self, terminal: Terminal, event: dict[str, Any]) -> None:
        """Print an event."""
        from rich.text import Text

        what, outcome = event["what"], event.get("outcome", "")
        bad = what in _TROUBLE or outcome not in _COLOURS or (what == "close" and event.get("reason"))
        moment = time.strftime("%H:%M:%S", time.localtime(event["at"])) + f"{event['at'] % 1:.3f}"[1:]
        line = Text(f"{moment} {plain(event.get('node', '-')):<12} ", style="dim")
        line.append(f"{what.replace('_', ' '):<11} ", style="bold")
        text = plain(self._text(event))
        style = "red" if bad else "yellow" if "? " in text else _COLOURS.get(outcome, "default")
        line.append(text, style=style)
        self._console.print(line)
        terminal.stdout.flush()

    def _text(self, event: dict[str, Any]) -> str:
        return ", ".join(filter(None, [*self._who(event), *_what(event)]))

    def _who(self, event: dict[str, Any]) -> Iterator[str]:
        user, workspace = event.get("user_id"), event.get("workspace_id")
        if event.get("connection_id"):
            yield event["connection_id"][:8]
        if event["what"] in ("message", "publish"):
            yield event["subject"]
        elif event.get("claimed"):
            yield f"? says it is user {user} of workspace {workspace}: not verified"
        elif user is not None and workspace != self._workspace:
            yield f"? user {user} of ANOTHER workspace, {workspace}"
        elif user is not None and self._user is None:
            yield f"user {user}"
        elif user is None and event.get("peer"):
            yield "? somebody"
        if event.get("chat_id") is not None:
            yield f"chat {event['chat_id']}"


def _what(event: dict[str, Any]) -> Iterator[str]:
    what, outcome, reason = event["what"], event.get("outcome"), event.get("reason")
    if what in ("connect", "connection", "turned_away", "auth") and event.get("peer"):
        yield f"from {event['peer']}"
    if event.get("origin"):
        yield f"origin {event['origin']}"
    if what == "watching":
        yield f"{event['connections']} connections here"
    if what == "connection":
        yield f"since {duration(max(0.0, event['at'] - event['since']))}"
        chats = ", ".join(map(str, event.get("chats", [])))
        yield f"in chats {chats}" if chats else "subscribed to NOTHING"
        yield f"{event['queued']} bytes queued" if event.get("queued") else ""
    elif what == "frame":
        yield f"{'from' if event['way'] == 'in' else 'to'} it: {event['type']}"
        if event.get("count"):
            yield (
                f"{event['count']} frames" if event["way"] == "in" else f"{event['count']} missed messages"
            )
    elif event.get("type"):
        yield event["type"]
    if what == "left_out":
        yield f"{event['count']} events left out, too many to show"
    if event.get("code") is not None:
        yield f"{event['code']}"
    yield outcome or ""
    yield reason or ""
    if event.get("size") is not None:
        yield f"{event['size']} bytes"
    if event.get("seq") is not None:
        yield f"position {event['seq']}"
    if what == "message":
        yield f"to {event['connections']} of its connections here"
