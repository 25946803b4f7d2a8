"""Clients that send pongs without end: kinds of attack for :mod:`benchmarks.hostile`."""

from __future__ import annotations

from typing import Any

#: empty pongs; a read of the server begins anywhere in one
_PONGS = b"\x8a\x80\0\0\0\0" * 10_000
#: bytes of a polite client's largest frame, and how many frames a second it sends at most: the default rate is 50
_LARGEST, _RATE = 60_000, 40


def pongs(client: Any, hostile: bool) -> None:
    """Of clients with a token."""
    _live(client, hostile, user=1)


def pongs_of_strangers(client: Any, hostile: bool) -> None:
    """Of clients that have shown none. The polite ones have: without one they may not stay."""
    _live(client, hostile, user=0 if hostile else 1)


def _live(client: Any, hostile: bool, user: int) -> None:
    with client.websocket(user) as one:
        if hostile:
            client.flood(one, _PONGS)
        # As many bytes, in few pings of JSON.
        size = min(_LARGEST, max(126, int(client.rate / _RATE)))
        ping = b"\x81\xfe" + size.to_bytes(2, "big") + bytes(4) + b'{"type":"ping"}'.ljust(size)
        while client.goes_on:
            client.send(one, ping)
            data = b""
            while b'"pong"' not in data:
                part = one.recv(65536)
                if not part:
                    raise ConnectionResetError
                data += part
