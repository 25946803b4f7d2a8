"""A NATS server whose disk is full: what was answered is there, and is delivered once and in order."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.natsd import NatsServer
from tests.support.process import Client, Server, wait_for
from tests.support.programs import need, program
from tests.whole.test_history import JETSTREAM, SUBJECT

SETTINGS = 'allow_atomic = true\nrequest_timeout = "1s"\npublish_patience = "2s"\ncanary_interval = "1s"\ncheck_interval = "1s"\n'
ROOM = 290_000  # bytes: a batch of 100 messages fits where NATS collects it, but then only a part of it fits into the stream


class FullDisk(TestCase):
    timeout = 120

    async def test_what_was_accepted_is_there_and_a_repeat_completes_the_rest(self) -> None:
        need(os.geteuid() == 0, "only root can mount a small disk: run the tests as root")
        self.disk = Path(tempfile.mkdtemp())
        self.addCleanup(self.disk.rmdir)
        mount = [program("mount"), "-t", "tmpfs", "-o", "size=8m", "none", self.disk]
        mounted = subprocess.run(mount, stderr=subprocess.PIPE, text=True, check=False)
        need(mounted.returncode == 0, f"a small disk cannot be mounted here: {mounted.stderr}")
        self.addCleanup(subprocess.run, [program("umount"), self.disk], check=True)
        nats = NatsServer()
        nats.write(nats.config.read_text().replace(f"{nats.directory}/js", str(self.disk)))
        nats.start()
        self.addCleanup(nats.remove)
        await nats.up()
        await deferToThread(self.fill, nats)

    def fill(self, nats: NatsServer) -> None:
        with Server(JETSTREAM.format(nats.url) + SETTINGS) as server, server.client(1, (1,)) as client:
            lists = [(number, atomic) for number, atomic in enumerate((True, False, True, False, True))]
            outcomes = [self.publish(server, *lists[0]), self.publish(server, *lists[1])]
            self.assertEqual([{*one.values()} for one in outcomes], [{200}, {200}])
            filler = self.disk / "filler"
            room = os.statvfs(self.disk)
            filler.write_bytes(bytes(room.f_bavail * room.f_bsize - ROOM))
            outcomes += [self.publish(server, *one) for one in lists[2:]]
            for outcome in outcomes[2:]:
                self.assertLessEqual({*outcome.values()}, {200, 503, 504})
            self.assertNotIn(200, outcomes[2].values())
            filler.unlink()
            nats.kill(signal.SIGTERM)
            nats.start()
            wait_for("the server is ready again", server.ready)
            stored = self.stored(server)
            for outcome in outcomes:
                for number, status in outcome.items():
                    if status != 504:
                        self.assertEqual(number in stored, status == 200, number)
            for one in lists[2:]:
                self.assertEqual({*self.publish(server, *one).values()}, {200})
            stored = self.stored(server)
            self.assertEqual(sorted(stored), [*range(500)])
            self.assertEqual(self.received(client, 500), stored)
            self.assertNotIn("Traceback", server.log())

    def publish(self, server: Server, number: int, atomic: bool) -> dict[int, int]:
        """Publish a hundred messages, with keys; gives the status of each."""
        numbers = range(number * 100, number * 100 + 100)
        more: dict[str, Any] = {"chat_id": 1, "workspace_id": 1, "sender_id": 1, "content": "x" * 2000}
        body = [
            {"subject": SUBJECT.format(1), "payload": {"message_id": n, "timestamp": 1, **more}}
            for n in numbers
        ]
        path = f"/v1/publish?atomic={'true' if atomic else 'false'}"
        status, answer = server.http("POST", path, body, **{"Idempotency-Key": f"list-{number}"})
        results = answer.get("results", [{"status": status}] * 100)
        return {n: one["status"] for n, one in zip(numbers, results, strict=True)}

    def stored(self, server: Server) -> list[int]:
        """The messages that are stored, in order."""
        status, page = server.http("GET", f"/v1/history?subject={SUBJECT.format(1)}&limit=1000")
        self.assertEqual((status, page["complete"]), (200, True))
        return [one["payload"]["message_id"] for one in page["messages"]]

    def received(self, client: Client, count: int) -> list[int]:
        """The messages that a client was sent."""
        frames = [client.receive() for _ in range(count)]
        self.assertEqual({frame["type"] for frame in frames}, {"chat_message"})
        return [frame["message_id"] for frame in frames]
