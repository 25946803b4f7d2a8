"""Pages of history from real streams: dense, sparse, with holes, made anew, and of chats that stay active."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import gatherResults

from notify.brokers.jetstream import JetStreamBroker
from notify.config import Duration
from notify.errors import HistoryLost, Unavailable
from notify.messages import Position
from notify.testing import chat_payload
from notify.topics import Topic, chat
from tests.brokers.test_jetstream_streams import TOPIC, ServerCase
from tests.support.natsd import until

NOISE = chat(1, 99)
SIZE = 2**20


class Pages(ServerCase):
    async def started(self, **settings: Any) -> JetStreamBroker:
        broker, self.recorder = await self.broker(**settings)
        await until(lambda: broker._audit.trusted, 20)
        self.asked: list[str] = []
        gather, api = broker._connection.gather, broker._streams.api

        def counted(subject: str, *arguments: Any, **more: Any) -> Any:
            self.asked.append("direct")
            return gather(subject, *arguments, **more)

        async def counted_api(call: str, *arguments: Any, **more: Any) -> Any:
            self.asked.append(call.partition(".MESSAGES")[0])
            return await api(call, *arguments, **more)

        self.patch(broker._connection, "gather", counted)
        self.patch(broker._streams, "api", counted_api)
        return broker

    async def publish(self, broker: JetStreamBroker, topic: Topic, count: int) -> list[Position]:
        return await gatherResults([broker.publish(topic, chat_payload(topic, n)) for n in range(count)])

    async def through(self, broker: JetStreamBroker, limit: int, topic: Topic = TOPIC) -> list[int]:
        """Read all pages, backwards; return the numbers, oldest first. ``reads``: how many requests each page took."""
        seen: list[int] = []
        self.reads: list[int] = []
        before, more = None, True
        while more:
            self.asked.clear()
            page = await broker.earlier(topic, before, limit, SIZE)
            self.reads.append(len(self.asked))
            seen = [message.position.seq for message in page.messages] + seen
            before, more = Position(page.epoch, page.first), page.more
        return seen

    async def test_a_chat_that_talks_among_others_is_paged_in_a_few_reads(self) -> None:
        broker = await self.started()
        sent: list[int] = []
        for _ in range(30):
            sent += [at.seq for at in await self.publish(broker, TOPIC, 10)]
            await self.publish(broker, NOISE, 70)
        self.assertEqual(await self.through(broker, 50), sent)
        self.assertLessEqual(max(self.reads), 10, self.reads)
        self.assertEqual(len(self.reads), 6)

    async def test_one_that_was_busy_once_and_one_that_speaks_seldom_are_paged_too(self) -> None:
        broker = await self.started()
        rare = chat(1, 11)
        busy = [at.seq for at in await self.publish(broker, TOPIC, 300)]
        seldom: list[int] = []
        for _ in range(60):
            seldom += [at.seq for at in await self.publish(broker, rare, 1)]
            await self.publish(broker, NOISE, 40)
        busy += [at.seq for at in await self.publish(broker, TOPIC, 1)]
        self.assertEqual(await self.through(broker, 20), busy)
        self.assertLessEqual(max(self.reads), 24, self.reads)
        self.assertEqual(await self.through(broker, 20, rare), seldom)
        self.assertLessEqual(max(self.reads), 10, self.reads)

    async def test_what_was_deleted_is_not_there_and_the_rest_is(self) -> None:
        broker = await self.started()
        sent = [at.seq for at in await self.publish(broker, TOPIC, 40)]
        for seq in (sent[39], sent[35], sent[20]):
            await broker._streams.api("STREAM.MSG.DELETE.MESSAGES", {"seq": seq, "no_erase": True})
            sent.remove(seq)
        self.assertEqual(await self.through(broker, 7), sent)
        await broker._streams.api("STREAM.PURGE.MESSAGES", {"filter": TOPIC.subject, "keep": 10})
        self.assertEqual(await self.through(broker, 7), sent[-10:])

    async def test_the_newest_page_can_be_gone_on_from_whatever_was_deleted_behind_its_messages(self) -> None:
        broker = await self.started()
        mine = [at.seq for at in await self.publish(broker, TOPIC, 3)]
        others = [at.seq for at in await self.publish(broker, NOISE, 3)]
        kept = list(mine)
        for seq in (others[1], mine[2]):
            await broker._streams.api("STREAM.MSG.DELETE.MESSAGES", {"seq": seq, "no_erase": True})
            kept = [number for number in kept if number != seq]
            page = await broker.earlier(TOPIC, None, 10, SIZE)
            self.assertEqual([message.position.seq for message in page.messages], kept)
            end = Position(page.epoch, page.last)
            self.assertEqual(end, await broker.newest(TOPIC))
            self.assertEqual((await broker.replay(TOPIC, end, 10, SIZE)).messages, [])
        [sent] = await self.publish(broker, TOPIC, 1)
        replayed = await broker.replay(TOPIC, end, 10, SIZE)
        self.assertEqual([message.position for message in replayed.messages], [sent])

    async def test_what_has_expired_is_not_there(self) -> None:
        broker = await self.started(max_messages=20)
        sent = [at.seq for at in await self.publish(broker, TOPIC, 30)]
        self.assertEqual(await self.through(broker, 7), sent[-20:])
        await self.publish(broker, NOISE, 20)
        page = await broker.earlier(TOPIC, None, 7, SIZE)
        self.assertEqual((page.messages, page.more), ([], False))
        position = await broker.newest(TOPIC)
        [sent_now] = await self.publish(broker, TOPIC, 1)
        replayed = await broker.replay(TOPIC, position, 10, SIZE)
        self.assertEqual([message.position for message in replayed.messages], [sent_now])

    async def test_a_followed_chat_whose_messages_have_all_expired_has_an_empty_page(self) -> None:
        broker = await self.started(max_messages=20)
        await broker.follow(TOPIC)
        await self.publish(broker, TOPIC, 5)
        await self.recorder.wait(5)
        await self.publish(broker, NOISE, 25)
        page = await broker.earlier(TOPIC, None, 7, SIZE)
        self.assertEqual((page.messages, page.more), ([], False))

    async def test_a_history_that_was_made_anew_gives_pages_of_its_own_alone(self) -> None:
        broker = await self.started(check_interval=Duration(0.2))
        *_, last = await self.publish(broker, TOPIC, 10)
        await broker._streams.api("STREAM.DELETE.MESSAGES")
        await until(lambda: broker.status().ready and broker._reader.epoch != last.epoch, 20)
        await self.assertFailure(broker.earlier(TOPIC, last, 5, SIZE), HistoryLost)
        [sent] = await self.publish(broker, TOPIC, 1)
        page = await broker.earlier(TOPIC, None, 5, SIZE)
        self.assertEqual([message.position for message in page.messages], [sent])
        self.assertEqual(await broker.newest(TOPIC), sent)

    async def test_a_server_that_is_away_is_told_and_neither_guessed_at(self) -> None:
        broker = await self.started()
        await self.publish(broker, TOPIC, 3)
        self.server.kill()
        await until(lambda: not broker.status().ready, 20)
        await self.assertFailure(broker.earlier(TOPIC, None, 5, SIZE), Unavailable)
        await self.assertFailure(broker.newest(TOPIC), Unavailable)
        await self.server.start().up()
        await until(lambda: broker.status().ready, 20)
        self.assertEqual(len((await broker.earlier(TOPIC, None, 5, SIZE)).messages), 3)

    async def test_many_pages_at_once_do_not_keep_a_replay_waiting(self) -> None:
        broker = await self.started(replay_reads=4)
        *_, last = await self.publish(broker, TOPIC, 300)
        pages = [broker.earlier(TOPIC, None, 100, SIZE) for _ in range(200)]
        done: list[int] = []
        for page in pages:
            page.addCallback(lambda _: done.append(1))
        replayed = await broker.replay(TOPIC, Position(last.epoch, last.seq - 20), 100, SIZE)
        self.assertEqual(len(replayed.messages), 20)
        self.assertLess(len(done), 100)
        await gatherResults(pages)
