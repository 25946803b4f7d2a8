"""Centrifugo 6, out of the box: memory engine, a history for each channel from which its clients recover."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from benchmarks.load import Unmeasurable
from benchmarks.running import Running
from benchmarks.servers import API_KEY, PEERS, free_port, token


class Centrifugo(Running):
    """Centrifugo: the binary on the PATH, or one that runs already with what is in ``peers/centrifugo.json``."""

    name = "Centrifugo"
    option = "--centrifugo"
    resumes = True
    reply = "{}={}"

    def __init__(self) -> None:
        super().__init__()
        self.publish_port = free_port()

    def command(self) -> list[str]:
        binary = shutil.which("centrifugo")
        if binary is None:
            raise Unmeasurable(
                "Centrifugo needs centrifugo on the PATH: go install github.com/centrifugal/centrifugo/v6@latest; "
                f"or one that runs: {self.option} ws://127.0.0.1:PORT"
            )
        config = self.folder / "centrifugo.json"
        config.write_text(json.dumps(self.config()))
        return [binary, "--config", str(config)]

    def config(self) -> dict[str, Any]:
        """``peers/centrifugo.json``, with the ports and the certificate of this one."""
        config: dict[str, Any] = json.loads((PEERS / "centrifugo.json").read_text())
        config["http_server"] |= {"port": self.port, "internal_port": str(self.publish_port)}
        if self.tls:
            key, certificate = self.certificate()
            config["http_server"] |= {
                "tls": {"enabled": True, "cert_pem": str(certificate), "key_pem": str(key)},
                "tls_external": True,
            }
        return config

    def plan(self, user: int, chats: Sequence[int], since: dict[str, Any] | None = None) -> str:
        resume = {"recover": True, **since} if since else {}
        steps = [f">{_text({'id': 1, 'connect': {'token': token(user)}})}", '<"id":1,']
        for index, chat in enumerate(chats):
            subscribe = {"channel": _channel(chat), **resume}
            steps.append(f">{_text({'id': index + 2, 'subscribe': subscribe})}")
        return "\t".join(["/connection/websocket", *steps, f'<"id":{len(chats) + 1},"subscribe"'])

    def request(self, payloads: list[dict[str, Any]]) -> bytes:
        publishes = [
            {"channel": _channel(p["chat_id"]), "data": {"type": "chat_message", **p}} for p in payloads
        ]
        path, what = "publish", publishes[0]
        if len(publishes) > 1:
            path, what = "batch", {"commands": [{"publish": each} for each in publishes]}
        body = _text(what).encode()
        return (
            f"POST /api/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"X-API-Key: {API_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def position(self, answer: bytes) -> dict[str, Any] | None:
        result = json.loads(answer.partition(b"\r\n\r\n")[2])["result"]
        return {"epoch": result["epoch"], "offset": result["offset"]}


def version() -> str | None:
    """Which one is on the PATH; None where there is none."""
    if (binary := shutil.which("centrifugo")) is None:
        return None
    said = subprocess.run([binary, "version"], capture_output=True, text=True).stdout
    if "v0.0.0" in said and (
        go := shutil.which("go")
    ):  # what `go install` makes knows its version nowhere else
        said = subprocess.run([go, "version", "-m", binary], capture_output=True, text=True).stdout
    found = re.search(r"/centrifugo\S*\s+v([\d.]+\S*)", said) or re.search(r"Centrifugo v(\S+)", said)
    return found[1] if found else None


def _channel(chat: int) -> str:
    return f"chat:{chat}"


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
