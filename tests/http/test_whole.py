"""The HTTP API in front of the whole server, with a WebSocket client connected."""

import json
from typing import Any

import treq
import websockets
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import TestCase

from notify.testing import chat_payload
from notify.topics import chat
from tests.support.natsd import NatsServer, until
from tests.support.running import API_KEY, LocalServer, in_asyncio, token

REACHED = {"answered": 1, "missing": [], "detail": ""}
AUTH = {"Authorization": f"Bearer {API_KEY}"}


class WholeServerTest(TestCase):
    timeout = 60

    async def ask(self, method: str, path: str, headers: Any = None, **more: Any) -> tuple[int, Any]:
        response = await treq.request(
            method,
            self.server.api + path,
            headers={**AUTH, **(headers or {})},
            persistent=False,
            timeout=20,
            **more,
        )
        return response.code, await response.json()

    async def test_sees_publishes_to_and_disconnects_a_client(self) -> None:
        self.server = await LocalServer().start(self)
        client = await in_asyncio(websockets.connect(self.server.ws))
        self.addCleanup(lambda: in_asyncio(client.close()))

        async def say(**frame: Any) -> Any:
            await in_asyncio(client.send(json.dumps(frame)))
            return json.loads(await in_asyncio(client.recv()))

        opened = await say(type="auth", token=token(7))
        await say(type="subscribe", chat_id=10, id=1)

        _, listed = await self.ask("GET", "/v1/connections?user_id=7&workspace_id=1")
        self.assertEqual([c["connection_id"] for c in listed["connections"]], [opened["connection_id"]])
        self.assertEqual(listed["connections"][0]["subscriptions"], 1)
        _, everywhere = await self.ask("GET", "/v1/connections?user_id=7")
        for found in (listed, everywhere):
            self.assertLess(found["connections"][0].pop("silent"), 20)
        self.assertEqual(everywhere, listed)
        _, present = await self.ask("GET", "/v1/presence?workspace_id=1&chat_id=10")
        self.assertEqual(present["users"], [{"user_id": 7, "connections": 1}])
        self.assertEqual((await self.ask("GET", "/v1/presence?workspace_id=2&chat_id=10"))[1]["users"], [])

        seq = await self.server.publish(10)
        message = json.loads(await in_asyncio(client.recv()))
        self.assertEqual((message["type"], message["seq"]), ("chat_message", seq))
        _, history = await self.ask("GET", "/v1/history?subject=workspace.1.chat.10.messages")
        self.assertEqual([m["seq"] for m in history["messages"]], [seq])

        other = {"workspace_id": 2, "user_id": 7}
        self.assertEqual(
            (await self.ask("POST", "/v1/disconnect", json=other))[1], {"closed": 0, "reached": REACHED}
        )
        same = {"workspace_id": 1, "user_id": 7}
        self.assertEqual(
            (await self.ask("POST", "/v1/disconnect", json=same))[1], {"closed": 1, "reached": REACHED}
        )
        await in_asyncio(client.wait_closed())
        self.assertEqual(client.close_code, 4503)

        families = await self.metrics()
        self.assertEqual(families["notify_broker_up", ""], 1)
        self.assertEqual(families["notify_published_total", "ok"], 1)
        self.assertEqual(families["notify_delivered_total", ""], 1)
        self.assertEqual(families["notify_delivery_seconds_count", ""], 1)
        self.assertEqual(families["notify_auth_total", "ok"], 1)
        self.assertEqual(families["notify_closes_total", "4503"], 1)

    async def test_health_is_the_same_truth_on_both_listeners(self) -> None:
        self.server = await LocalServer().start(self)
        code, report = await self.ask("GET", "/health")
        self.assertEqual((code, report["status"]), (200, "ok"))
        self.assertEqual(report["listeners"], {"internal": True, "public": True})
        public = await treq.get(f"{self.server.public}/health", persistent=False)
        self.assertEqual((public.code, await public.json()), (200, {"status": "ok"}))

    async def test_keeps_its_promises_on_jetstream(self) -> None:
        nats = NatsServer().start()
        self.addCleanup(nats.remove)
        await nats.up()
        server = LocalServer(BROKER__PLUGIN="jetstream", BROKER__JETSTREAM__SERVERS=nats.url)
        self.server = await server.start(self)
        topic = chat(1, 10)
        page = f"/v1/history?subject={topic.subject}&limit=1000"
        self.assertEqual((await self.ask("GET", page))[1]["messages"], [])

        def message(n: int) -> dict[str, Any]:
            return {"subject": topic.subject, "payload": json.loads(chat_payload(topic, n))}

        for first in (0, 1000):
            code, answer = await self.ask(
                "POST", "/v1/publish", json=[message(first + n) for n in range(1000)]
            )
            self.assertEqual((code, answer["accepted"]), (200, 1000))
        _, one = await self.ask("GET", page)
        _, two = await self.ask("GET", f"{page}&since={one['next']}")
        self.assertEqual((one["complete"], two["complete"]), (False, True))
        seen = [m["payload"]["message_id"] for m in one["messages"] + two["messages"]]
        self.assertEqual(seen, list(range(2000)))

        first, again = [
            await self.ask("POST", "/v1/publish", json=message(7), headers={"Idempotency-Key": "k"})
            for _ in "12"
        ]
        self.assertEqual((first[0], first), (200, again))
        poison = {"subject": topic.subject, "payload": {}}
        self.assertEqual((await self.ask("POST", "/v1/publish", json=poison))[0], 422)

        nats.kill()
        await until(lambda: not self.server.hub.dispatcher._broker.status().ready)
        self.assertEqual((await self.ask("POST", "/v1/publish", json=message(8)))[0], 503)
        self.assertEqual((await self.ask("GET", page))[0], 503)
        code, report = await self.ask("GET", "/health/ready")
        self.assertEqual((code, report["status"]), (503, "broker unavailable"))
        self.assertEqual((await self.metrics())["notify_broker_up", ""], 0)

    async def metrics(self) -> dict[tuple[str, str], float]:
        response = await treq.get(f"{self.server.api}/metrics", persistent=False)
        text = await response.text()
        return {
            (sample.name, sample.labels.get("result") or sample.labels.get("code") or ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
