"""``notify new-epoch``: the command, against a real nats-server with a node on it."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from notify.config import Duration
from notify.errors import HistoryLost
from notify.testing import chat_payload
from tests.brokers.test_jetstream_streams import TOPIC, ServerCase
from tests.support.auth import SECRET
from tests.support.cli import Result, command
from tests.support.natsd import until


class NewEpoch(ServerCase):
    def run_command(self, **environ: str) -> Deferred[Result]:
        given = {"NOTIFY_AUTH__JWT__SECRET": SECRET, "NOTIFY_BROKER__PLUGIN": "jetstream"}
        given["NOTIFY_BROKER__JETSTREAM__SERVERS"] = self.server.url
        return deferToThread(command, "new-epoch", **(given | environ))

    async def test_everyone_is_told_and_the_messages_stay(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(0.2))
        before = await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        await broker.follow(TOPIC)
        result = await self.run_command()
        self.assertEqual((result.status, result.err), (0, ""))
        await until(lambda: recorder.lost_topics == [TOPIC])
        await until(lambda: broker.status().ready)
        after = (await broker.follow(TOPIC)).position
        self.assertIn(after.epoch, result.out)
        self.assertEqual(after.seq, before.seq)
        await self.assertFailure(broker.replay(TOPIC, before, 10, 10**6), HistoryLost)
        self.assertEqual(len((await broker.replay(TOPIC, None, 10, 10**6)).messages), 1)

    async def test_before_the_nodes_start(self) -> None:
        broker, _ = await self.broker()
        before = await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        await broker.stop()
        self.assertEqual((await self.run_command()).status, 0)
        again, _ = await self.broker()
        self.assertNotEqual((await again.follow(TOPIC)).position.epoch, before.epoch)

    async def test_what_cannot_be_done_is_one_sentence(self) -> None:
        for environ, words in (
            ({"NOTIFY_BROKER__PLUGIN": "memory"}, "the broker memory does not need this"),
            (
                {"NOTIFY_BROKER__JETSTREAM__SERVERS": "nats://a:geheim@127.0.0.1:1"},
                "127.0.0.1:1 cannot be reached",
            ),
            ({}, "nothing was changed: stream MESSAGES: stream not found"),
        ):
            result = await self.run_command(**environ)
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertIn(words, result.err)
            self.assertNotIn("geheim", result.err)
            self.assertEqual(result.err.count("\n"), 1)
