"""Tables of lines to break on purpose: apply one to a copy of the tree, and select some for a command line."""

from __future__ import annotations

import argparse
import datetime
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar


class Line(Protocol):
    """``old`` becomes ``new`` in a file below notify/; ``name`` is for people."""

    @property
    def path(self) -> str: ...
    @property
    def old(self) -> str: ...
    @property
    def new(self) -> str: ...
    @property
    def name(self) -> str: ...


L = TypeVar("L", bound=Line)


def put_in(line: Line, tree: Path) -> None:
    """Break the line in a tree where its old text must occur exactly once."""
    broken = tree / "notify" / line.path
    text = broken.read_text()
    assert text.count(line.old) == 1, line.name
    broken.write_text(text.replace(line.old, line.new))


def choose(table: Sequence[L], module: str, arguments: list[str]) -> list[L]:
    """The lines that a command's arguments select by path; ``--sample N``: N of them, different ones each day."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("which", nargs="?", default="")
    parser.add_argument("--sample", type=int, default=0)
    given = parser.parse_args(arguments)
    chosen = [one for one in table if given.which in one.path]
    if given.sample:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        chosen = random.Random(today).sample(chosen, min(given.sample, len(chosen)))
    return chosen
