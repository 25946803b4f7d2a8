"""Ports for processes that must be told their port, and that use it again when they are restarted."""

from __future__ import annotations

from notify.chaos.processes import free_ports


def free_port() -> int:
    """A free port of 127.0.0.1. No other test process gets the same one while this process runs."""
    return free_ports(1)[0]
