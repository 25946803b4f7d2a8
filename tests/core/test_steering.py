"""What a node does when it is asked, and what it answers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from notify import __version__
from notify.core.steering import Steering
from notify.errors import Unavailable
from notify.identity import Peer
from notify.interfaces import BrokerStatus
from notify.testing import chat_payload
from notify.topics import chat
from tests.support.world import NOW, World


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.status = BrokerStatus(True, "fine")
        self.reloads: tuple[float | None, str] = (None, "")
        self.told: list[str] = []
        self.stage = "serving"
        self.steering = Steering(
            self.world.hub,
            "node-1",
            broker=lambda: self.status,
            stage=lambda: self.stage,
            reloads=lambda: self.reloads,
            reload=lambda: self.told.append("reload"),
            drain=lambda: self.told.append("drain"),
        )

    def do(self, command: str, meanwhile: Any = lambda: None, **argument: Any) -> Any:
        """Do a command and return the answer; ``meanwhile`` is called during a command that takes a second."""
        done = self.steering.do(command, json.dumps(argument).encode())
        meanwhile()
        self.world.clock.pump([0.25] * 6)
        return json.loads(self.successResultOf(done))


class Asked(Case):
    def test_how_it_is(self) -> None:
        client = self.world.client()
        client.send(type="subscribe", chat_id=1)
        self.status = BrokerStatus(False, "NATS is away")
        self.reloads = (NOW + 1, "a sentence")
        self.world.clock.pump([0.25] * 40)

        def traffic() -> None:
            for _ in range(10):
                self.world.publish(chat(1, 1), chat_payload(chat(1, 1)))
            self.world.metrics.published.labels("ok").inc(5)
            self.world.metrics.published.labels("poison").inc(5)

        node = self.do("nodes", traffic)
        # Rates are over the time that has passed, which is a second plus what a timer is late.
        seconds = 5 / node["published"]
        self.assertTrue(1 <= seconds <= 1.5, node)
        self.assertEqual(node["delivered"], round(10 / seconds, 1))
        self.assertTrue(11 <= node["uptime"] <= 11.5, node)
        for measured in ("published", "delivered", "uptime"):
            del node[measured]
        self.assertEqual(
            node,
            {
                "node": "node-1",
                "version": __version__,
                "connections": 1,
                "topics": 2,
                "stage": "serving",
                "broker": {"ready": False, "detail": "NATS is away"},
                "reloaded": NOW + 1,
                "reload_failed": "a sentence",
            },
        )

    def test_a_users_connections(self) -> None:
        for workspace_id, chat_id in ((1, 10), (2, "b"), (1, 11)):
            client = self.world.client(workspace_id=workspace_id)
            client.send(type="subscribe", chat_id=chat_id)
        client.send(type="subscribe", chat_id=9)
        client.connection.heard, client.connection.queued = -3.0, 77
        client.connection.peer = Peer("127.0.0.1", "", "me", "Mozilla/5.0 " + "x" * 188)
        self.world.client(user_id=2)
        self.world.connect()

        def chats(**query: Any) -> list[list[Any]]:
            found = self.do("connections", **query)
            self.assertEqual(found["count"], len(found["connections"]))
            return sorted((one["chats"] for one in found["connections"]), key=str)

        self.assertEqual(chats(user_id=1), [["b"], [10], [9, 11]])
        self.assertEqual(chats(user_id=1, workspaces=[1]), [[10], [9, 11]])
        self.assertEqual(chats(user_id=1, workspaces=[2, 3]), [["b"]])
        self.assertEqual(chats(user_id=1, workspaces=[]), [])
        self.assertEqual(chats(user_id="1x"), [])
        [one] = [c for c in self.do("connections", user_id=1)["connections"] if 9 in c["chats"]]
        self.assertEqual((one["node"], one["subscriptions"], one["queued"]), ("node-1", 2, 77))
        self.assertGreaterEqual(one["silent"], 3.0)
        self.assertEqual((one["client_id"], one["client"]), ("me", "Mozilla/5.0 " + "x" * 188))

    def test_no_client_makes_the_answer_larger_than_nats_takes(self) -> None:
        workspace_id, user_id = "w" * 64, "u" * 64
        for index in range(1000):
            connection = self.world.client(user_id=user_id, workspace_id=workspace_id).connection
            connection.peer = Peer(
                "2001:db8:1111:2222:3333:4444:5555:6666", "", "c" * 64, "\N{REPLACEMENT CHARACTER}" * 200
            )
            for number in range(20):
                self.world.registry.join(connection, chat(workspace_id, f"{index * 20 + number:c>64}"))
        found = self.do("connections", user_id=user_id)
        self.assertEqual((found["count"], len(found["connections"])), (1000, 1000))
        self.assertEqual(
            {(one["subscriptions"], len(one["chats"])) for one in found["connections"]}, {(20, 5)}
        )
        self.assertEqual({len(one["client"]) for one in found["connections"]}, {50})
        self.assertLess(len(msgspec.json.encode(found)), 1_000_000)

    def test_the_chats_of_a_workspace_the_busiest_first(self) -> None:
        for user_id, chats in enumerate(([1, 2, 3], [2, 3], [3, 4]), 1):
            client = self.world.client(user_id=user_id)
            for chat_id in chats:
                client.send(type="subscribe", chat_id=chat_id)
        self.world.client(workspace_id=2).send(type="subscribe", chat_id=5)

        def traffic() -> None:
            for _ in range(25):
                self.world.publish(chat(1, 4), chat_payload(chat(1, 4)))

        found = self.do("topics", traffic, workspace_id=1)
        busy, *quiet = found["topics"]
        self.assertTrue(25 / 1.5 <= busy.pop("rate") <= 25)
        self.assertEqual(busy, {"chat_id": 4, "members": 1})
        self.assertEqual(
            quiet,
            [
                {"chat_id": 3, "members": 3, "rate": 0.0},
                {"chat_id": 2, "members": 2, "rate": 0.0},
                {"chat_id": 1, "members": 1, "rate": 0.0},
            ],
        )
        self.assertEqual(found["count"], 4)
        self.assertEqual(self.do("topics", workspace_id=3), {"count": 0, "topics": []})

    def test_what_nobody_is_in_any_more_is_not_listed_while_it_lingers(self) -> None:
        client = self.world.client()
        client.send(type="subscribe", chat_id=1)
        client.send(type="unsubscribe", chat_id=1)
        self.assertIn(chat(1, 1), self.world.dispatcher.counts())
        self.assertEqual(self.do("topics", workspace_id=1)["topics"], [])


class Told(Case):
    def test_a_share_of_its_clients_is_shed_once_at_a_time_while_it_serves(self) -> None:
        clients = [self.world.client(user_id=number) for number in range(10)]
        self.stage = "announced"
        self.assertEqual(self.do("shed", share=0.5)["refused"], "not_serving")
        self.stage = "serving"
        self.assertEqual(self.do("shed", share=0.5), {"clients": 5, "seconds": 15.0, "refused": ""})
        self.assertEqual(self.do("shed", share=0.5)["refused"], "already_shedding")
        self.world.clock.pump([0.25] * 60)
        self.assertEqual(sum(one.connection.closed is not None for one in clients), 5)
        self.assertEqual(self.do("shed", share=1)["clients"], 5)
        for wrong in (0, -1, 1.1, "1", None):
            done = self.steering.do("shed", json.dumps({"share": wrong}).encode())
            self.failureResultOf(done, Unavailable)

    def test_to_disconnect_a_user(self) -> None:
        client = self.world.client()
        self.assertEqual(self.do("disconnect", workspace_id=1, user_id=2), {"count": 0})
        self.assertEqual(self.do("disconnect", workspace_id=1, user_id=1), {"count": 1})
        self.assertEqual(client.closed, (4503, ""))
        client = self.world.client()
        self.assertEqual(self.do("disconnect", workspace_id=1, user_id=1, reconnect=True), {"count": 1})
        self.assertEqual((client.closed or (0,))[0], 1012)

    def test_to_end_a_subscription(self) -> None:
        client = self.world.client()
        client.send(type="subscribe", chat_id=1)
        self.assertEqual(self.do("unsubscribe", workspace_id=1, user_id=1, chat_id=1), {"count": 1})
        self.assertEqual(client.session.chats, set())

    def test_to_reload_and_to_leave(self) -> None:
        self.assertEqual([self.do("reload"), self.do("drain")], [{}, {}])
        self.assertEqual(self.told, ["reload", "drain"])

    def test_what_a_later_version_adds_is_left_aside(self) -> None:
        self.assertEqual(self.do("disconnect", workspace_id=1, user_id=1, why="new"), {"count": 0})

    def test_what_it_does_not_know_it_does_not_do(self) -> None:
        for command, argument in (
            ("dance", b"{}"),
            ("disconnect", b"{}"),
            ("drain", b"{"),
            ("drain", b"\xff"),
        ):
            self.failureResultOf(self.steering.do(command, argument), Unavailable)
        self.assertEqual(self.told, [])
