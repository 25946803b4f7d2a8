"""``notify new-epoch``: start a new history, so that all positions that clients hold belong to the old one."""

from __future__ import annotations

import argparse

from notify.cli.terminal import CommandError, Terminal

SUMMARY = "tell every client that messages may be missing, after a restored backup"
DESCRIPTION = """\
Begin a new epoch in the broker's history: every client that resumes is told that it may have missed something, and
loads what it shows anew; those that are connected are closed with 4004 within [broker.jetstream] check_interval.
notify does this by itself when the stream was made anew or has gone back. It cannot know of it where everything was
restored from one backup: the streams and the nodes' state directories. Then run this, before the nodes are started or
after. Nothing is deleted."""
EXAMPLES = """\
  notify new-epoch /etc/notify/notify.toml"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="the configuration, or several files, the later over the earlier; without any the environment alone",
    )


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises ``StartError``, ``CommandError``."""
    from notify import components
    from notify.config import load
    from notify.errors import Unavailable

    config = load(options.files, terminal.environ)
    factory, settings = components.find("broker", config)
    if not hasattr(factory, "new_epoch"):
        raise CommandError(f"the broker {config.broker.plugin} needs none: each start begins one.")
    try:
        epoch = factory.new_epoch(settings)
    except Unavailable as error:
        raise CommandError(f"nothing was changed: {error}.") from None
    terminal.out(f"The epoch is {epoch} from now on; clients that come back are told.")
    return 0
