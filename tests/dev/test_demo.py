"""What the demo page may ask for, and that pages of other sites may not."""

from __future__ import annotations

from typing import Any

import treq
from twisted.trial.unittest import TestCase

from notify.client import Settings, TwistedClient
from tests.support.running import LocalServer


class DemoRoutes(TestCase):
    timeout = 30

    async def _server(self, **environ: str) -> LocalServer:
        return await LocalServer(LISTEN__DEMO="true", **environ).start(self)

    async def _get(self, url: str, **headers: str) -> tuple[int, Any]:
        response = await treq.get(url, headers=headers, persistent=False)
        return response.code, await response.json()

    async def test_a_token_lets_a_user_in_and_what_it_publishes_arrives(self) -> None:
        server = await self._server()
        status, token = await self._get(f"{server.public}/demo/token?user=2&ttl=60")
        self.assertEqual(status, 200)
        async with TwistedClient(server.ws, token["token"], settings=Settings()) as client:
            self.assertEqual(client.state.user_id, 2)
            chat = client.chat(1)
            await chat.ready()
            message = {"chat_id": 1, "sender_id": 2, "content": "hello", "message_id": 77}
            response = await treq.post(f"{server.public}/demo/publish", json=message, persistent=False)
            self.assertEqual(set(await response.json()), {"epoch", "seq"})
            arrived = await chat.__anext__()
            self.assertEqual(
                (arrived.content, arrived.sender_id, arrived.message_id, arrived.chat_id), ("hello", 2, 77, 1)
            )

    async def test_an_edit_and_a_deletion_are_events_of_the_chat(self) -> None:
        server = await self._server()
        _, token = await self._get(f"{server.public}/demo/token?user=2&ttl=60")
        events: list[Any] = []
        settings = Settings(features=("events",))
        async with TwistedClient(server.ws, token["token"], settings=settings) as client:
            chat = client.chat(1, on_event=events.append)
            await chat.ready()
            for content in ("hello", None):
                change = {"chat_id": 1, "sender_id": 2, "refers_to": 77, "content": content}
                response = await treq.post(f"{server.public}/demo/change", json=change, persistent=False)
                self.assertEqual(set(await response.json()), {"epoch", "seq"})
            await server.publish(1, "behind them")
            await chat.__anext__()
        told = [(event.kind, event.data, event.refers_to, event.sender_id) for event in events]
        self.assertEqual(told, [("edited", {"content": "hello"}, 77, 2), ("deleted", None, 77, 2)])

    async def test_bounds_are_kept(self) -> None:
        server = await self._server()
        for query in ("user=0", "user=1001", "user=x", "ttl=1", "ttl=1e9", "ttl=nan", "workspace=2"):
            status, answer = await self._get(f"{server.public}/demo/token?{query}")
            self.assertEqual((query, status, answer["error"]["code"]), (query, 400, "bad_request"))
        good = {"chat_id": 1, "sender_id": 1, "content": "x"}
        for wrong in ({"content": ""}, {"content": "x" * 2001}, {"chat_id": 2**63}, {"workspace_id": 2}):
            response = await treq.post(
                f"{server.public}/demo/publish", json={**good, **wrong}, persistent=False
            )
            self.assertEqual((wrong.keys(), response.code), (wrong.keys(), 400))
            await response.content()
            change = {**good, "refers_to": 1, **wrong}
            response = await treq.post(f"{server.public}/demo/change", json=change, persistent=False)
            self.assertEqual((wrong.keys(), response.code), (wrong.keys(), 400))
            await response.content()

    async def test_other_sites_pages_cannot_use_it(self) -> None:
        server = await self._server()
        port = server.public.rpartition(":")[2]
        for host, expected in (
            ("localhost", 200),
            ("[::1]", 200),
            ("127.0.0.1", 200),
            ("127.0.0.2", 200),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("192.0.2.1", 403),
            ("0.0.0.0", 403),
            ("[2001:db8::1]", 403),
        ):
            status, _ = await self._get(f"{server.public}/demo/token", Host=f"{host}:{port}")
            self.assertEqual((host, status), (host, expected))
        # What a form or a "simple" request of another site can send needs no permission, so it must not be accepted.
        for path in ("publish", "change"):
            response = await treq.post(
                f"{server.public}/demo/{path}",
                b'{"chat_id": 1, "sender_id": 1, "content": "x", "refers_to": 1}',
                headers={"Content-Type": "text/plain"},
                persistent=False,
            )
            self.assertEqual(response.code, 415)
            self.assertFalse(response.headers.hasHeader("Access-Control-Allow-Origin"))
            await response.content()
            response = await treq.post(
                f"{server.public}/demo/{path}",
                json={"chat_id": 1, "sender_id": 1, "content": "x", "refers_to": 1},
                headers={"Host": f"evil.example:{port}"},
                persistent=False,
            )
            # The address is checked before the fields: `refers_to` is not a field of a message.
            self.assertEqual(response.code, 403)
            await response.content()

    async def test_without_demo_there_is_nothing(self) -> None:
        server = await LocalServer().start(self)
        for path in ("/demo/token", "/", "/client/notify-client.js"):
            status, _ = await self._get(server.public + path)
            self.assertEqual((path, status), (path, 404))
