"""A history that has gone back in time, lost something, or was changed by somebody, against real servers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import gatherResults

from notify.brokers import jetstream
from notify.brokers.jetstream import JetStreamBroker
from notify.brokers.jetstream.history import Record
from notify.config import Duration
from notify.errors import HistoryLost
from notify.messages import Position
from notify.testing import Recorder, chat_payload
from notify.topics import chat
from tests.brokers.test_jetstream_streams import TOPIC, ServerCase
from tests.support.natsd import NatsServer, api, pause, until

OTHER = chat(1, 11)


def messages(recorder: Recorder) -> list[int]:
    return [message.event.message_id for message in recorder.messages]


class GoneBack(ServerCase):
    """The server forgets its newest messages, and gives their numbers to other messages."""

    async def publish(self, broker: JetStreamBroker, first: int, last: int) -> list[Position]:
        return await gatherResults(
            [broker.publish(TOPIC, chat_payload(TOPIC, n)) for n in range(first, last + 1)]
        )

    def copy(self, name: str = "copy") -> None:
        shutil.copytree(self.server.directory / "js", self.server.directory / name)

    async def put_back(self, *streams: str) -> None:
        """The server loses power, and with it all that these streams have stored since :meth:`copy`."""
        self.server.kill()
        for name in streams:
            path = f"jetstream/$G/streams/{name}"
            shutil.rmtree(self.server.directory / "js" / path)
            shutil.copytree(self.server.directory / "copy" / path, self.server.directory / "js" / path)
        await self.server.start().up()

    async def ends_told(
        self, broker: JetStreamBroker, recorder: Recorder, before: Position, expect: bool
    ) -> None:
        await until(lambda: recorder.lost_topics == ([TOPIC] if expect else []), 20)
        await until(lambda: broker.status().ready, 20)
        replay = broker.replay(TOPIC, before, 100, 10**6)
        await self.assertFailure(replay, HistoryLost)
        self.assertNotEqual((await broker.follow(TOPIC)).position.epoch, before.epoch)
        recorder.messages.clear()
        accepted = await broker.publish(TOPIC, chat_payload(TOPIC, 1000))
        await recorder.wait(1)
        self.assertEqual([m.position for m in recorder.messages], [accepted])

    async def test_a_node_that_has_seen_more_tells_everyone(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(0.3))
        await broker.follow(TOPIC)
        await self.publish(broker, 1, 10)
        self.copy()
        *_, last = await self.publish(broker, 11, 20)
        await recorder.wait(20)
        await self.put_back("MESSAGES", "MESSAGES_DEAD")
        await self.ends_told(broker, recorder, last, True)

    async def test_what_is_accepted_at_a_number_that_was_seen_is_found_at_once(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(60))
        other, _ = await self.broker("node-2", check_interval=Duration(60))
        await broker.follow(TOPIC)
        await self.publish(broker, 1, 10)
        await recorder.wait(10)
        await until(lambda: not broker._health.first)
        # Numbers are given again while the connection stays up, so nothing tells the broker.
        await other._streams.api("STREAM.PURGE.MESSAGES")
        broker._tail.highest += 100
        last = recorder.messages[-1].position
        accepted = await broker.publish(TOPIC, chat_payload(TOPIC, 11))
        self.assertNotEqual(accepted.epoch, last.epoch)
        await self.ends_told(broker, recorder, last, True)

    async def test_a_repeat_that_was_accepted_shows_how_far_the_stream_reached(self) -> None:
        """Another node stored the message, and is dead: only the node whose repeat was accepted knows of it."""
        broker, recorder = await self.broker(check_interval=Duration(60))
        other, _ = await self.broker("node-2", check_interval=Duration(60))
        *_, before = await self.publish(broker, 1, 10)
        await until(lambda: not broker._health.first)
        self.copy()
        lost = await other.publish(TOPIC, chat_payload(TOPIC, 11), "a key")
        await other.stop()
        self.assertEqual(lost, await broker.publish(TOPIC, chat_payload(TOPIC, 11), "a key"))
        await self.put_back("MESSAGES", "MESSAGES_DEAD")
        await until(lambda: broker._reader.epoch != before.epoch)
        await self.ends_told(broker, recorder, before, False)

    async def test_a_new_process_knows_from_its_state_directory(self) -> None:
        directory = self.mktemp()
        Path(directory).mkdir()
        settings: dict[str, Any] = {"check_interval": Duration(0.1), "state_directory": directory}
        broker, recorder = await self.broker(**settings)
        await self.publish(broker, 1, 10)
        self.copy()
        *_, last = await self.publish(broker, 11, 20)
        await until(lambda: broker._history.record.seen == last.seq)
        await broker.stop()
        await self.put_back("MESSAGES", "MESSAGES_DEAD")
        again, recorder = await self.broker(**settings)
        await self.ends_told(again, recorder, last, False)

    async def test_what_was_lost_and_is_repeated_in_another_order_is_not_taken_for_it(self) -> None:
        """The newest gets its number and its id again, but other messages stand before it: only its time differs."""
        directory = self.mktemp()
        Path(directory).mkdir()
        settings: dict[str, Any] = {"check_interval": Duration(60), "state_directory": directory}
        broker, recorder = await self.broker(**settings)
        *_, before = await self.publish(broker, 1, 10)
        await until(lambda: not broker._health.first)
        self.copy()
        for n in (11, 12, 13):
            await broker.publish(TOPIC, chat_payload(TOPIC, n), f"key {n}")
        await until(lambda: broker._history._memory.record.seen == 13)
        await until(lambda: broker._history._memory.record.stamp > 0)
        await broker.stop()
        await self.put_back("MESSAGES", "MESSAGES_DEAD")
        other, _ = await self.broker("node-2", check_interval=Duration(60))
        for n in (12, 11, 13):
            await other.publish(TOPIC, chat_payload(TOPIC, n), f"key {n}")
        again, recorder = await self.broker(**settings)
        await self.ends_told(again, recorder, before, False)

    async def test_what_was_seen_is_in_the_file_when_the_connection_or_the_broker_ends(self) -> None:
        self.patch(jetstream, "_REMEMBER", 1000.0)
        directory = Path(self.mktemp())
        directory.mkdir()

        def told() -> Record:
            file = directory / "history-MESSAGES.json"
            return msgspec.json.decode(
                file.read_bytes() if file.exists() else b'{"created":"","epoch":""}', type=Record
            )

        broker, _ = await self.broker(check_interval=Duration(1000), state_directory=str(directory))
        for end in (self.server.kill, broker.stop):
            *_, last = await self.publish(broker, 1, 10)
            ended = end()
            await until(lambda last=last: told().seen == last.seq)
            self.assertIsNotNone(told().id)
            if ended is None:
                await self.server.start().up()
                await until(lambda: broker.status().ready)
            else:
                await ended

    async def test_a_new_process_knows_from_beside_the_stream(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(0.1))
        await self.publish(broker, 1, 10)
        self.copy()
        *_, last = await self.publish(broker, 11, 20)
        await until(lambda: broker._history.record.seen == last.seq)
        await broker.stop()
        await self.put_back("MESSAGES")
        again, recorder = await self.broker("node-2")
        await self.ends_told(again, recorder, last, False)

    async def test_a_restart_without_a_loss_is_the_same_history(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(0.1))
        await broker.follow(TOPIC)
        first, *_ = await self.publish(broker, 1, 10)
        self.server.kill()
        await self.server.start().up()
        await until(lambda: broker.status().ready, 20)
        self.assertEqual(len((await broker.replay(TOPIC, first, 100, 10**6)).messages), 9)
        await broker.stop()
        again, _ = await self.broker("node-2")
        self.assertEqual(len((await again.replay(TOPIC, first, 100, 10**6)).messages), 9)
        self.assertEqual(recorder.lost_topics, [])

    async def test_a_forged_number_ends_in_a_new_epoch_and_not_in_silence(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(0.3))
        await broker.follow(TOPIC)
        [last] = await self.publish(broker, 1, 1)
        await recorder.wait(1)
        forged = {"Nats-Sequence": str(10**15), "Nats-Last-Sequence": str(last.seq)}
        live = broker._source._live  # type: ignore[union-attr]
        broker._connection.publish(live + TOPIC.subject, chat_payload(TOPIC, 666), "", forged)
        await recorder.wait(2)
        await self.ends_told(broker, recorder, last, True)


class Missing(ServerCase):
    """Numbers inside the stream whose messages are gone."""

    async def lack(self, broker: JetStreamBroker, position: Position) -> None:
        await broker._streams.api("STREAM.MSG.DELETE.MESSAGES", {"seq": position.seq})

    async def test_a_deleted_message_takes_nothing_from_another_chat(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(0.2))
        await broker.publish(OTHER, chat_payload(OTHER, 0))
        await broker.follow(TOPIC)
        deleted = await broker.publish(OTHER, chat_payload(OTHER, 1))
        after = await broker.publish(OTHER, chat_payload(OTHER, 2))
        await self.lack(broker, deleted)
        checked = next(iter(broker._tail.states.values()))
        await until(lambda: checked.checked >= after.seq)
        [subscription] = broker._source._subscriptions.values()  # type: ignore[union-attr]
        broker._connection.unsubscribe(subscription)
        await broker.publish(TOPIC, chat_payload(TOPIC, 3))
        await recorder.wait(1)
        self.assertEqual((messages(recorder), recorder.lost_topics), ([3], []))

    async def test_a_replay_over_a_hole_is_lost_and_behind_it_is_whole(self) -> None:
        broker, _ = await self.broker(check_interval=Duration(0.1))
        before = await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        hole = await broker.publish(OTHER, chat_payload(OTHER, 2))
        await broker.publish(TOPIC, chat_payload(TOPIC, 3))
        await self.lack(broker, hole)
        await until(lambda: broker._audit.holes.between(0))
        self.assertEqual(broker._metrics.history_holes._value.get(), 1)
        await self.assertFailure(broker.replay(TOPIC, before, 10, 10**6), HistoryLost)
        await broker.publish(TOPIC, chat_payload(TOPIC, 4))
        replayed = await broker.replay(TOPIC, hole, 10, 10**6)
        self.assertEqual([m.event.message_id for m in replayed.messages], [3, 4])

    async def test_who_has_the_newest_before_a_hole_is_told(self) -> None:
        broker, _ = await self.broker(check_interval=Duration(0.1))
        newest = await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        hole = await broker.publish(TOPIC, chat_payload(TOPIC, 2))  # lost by NATS
        await broker.publish(OTHER, chat_payload(OTHER, 3))
        await self.lack(broker, hole)
        await until(lambda: broker._audit.holes.between(0))
        followed = await broker.follow(TOPIC)
        self.assertEqual(followed.position.seq, hole.seq)
        await self.assertFailure(broker.replay(TOPIC, newest, 10, 10**6), HistoryLost)

    async def test_a_silent_chat_whose_messages_aged_out_has_lost_nothing(self) -> None:
        broker, _ = await self.broker(max_messages=3)
        silent = await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        await gatherResults([broker.publish(OTHER, chat_payload(OTHER, n)) for n in range(2, 5)])
        self.assertEqual((await broker.replay(TOPIC, silent, 10, 10**6)).messages, [])
        await broker.publish(OTHER, chat_payload(OTHER, 6))
        await self.assertFailure(broker.replay(TOPIC, silent, 10, 10**6), HistoryLost)

    async def test_a_chat_without_messages_is_followed_from_a_position_that_resumes(self) -> None:
        broker, _ = await self.broker(max_messages=3)
        await gatherResults([broker.publish(OTHER, chat_payload(OTHER, n)) for n in range(2, 6)])
        begin = (await broker.follow(TOPIC)).position
        self.assertEqual((await broker.replay(TOPIC, begin, 10, 10**6)).messages, [])
        await broker.publish(TOPIC, chat_payload(TOPIC, 6))
        self.assertEqual(len((await broker.replay(TOPIC, begin, 10, 10**6)).messages), 1)
        await gatherResults([broker.publish(OTHER, chat_payload(OTHER, n)) for n in range(7, 10)])
        await self.assertFailure(broker.replay(TOPIC, begin, 10, 10**6), HistoryLost)


class Changed(ServerCase):
    """An operator changes a stream while the server runs."""

    async def test_messages_that_are_not_sent_on_any_more_are_again(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(0.2))
        await broker.follow(TOPIC)
        config = await self.config(broker)
        await broker._streams.api("STREAM.UPDATE.MESSAGES", config | {"republish": None})
        for number in range(1, 6):
            await broker.publish(TOPIC, chat_payload(TOPIC, number))
        await recorder.wait(5)
        while not (await self.config(broker)).get("republish"):
            await pause(0.05)
        await until(lambda: broker.status().ready)
        await broker.publish(TOPIC, chat_payload(TOPIC, 6))
        await recorder.wait(6)
        self.assertEqual((messages(recorder), recorder.lost_topics), ([1, 2, 3, 4, 5, 6], []))

    async def test_what_is_wrong_with_an_operators_stream_is_told(self) -> None:
        maker, _ = await self.broker()
        broker, recorder = await self.broker("node-2", manage_stream=False, check_interval=Duration(0.2))
        await maker.stop()
        await broker.follow(TOPIC)
        config = await self.config(broker)
        await broker._streams.api("STREAM.UPDATE.MESSAGES", config | {"republish": None})
        await until(lambda: "republish does not send" in broker.status().detail)
        self.assertTrue(broker.status().ready)
        self.assertEqual(broker._metrics.broker_faults._value.get(), 1)
        await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        await recorder.wait(1)  # late, but not lost
        await broker._streams.api("STREAM.UPDATE.MESSAGES", config | {"republish": None, "sealed": True})
        await until(lambda: "sealed" in broker.status().detail)
        self.assertEqual(broker._metrics.broker_faults._value.get(), 2)

    async def test_messages_that_expire_on_their_own_are_refused(self) -> None:
        broker, _ = await self.broker()
        config = await self.config(broker)
        await broker._streams.api("STREAM.UPDATE.MESSAGES", config | {"allow_msg_ttl": True})
        self.assertIn("allow_msg_ttl is on", await self.refused(manage_stream=False))
        self.assertIn("allow_msg_ttl is on", await self.refused())


class Large(ServerCase):
    async def setUp(self) -> None:
        self.server = NatsServer(extra="max_payload: 8MB, max_pending: 64MB").start()
        self.addCleanup(self.server.remove)
        await self.server.up()

    async def test_messages_that_no_page_has_room_for_are_read(self) -> None:
        broker, recorder = await self.broker()
        content = "x" * (5 * 2**20)
        start = await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        for number in (2, 3, 4):
            await broker.publish(TOPIC, chat_payload(TOPIC, number, content=content))
        replayed = await broker.replay(TOPIC, start, 10, 10**9)
        self.assertEqual([m.event.message_id for m in replayed.messages], [2, 3, 4])
        replayed = await broker.replay(TOPIC, start, 10, 10**6, True)
        self.assertEqual((replayed.messages, replayed.more), ([], True))
        await broker.follow(TOPIC)
        [subscription] = broker._source._subscriptions.values()  # type: ignore[union-attr]
        broker._connection.unsubscribe(subscription)
        for number in (5, 6):
            await broker.publish(TOPIC, chat_payload(TOPIC, number, content=content))
        broker._suspect()
        await recorder.wait(2)
        self.assertEqual(messages(recorder), [5, 6])


class OneName(ServerCase):
    async def test_two_nodes_with_one_name_miss_nothing_and_say_so(self) -> None:
        nodes = [
            await self.broker(
                "same", delivery="consumer", canary_interval=Duration(0.1), check_interval=Duration(1)
            )
            for _ in range(2)
        ]
        for broker, _ in nodes:
            await until(lambda broker=broker: broker.status().ready)
            await broker.follow(TOPIC)
        for number in range(1, 21):
            await nodes[0][0].publish(TOPIC, chat_payload(TOPIC, number))
        for broker, recorder in nodes:
            await recorder.wait(20)
            self.assertEqual((messages(recorder), recorder.lost_topics), (list(range(1, 21)), []))
            await until(lambda broker=broker: "has the name of this one" in broker.status().detail)
        await nodes[1][0].stop()
        await until(lambda: "has the name" not in nodes[0][0].status().detail)

    async def test_one_that_restarts_is_not_taken_for_another(self) -> None:
        for _ in range(3):
            broker, _ = await self.broker("same", canary_interval=Duration(0.1))
            number = broker._health._last
            await until(lambda broker=broker, number=number: broker._health._last > number + 5)
            self.assertFalse(broker._health.shared)
            await broker.stop()

    async def test_canaries_that_are_purged_are_nobodys(self) -> None:
        broker, _ = await self.broker("same", canary_interval=Duration(0.1))
        health = broker._health
        for _ in range(3):
            await until(lambda: health._last > 0)
            await api(broker, "STREAM.DELETE.MESSAGES_DEAD")
            before = broker._metrics.broker_connects._value.get()
            broker._set_up("made anew by the test")
            await until(lambda: broker.status().ready and health._last > 0)
            self.assertEqual(broker._metrics.broker_connects._value.get(), before)
        number = health._last
        await until(lambda: health._last > number + 3)
        self.assertFalse(health.shared)
