"""Cheap reading of NATS header blocks: only the few fields that are wanted, straight from the bytes.

A block is ``NATS/1.0[ status description]\\r\\n`` and lines of ``Name: value\\r\\n``. The server writes its own
fields behind those of the publisher, so the last occurrence is the server's: nobody can forge a position.
"""

from __future__ import annotations

SEQUENCE = b"\r\nNats-Sequence: "
LAST_SEQUENCE = b"\r\nNats-Last-Sequence: "
UP_TO_SEQUENCE = b"\r\nNats-UpTo-Sequence: "
NUM_PENDING = b"\r\nNats-Num-Pending: "
SUBJECT = b"\r\nNats-Subject: "
TRACEPARENT = b"\r\ntraceparent: "


def number(block: bytes, field: bytes) -> int:
    """The server's value of a numeric field; 0 where it is missing or no number."""
    start = block.rfind(field)
    if start < 0:
        return 0
    start += len(field)
    try:
        return int(block[start : block.index(b"\r", start)])
    except ValueError:
        return 0


def text(block: bytes, field: bytes) -> str:
    """The last value of a field as text; empty where it is missing."""
    start = block.rfind(field)
    if start < 0:
        return ""
    start += len(field)
    return block[start : block.find(b"\r", start)].decode("utf-8", "replace")


def status(block: bytes) -> int:
    """The status of a reply without content (204, 404, 503, ...); 0 for a plain message."""
    if block[8:9] != b" ":
        return 0
    try:
        return int(block[9:12])
    except ValueError:
        return 0


def trace(block: bytes) -> str:
    """The publisher's W3C ``traceparent``, if it has the form of one; empty otherwise."""
    if b"traceparent" not in block:
        return ""
    value = text(block, TRACEPARENT)
    return value if len(value) == 55 and value.isascii() and value.replace("-", "").isalnum() else ""


def description(block: bytes) -> str:
    """The words behind a status."""
    return block[13 : block.find(b"\r")].decode("utf-8", "replace").strip()
