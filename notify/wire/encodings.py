"""The available encodings, each a single instance shared by all connections that use it.

An encoding is made when the first client asks for it, so a server pays only for those in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from notify.wire.deflate import DeflateEncoding
from notify.wire.frames import JSON, BatchEncoding, Encoding

#: the subprotocols that a client may ask for
SUBPROTOCOLS = ("notify.v1.json", "notify.v1.json.batch", "notify.v1.protobuf")


@cache
def encoding(subprotocol: str) -> Encoding:
    """The encoding of one of :data:`SUBPROTOCOLS`."""
    if subprotocol == JSON.subprotocol:
        return JSON
    if subprotocol == BatchEncoding.subprotocol:
        return BatchEncoding()
    from notify.wire.protobuf import ProtobufEncoding  # takes some megabytes, which most servers never need

    return ProtobufEncoding()


@cache
def deflated(plain: Encoding, window_bits: int, level: int, minimum: int) -> Encoding:
    """``plain`` with permessage-deflate: see :class:`~notify.wire.deflate.DeflateEncoding`."""
    return DeflateEncoding(plain, window_bits, level, minimum)


@cache
def featured(plain: Encoding, features: frozenset[str]) -> Encoding:
    """``plain`` for connections with these features, a subset of :data:`~notify.wire.frames.FEATURES`."""
    return plain.featured(features) if features else plain


def choose(offered: Sequence[str]) -> tuple[str | None, Encoding]:
    """The first known subprotocol that the client offers, and its encoding. If it offers none: JSON, and no name."""
    for name in offered:
        if name in SUBPROTOCOLS:
            return name, encoding(name)
    return None, JSON
