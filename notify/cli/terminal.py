"""The input and output of a command, and the options that several commands share."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, TextIO, TypeVar

from notify import ids
from notify.config import Duration
from notify.ids import INT64_MAX, INT64_MIN, Id

T = TypeVar("T")

API_URL = "http://127.0.0.1:8081"
WEBSOCKET_URL = "ws://127.0.0.1:8080/ws"


class CommandError(Exception):
    """The command cannot continue. The text is one plain sentence: what is wrong and what to do."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        #: the exit status
        self.status = status


class Terminal:
    """Standard input, output and error, and the environment."""

    def __init__(
        self, stdin: BinaryIO, stdout: TextIO, stderr: TextIO, environ: Mapping[str, str], progress: bool
    ) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.environ = environ
        #: whether somebody is watching standard error
        self.progress = progress

    @classmethod
    def of_process(cls, environ: Mapping[str, str]) -> Terminal:
        """The terminal of this process."""
        # A separate reader: a thread that still waits in sys.stdin would abort the interpreter at exit.
        stdin = os.fdopen(sys.stdin.fileno(), "rb", closefd=False) if sys.stdin is not None else io.BytesIO()
        return cls(stdin, sys.stdout, sys.stderr, environ, sys.stderr is not None and sys.stderr.isatty())

    def out(self, line: str) -> None:
        """Print one line of the command's result, and flush it, also into a pipe."""
        self.stdout.write(line + "\n")
        self.stdout.flush()

    def say(self, line: str) -> None:
        """Print one line for the user to standard error."""
        self.stderr.write(line + "\n")
        self.stderr.flush()


def secret_options(parser: argparse.ArgumentParser, name: str, what: str, variable: str) -> None:
    """Declare options for a secret: in a file, in the environment, or on the command line."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        f"--{name}-file", metavar="FILE", help=f"read {what} from a file ('-': standard input)"
    )
    group.add_argument(
        f"--{name}",
        metavar=name.upper().replace("-", "_"),
        help=f"{what}; prefer ${variable} or a file, because anyone on this machine can see a command line",
    )


def secret(options: argparse.Namespace, terminal: Terminal, name: str, what: str, variable: str) -> str:
    """The secret given by :func:`secret_options`. Raises :class:`CommandError`."""
    attribute = name.replace("-", "_")
    given: str | None = getattr(options, attribute)
    path: str | None = getattr(options, f"{attribute}_file")
    if path is not None:
        given = read_file(path, terminal).decode("utf-8", "replace").strip()
    found = given if given is not None else terminal.environ.get(variable, "").strip()
    if not found:
        raise CommandError(f"No {what} was given: set ${variable}, or use --{name}-file FILE.")
    if not (found.isascii() and found.isprintable()):
        raise CommandError(f"This {what} is not one line of plain ASCII: check its contents.")
    return found


def read_file(path: str, terminal: Terminal) -> bytes:
    """The bytes of a small file; ``-`` is standard input. Raises :class:`CommandError`."""
    try:
        return terminal.stdin.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}.") from None


def _type(name: str, parse: Callable[[str], T]) -> Callable[[str], T]:
    """A type for argparse, whose error message is the text of the ``ValueError``."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    convert.__name__ = name
    return convert


def _id(text: str) -> Id:
    try:
        return ids.parse(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is not an id: {error}") from None


def _number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a whole number") from None
    if not INT64_MIN <= value <= INT64_MAX:
        raise ValueError(f"'{text}' is not a 64-bit number")
    return value


#: an id: an integer or text
identifier = _type("identifier", _id)
#: a signed 64-bit integer
number = _type("number", _number)
#: ids separated by commas
identifiers = _type("identifiers", lambda text: [_id(part) for part in text.split(",") if part.strip()])
#: a duration such as 90s, 12h or 7d, in seconds; a plain number is in seconds
duration = _type("duration", lambda text: Duration.parse(float(text) if text.isdecimal() else text))


def url_option(parser: argparse.ArgumentParser, what: str, variable: str, default: str) -> None:
    """Declare ``--url``, which falls back to an environment variable and then to a default."""
    parser.add_argument("--url", metavar="URL", help=f"{what} (default: ${variable}, or {default})")


def url(options: argparse.Namespace, terminal: Terminal, variable: str, default: str) -> str:
    """The address given by :func:`url_option`."""
    return options.url or terminal.environ.get(variable) or default
