"""Ports for processes that must be told one, and that come back on it when they are started again."""

from __future__ import annotations

from notify.chaos.processes import free_ports


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, and that no other process of tests is given while this one runs."""
    return free_ports(1)[0]
