"""Cheap reading of NATS header blocks: only the few required fields, directly from the bytes.

A block is ``NATS/1.0[ status description]\\r\\n`` and lines of ``Name: value\\r\\n``. The server writes its own fields after those of
the publisher. The last occurrence is therefore the server's, and nobody can forge a position.
"""

from __future__ import annotations

from collections.abc import Mapping

from notify.errors import TooLarge

SEQUENCE = b"\r\nNats-Sequence: "
LAST_SEQUENCE = b"\r\nNats-Last-Sequence: "
UP_TO_SEQUENCE = b"\r\nNats-UpTo-Sequence: "
NUM_PENDING = b"\r\nNats-Num-Pending: "
TIME_STAMP = b"\r\nNats-Time-Stamp: "
SUBJECT = b"\r\nNats-Subject: "
MESSAGE_ID = b"\r\nNats-Msg-Id: "
TRACEPARENT = b"\r\ntraceparent: "
#: an earlier message of the same topic, as far as the publisher knew: ``{epoch}.{seq}``; or ``{epoch}.-1`` for the message with the
#: number before its own, if the server stores it directly after that one or not at all
AFTER = "Notify-After"
DIRECTLY = "-1"
_AFTER = f"\r\n{AFTER}: ".encode()

_ONE_LINE = str.maketrans({"\r": " ", "\n": " "})


def number(block: bytes, field: bytes) -> int:
    """The server's value of a numeric field; 0 if it is missing or not a number."""
    start = block.rfind(field)
    if start < 0:
        return 0
    start += len(field)
    try:
        return int(block[start : block.index(b"\r", start)])
    except ValueError:
        return 0


def text(block: bytes, field: bytes) -> str:
    """The last value of a field as text; empty if it is missing."""
    start = block.rfind(field)
    if start < 0:
        return ""
    start += len(field)
    return block[start : block.find(b"\r", start)].decode("utf-8", "replace")


def status(block: bytes) -> int:
    """The status of a reply by the server itself (204, 404, 503, ...); 0 for a message.

    A reply with a number in a stream is a message, whatever its first line says: some servers since 2.11 store and return
    a publisher's own first line, such as ``NATS/1.0 204 x``.
    """
    if block[8:9] != b" " or SEQUENCE in block:
        return 0
    try:
        return int(block[9:12])
    except ValueError:
        return 0


def trace(block: bytes) -> str:
    """The publisher's W3C ``traceparent`` if it is well-formed; otherwise empty."""
    if b"traceparent" not in block:
        return ""
    value = text(block, TRACEPARENT)
    return value if len(value) == 55 and value.isascii() and value.replace("-", "").isalnum() else ""


def after(block: bytes, epoch: str, own: int = 0) -> int:
    """The number that ``Notify-After`` names in the message with the number ``own``; 0 if it names none of this epoch."""
    start = block.find(_AFTER)
    if start < 0:
        return 0
    start += len(_AFTER)
    named, _, seq = block[start : block.find(b"\r", start)].decode("ascii", "replace").rpartition(".")
    if named != epoch:
        return 0
    if seq == DIRECTLY:
        return max(own - 1, 0)
    return int(seq) if seq.isdecimal() and len(seq) < 20 else 0


def description(block: bytes) -> str:
    """The words behind a status."""
    return block[13 : block.find(b"\r")].decode("utf-8", "replace").strip()


def block(fields: Mapping[str, str]) -> bytes:
    """The header block that nats-py makes of these fields; their names are ours. In every nats-py a line break in a value becomes a space."""
    lines = [f"{name}: {value.strip()}\r\n" for name, value in fields.items()]
    text = "".join(lines)
    if not text.count("\r") == text.count("\n") == len(lines):
        text = "".join(f"{name}: {value.strip().translate(_ONE_LINE)}\r\n" for name, value in fields.items())
    return f"NATS/1.0\r\n{text}\r\n".encode()


def size(payload: bytes, fields: Mapping[str, str] | None) -> int:
    """The size in bytes of a message as servers count it against ``max_payload``: the payload and the header block."""
    return len(payload) if fields is None else len(payload) + len(block(fields))


def check_size(payload: bytes, fields: Mapping[str, str] | None, most: int) -> None:
    """Raise :class:`~notify.errors.TooLarge` for a message of more than ``most`` bytes; 0: the limit is unknown."""
    lines = fields or {}
    # A character has at most four bytes. This nearly always shows that the message fits, without building a block.
    characters = len(payload) + len(lines) + sum(map(len, lines)) + sum(map(len, lines.values()))
    if 0 < most < 4 * characters + len("NATS/1.0\r\n\r\n"):
        check(size(payload, fields), most)


def check(needed: int, most: int) -> None:
    """Like :func:`check_size`, for a message of known size."""
    if 0 < most < needed:
        raise TooLarge(f"NATS takes at most {most} bytes, headers included, and the message has {needed}")
