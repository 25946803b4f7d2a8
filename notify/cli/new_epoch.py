"""``notify new-epoch``: start a new history, so that all positions that clients hold belong to the old one."""

from __future__ import annotations

import argparse

from notify.cli.terminal import CommandError, Terminal

SUMMARY = "after restoring a backup, tell every client that messages may be missing"
DESCRIPTION = """\
Begin a new epoch in the broker's history. Every client that resumes is told that it may have missed something, and
reloads what it shows; connected clients are closed with 4004 within [broker.jetstream] check_interval. notify does
this by itself when the stream was created again or has gone back. It cannot detect that everything was restored from
one backup: the streams and the nodes' state directories. In that case run this command, before or after the nodes are
started. Nothing is deleted."""
EXAMPLES = """\
  notify new-epoch /etc/notify/notify.toml"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="the configuration files, of which later ones override earlier ones; without any, only the environment is read",
    )


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises ``StartError``, ``CommandError``."""
    from notify import components
    from notify.config import load
    from notify.errors import Unavailable

    config = load(options.files, terminal.environ)
    factory, settings = components.find("broker", config)
    if not hasattr(factory, "new_epoch"):
        raise CommandError(
            f"the broker {config.broker.plugin} does not need this: each start begins a new epoch."
        )
    try:
        epoch = factory.new_epoch(settings)
    except Unavailable as error:
        raise CommandError(f"nothing was changed: {error}.") from None
    terminal.out(f"The epoch is now {epoch}; clients that resume are told.")
    return 0
