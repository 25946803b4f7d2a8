"""The WebSocket listener on real sockets: handshakes, framing errors, limits, slow clients."""

from __future__ import annotations

import gc
import json
import re
import ssl
import weakref
import zlib
from pathlib import Path
from typing import Any

from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.certificates import Authority
from tests.support.running import LocalServer, RawClient, in_asyncio, token
from tests.transport.test_websocket_attack import HANDSHAKE, Wire, frame, head


async def original_client(url: str, server: LocalServer) -> list[Any]:
    """A client written from the original guide alone, with another WebSocket library than ours."""
    seen = []
    async with connect(url) as socket:
        await socket.send(json.dumps({"type": "auth", "token": token(user_id=42)}))
        result = json.loads(await socket.recv())
        assert result["type"] == "auth_result", result
        assert (result["success"], result["user_id"]) == (True, 42)
        await socket.send(json.dumps({"type": "subscribe", "chat_id": 7}))
        await socket.send(json.dumps({"type": "ping"}))
        assert json.loads(await socket.recv()) == {"type": "pong"}
        for n in range(3):
            await server.publish(7, f"message {n}", message_id=n).asFuture(_loop())
            seen.append(json.loads(await socket.recv()))
        await socket.send(json.dumps({"type": "unsubscribe", "chat_id": 7}))
        await socket.send(json.dumps({"type": "ping"}))
        assert json.loads(await socket.recv()) == {"type": "pong"}
        await server.publish(7, "unheard").asFuture(_loop())
        await socket.send(json.dumps({"type": "ping"}))
        assert json.loads(await socket.recv()) == {"type": "pong"}
    return seen


def _loop() -> Any:
    import asyncio

    return asyncio.get_running_loop()


class Clients(TestCase):
    timeout = 30

    async def test_a_client_written_from_the_original_guide_works(self) -> None:
        server = await LocalServer().start(self)
        publish = server.publish
        server.publish = lambda *a, **k: Deferred.fromCoroutine(publish(*a, **k))  # type: ignore[method-assign,assignment]
        seen = await in_asyncio(original_client(f"{server.ws}?client_id=9", server))
        self.assertEqual([m["type"] for m in seen], ["chat_message"] * 3)
        self.assertEqual([(m["chat_id"], m["message_id"], m["content"]) for m in seen],
                         [(7, n, f"message {n}") for n in range(3)])  # fmt: skip
        self.assertEqual({type(m["timestamp"]) for m in seen}, {int})

    async def test_missed_messages_arrive_on_resume_once_and_in_order(self) -> None:
        server = await LocalServer().start(self)

        async def first() -> Any:
            async with connect(server.ws) as socket:
                await socket.send(json.dumps({"type": "auth", "token": token()}))
                await socket.send(json.dumps({"type": "subscribe", "chat_id": 7, "id": 1}))
                await socket.recv()
                answer = json.loads(await socket.recv())
                socket.transport.abort()
                return answer

        position = await in_asyncio(first())
        for n in range(5):
            await server.publish(7, message_id=n)

        async def again() -> list[Any]:
            async with connect(server.ws) as socket:
                await socket.send(json.dumps({"type": "auth", "token": token()}))
                since = {"epoch": position["epoch"], "seq": position["seq"]}
                await socket.send(json.dumps({"type": "subscribe", "chat_id": 7, "since": since}))
                await socket.recv()
                return [json.loads(await socket.recv()) for _ in range(6)]

        subscribed, *missed = await in_asyncio(again())
        self.assertTrue(subscribed["recovered"])
        self.assertEqual([m["message_id"] for m in missed], [0, 1, 2, 3, 4])

    async def test_expiry_closes_with_4002_within_a_second(self) -> None:
        server = await LocalServer().start(self)

        async def run() -> int:
            async with connect(server.ws) as socket:
                await socket.send(json.dumps({"type": "auth", "token": token(seconds=2)}))
                await socket.recv()
                try:
                    await socket.recv()
                except ConnectionClosed:
                    return socket.close_code or 0
            return 0

        from twisted.internet import reactor

        start = reactor.seconds()  # type: ignore[attr-defined]
        self.assertEqual(await in_asyncio(run()), 4002)
        self.assertLess(reactor.seconds() - start, 3.5)  # type: ignore[attr-defined]

    async def test_the_subprotocol_is_the_first_known_one(self) -> None:
        server = await LocalServer().start(self)

        async def run() -> tuple[str | None, Any]:
            offered: Any = ["x", "notify.v1.json.batch", "notify.v1.json"]
            async with connect(server.ws, subprotocols=offered) as socket:
                await socket.send(json.dumps({"type": "ping", "id": 1}))
                return socket.subprotocol, json.loads(await socket.recv())

        self.assertEqual(await in_asyncio(run()), ("notify.v1.json.batch", [{"type": "pong", "id": 1}]))


class Counting(TestCase):
    timeout = 30

    async def test_connections_are_counted_until_their_sockets_are_gone(self) -> None:
        server = await LocalServer().start(self)
        sockets = server.service.drain._sockets
        self.assertEqual(sockets(), 0)
        client = await deferToThread(RawClient, server.ws)
        refused = await deferToThread(RawClient, server.ws, Origin="https://evil.example")
        self.assertEqual(await deferToThread(refused.receive), (-1, b""))
        self.assertEqual(sockets(), 1)
        await deferToThread(client.send, b"", opcode=8)
        await deferToThread(client.close_code)
        self.assertEqual(await deferToThread(client.receive), (-1, b""))
        self.assertEqual(sockets(), 0)
        client.close()
        refused.close()


class Faults(TestCase):
    """Bytes that no library would send. Another client must notice nothing of them."""

    timeout = 60

    async def setUp(self) -> None:
        self.server = await LocalServer(LIMITS__MAX_FRAME="4KiB", LIMITS__HANDSHAKE_TIMEOUT="1s").start(self)
        self.bystander = await self.open()
        await self.blocking(self.bystander.send_json, type="auth", token=token(99))
        await self.blocking(self.bystander.receive)
        self.addCleanup(self.bystander_noticed_nothing)

    async def bystander_noticed_nothing(self) -> None:
        await self.blocking(self.bystander.send_json, type="ping", id="still here")
        opcode, payload = await self.blocking(self.bystander.receive)
        self.assertEqual((opcode, json.loads(payload)), (1, {"type": "pong", "id": "still here"}))

    def blocking(self, call: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return deferToThread(call, *args, **kwargs)

    async def open(self, path: str = "", **headers: str) -> RawClient:
        url = self.server.ws if not path else self.server.public.replace("http", "ws") + path
        client: RawClient = await self.blocking(RawClient, url, **headers)
        self.addCleanup(client.close)
        return client

    async def close_code(self, *frames: dict[str, Any]) -> int:
        client = await self.open()
        for one in frames:
            await self.blocking(client.send, **one)
        code: int = await self.blocking(client.close_code)
        return code

    async def test_faults_of_framing_close_with_1002(self) -> None:
        for fault in (
            {"payload": b"{}", "mask": False},
            {"payload": b"{}", "rsv": 0x40},
            {"payload": b"{}", "opcode": 3},
            {"payload": b"{}", "opcode": 0},
            {"payload": b"x" * 126, "opcode": 9},
            {"payload": b"", "opcode": 9, "fin": False},
        ):
            self.assertEqual(await self.close_code(fault), 1002)

    async def test_invalid_utf8_closes_with_1007(self) -> None:
        self.assertEqual(await self.close_code({"payload": b'{"type":"ping","x":"\xff"}'}), 1007)

    async def test_too_large_frames_and_endless_fragments_close_with_1009(self) -> None:
        self.assertEqual(await self.close_code({"payload": b"x" * 5000}), 1009)
        more = [{"payload": b"x" * 1000, "opcode": 0, "fin": False}] * 4
        self.assertEqual(await self.close_code({"payload": b"x" * 1000, "fin": False}, *more), 1009)

    async def test_a_binary_frame_is_answered_with_an_error(self) -> None:
        client = await self.open()
        await self.blocking(client.send, b"{}", opcode=2)
        _, payload = await self.blocking(client.receive)
        self.assertEqual(json.loads(payload)["code"], "invalid_message")

    async def test_a_close_without_a_code_is_answered(self) -> None:
        self.assertEqual(await self.close_code({"payload": b"", "opcode": 8}), 1000)

    async def test_handshakes_that_are_not_for_us_get_a_plain_answer(self) -> None:
        for status, path, headers in (
            (404, "/elsewhere", {}),
            (404, "/wsx", {}),
            (426, "/ws", {"Upgrade": ""}),
            (400, "/ws", {"Sec_WebSocket_Version": "8x"}),
            (400, "/ws", {"Sec_WebSocket_Key": "short"}),
            (400, "/ws", {"Host": ""}),
            (403, "/ws", {"Origin": "https://evil.example"}),
            (403, "/ws", {"Origin": "null"}),
            (431, "/ws", {"X_Long": "x" * 20000}),
        ):
            client = await self.open(path, **headers)
            self.assertEqual((client.status, path, headers), (status, path, headers))
            self.assertNotIn("evil", client.head)

    async def test_the_own_host_and_clients_without_origin_may(self) -> None:
        host = self.server.public.removeprefix("http://")
        self.assertEqual((await self.open(Origin=f"http://{host}")).status, 101)
        self.assertEqual((await self.open()).status, 101)

    async def test_who_says_nothing_or_too_little_is_dropped(self) -> None:
        import socket

        port = self.server.service.public.port.getHost().port

        def silent(start: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
                one.sendall(start)
                try:
                    return one.recv(100)
                except ConnectionError:
                    return b""

        for start in (b"", b"GET /w", b"GET /ws HTTP/1.1\r\nHost: x\r\n"):
            self.assertEqual(await self.blocking(silent, start), b"")


class Limits(TestCase):
    timeout = 60

    async def test_over_the_connection_limit_no_handshake_is_answered(self) -> None:
        server = await LocalServer(LIMITS__MAX_CONNECTIONS="2").start(self)
        clients = [await deferToThread(RawClient, server.ws) for _ in range(3)]
        self.assertEqual([client.status for client in clients], [101, 101, 503])
        self.assertIn("\r\nRetry-After: ", clients[2].head)
        for client in clients:
            client.close()

    async def test_over_the_limit_of_arrivals_closes_with_1013_and_advice(self) -> None:
        server = await LocalServer(LIMITS__MAX_ARRIVING="2").start(self)
        clients = [await deferToThread(RawClient, server.ws) for _ in range(3)]
        opcode, payload = await deferToThread(clients[2].receive)
        self.assertEqual((opcode, int.from_bytes(payload[:2], "big")), (8, 1013))
        self.assertGreaterEqual(json.loads(payload[2:])["retry_after_ms"], 500)
        for client in clients:
            client.close()

    async def test_who_does_not_authenticate_is_closed_with_4501(self) -> None:
        server = await LocalServer(LIMITS__AUTH_TIMEOUT="500ms").start(self)
        client = await deferToThread(RawClient, server.ws)
        self.assertEqual(await deferToThread(client.close_code), 4501)
        client.close()

    async def test_who_answers_no_ping_is_closed_with_4003(self) -> None:
        server = await LocalServer(LIMITS__PING_INTERVAL="500ms", LIMITS__PING_TIMEOUT="500ms").start(self)
        client = await deferToThread(RawClient, server.ws)
        await deferToThread(client.send_json, type="auth", token=token())
        self.assertEqual((await deferToThread(client.receive))[0], 1)
        self.assertEqual((await deferToThread(client.receive))[0], 9)
        self.assertEqual(await deferToThread(client.close_code), 4003)
        client.close()

    async def test_who_answers_pings_stays(self) -> None:
        server = await LocalServer(LIMITS__PING_INTERVAL="250ms", LIMITS__PING_TIMEOUT="250ms").start(self)
        client = await deferToThread(RawClient, server.ws)
        await deferToThread(client.send_json, type="auth", token=token())
        await deferToThread(client.receive)
        for _ in range(4):
            opcode, payload = await deferToThread(client.receive)
            self.assertEqual(opcode, 9)
            await deferToThread(client.send, payload, opcode=10)
        await deferToThread(client.send_json, type="ping")
        self.assertEqual((await deferToThread(client.receive))[0], 1)
        client.close()

    async def test_a_client_that_does_not_read_is_closed_and_others_do_not_wait(self) -> None:
        server = await LocalServer(LIMITS__SEND_QUEUE="256KiB").start(self)
        slow = await deferToThread(RawClient, server.ws)
        good = await deferToThread(RawClient, server.ws)
        for client in (slow, good):
            await deferToThread(client.send_json, type="auth", token=token())
            await deferToThread(client.send_json, type="subscribe", chat_id=1, id=1)
            await deferToThread(client.receive)
            await deferToThread(client.receive)
        metrics = server.hub.metrics.registry
        count = 0
        while not metrics.get_sample_value("notify_slow_clients_total"):
            await server.publish(1, "x" * 60000)
            opcode, _ = await deferToThread(good.receive)
            self.assertEqual(opcode, 1)
            count += 1
            self.assertLess(count, 500)
        self.assertEqual(metrics.get_sample_value("notify_connections"), 1)
        for client in (slow, good):
            client.close()


class Reads(TestCase):
    """However a client's bytes are split, its session gets the same frames."""

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["whole", "parts", "pong", "ping"]),
                st.integers(0, 300),
                st.binary(min_size=4, max_size=4),
            ),
            min_size=1,
            max_size=8,
        ),
        st.lists(st.integers(1, 400), max_size=12),
        st.booleans(),
    )
    @settings(max_examples=150)
    def test_cuts_and_fragments_make_no_difference(
        self, messages: list[tuple[str, int, bytes]], cuts: list[int], split_handshake: bool
    ) -> None:
        wanted, data = [], b""
        for number, (kind, size, key) in enumerate(messages):
            payload = json.dumps({"type": "ping", "id": number, "x": "é" * size}, ensure_ascii=False).encode()
            if kind == "whole":
                data += frame(payload, mask=key)
            elif kind == "parts":
                data += frame(payload[:17], fin=False, mask=key) + frame(payload[17:], 0, mask=key)
            else:
                data += frame(b"hello", 9 if kind == "ping" else 10, mask=key)
            if kind in ("whole", "parts"):
                wanted.append({"type": "pong", "id": number})
        handshake = head(*HANDSHAKE)
        wire = Wire()
        if split_handshake:
            wire.feed(handshake[:20])
            handshake = handshake[20:]
        stream = handshake + data
        for cut in cuts:
            wire.feed(stream[: len(handshake) + cut])
            stream = stream[len(handshake) + cut :]
            handshake = b""
        wire.feed(stream)
        answer = wire.answer.partition(b"\r\n\r\n")[2]
        pongs = answer.count(b"hello")
        self.assertEqual(pongs, sum(kind == "ping" for kind, _, _ in messages))
        found = [json.loads(part) for part in re.findall(rb'\{"type":"pong".*?\}', answer)]
        self.assertEqual(found, wanted)


class Ends(TestCase):
    timeout = 30

    async def test_a_connection_that_is_gone_frees_itself_without_a_look_for_cycles(self) -> None:
        server = await LocalServer().start(self)
        gc.disable()
        self.addCleanup(gc.enable)
        left = []
        for way in ("close", "vanish", "refused", "kicked"):
            client = await deferToThread(RawClient, server.ws)
            given = "bad" if way == "refused" else token()
            await deferToThread(client.send_json, type="auth", token=given)
            await deferToThread(client.receive)
            hub = server.hub
            wires = [connection._wire for connection in hub.connections]
            left += [weakref.ref(thing) for wire in wires for thing in (wire, wire.transport)]
            del wires[:]
            if way == "close":
                await deferToThread(client.send, b"", opcode=8)
                await deferToThread(client.close_code)
            elif way == "kicked":
                [connection] = list(hub.connections)
                connection.close(4503, "bye")
                del connection
                await deferToThread(client.send, b"", opcode=8)
                await deferToThread(client.close_code)
            client.close()
        from twisted.internet import reactor

        for _ in range(100):
            if not any(ref() for ref in left):
                break
            await deferLater(reactor, 0.02, lambda: None)
        self.assertGreaterEqual(len(left), 6)
        self.assertEqual([ref() for ref in left if ref() is not None], [])


class Encrypted(TestCase):
    timeout = 30

    async def test_under_tls_nothing_goes_past_it(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        authority = Authority(folder)
        key, certificate = authority.issue(x509.DNSName("localhost"))
        listen = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        server = await LocalServer(LISTEN__PUBLIC=listen).start(self)
        trust = ssl.create_default_context(cafile=str(authority.certificate))
        url = server.ws.replace("ws://127.0.0.1", "wss://localhost")
        open_: Deferred[None] = Deferred()

        async def run() -> list[Any]:
            async with connect(url, ssl=trust) as socket:
                await socket.send(json.dumps({"type": "auth", "token": token()}))
                await socket.send(json.dumps({"type": "subscribe", "chat_id": 7, "id": 1}))
                await socket.recv()
                await socket.recv()
                open_.callback(None)
                return [json.loads(await socket.recv())["content"] for _ in range(20)]

        reading = in_asyncio(run())
        await open_
        sent = [str(number) * 20_000 for number in range(20)]
        for content in sent:
            await server.publish(7, content)
        self.assertEqual(await reading, sent)


class Compressed(TestCase):
    timeout = 30

    async def test_what_both_sides_compress_arrives(self) -> None:
        server = await LocalServer(COMPRESSION__ENABLED="true", COMPRESSION__MINIMUM="64B").start(self)
        subscribed: Deferred[None] = Deferred()

        async def run(count: int) -> list[str]:
            async with connect(server.ws) as socket:
                await socket.send(json.dumps({"type": "auth", "token": token()}))
                await socket.send(json.dumps({"type": "subscribe", "chat_id": 7, "id": 1}))
                await socket.recv()
                await socket.recv()
                subscribed.callback(None)
                return [json.loads(await socket.recv())["content"] for _ in range(count)]

        sent = ["", "short", "long " * 2000, "é€" * 500]
        reading = in_asyncio(run(len(sent)))
        await subscribed
        for content in sent:
            await server.publish(7, content)
        self.assertEqual(await reading, sent)

    async def open(self, server: LocalServer, offer: str) -> RawClient:
        client: RawClient = await deferToThread(RawClient, server.ws, Sec_WebSocket_Extensions=offer)
        self.addCleanup(client.close)
        return client

    async def test_it_is_negotiated_only_where_it_can_be_kept(self) -> None:
        on = await LocalServer(COMPRESSION__ENABLED="true").start(self)
        off = await LocalServer().start(self)
        agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        for server, offer, answer in (
            (on, "permessage-deflate", f"{agreed}\r\n"),
            (
                on,
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=10",
                f"{agreed}; server_max_window_bits=10\r\n",
            ),
            (on, "permessage-deflate; server_max_window_bits=99, permessage-deflate", f"{agreed}\r\n"),
            (on, "permessage-deflate; server_max_window_bits=99", None),
            (on, "x-unknown", None),
            (off, "permessage-deflate", None),
        ):
            client = await self.open(server, offer)
            self.assertEqual(client.status, 101, offer)
            if answer is None:
                self.assertNotIn("Extensions", client.head)
            else:
                self.assertIn(answer, client.head)
        for server in (on, off):
            self.assertEqual((await self.open(server, "permessage-deflate; =9")).status, 400)

    async def test_a_bomb_is_not_inflated_beyond_the_frame_limit(self) -> None:
        server = await LocalServer(COMPRESSION__ENABLED="true", LIMITS__MAX_FRAME="4KiB").start(self)
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = (squeeze.compress(b" " * 50_000_000) + squeeze.flush(zlib.Z_SYNC_FLUSH))[:-4]
        client = await self.open(server, "permessage-deflate")
        for at in range(0, 3000, 1000):
            await deferToThread(
                client.send, bomb[at : at + 1000], opcode=0 if at else 1, fin=False, rsv=0 if at else 0x40
            )
        self.assertEqual(await deferToThread(client.close_code), 1009)

    async def test_what_does_not_inflate_closes_with_1007(self) -> None:
        server = await LocalServer(COMPRESSION__ENABLED="true").start(self)
        client = await self.open(server, "permessage-deflate")
        await deferToThread(client.send, b"\xff\xff\xff\xff", rsv=0x40)
        self.assertEqual(await deferToThread(client.close_code), 1007)

    async def test_a_compressed_frame_without_negotiation_closes_with_1002(self) -> None:
        server = await LocalServer(COMPRESSION__ENABLED="true").start(self)
        client = await self.open(server, "")
        await deferToThread(client.send, b"", rsv=0x40)
        self.assertEqual(await deferToThread(client.close_code), 1002)

    async def test_one_frame_serves_all_that_negotiated_alike_and_no_window_stays(self) -> None:
        server = await LocalServer(COMPRESSION__ENABLED="true").start(self)
        clients = [await self.open(server, "permessage-deflate") for _ in range(2)]
        plain = await self.open(server, "")
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        auth = json.dumps({"type": "auth", "token": token()}).encode()
        for client in clients:
            squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
            deflated = (squeeze.compress(auth) + squeeze.flush(zlib.Z_SYNC_FLUSH))[:-4]
            await deferToThread(client.send, deflated, rsv=0x40)
            opcode, _ = await deferToThread(client.receive)
            self.assertEqual(opcode, 1)
        await deferToThread(plain.send, auth)
        await deferToThread(plain.receive)
        connections = list(server.hub.connections)
        encodings = {connection.encoding for connection in connections}
        self.assertEqual(len(encodings), 2)
        wires = [connection._wire for connection in connections]
        self.assertEqual(
            [wire._perMessageCompress._decompressor for wire in wires if wire._perMessageCompress], [None] * 2
        )
