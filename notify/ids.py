"""Ids of workspaces, chats, users and messages: a signed 64-bit integer, or text (docs/protocol.md, Ids).

Text never looks like an integer. A subject, a query parameter or a token's ``sub``, which carry only text, therefore
name the same id as the JSON number does, and no id has two spellings.
"""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Int64: TypeAlias = Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)]

#: JSON Schema uses it as well; ``(?!\n)`` is there because Python's ``$`` also matches before a final line feed
TEXT_PATTERN = r"^(?!-?[0-9]+$)[A-Za-z0-9_-]{1,64}$(?!\n)"

#: 1 to 64 of ``A-Z a-z 0-9 _ -``, for example a UUID or a ULID
TextId: TypeAlias = Annotated[str, Meta(pattern=TEXT_PATTERN)]

Id: TypeAlias = Int64 | TextId

#: the form of an id, for error messages
FORM = "a 64-bit integer, or text of 1 to 64 of A-Z a-z 0-9 _ - that does not look like an integer"

#: the characters of an id in a subject or a query
TOKEN = r"[A-Za-z0-9_-]{1,64}"  # noqa: S105 - no secret

_TEXT = re.compile(TOKEN, re.ASCII)
_LOOKS_LIKE_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
_CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)


def parse(text: str) -> int | str:
    """Parse an id from a subject, a query parameter or the command line. Raises ``ValueError`` if it is not an id.

    An integer must be canonical: no sign but ``-``, no leading zero, within 64 bits.
    """
    if _LOOKS_LIKE_INTEGER.fullmatch(text):
        if _CANONICAL.fullmatch(text) and INT64_MIN <= (number := int(text)) <= INT64_MAX:
            return number
    elif _TEXT.fullmatch(text):
        return text
    raise ValueError(f"an id is {FORM}")


def valid(value: object) -> bool:
    """Whether a decoded JSON value is an id."""
    if isinstance(value, str):
        return _TEXT.fullmatch(value) is not None and _LOOKS_LIKE_INTEGER.fullmatch(value) is None
    return isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX


def order(id: int | str) -> tuple[bool, int | str]:
    """A sort key that puts integers before text."""
    return isinstance(id, str), id


def explained(error: msgspec.ValidationError) -> str:
    """msgspec's error text, with the form of an id in words instead of as a regular expression."""
    text = str(error)
    if "matching regex" not in text and "`int | str`" not in text:
        return text
    _, _, path = text.partition(" - at ")
    return f"Expected {FORM}" + (f" - at {path}" if path else "")
