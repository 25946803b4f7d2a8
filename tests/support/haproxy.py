"""A real HAProxy with the shipped etc/haproxy/haproxy.cfg, except for ports and addresses."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.support.natsd import until
from tests.support.ports import free_port
from tests.support.programs import ROOT, program

CONFIG = ROOT / "etc" / "haproxy" / "haproxy.cfg"


class HAProxy:
    """Balances over the nodes at these ports. ``changes`` are pairs of old and new text to replace in the file."""

    def __init__(self, ports: list[int], *changes: tuple[str, str]) -> None:
        self.binary = program("haproxy")
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="haproxy-"))
        text = CONFIG.read_text().replace("bind :80 ", f"bind 127.0.0.1:{self.port} ")
        text, count = re.subn(r"    server node\d .*\n", "", text)
        if count != 3 or f"127.0.0.1:{self.port}" not in text:
            raise AssertionError("etc/haproxy/haproxy.cfg has other servers or another bind than it had")
        text += "".join(f"    server node{n} 127.0.0.1:{port}\n" for n, port in enumerate(ports, start=1))
        text = text.replace("log /dev/log local0", "log stdout format raw local0")
        for old, new in (("maxconn 100000", "maxconn 2000"), *changes):
            if old not in text:
                raise AssertionError(f"etc/haproxy/haproxy.cfg has no '{old}'")
            text = text.replace(old, new)
        self.config = self.directory / "haproxy.cfg"
        self.config.write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def check(self) -> str:
        """HAProxy's complaints about the shipped file itself; empty if there are none."""
        done = subprocess.run(
            [self.binary, "-c", "-q", "-f", str(CONFIG)], capture_output=True, text=True, check=False
        )
        return (done.stdout + done.stderr) if done.returncode or done.stderr else ""

    async def start(self) -> HAProxy:
        """Start HAProxy and wait until it listens."""
        with open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(
                [self.binary, "-db", "-f", str(self.config)], stdout=log, stderr=log
            )
        await until(self._listens, 10)
        return self

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 0.2).close()
        except OSError:
            return False
        return True

    def log(self) -> bytes:
        """Everything that it has logged."""
        return (self.directory / "log").read_bytes()

    def remove(self) -> None:
        """Stop it and delete its files."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)
