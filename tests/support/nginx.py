"""A real nginx with the shipped etc/nginx/notify.conf, except for ports, addresses and TLS."""

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

CONFIG = ROOT / "etc" / "nginx" / "notify.conf"


def advised() -> tuple[int, int]:
    """``worker_rlimit_nofile`` and ``worker_connections`` as recommended in the file's first comment."""
    found = re.search(
        r"#   worker_rlimit_nofile (\d+);\n#   events { worker_connections (\d+); }\n", CONFIG.read_text()
    )
    if found is None:
        raise AssertionError("etc/nginx/notify.conf advises no number of files and connections")
    return int(found[1]), int(found[2])


class Nginx:
    """Balances over the nodes at these ports. ``changes`` are pairs of old and new text to replace in the file.

    With ``tls`` it terminates TLS as the file says; ``changes`` must then name an existing certificate. ``text``
    replaces the content of the file.
    """

    def __init__(
        self,
        ports: list[int],
        *changes: tuple[str, str],
        connections: int = 500,
        tls: bool = False,
        text: str | None = None,
    ) -> None:
        self.binary = program("nginx")
        self.port, self.redirecting = free_port(), free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="nginx-"))
        text = CONFIG.read_text() if text is None else text
        nodes = "".join(f"    server 127.0.0.1:{port} max_fails=2 fail_timeout=5s;\n" for port in ports)
        for old, new in (
            ("    server 127.0.0.1:8080 max_fails=2 fail_timeout=5s;\n", nodes),
            ("    listen 80;\n    listen [::]:80;\n", f"    listen 127.0.0.1:{self.redirecting};\n"),
            (
                "    listen 443 ssl;\n    listen [::]:443 ssl;\n",
                f"    listen 127.0.0.1:{self.port}{' ssl' * tls};\n",
            ),
            ("/var/log/nginx/", f"{self.directory}/"),
            *changes,
        ):
            if old not in text:
                raise AssertionError(f"etc/nginx/notify.conf has no '{old}'")
            text = text.replace(old, new)
        if not tls:
            text = re.sub(r"    ssl_.*\n", "", text)
        folders = "".join(
            f"{name}_temp_path {self.directory}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self.config = self.directory / "nginx.conf"
        self.config.write_text(
            # a single worker, so that limits per worker apply to all connections
            f"daemon off; worker_processes 1; pid {self.directory}/pid; error_log {self.directory}/error.log;\n"
            f"events {{ worker_connections {connections}; }}\n"
            f"http {{\naccess_log {self.directory}/access.log;\n{folders}{text}\n}}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Nginx:
        """Start nginx and wait until it listens."""
        self.process = subprocess.Popen(
            [self.binary, "-c", str(self.config), "-e", str(self.directory / "error.log")]
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
        return b"".join(path.read_bytes() for path in sorted(self.directory.glob("*.log")))

    def remove(self) -> None:
        """Stop it and delete its files."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)
