"""Both Python clients against a server in this process, over real sockets."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from msgspec import structs
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.client import (
    AsyncioClient,
    ClientClosed,
    FileStore,
    HistoryLost,
    Loss,
    Position,
    Presence,
    Refused,
    Settings,
    Signal,
    State,
    Token,
    TwistedClient,
)
from notify.client._core import Core, Options
from notify.client._wire import Address
from tests.support.fake_server import FakeServer, from_asyncio
from tests.support.ports import free_port

T = TypeVar("T")
FAST = Settings(backoff_floor=0.01, backoff_base=0.05, backoff_cap=0.2)


def folder(test: Any) -> Path:
    """A temporary folder for a test."""
    path = tempfile.mkdtemp()
    test.addCleanup(shutil.rmtree, path)
    return Path(path)


class Behaviour:
    """What every front does; each subclass runs it with its own kind of coroutine."""

    server: FakeServer
    timeout = 20
    made: list[Core]

    def run_it(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        raise NotImplementedError

    def aside(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """Run a coroutine on asyncio, to be awaited by this front's coroutines."""
        raise NotImplementedError

    def aside_here(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """Start a coroutine of this front's own kind beside the running one."""
        raise NotImplementedError

    def client(self, token: Any = "T1", **options: Any) -> Any:
        raise NotImplementedError

    async def take(self, stream: Any, count: int) -> list[str]:
        got = []
        async for message in stream:
            got.append(message.content)
            if len(got) == count:
                break
        return got

    async def when(self, client: Core, state: str) -> None:
        """Wait for a state that began after the last one that was waited for. The client needs ``on_state=self.heard``."""
        while client.state.name != state and state not in self.states:
            waiter = client._waiter()
            self.waiters.append(waiter)
            await waiter
        # The client may have left the state again by now.
        self.states = self.states[self.states.index(state) + 1 :] if state in self.states else []

    def heard(self, state: State) -> None:
        self.states.append(state.name)
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.fire(None)

    def setUp(self) -> Deferred[Any]:
        self.server, self.waiters = FakeServer(), []
        self.states: list[str] = []
        return from_asyncio(self.server.start())

    def tearDown(self) -> Deferred[Any]:
        return from_asyncio(self.server.stop())

    def check(self, scenario: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return self.run_it(scenario())

    def test_messages_arrive_in_order(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                chat = client.chat(7)
                await chat.ready()
                for text in "abc":
                    await self.aside(self.server.publish(7, text))
                self.assertEqual(await self.take(chat, 3), ["a", "b", "c"])
                self.assertEqual(client.state.user_id, 5)
            self.assertEqual(client.state.name, "closed")

        return self.check(scenario)

    def test_it_comes_back_by_its_client_id_and_by_another_when_it_is_sent_elsewhere(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client(on_state=self.heard) as client:
                own = client.client_id
                for reason in ("", '{"retry_after_ms": 0, "elsewhere": true}', ""):
                    self.states.clear()
                    await self.aside(self.server.close(1012, reason))
                    await self.when(client, "connected")
                self.assertNotEqual(client.client_id, own)
                used = [own, own, client.client_id, client.client_id]
                self.assertEqual(self.server.paths, [f"/ws?client_id={one}" for one in used])
                self.assertEqual([len(one) for one in used], [16] * 4)

        return self.check(scenario)

    def test_a_client_id_of_the_programs_own_gets_a_suffix_when_it_has_to_move(self: Any) -> Any:
        async def scenario() -> None:
            own = "x" * 64
            async with self.client(on_state=self.heard, client_id=own) as client:
                for number in range(2):
                    self.states.clear()
                    await self.aside(self.server.close(1012, '{"elsewhere": true}'))
                    await self.when(client, "connected")
                    self.assertRegex(client.client_id, r"^x{55}-[A-Za-z0-9_-]{8}\Z", number)
                    self.assertEqual(self.server.paths[-1], f"/ws?client_id={client.client_id}")
            self.assertEqual(self.server.paths[0], f"/ws?client_id={own}")
            self.assertEqual(len(set(self.server.paths)), 3)

        return self.check(scenario)

    def test_a_client_id_is_made_once_a_client_or_given_and_of_its_form(self) -> None:
        self.assertNotEqual(self.client().client_id, self.client().client_id)
        self.assertEqual(self.client(client_id="a-B_3").client_id, "a-B_3")
        for wrong in ("", "x" * 65, "a b", "ä", "a\n", "a&b"):
            self.assertRaises(ValueError, self.client, client_id=wrong)

    def test_a_program_has_the_token_replaced_and_goes_on_once_it_is(self: Any) -> Any:
        async def scenario() -> None:
            made: list[str] = []

            def fetch() -> str:
                made.append(f"T{len(made) + 1}")
                if len(made) == 3:
                    raise LookupError("no such user")
                return made[-1]

            async with self.client(fetch) as client:
                await client.refresh()
                self.assertEqual(self.server.tokens, ["T1", "T2"])
                with self.assertRaises(Refused) as refused:
                    await client.refresh()
                self.assertEqual(refused.exception.code, "no_token")
                self.assertIn("no such user", str(refused.exception))
                self.assertEqual(client.state.name, "connected")
            with self.assertRaises(Refused):
                await client.refresh()

        return self.check(scenario)

    def test_a_subscription_that_the_server_ends_for_now_is_had_again(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                chat = client.chat(7)
                await chat.ready()
                error = {"type": "error", "code": "unavailable", "message": "m", "retry": True, "chat_id": 7}
                await self.aside(self.server.end(7, error))
                while chat.state != "waiting":
                    await client.ping()
                await self.aside(self.server.publish(7, "meanwhile"))
                self.assertEqual(await self.take(chat, 1), ["meanwhile"])

        return self.check(scenario)

    def test_what_was_published_during_a_cut_arrives_once_and_in_order(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client(on_state=self.heard) as client:
                chat = client.chat(7)
                await chat.ready()
                await self.aside(self.server.publish(7, "a"))
                self.assertEqual(await self.take(chat, 1), ["a"])
                self.server.cut()
                await self.when(client, "waiting")
                await self.aside(self.server.publish(7, "b"))
                await self.aside(self.server.publish(7, "c"))
                self.assertEqual(await self.take(chat, 2), ["b", "c"])
                self.assertEqual(chat.waiting, 0)

        return self.check(scenario)

    def test_a_gap_is_filled_and_a_duplicate_dropped(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                chat = client.chat(7)
                await chat.ready()
                await self.aside(self.server.publish(7, "a", double=True))
                await self.aside(self.server.publish(7, "b", lose=True))
                await self.aside(self.server.publish(7, "c"))
                await self.aside(self.server.publish(7, "d"))
                self.assertEqual(await self.take(chat, 4), ["a", "b", "c", "d"])

        return self.check(scenario)

    def test_notifications_resume_too(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client(on_state=self.heard) as client:
                await self.aside(self.server.publish(None, "a"))
                self.assertEqual((await client.notifications.__anext__()).data, "a")
                self.server.cut()
                await self.when(client, "waiting")
                await self.aside(self.server.publish(None, "b"))
                await self.aside(self.server.publish(None, "c", lose=True))
                await self.when(client, "connected")
                await self.aside(self.server.publish(None, "d"))
                got = [(await client.notifications.__anext__()).data for _ in range(3)]
                self.assertEqual(got, ["b", "c", "d"])

        return self.check(scenario)

    def test_a_loss_raises_in_its_place_and_reading_goes_on_behind_it(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client(on_state=self.heard) as client:
                chat = client.chat(7)
                await chat.ready()
                await self.aside(self.server.publish(7, "a"))
                await self.take(chat, 1)
                self.server.recoverable = False
                self.server.cut()
                await self.when(client, "waiting")
                await self.aside(self.server.publish(7, "b"))
                try:
                    await chat.__anext__()
                    self.fail("nothing was raised")
                except HistoryLost as error:
                    self.assertEqual(error.loss, Loss(7, Position("e1", 10), Position("e1", 20)))
                await self.aside(self.server.publish(7, "c"))
                self.assertEqual(await self.take(chat, 1), ["c"])

        return self.check(scenario)

    def test_a_loss_is_handed_to_on_lost_and_awaited(self: Any) -> Any:
        async def scenario() -> None:
            losses: list[Loss] = []

            async def reload(loss: Loss) -> None:
                losses.append(loss)

            async with self.client() as client:
                chat = client.chat(7, since=Position("of old", 3), on_lost=reload)
                await chat.ready()
                await self.aside(self.server.publish(7, "a"))
                self.assertEqual(await self.take(chat, 1), ["a"])
            self.assertEqual(losses, [Loss(7, Position("of old", 3), Position("e1", 0))])

        return self.check(scenario)

    def test_positions_survive_the_process_in_a_store(self: Any) -> Any:
        path = folder(self) / "positions.json"

        async def scenario() -> None:
            async with self.client(store=FileStore(path)) as client:
                chat = client.chat(7)
                await chat.ready()
                await self.aside(self.server.publish(7, "a"))
                await self.aside(self.server.publish(7, "b"))
                self.assertEqual(await self.take(chat, 1), ["a"])
            await self.aside(self.server.publish(7, "c"))
            self.assertEqual(FileStore(path).load("chat:7"), Position("e1", 10))
            async with self.client(store=FileStore(path)) as client:
                self.assertEqual(await self.take(client.chat(7), 2), ["b", "c"])

        return self.check(scenario)

    def test_a_message_whose_handling_failed_comes_again(self: Any) -> Any:
        path = folder(self) / "positions.json"

        async def scenario() -> None:
            try:
                async with self.client(store=FileStore(path)) as client:
                    chat = client.chat(7)
                    await chat.ready()
                    await self.aside(self.server.publish(7, "a"))
                    await self.take(chat, 1)
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            async with self.client(store=FileStore(path)) as client:
                self.assertEqual(await self.take(client.chat(7), 1), ["a"])

        return self.check(scenario)

    def test_a_reader_that_lags_holds_a_bounded_queue_and_misses_nothing(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client(queue=4) as client:
                chat = client.chat(7)
                await chat.ready()
                for number in range(6):
                    await self.aside(self.server.publish(7, str(number)))
                while chat.state != "paused":
                    await client.ping()
                held = chat.waiting
                self.assertLessEqual(held, 6)
                for number in range(6, 50):
                    await self.aside(self.server.publish(7, str(number)))
                await client.ping()
                self.assertEqual(chat.waiting, held)
                self.assertEqual(await self.take(chat, 50), [str(number) for number in range(50)])

        return self.check(scenario)

    def test_a_reader_that_is_behind_when_the_client_ends_reads_what_has_come_and_is_told(self: Any) -> Any:
        async def scenario() -> None:
            for key in (7, None):
                client = self.client(queue=4, on_state=self.heard)
                await client.start()
                stream = client.notifications if key is None else client.chat(key)
                await stream.ready()
                for number in range(6):
                    await self.aside(self.server.publish(key, str(number)))
                while stream.state != "paused":
                    await client.ping()
                await self.aside(self.server.publish(key, "not taken any more"))
                await client.ping()
                await self.aside(self.server.send_away(4503))
                await self.when(client, "closed")
                count, held = 0, stream.waiting
                try:
                    async for _ in stream:
                        count += 1
                except ClientClosed as error:
                    self.assertEqual(error.code, 4503)
                self.assertEqual((count, stream.state), (held, "closed"))
                self.assertEqual(client.state.name, "closed")

        return self.check(scenario)

    def test_a_reader_that_keeps_up_is_not_paused_however_much_comes_at_once(self: Any) -> Any:
        async def scenario() -> None:
            seen: list[str] = []
            self.server.history[7] = [str(number) for number in range(1000)]
            async with self.client(queue=4, on_action=lambda event: seen.append(str(event))) as client:
                chat = client.chat(7, since=Position("e1", 0))
                self.assertEqual(len(await self.take(chat, 1000)), 1000)
            self.assertNotIn("paused", "".join(seen))

        return self.check(scenario)

    def test_a_slow_reader_of_more_than_one_resumption_misses_nothing_and_holds_no_more_than_a_page(
        self: Any,
    ) -> Any:
        async def scenario() -> None:
            self.server.features, self.server.longest = ["history"], 10
            settings = structs.replace(FAST, page=7)
            async with self.client(queue=8, settings=settings, on_state=self.heard) as client:
                chat = client.chat(7)
                await chat.ready()
                for number in range(12):
                    await self.aside(self.server.publish(7, str(number)))
                while chat.state != "paused":
                    await client.ping()
                for number in range(12, 300):
                    await self.aside(self.server.publish(7, str(number)))
                first = chat.waiting
                got, most = [], 0
                async for message in chat:
                    got.append(message.content)
                    if len(got) > first:
                        most = max(most, chat.waiting)
                    if len(got) == 120:  # in the middle of the pages
                        self.server.cut()
                    if len(got) == 300:
                        break
                    if len(got) % 10 == 0:
                        await client.ping()
                self.assertEqual(got, [str(number) for number in range(300)])
                self.assertLessEqual(most, 8 + 7)
                asked = [frame for frame in self.server.frames if frame["type"] == "history"]
                self.assertGreater(len(asked), 30)

        return self.check(scenario)

    def test_an_absence_longer_than_one_resumption_is_no_loss_while_history_has_it(self: Any) -> Any:
        async def scenario() -> None:
            self.server.features, self.server.longest = ["history"], 10
            self.server.history[7] = [str(number) for number in range(500)]
            async with self.client(queue=8) as client:
                chat = client.chat(7, since=Position("e1", 1000))
                await chat.ready()
                self.assertEqual(await self.take(chat, 400), [str(number) for number in range(100, 500)])
                await self.aside(self.server.publish(7, "live"))
                self.assertEqual(await self.take(chat, 1), ["live"])
                self.server.oldest = 400
                self.server.history[8] = self.server.history[7]
                lost = client.chat(8, since=Position("e1", 10))
                with self.assertRaises(HistoryLost) as raised:
                    await lost.__anext__()
                self.assertEqual(raised.exception.loss, Loss(8, Position("e1", 10), Position("e1", 5010)))

        return self.check(scenario)

    def test_a_chats_history_can_be_paged_through_in_both_directions(self: Any) -> Any:
        async def scenario() -> None:
            self.server.features = ["history"]
            self.server.history[7] = [str(number) for number in range(10)]
            async with self.client() as client:
                self.assertEqual(await client.position(7), Position("e1", 100))
                page = await client.history(7, limit=4)
                self.assertEqual([message.content for message in page.messages], ["6", "7", "8", "9"])
                self.assertEqual((page.more, page.position), (True, Position("e1", 100)))
                page = await client.history(7, before=page.messages[0].position)
                self.assertEqual([message.content for message in page.messages], list("012345"))
                self.assertEqual((page.more, page.start), (False, Position("e1", 10)))
                page = await client.history(7, after=page.messages[-2].position, limit=3)
                self.assertEqual([message.content for message in page.messages], ["5", "6", "7"])
                self.assertTrue(page.more)
                for wrong in (
                    {"limit": 0},
                    {"limit": 101},
                    {"before": Position("e", 1), "after": Position("e", 2)},
                ):
                    with self.assertRaises(ValueError):
                        await client.history(7, **wrong)
                for chat, place, code in (
                    (7, Position("f", 3), "history_unavailable"),
                    (-1, None, "forbidden"),
                ):
                    with self.assertRaises(Refused) as refused:
                        await client.history(chat, after=place)
                    self.assertEqual(refused.exception.code, code)

        return self.check(scenario)

    def test_a_server_that_gives_no_history_is_told_of_as_such(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                for asked in (client.history(7), client.position(7)):
                    with self.assertRaises(Refused) as refused:
                        await asked
                    self.assertEqual(refused.exception.code, "unsupported")

        return self.check(scenario)

    def test_a_chats_state_is_loaded_with_the_position_first_and_again_on_a_loss(self: Any) -> Any:
        async def scenario() -> None:
            places: list[Position] = []
            shown: list[str] = []

            async def load(place: Position) -> None:
                places.append(place)
                if len(places) == 1:
                    raise OSError("the backend is away")
                shown[:] = self.server.history[7]
                await self.aside(self.server.publish(7, f"during load {len(places)}"))

            self.server.history[7] = ["a", "b"]
            path = folder(self) / "positions.json"
            FileStore(path).save({"chat:7": Position("e1", 10)})
            async with self.client(store=FileStore(path), on_state=self.heard) as client:
                chat = client.chat(7, load=load)
                with self.assertRaises(OSError):
                    await chat.__anext__()
                self.assertEqual(await self.take(chat, 1), ["during load 2"])
                self.assertEqual((places, shown), ([Position("e1", 20)] * 2, ["a", "b"]))
                self.server.recoverable = False
                self.server.cut()
                await self.when(client, "waiting")
                await self.aside(self.server.publish(7, "d"))
                self.assertEqual(await self.take(chat, 1), ["during load 3"])
                self.assertEqual(
                    (places[2:], shown), ([Position("e1", 40)], ["a", "b", "during load 2", "d"])
                )
                self.assertEqual(chat.position, Position("e1", 40))
                for wrong in ({"since": Position("e1", 3)}, {"on_lost": print}):
                    self.assertRaises(ValueError, client.chat, 8, load=load, **wrong)

        return self.check(scenario)

    def test_a_chat_that_is_closed_while_it_loads_ends(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                chat = client.chat(7, load=lambda place: chat.close())
                self.assertEqual([message async for message in chat], [])

        return self.check(scenario)

    def test_what_keeps_it_from_connecting_is_said_in_words_and_waited_for_as_long_as_is_wished(
        self: Any,
    ) -> Any:
        async def answer(line: str) -> asyncio.Server:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(f"HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n".encode())
                writer.close()

            return await asyncio.start_server(serve, "127.0.0.1", 0)

        async def scenario() -> None:
            for line, words in (
                ("404 Not Found", "HTTP 404: nothing is at this path, clients go to /ws"),
                ("403 Forbidden", "HTTP 403: it does not allow this Origin"),
                ("301 Moved\r\nLocation: wss://h/ws", "HTTP 301: it redirects to wss://h/ws"),
                ("200 OK", "HTTP 200: what is there is no notify server"),
            ):
                server = await self.aside(answer(line))
                await self.refused(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/wrong", words)
                server.close()
            await self.refused(
                "ws://no-such-host.invalid/ws", "the name no-such-host.invalid cannot be looked up"
            )
            await self.refused(f"ws://127.0.0.1:{free_port()}/ws", "nothing listens at 127.0.0.1:")
            await self.refused(
                self.server.url, "KeyError: 'the session store'", token=lambda: {}["the session store"]
            )

        return self.check(scenario)

    async def refused(self: Any, url: str, words: str, **options: Any) -> None:
        """Assert that a client that cannot connect says these words: in its state, and in what is raised."""
        states: list[State] = []
        self.states.clear()
        client = self.client(
            url=url, on_state=lambda state: (states.append(state), self.heard(state)), **options
        )
        client._event(client.machine.start)
        await self.when(client, "waiting")
        with self.assertRaises(TimeoutError) as raised:
            await client.start(timeout=0.01)
        # The client goes on trying, and may be at any point of a try when the time is over.
        self.assertRegex(
            str(raised.exception),
            r"^not connected within 0\.01 s: the client is (waiting|connecting|authenticating), ",
        )
        self.assertIn(words, str(raised.exception))
        self.assertIn(words, " ".join(state.reason for state in states))
        with self.assertRaises(TimeoutError) as raised:
            await client.chat(7).ready(timeout=0.01)
        self.assertIn("chat 7 is not live within 0.01 s: subscribing; the client is ", str(raised.exception))
        self.assertIn(words, str(raised.exception))
        await client.close()

    def test_a_start_that_hangs_is_not_silent(self: Any) -> Any:
        async def scenario() -> None:
            client = self.client(url=f"ws://127.0.0.1:{free_port()}/ws")
            with self.assertLogs("notify.client", logging.WARNING) as logs:
                while not logs.output:
                    with self.assertRaises(TimeoutError):
                        await client.start(timeout=0.2)
            self.assertRegex(logs.output[0], r"not connected: nothing listens at .*; trying again in 0\.\d s")
            await client.close()

        return self.check(scenario)

    def test_the_end_is_said_in_words(self: Any) -> Any:
        async def scenario() -> None:
            self.server.refuse["bad"] = 4500
            for token, words in (
                ("bad", "closed with 4500: the server does not accept the token"),
                (lambda: None, "closed: the token function gave none"),
            ):
                client = self.client(token)
                with self.assertRaises(ClientClosed) as raised:
                    await client.start(timeout=10)
                self.assertIn(words, str(raised.exception))

        return self.check(scenario)

    def test_losses_go_to_the_client_where_a_stream_names_nobody(self: Any) -> Any:
        async def scenario() -> None:
            losses: list[Loss] = []
            own: list[Loss] = []
            async with self.client(on_lost=losses.append) as client:
                old = Position("of old", 3)
                self.assertEqual(client.notifications.on_lost, losses.append)
                chats = [client.chat(7, since=old), client.chat(8, since=old, on_lost=own.append)]
                for chat in chats:
                    await chat.ready(timeout=10)
                    await self.aside(self.server.publish(chat.id, "a"))
                    self.assertEqual(await self.take(chat, 1), ["a"])
            self.assertEqual(losses, [Loss(7, old, Position("e1", 0))])
            self.assertEqual(own, [Loss(8, old, Position("e1", 0))])

        return self.check(scenario)

    def test_a_chat_can_be_closed_by_aclosing(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                async with aclosing(client.chat(7)) as chat:
                    await chat.ready()
                self.assertEqual(chat.state, "closed")
                client.chat(7)

        return self.check(scenario)

    def test_each_stream_of_a_chat_gets_every_message_and_the_slowest_is_stored(self: Any) -> Any:
        path = folder(self) / "positions.json"

        async def scenario() -> None:
            self.server.features = ["history"]
            async with self.client(store=FileStore(path), queue=4) as client:
                first = client.chat(7)
                await first.ready()
                await self.aside(self.server.publish(7, "0"))
                self.assertEqual(await self.take(first, 1), ["0"])
                loaded: list[Position] = []
                second, third = client.chat(7), client.chat(7, load=loaded.append)
                self.assertRaises(ValueError, client.chat, 7, since=Position("e1", 0))
                self.assertRaises(ValueError, client.chat, 7, watch_presence=True)
                await second.ready()
                for number in range(1, 30):
                    await self.aside(self.server.publish(7, str(number)))
                    await client.ping()
                self.assertEqual(first.state, "paused")
                most = max(one.waiting for one in (first, second, third))
                self.assertLessEqual(most, 4 + 2)  # plus what comes with a ping
                third.close()
                reading = self.aside_here(self.take(second, 29))
                self.assertEqual(await self.take(first, 29), [str(number) for number in range(1, 30)])
                self.assertEqual(await reading, [str(number) for number in range(1, 30)])
                await self.aside(self.server.publish(7, "30"))
                self.assertEqual(await self.take(first, 1), ["30"])
                await first.ready()
                first.close()
                self.assertEqual(second.state, "live")
                self.assertEqual(loaded, [])
            self.assertEqual(FileStore(path).load("chat:7"), Position("e1", 300))

        return self.check(scenario)

    def test_a_second_stream_loads_at_the_place_where_it_joins(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                first = client.chat(7)
                await first.ready()
                await self.aside(self.server.publish(7, "a"))
                self.assertEqual(await self.take(first, 1), ["a"])
                loaded: list[Position] = []
                second = client.chat(7, load=loaded.append)
                await self.aside(self.server.publish(7, "b"))
                self.assertEqual(await self.take(second, 1), ["b"])
                self.assertEqual(loaded, [Position("e1", 10)])
                self.assertEqual(await self.take(first, 1), ["b"])
                refused = [client.chat(-1), client.chat(-1)]
                for chat in refused:
                    with self.assertRaises(Refused):
                        await chat.__anext__()

        return self.check(scenario)

    def test_two_readers_of_one_stream_are_refused(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                chat = client.chat(7)
                await chat.ready()
                first = self.aside_here(chat.__anext__())
                await self.aside(asyncio.sleep(0))
                with self.assertRaises(RuntimeError):
                    await chat.__anext__()
                await self.aside(self.server.publish(7, "a"))
                self.assertEqual((await first).content, "a")

        return self.check(scenario)

    def test_a_second_reader_is_refused_while_the_first_ones_state_loads_and_nothing_is_passed_over(
        self: Any,
    ) -> Any:
        async def scenario() -> None:
            refused: list[RuntimeError] = []

            async def load(place: Position) -> None:
                await self.aside(self.server.publish(7, "a"))
                await self.aside(self.server.publish(7, "b"))
                try:
                    await chat.__anext__()
                except RuntimeError as error:
                    refused.append(error)

            async with self.client() as client:
                chat = client.chat(7, load=load)
                self.assertEqual(await self.take(chat, 2), ["a", "b"])
                self.assertEqual([str(error) for error in refused], ["this stream has a reader already"])

        return self.check(scenario)

    def test_the_token_callback_is_asked_again_on_4002(self: Any) -> Any:
        async def scenario() -> None:
            tokens = iter(["T1", Token("T2", 4e9), "T3"])

            async def token() -> str | Token:
                return next(tokens)

            async with self.client(token, on_state=self.heard) as client:
                await self.aside(self.server.send_away(4002))
                await self.when(client, "waiting")
                await self.when(client, "connected")
            self.assertEqual(self.server.tokens, ["T1", "T2"])

        return self.check(scenario)

    def test_a_failing_token_callback_is_asked_again(self: Any) -> Any:
        async def scenario() -> None:
            calls: list[int] = []

            def token() -> str:
                calls.append(1)
                if len(calls) == 1:
                    raise OSError("the backend is away")
                return "T1"

            async with self.client(token):
                self.assertEqual(len(calls), 2)

        return self.check(scenario)

    def test_what_is_no_token_is_a_failed_try_in_words(self: Any) -> Any:
        async def scenario() -> None:
            for wrong in (17, {"value": "T1"}):
                tokens: list[Any] = [wrong, "T1"]
                heard: list[State] = []
                async with self.client(lambda tokens=tokens: tokens.pop(0), on_state=heard.append):
                    pass
                said = [state.reason for state in heard if state.name == "waiting"]
                name = "dict" if isinstance(wrong, dict) else "int"
                self.assertEqual(
                    said, [f"no token: TypeError: a token is a str, a Token or None, not {name}"]
                )

        return self.check(scenario)

    def test_a_token_function_that_hangs_is_named(self: Any) -> Any:
        async def scenario() -> None:
            client = self.client(lambda: self.aside(asyncio.sleep(100)))
            with self.assertRaises(TimeoutError) as raised:
                await client.start(timeout=0.05)
            self.assertEqual(
                str(raised.exception),
                "not connected within 0.05 s: the client is connecting, the token function has not answered",
            )
            await client.close()

        return self.check(scenario)

    def test_a_command_says_why_the_client_is_closed(self: Any) -> Any:
        async def scenario() -> None:
            tokens: list[Any] = ["T1", self.aside(asyncio.sleep(100))]
            client = self.client(lambda: tokens.pop(0), on_state=self.heard)
            for call in (client.ping, client.refresh):
                with self.assertRaises(Refused) as raised:
                    await call()
                self.assertEqual(str(raised.exception), "closed: the client has not been started")
            await client.start()
            refreshing = self.aside_here(client.refresh())
            await self.aside(self.server.send_away(4503))
            await self.when(client, "closed")
            for waiting in (refreshing, client.ping()):
                with self.assertRaises(Refused) as raised:
                    await waiting
                self.assertEqual(
                    str(raised.exception), "closed: closed with 4503: an operator has disconnected this user"
                )
            await client.close()

        return self.check(scenario)

    def test_a_refused_token_and_a_signed_out_user_end_it(self: Any) -> Any:
        async def scenario() -> None:
            self.server.refuse["bad"] = 4500
            for token, code in (("bad", 4500), (lambda: None, None)):
                try:
                    async with self.client(token):
                        self.fail("it connected")
                except ClientClosed as error:
                    self.assertEqual(error.code, code)

        return self.check(scenario)

    def test_the_operators_disconnect_ends_the_iteration(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                chat = client.chat(7)
                await chat.ready()
                await self.aside(self.server.send_away(4503, "bye"))
                try:
                    await chat.__anext__()
                    self.fail("nothing was raised")
                except ClientClosed as error:
                    self.assertEqual((error.code, error.reason), (4503, "bye"))

        return self.check(scenario)

    def test_a_chat_of_a_client_that_has_ended_has_ended_too(self: Any) -> Any:
        async def scenario() -> None:
            path = folder(self) / "positions.json"
            for code in (1000, 4503):
                client = self.client(store=FileStore(path), on_state=self.heard)
                await client.start()
                if code == 4503:
                    await self.aside(self.server.send_away(code, "bye"))
                    await self.when(client, "closed")
                await client.close()
                chat = client.chat(7)
                for waits in (chat.ready, chat.__anext__):
                    with self.assertRaises(StopAsyncIteration if code == 1000 else ClientClosed):
                        await waits()
                chat.close()
                FileStore(path).close()  # the chat has not taken the store again

        return self.check(scenario)

    def test_a_refused_subscription_raises(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                chat = client.chat(-1)
                for waits in (chat.ready, chat.__anext__):
                    try:
                        await waits()
                        self.fail("nothing was raised")
                    except Refused as error:
                        self.assertEqual(error.code, "forbidden")

        return self.check(scenario)

    def test_presence_and_ping(self: Any) -> Any:
        async def scenario() -> None:
            seen: list[Any] = []
            watched = self.client(on_presence=lambda chat, users: seen.append((chat, users)))
            async with watched as client:
                await client.chat(7, watch_presence=True).ready()
                self.assertEqual(await client.presence(7), [Presence(5, 1)])
                self.assertEqual(seen, [(7, [Presence(5, 1)])])
                self.assertGreater(await client.ping(), 0)

        return self.check(scenario)

    def test_signals(self: Any) -> Any:
        async def scenario() -> None:
            self.server.features = ["signals"]
            seen: list[Signal] = []
            settings = Settings(features=("signals",))
            async with self.client(on_signal=seen.append, settings=settings) as client:
                chat = client.chat(7)
                self.assertFalse(client.signal(8, "typing"))
                await chat.ready()
                await self.aside(
                    self.server.say(
                        json.dumps(
                            {
                                "type": "signal",
                                "chat_id": 7,
                                "user_id": "u-6",
                                "kind": "typing",
                                "data": {"on": True},
                            }
                        )
                    )
                )
                self.assertTrue(client.signal("7", "typing", [1]))
                await client.ping()  # answered after both
                self.assertEqual(seen, [Signal(7, "u-6", "typing", {"on": True})])
                said = [frame for frame in self.server.frames if frame["type"] == "signal"]
                self.assertEqual(said, [{"type": "signal", "chat_id": 7, "kind": "typing", "data": [1]}])

        return self.check(scenario)

    def test_a_signal_that_no_server_would_take_is_refused_before_it_is_sent(self: Any) -> Any:
        async def scenario() -> None:
            sent: list[Any] = []
            settings = structs.replace(FAST, features=("signals",))
            async with self.client(settings=settings, on_action=sent.append) as client:
                await client.chat(7).ready()
                sent.clear()
                for data in ("cut in an emoji: \ud83d", {"\ud83d": 1}, object()):
                    with self.assertRaises((TypeError, ValueError)):
                        client.signal(7, "typing", data)
                for kind in ("", "k" * 65, "\ud83d"):
                    with self.assertRaises(ValueError):
                        client.signal(7, kind)
                self.assertEqual(sent, [])

        return self.check(scenario)

    def test_signals_must_be_asked_for(self: Any) -> Any:
        async def scenario() -> None:
            self.assertRaises(ValueError, self.client, on_signal=print)
            async with self.client() as client:
                self.assertRaises(ValueError, client.signal, 7, "typing")

        return self.check(scenario)

    def test_what_is_not_of_the_protocol_is_survived(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client(on_state=self.heard) as client:
                chat = client.chat(7)
                await chat.ready()
                for text in (
                    "not JSON",
                    "17",
                    '{"type": "chat_message", "chat_id": 7}',
                    '["x", {"type": []}]',
                ):
                    await self.aside(self.server.say(text))
                await client.ping()
                self.assertEqual(client.state.name, "connected")
                client.machine._credentials.offer("T2", client._now(), None)
                offer = client.machine.actions.pop()  # the server never sees it, but answers nonsense
                broken = {"type": "ok", "id": offer.frame["id"], "expires_at": "soon"}
                await self.aside(self.server.say(json.dumps(broken)))
                await self.when(client, "waiting")
                self.assertEqual(client.state.code, 1002)
                await self.when(client, "connected")
                await self.aside(self.server.publish(7, "a"))
                self.assertEqual(await self.take(chat, 1), ["a"])

        return self.check(scenario)

    def test_a_callback_or_a_store_that_fails_costs_no_message(self: Any) -> Any:
        class Full(FileStore):
            full = True

            def save(self, positions: Any) -> None:
                if self.full:
                    raise OSError("no space left on device")
                super().save(positions)

        path = folder(self) / "positions.json"
        logging.getLogger("notify.client").setLevel(logging.CRITICAL + 1)
        self.addCleanup(logging.getLogger("notify.client").setLevel, logging.NOTSET)

        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        async def scenario() -> None:
            store = Full(path)
            options = {"on_state": broken, "on_action": broken, "on_presence": broken}
            client = self.client(store=store, **options)
            await client.start()
            chat = client.chat(7, watch_presence=True)
            await chat.ready()
            for text in "ab":
                await self.aside(self.server.publish(7, text))
            self.assertEqual(await self.take(chat, 2), ["a", "b"])
            client._saver._save()
            store.full = False
            await client.close()
            self.assertEqual(FileStore(path).load("chat:7"), Position("e1", 20))

        return self.check(scenario)

    def test_a_store_that_fails_at_the_end_is_told(self: Any) -> Any:
        class Full(FileStore):
            def save(self, positions: Any) -> None:
                raise OSError("no space left on device")

        path = folder(self) / "positions.json"

        async def scenario() -> None:
            client = self.client(store=Full(path))
            await client.start()
            await client.chat(7).ready()
            try:
                await client.close()
                self.fail("nothing was raised")
            except OSError:
                self.assertEqual(client.state.name, "closed")

        return self.check(scenario)

    def test_closing_a_chat_ends_its_iteration_and_frees_its_name(self: Any) -> Any:
        async def scenario() -> None:
            async with self.client() as client:
                chat = client.chat(7)
                self.assertEqual(chat.id, 7)
                await chat.ready()
                chat.close()
                self.assertEqual([message async for message in chat], [])
                again = client.chat(7)
                await again.ready()
                await self.aside(self.server.publish(7, "a"))
                self.assertEqual(await self.take(again, 1), ["a"])

        return self.check(scenario)

    def test_a_server_that_comes_up_late_is_waited_for(self: Any) -> Any:
        async def scenario() -> None:
            port = self.server.port
            await self.aside(self.server.stop())
            states: list[str] = []
            client = self.client(on_state=lambda state: (states.append(state.name), self.heard(state)))
            client._event(client.machine.start)
            await self.when(client, "waiting")
            await self.aside(self.server.start(port))
            await client.start()
            self.assertIn("waiting", states)
            await client.close()

        return self.check(scenario)

    def test_a_client_closed_while_it_connects_leaves_nothing_behind(self: Any) -> Any:
        async def scenario() -> None:
            client = self.client()
            client._event(client.machine.start)
            await client.close()
            self.assertEqual(client.state.name, "closed")
            try:
                await client.start()
                self.fail("it started again")
            except RuntimeError:
                pass

        return self.check(scenario)


class Twisted(Behaviour, TestCase):
    def run_it(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        return ensureDeferred(coroutine)

    def aside(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return from_asyncio(coroutine)

    def aside_here(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return ensureDeferred(coroutine)

    def client(self, token: Any = "T1", **options: Any) -> TwistedClient:
        return TwistedClient(options.pop("url", self.server.url), token, **{"settings": FAST, **options})


class Asyncio(Behaviour, TestCase):
    def run_it(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        return from_asyncio(coroutine)

    def aside(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return coroutine

    def aside_here(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return asyncio.ensure_future(coroutine)

    def client(self, token: Any = "T1", **options: Any) -> AsyncioClient:
        return AsyncioClient(options.pop("url", self.server.url), token, **{"settings": FAST, **options})

    def test_a_cancelled_reader_can_read_on(self) -> Deferred[Any]:
        async def scenario() -> None:
            async with self.client() as client:
                chat = client.chat(7)
                await chat.ready()
                with self.assertRaises(TimeoutError):
                    await asyncio.wait_for(chat.__anext__(), 0.01)
                await self.server.publish(7, "a")
                self.assertEqual(await self.take(chat, 1), ["a"])

        return self.run_it(scenario())

    async def test_another_event_loop_needs_another_one(self) -> None:
        client = self.client()
        chat: list[Any] = []

        async def first() -> None:
            await client.start(10)
            chat.append(client.chat(7))

        async def second(call: Callable[[], Awaitable[Any]]) -> None:
            with self.assertRaisesRegex(RuntimeError, "another event loop"):
                await call()

        await deferToThread(asyncio.run, first())
        for call in (client.ping, client.close, lambda: chat[0].__anext__()):
            await deferToThread(asyncio.run, second(call))


class Typed(TestCase):
    def test_the_fronts_know_every_option_by_its_type(self) -> None:
        taken = {
            name: one.annotation
            for name, one in inspect.signature(Core.__init__).parameters.items()
            if one.kind is inspect.Parameter.KEYWORD_ONLY
        }
        self.assertEqual(taken, {name: one.__forward_arg__ for name, one in Options.__annotations__.items()})


class Addresses(TestCase):
    def test_addresses_name_all_that_is_needed(self) -> None:
        self.assertEqual(Address.parse("ws://h/ws?client_id=1"), Address(False, "h", 80, "/ws?client_id=1"))
        self.assertEqual(Address.parse("wss://h:444"), Address(True, "h", 444, "/"))
        self.assertEqual(Address.parse("ws://[::1]:8080/ws").host_header, "[::1]:8080")
        self.assertEqual(Address.parse("wss://h/ws").host_header, "h")

    def test_the_client_id_has_its_place_in_the_query(self) -> None:
        for url, named, target in (
            ("ws://h/ws", None, "/ws?client_id=me"),
            ("ws://h/ws?", None, "/ws?client_id=me"),
            ("ws://h/ws?a=1&client_id=x&b=2", "x", "/ws?a=1&b=2&client_id=me"),
            ("ws://h", None, "/?client_id=me"),
            ("ws://h/ws?my_client_id=x&a=%20?", None, "/ws?my_client_id=x&a=%20?&client_id=me"),
        ):
            address = Address.parse(url)
            self.assertEqual((address.client_id, address.under("me").target), (named, target), url)
        client = AsyncioClient("ws://h/ws?client_id=mine", "T")
        self.assertEqual((client.client_id, client.address.target), ("mine", "/ws?client_id=mine"))
        self.assertRaises(ValueError, AsyncioClient, "ws://h/ws?client_id=a%20b", "T")

    def test_other_addresses_are_refused(self) -> None:
        for url in ("http://h/ws", "h:80", "ws:///ws"):
            self.assertRaises(ValueError, Address.parse, url)


class Stores(TestCase):
    def test_a_file_that_is_not_ours_is_not_overwritten(self) -> None:
        path = folder(self) / "positions.json"
        path.write_text("shopping list")
        self.assertRaises(ValueError, FileStore, path)

    def test_a_file_that_another_has_is_told(self) -> None:
        path = folder(self) / "positions.json"
        first = FileStore(path)
        program = f"from notify.client import FileStore; FileStore({str(path)!r})"
        for _ in range(2):
            other = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=False
            )
            self.assertIn("BlockingIOError", other.stderr)
            self.assertIn("another client keeps its positions in this file", other.stderr)
            self.assertRaises(BlockingIOError, FileStore, path)
            first.save({"chat:1": Position("e", 1)})
        first.close()
        subprocess.run([sys.executable, "-c", program], check=True)
        self.assertEqual(first.load("chat:1"), Position("e", 1))
        self.assertRaises(BlockingIOError, FileStore, path)
        del first
        FileStore(path)

    def test_a_link_to_a_file_is_that_file(self) -> None:
        path = folder(self) / "positions.json"
        store = FileStore(path)
        link = path.with_name("link")
        link.symlink_to(path)
        self.assertRaises(BlockingIOError, FileStore, link)
        store.close()
        FileStore(link).save({"chat:7": Position("e", 1)})
        self.assertTrue(link.is_symlink())
        self.assertIn("chat:7", path.read_text())

    def test_a_file_that_is_not_ours_is_not_held(self) -> None:
        path = folder(self) / "positions.json"
        path.write_text("[]")
        self.assertRaises(ValueError, FileStore, path)
        path.unlink()
        FileStore(path)

    def test_saving_keeps_what_is_there(self) -> None:
        path = folder(self) / "positions.json"
        FileStore(path).save({"chat:1": Position("e", 1)})
        FileStore(path).save({"chat:2": Position("e", 2)})
        self.assertEqual(FileStore(path).load("chat:1"), Position("e", 1))
        self.assertEqual([p.name for p in path.parent.iterdir() if p.name.startswith(f".{path.name}")], [])
