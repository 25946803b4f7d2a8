"""A server is killed during a broadcast, which is repeated elsewhere in another order: each subject has it once."""

from __future__ import annotations

import signal
import threading
from http.client import HTTPException
from random import Random
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.natsd import NatsServer
from tests.support.process import Server
from tests.whole.test_history import JETSTREAM, SUBJECT

SUBJECTS = [SUBJECT.format(chat_id) for chat_id in range(1, 301)]


class Killed(TestCase):
    timeout = 120

    async def test_nothing_is_published_twice_and_nothing_is_left_out(self) -> None:
        server = NatsServer().start()
        self.addCleanup(server.remove)
        await server.up()
        await deferToThread(self.killed, server.url)

    def killed(self, url: str) -> None:
        node = '[server]\nnode = "{}"\n' + JETSTREAM.format(url)
        random, rounds, cut = Random(1), 5, 0
        with Server(node.format("a")) as one, Server(node.format("b")) as other:
            for number in range(rounds):
                # Kill it later each time, until a broadcast is answered before that.
                timer = threading.Timer(0.004 * 2**number, one.signal, (signal.SIGKILL,))
                timer.start()
                first = self.broadcast(one, number, random)
                timer.join()
                one.process.wait()
                cut += first is None
                again = self.broadcast(other, number, random)
                self.assertEqual({answer[0] for answer in again.values()}, {200})
                self.assertEqual(self.broadcast(other, number, random), again)
                if first is not None:
                    self.assertEqual(first, again)
                one.start()
            self.assertGreater(cut, 0)
            for subject in SUBJECTS:
                _, page = one.http("GET", f"/v1/history?subject={subject}")
                self.assertEqual(
                    [message["payload"]["message_id"] for message in page["messages"]],
                    list(range(1, rounds + 1)),
                )

    def broadcast(self, server: Server, number: int, random: Random) -> Any:
        """Status and position for each subject; None if no answer came."""
        subjects = random.sample(SUBJECTS, len(SUBJECTS))
        payload = {"message_id": number + 1, "sender_id": 1, "content": "x" * 500, "timestamp": 1}
        body, key = {"subjects": subjects, "payload": payload}, {"Idempotency-Key": f"cast-{number}"}
        try:
            status, answer = server.http("POST", "/v1/broadcast", body, **key)
        except (OSError, HTTPException):
            return None
        self.assertEqual(status, 200, answer)
        self.assertEqual([result["subject"] for result in answer["results"]], subjects)
        return {r["subject"]: (r["status"], r["epoch"], r["seq"]) for r in answer["results"]}
