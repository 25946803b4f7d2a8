"""A client in Go, built from proto/notify.proto alone, receives what is published: text ids, features and events."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.process import Server, token
from tests.support.programs import ROOT, need, program, run

#: an old version, which the oldest supported Go can build
PLUGIN = "google.golang.org/protobuf/cmd/protoc-gen-go@v1.33.0"
ROOM = "01JD9Z5V8M2Q4W6X7Y8Z9A0B1C"


class GoClient(TestCase):
    timeout = 400

    def build(self) -> Path:
        go = program("go")
        folder = Path(tempfile.mkdtemp(prefix="notify-go-"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        shutil.copytree(ROOT / "tests" / "go", folder / "client")
        environ = {"GOBIN": str(folder), "GOFLAGS": "-modcacherw", "GOTOOLCHAIN": "local"}
        fetched = subprocess.run(
            [go, "install", PLUGIN],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        need(fetched.returncode == 0, f"the Go module proxy cannot be reached: {fetched.stderr[-300:]}")
        run(
            sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
            f"--plugin=protoc-gen-go={folder / 'protoc-gen-go'}", f"--go_out={folder / 'client'}",
            "--go_opt=module=notify", "notify.proto",
        )  # fmt: skip
        run(go, "build", "-o", folder / "receive", ".", environ=environ, cwd=folder / "client")
        return folder / "receive"

    def receive(self) -> None:
        client = self.build()
        with Server() as server:
            url = f"ws://127.0.0.1:{server.public}/ws"
            process = subprocess.Popen(
                [client, url, token("u-1", "acme"), ROOM], stdout=subprocess.PIPE, text=True
            )
            self.addCleanup(process.kill)
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), "granted [events]\n")
            self.assertEqual(process.stdout.readline(), f"ready {ROOM}\n")
            common = {"workspace_id": "acme", "chat_id": ROOM, "sender_id": "u-2", "timestamp": 1_700_000_000}
            subject = f"workspace.acme.chat.{ROOM}.messages"
            for payload in (
                {**common, "message_id": 1, "content": "hello"},
                {**common, "message_id": "m-2", "kind": "reaction", "data": {"emoji": "+1"}, "refers_to": 1},
            ):
                status, answer = server.http("POST", "/v1/publish", {"subject": subject, "payload": payload})
                self.assertEqual(status, 200, answer)
            self.assertEqual(process.stdout.readline(), "message 1 u-2 hello\n")
            kind, _, data = process.stdout.readline().rstrip("\n").partition(" 1 ")
            self.assertEqual((kind, json.loads(data)), ("event reaction", {"emoji": "+1"}))
            self.assertEqual(process.wait(10), 0)

    async def test_receives_messages_and_events_of_a_chat_with_text_for_an_id(self) -> None:
        await deferToThread(self.receive)
