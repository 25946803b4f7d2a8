"""``notify``: the command line. Finds and runs the command, and turns errors into one plain sentence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from notify import __version__
from notify.cli import COMMANDS
from notify.cli.terminal import CommandError, Terminal
from notify.errors import StartError


def command(name: str) -> Any:
    """Import the module of a command."""
    return import_module(f"notify.cli.{name.replace('-', '_')}")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, also used for manual pages and completion."""
    parser = argparse.ArgumentParser(
        prog="notify",
        description="Works with notify servers: makes tokens, publishes, listens, shows and controls nodes, checks configurations, and tests clusters.",
        epilog="`notify COMMAND --help` shows examples. `twistd notify` runs the server.",
    )
    parser.add_argument("--version", action="version", version=f"notify {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = command(name)
        module.arguments(
            commands.add_parser(
                name,
                help=module.SUMMARY,
                description=module.DESCRIPTION,
                epilog=f"examples:\n{module.EXAMPLES}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


def run(arguments: Sequence[str], terminal: Terminal) -> int:
    """Run one command. Returns the exit status. Raises ``SystemExit`` for a wrong command line, as argparse does."""
    options = make_parser().parse_args(arguments)
    try:
        status: int = command(options.command).run(options, terminal)
    except (CommandError, StartError) as error:
        terminal.say(f"notify {options.command}: {error}")
        return error.status if isinstance(error, CommandError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of the output has gone. Nothing more may be written, not even by the interpreter at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
        return 141
    return status


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """The console script."""
    terminal = Terminal.of_process(os.environ if environ is None else environ)
    return run(sys.argv[1:] if arguments is None else arguments, terminal)


if __name__ == "__main__":
    sys.exit(main())
