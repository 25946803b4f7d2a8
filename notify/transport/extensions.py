"""Negotiates WebSocket extensions: pure functions (RFC 6455, section 9.1; RFC 7692)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from notify.wire.deflate import WINDOW_BITS

DEFLATE = "permessage-deflate"

#: RFC 9110, section 5.6.2
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105 - a grammar's

# Possessive quantifiers throughout: each header has one parse, and no backtracking can make it expensive.
_OWS = r"[ \t]*+"
_PARAMETER = rf'{_OWS};{_OWS}({TOKEN})(?:{_OWS}={_OWS}(?:({TOKEN})|"((?:[^"\\]|\\.)*+)"))?'
_NEXT_PARAMETER = re.compile(_PARAMETER)
_NEXT_EXTENSION = re.compile(rf"{_OWS}(?:({TOKEN})((?:{_PARAMETER})*+))?{_OWS}(?:,|\Z)")
_TOKEN = re.compile(TOKEN)
_ESCAPED = re.compile(r"\\(.)")
#: RFC 7692, section 7.1.2: 8 to 15, without a leading zero
_BITS = re.compile("[89]|1[0-5]")


class Offer(NamedTuple):
    """An extension that a client offers: its parameters in the client's order, None for a parameter without a value."""

    name: str
    parameters: tuple[tuple[str, str | None], ...]


class Deflate(NamedTuple):
    """permessage-deflate as agreed: the server compresses with ``window_bits``, and answers with ``answer``."""

    window_bits: int
    answer: str


@lru_cache(maxsize=16)
def parse_offers(header: str) -> Sequence[Offer] | None:
    """The offers of a Sec-WebSocket-Extensions header, in the client's order; None: it is malformed.

    Names are in lower case, values without quotes. Empty list elements are ignored (RFC 9110, section 5.6.1.2). The
    last few headers are cached: most clients are a few browsers that all send the same.
    """
    offers, at = [], 0
    while at < len(header):
        extension = _NEXT_EXTENSION.match(header, at)
        if extension is None:
            return None
        at = extension.end()
        if extension[1] is None:
            continue
        parameters = []
        for parameter in _NEXT_PARAMETER.finditer(extension[2]):
            name, value, quoted = parameter.groups()
            if quoted is not None:
                value = _ESCAPED.sub(r"\1", quoted)
                if not _TOKEN.fullmatch(value):
                    return None  # a quoted value must be a token as well
            parameters.append((name.lower(), value))
        offers.append(Offer(extension[1].lower(), tuple(parameters)))
    return tuple(offers)


def accept_deflate(offers: Iterable[Offer]) -> Deflate | None:
    """The first acceptable offer of permessage-deflate; None: there is none, and nothing is compressed.

    No context is taken over in either direction, which an answer may declare even if the offer did not ask for it
    (RFC 7692, sections 7.1.1.1 and 7.1.1.2).
    """
    for offer in offers:
        if offer.name == DEFLATE:
            agreed = _agree(offer)
            if agreed is not None:
                return agreed
    return None


def _agree(offer: Offer) -> Deflate | None:
    """The answer to an offer by RFC 7692, section 7.1; None: it has an unknown, repeated or invalid parameter."""
    asked = dict(offer.parameters)
    if len(asked) != len(offer.parameters):
        return None
    answer = f"{DEFLATE}; server_no_context_takeover; client_no_context_takeover"
    window_bits = max(WINDOW_BITS)
    for name, value in asked.items():
        match name:
            case "server_no_context_takeover" | "client_no_context_takeover":
                if value is not None:
                    return None
            case "client_max_window_bits":
                # Only a hint: the answer may omit it, and the server accepts any window of the client's.
                if value is not None and not _BITS.fullmatch(value):
                    return None
            case "server_max_window_bits":
                if value is None or not _BITS.fullmatch(value) or int(value) not in WINDOW_BITS:
                    return None
                window_bits = int(value)
                answer += f"; server_max_window_bits={window_bits}"
            case _:
                return None
    return Deflate(window_bits, answer)
