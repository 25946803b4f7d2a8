"""Checks of the two listeners: can they be bound, who can reach them, and which pages may connect?"""

from __future__ import annotations

import errno
import http.client
import json
import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from notify.config import Config
from notify.findings import Finding
from notify.transport.origins import origin_allowed, parse_origins

_LOOPBACK = ("127.", "::1", "localhost")


class Endpoint:
    """A Twisted server endpoint, as far as its description shows."""

    def __init__(self, description: str) -> None:
        parts = [part.replace("\\:", ":") for part in re.split(r"(?<!\\):", description)]
        named = dict(part.split("=", 1) for part in parts[1:] if "=" in part)
        plain = [part for part in parts[1:] if "=" not in part]
        self.kind = parts[0]
        self.interface = named.get("interface", "")
        port = named.get("port", plain[0] if plain else "")
        self.port = int(port) if port.isdecimal() and self.kind in ("tcp", "tcp6", "ssl") else None

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.kind == "unix" or self.interface.startswith(_LOOPBACK)

    def address(self) -> tuple[socket.AddressFamily, tuple[str, int]]:
        """The address to bind."""
        six = self.kind == "tcp6" or ":" in self.interface
        family = socket.AF_INET6 if six else socket.AF_INET
        return family, (self.interface or ("::" if six else "0.0.0.0"), self.port or 0)  # noqa: S104


def ports(config: Config, user: str = "", first: int | None = None) -> list[Finding]:
    """Check that both ports are free, or already used by notify. ``user`` is the server's; ``first`` is the lowest port that users other
    than root may bind (None: the kernel is asked)."""
    if first is None:
        first = _first_unprivileged()
    found = []
    for key in ("public", "internal"):
        description = getattr(config.listen, key)
        endpoint, check = Endpoint(description), f"port {key}"
        if endpoint.kind == "systemd":
            found.append(
                Finding("note", check, "systemd hands over the socket: the .socket unit names its port.")
            )
        elif endpoint.port is not None:
            low = user not in ("", "root") and 0 < endpoint.port < first
            found.append(_too_low(check, endpoint.port) if low else _port(check, endpoint))
        if key == "internal" and endpoint.port is not None and not endpoint.local:
            found.append(
                Finding(
                    "warning",
                    check,
                    f"'{description}' can be reached from other machines; /metrics and /health need no key there.",
                    'Bind it to 127.0.0.1 or a private address: internal = "tcp:8081:interface=127.0.0.1".',
                )
            )
    return found


def _first_unprivileged() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024


def _too_low(check: str, port: int) -> Finding:
    return Finding(
        "fault",
        check,
        f"port {port}: only root may bind a port this low.",
        "Use port 1024 or above, or let systemd bind it (notify.socket); without systemd, start as root with twistd's --uid.",
    )


def _port(check: str, endpoint: Endpoint) -> Finding:
    family, address = endpoint.address()
    shown = f"{address[0]} port {address[1]}"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EACCES:
                return _too_low(check, address[1])
            if error.errno == errno.EADDRINUSE:
                return _taken(check, endpoint, shown)
            return Finding("fault", check, f"{shown}: {error.strerror}.", "Use an address of this machine.")
    return Finding("ok", check, f"{shown} is free.")


def _taken(check: str, endpoint: Endpoint, shown: str) -> Finding:
    """Something listens already: is it notify, and is it healthy?"""
    family, (asked, _) = endpoint.address()
    if asked in ("0.0.0.0", "::"):  # noqa: S104
        asked = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    connection = http.client.HTTPConnection(asked, endpoint.port, timeout=3)
    if endpoint.kind == "ssl":
        # The certificate is not verified, because no secret is sent.
        connection = http.client.HTTPSConnection(
            asked,
            endpoint.port,
            timeout=3,
            context=ssl._create_unverified_context(),  # noqa: S323
        )
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        health = json.loads(response.read(65536))
        known = isinstance(health, dict) and ("status" in health or "ready" in health)
    except (OSError, ValueError, http.client.HTTPException):
        known, response = False, None
    finally:
        connection.close()
    if not known or response is None:
        return Finding(
            "fault",
            check,
            f"{shown} is taken by another program.",
            f"Stop it (`ss -ltnp 'sport = :{endpoint.port}'` names it), or choose another port.",
        )
    if response.status != 200:
        return Finding(
            "fault",
            check,
            f"notify listens at {shown}, and reports that it is not ready.",
            "GET /health on its internal port says why.",
        )
    return Finding("ok", check, f"notify listens at {shown}, and is ready.")


def origins(config: Config, origin: str, host: str) -> list[Finding]:
    """Check which pages may connect, and whether that can be intended."""
    check, listen = "origins", config.listen
    found = []
    allowed, wrong = _read(check, listen.allowed_origins)
    if "*" in listen.allowed_origins:
        found.append(
            Finding(
                "warning",
                check,
                "pages of any site may connect.",
                "List your own origins in listen.allowed_origins, unless other sites' pages cannot get at tokens.",
            )
        )
    elif not listen.allowed_origins:
        found.append(
            Finding(
                "note",
                check,
                "only pages from the host that they connect to may connect.",
                "If your pages come from another host, list their origin: allowed_origins = ['https://chat.example'].",
            )
        )
    else:
        found += wrong or [Finding("ok", check, f"{len(allowed)} origins may connect.")]
    if origin:
        if origin_allowed(origin, host, allowed or listen.allowed_origins):
            found.append(Finding("ok", check, f"a page of {origin} may connect{f' to {host}' * bool(host)}."))
        else:
            found.append(
                Finding(
                    "fault",
                    check,
                    f"a page of {origin} may not connect{f' to {host}' * bool(host)}.",
                    f"Add '{origin}' to listen.allowed_origins, including scheme and port.",
                )
            )
    public = Endpoint(listen.public)
    if public.local and not listen.trusted_proxies:
        found.append(
            Finding(
                "note",
                "proxies",
                "the public port is reachable from this machine only, and no proxy is trusted: every client seems to be the proxy, and "
                "limits per address do not work.",
                "List the proxy in listen.trusted_proxies; it must set X-Forwarded-For, and pass on Host and Origin.",
            )
        )
    return found


def _read(check: str, texts: Sequence[str]) -> tuple[list[str], list[Finding]]:
    """The origins that make sense, and findings about the others."""
    allowed: list[str] = []
    wrong: list[Finding] = []
    for text in texts:
        try:
            allowed += parse_origins([text])
        except ValueError as error:
            wrong.append(
                Finding(
                    "fault",
                    check,
                    f"{error}.",
                    "Correct or remove this origin: the server does not start with it.",
                )
            )
    return allowed, wrong
