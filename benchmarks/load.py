"""The two ends that are not measured: the load generator (load.c, compiled on the fly) and the publisher."""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
CACHE = HERE / ".cache"


class Unmeasurable(Exception):  # noqa: N818
    """This cannot be measured here; says why."""


class Generator(NamedTuple):
    """The generator's program, and what it can do beyond plain frames."""

    program: Path
    inflates: bool
    tls: bool


#: what each define of load.c is linked with
LIBRARIES = {"HAVE_ZLIB": ("-lz",), "HAVE_TLS": ("-lssl", "-lcrypto")}


def compiled(source: Path, name: str, defines: Sequence[str] = ()) -> Path | None:
    """The program ``name`` out of one C source, made where it is missing or older; None where it does not compile.

    Raises ``Unmeasurable`` without a compiler.
    """
    CACHE.mkdir(exist_ok=True)
    program = CACHE / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    flags = [f"-D{define}" for define in defines]
    libraries = [library for define in defines for library in LIBRARIES[define]]
    command = ["cc", "-O2", *flags, "-o", str(program), str(source), *libraries]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise Unmeasurable(f"{source.name} needs a C compiler: apt-get install gcc libc6-dev") from None
    return program if done.returncode == 0 else None


def compile_generator() -> Generator:
    """The generator with as much as the machine has libraries for. Raises ``Unmeasurable``."""
    for name, defines in (
        ("load", ("HAVE_ZLIB", "HAVE_TLS")),
        ("load-without-tls", ("HAVE_ZLIB",)),
        ("load-without-zlib", ("HAVE_TLS",)),
        ("load-bare", ()),
    ):
        if program := compiled(HERE / "load.c", name, defines):
            return Generator(program, "HAVE_ZLIB" in defines, "HAVE_TLS" in defines)
    raise Unmeasurable("the load generator, load.c, does not compile")


class Clients:
    """A load generator and its connections. See load.c for the plan and the figures."""

    def __init__(
        self,
        port: int,
        plan: Iterable[str],
        *,
        headers: Iterable[str] = (),
        reply: str = "",
        concurrency: int = 50,
        slow_every: int = 0,
        retry: bool = False,
        tls: bool = False,
    ) -> None:
        generator = compile_generator()
        if any("deflate" in header for header in headers) and not generator.inflates:
            raise Unmeasurable("the load generator was built without zlib: apt-get install zlib1g-dev")
        if tls and not generator.tls:
            raise Unmeasurable("the load generator was built without OpenSSL: apt-get install libssl-dev")
        self._plan = tempfile.NamedTemporaryFile("w", suffix=".plan")  # noqa: SIM115
        self._plan.writelines(line + "\n" for line in plan)
        self._plan.flush()
        command = [
            str(generator.program),
            "--port",
            str(port),
            "--plan",
            self._plan.name,
            "--concurrency",
            str(concurrency),
        ]
        for header in headers:
            command += ["--header", header]
        if reply:
            command += ["--reply", reply]
        if slow_every:
            command += ["--slow-every", str(slow_every), "--rcvbuf", "4096"]
        if retry:
            command.append("--retry")
        if tls:
            command.append("--tls")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self) -> None:
        """Open all connections; :meth:`answer` comes when each is subscribed or has failed."""
        self._write("go")

    def _write(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def answered(self) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def answer(self, timeout: float = 60) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise Unmeasurable(f"the clients were not served within {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Unmeasurable(f"the load generator ended with status {self._process.wait()}")
        return json.loads(line)

    def open(self, timeout: float = 60) -> dict[str, Any]:
        self.start()
        return self.answer(timeout)

    def reset(self) -> None:
        self._write("reset")
        self.answer()

    def stats(self) -> dict[str, Any]:
        self._write("stats")
        return self.answer()

    def drop(self) -> None:
        self._write("drop")
        self.answer()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._plan.close()


def content(size: int) -> str:
    """Message text of ``size`` characters that begins with the moment of its making."""
    return f"~T{time.monotonic_ns():016x}".ljust(size, "x")


class Publisher:
    """One connection over which a server is told to publish; requests go out without waiting for the answers."""

    def __init__(self, port: int, request: Callable[[list[dict[str, Any]]], bytes]) -> None:
        self._request = request
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(60)
        self._serial = 0
        self.refused = 0

    def publish(self, chats: Iterable[int], size: int) -> tuple[float, float]:
        """One message for each; gives when it was handed over, by the monotonic clock, and how many seconds that took."""
        payloads = []
        for chat in chats:
            self._serial += 1
            payloads.append(
                {
                    "message_id": self._serial,
                    "chat_id": chat,
                    "workspace_id": 1,
                    "sender_id": 7,
                    "content": content(size),
                    "timestamp": 1_700_000_000,
                }
            )
        request, began = self._request(payloads), time.monotonic()
        self._socket.sendall(request)
        return began, time.monotonic() - began

    def drain(self) -> bytes:
        data = b""
        while select.select([self._socket], [], [], 0)[0]:
            part = self._socket.recv(1 << 20)
            if not part:
                raise Unmeasurable("the server closed the publisher's connection")
            data += part
        self.refused += len(re.findall(rb"HTTP/1\.1 [45]\d\d|-ERR|\"error\"", data))
        return data

    def ask(self, chats: Iterable[int], size: int) -> bytes:
        """Publish and give the whole of what the server answers within a few seconds."""
        self.publish(chats, size)
        data, until = b"", time.monotonic() + 5
        while time.monotonic() < until:
            data += self.drain()
            head, end, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if end and (length is None or len(body) >= int(length[1])):
                return data
            time.sleep(0.005)
        raise Unmeasurable("the server did not answer a publish within 5 s")

    def close(self) -> None:
        self._socket.close()
