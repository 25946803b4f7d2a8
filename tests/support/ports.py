"""Ports for processes that must be told one, and that come back on it when they are started again."""

from __future__ import annotations

import random
import socket
from pathlib import Path

#: what the system gives to outgoing connections: a test with thousands of them would take a port before its server
_OUTGOING = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
_kept: list[socket.socket] = []


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, and that no other process of tests is given while this one runs."""
    while True:
        port = random.randrange(min(10_000, _OUTGOING // 2), _OUTGOING)
        kept = socket.socket(socket.AF_UNIX)
        try:
            # A name that the system alone keeps, and frees with the process.
            kept.bind(f"\0notify-tests-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            kept.close()
        else:
            _kept.append(kept)
            return port
