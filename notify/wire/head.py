"""The head of an HTTP/1.1 request, parsed strictly and identically on every listener.

Whatever RFC 9112 calls malformed is rejected (sections 2.2, 3, 5.1 and 5.2: bare CR or LF, folded lines, control
characters, names that are not tokens), because a proxy in front may parse it differently. A head is parsed only once
it is complete, so that nothing depends on how TCP split the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: the most bytes of a head: request line and header lines, without the empty line behind it
MAX_HEAD = 16 * 1024
END = b"\r\n\r\n"

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) ([!-~]+)")
#: what a line may contain: tab, visible characters, and bytes that are not ASCII
_TEXT = bytes((9, *range(32, 127), *range(128, 256)))
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._~-]+)?\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_DIGITS = re.compile(rb"[0-9]{1,18}")


class Malformed(Exception):  # noqa: N818
    """Not an HTTP/1.1 request with only one possible meaning."""


class TooLong(Exception):  # noqa: N818
    """The head exceeds the maximum length."""


class Head(NamedTuple):
    """A request line and header lines.

    ``version`` is like ``HTTP/1.1``. Names are in lower case, each with its values in order, stripped of white space.
    """

    method: bytes
    target: bytes
    version: bytes
    fields: dict[bytes, list[bytes]]


def find_end(data: bytes, start: int = 0) -> int:
    """Where the head that begins at ``start`` ends, without the empty line; -1: it is incomplete.

    Raises :class:`TooLong`.
    """
    end = data.find(END, start, start + MAX_HEAD + len(END))
    if end < 0 and len(data) - start >= MAX_HEAD + len(END):
        raise TooLong
    return end


def read(head: bytes) -> Head:
    """Parse a complete head, without the empty line behind it. Raises :class:`Malformed`."""
    first, *lines = head.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None or head.translate(None, _TEXT) != b"\r\n" * len(lines):
        raise Malformed
    fields: dict[bytes, list[bytes]] = {}
    for each in lines:
        given, colon, value = each.partition(b":")
        name = _NAMES.get(given) or _name(given)
        if not colon:
            raise Malformed
        if name in fields:
            fields[name].append(value.strip(b" \t"))
        else:
            fields[name] = [value.strip(b" \t")]
    return Head(line[1], line[2], line[3], fields)


def _name(given: bytes) -> bytes:
    if not _TOKEN.fullmatch(given):
        raise Malformed
    return given.lower()


#: the most common header names in their usual spelling
_NAMES = {
    spelling: name.lower()
    for name in (
        *(
            b"Host",
            b"Authorization",
            b"Content-Type",
            b"Content-Length",
            b"Connection",
            b"User-Agent",
            b"Accept",
        ),
        *(
            b"Accept-Encoding",
            b"Accept-Language",
            b"Cache-Control",
            b"Pragma",
            b"Cookie",
            b"Origin",
            b"Upgrade",
        ),
        *(
            b"Sec-WebSocket-Key",
            b"Sec-WebSocket-Version",
            b"Sec-WebSocket-Extensions",
            b"Sec-WebSocket-Protocol",
        ),
        *(b"Idempotency-Key", b"X-Request-Id", b"X-Forwarded-For", b"Traceparent"),
    )
    for spelling in (name, name.lower())
}


def length(head: Head) -> int | None:
    """The number of bytes of body after a head; None: the body is chunked (RFC 9112, section 6.3).

    Raises :class:`Malformed` for anything that two parsers could understand differently: a length and chunks
    together, either of them twice, any coding but ``chunked`` alone, and chunks in HTTP/1.0.
    """
    lengths, codings = head.fields.get(b"content-length"), head.fields.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None or head.version != b"HTTP/1.1" or [c.lower() for c in codings] != [b"chunked"]:
            raise Malformed
        return None
    if lengths is None:
        return 0
    if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
        raise Malformed
    return int(lengths[0])


def host(head: Head) -> bytes:
    """The header Host; empty if there is none (RFC 9112, section 3.2).

    Raises :class:`Malformed` if it is missing in HTTP/1.1, occurs several times, or is not a valid host.
    """
    hosts = head.fields.get(b"host")
    if hosts is None:
        if head.version == b"HTTP/1.1":
            raise Malformed
        return b""
    if len(hosts) > 1 or not _HOST.fullmatch(hosts[0]):
        raise Malformed
    return hosts[0]


def lists(fields: Mapping[bytes, Sequence[bytes]], name: bytes, option: bytes) -> bool:
    """Whether the header ``name``, a list of case-insensitive options, contains this one."""
    values = fields.get(name)
    return values is not None and any(
        each.strip(b" \t").lower() == option for value in values for each in value.split(b",")
    )
