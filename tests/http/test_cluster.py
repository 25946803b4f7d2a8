"""What the API asks of all nodes of a cluster, and sends to them."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from notify.core.steering import (
    BrokerItem,
    ConnectionItem,
    ConnectionsFound,
    Count,
    Done,
    NodeItem,
    Shedding,
    TopicItem,
    TopicsFound,
)
from notify.interfaces import Gathered, IControl
from tests.support.http import KEY, Node


@implementer(IControl)
class Others:
    """A control whose nodes give the answers that the test sets."""

    def __init__(self) -> None:
        self.gathered = Gathered([], [])
        self.asked: list[tuple[str, Any, str]] = []

    def start(self, do: Any) -> Deferred[None]:
        return succeed(None)

    def ask(self, command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        self.asked.append((command, msgspec.json.decode(argument), node))
        return succeed(self.gathered)

    def stop(self) -> Deferred[None]:
        return succeed(None)


def item(node: str) -> NodeItem:
    return NodeItem(node, "1.0", 1.0, 2, 3, 4.0, 5.0, "serving", BrokerItem(True, "fine"))


def connection(id: str, opened: float, node: str = "a") -> ConnectionItem:
    return ConnectionItem(id, 1, 7, "127.0.0.1", "notify.v1.json", opened, None, 0, node)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.others = Others()
        self.node = Node(control=self.others)

    def answer(self, missing: list[str] | None = None, detail: str = "", **answers: Any) -> None:
        """Set what the nodes answer from now on, by name: a value, or raw bytes."""
        encoded = [
            (name, value if isinstance(value, bytes) else msgspec.json.encode(value))
            for name, value in answers.items()
        ]
        self.others.gathered = Gathered(encoded, missing or [], detail)

    def get(self, path: str) -> Any:
        response = self.node.call("GET", path)
        self.assertEqual(response.status, 200)
        return response.json


class Asking(Case):
    def test_the_nodes_and_who_did_not_answer(self) -> None:
        self.answer(a=item("a"), b=item("b"), missing=["c"], detail="because")
        found = self.get("/v1/nodes")
        self.assertEqual([node["node"] for node in found["nodes"]], ["a", "b"])
        self.assertEqual(found["reached"], {"answered": 2, "missing": ["c"], "detail": "because"})
        self.assertEqual(self.others.asked, [("nodes", {}, "")])
        refused = self.node.call("GET", "/v1/nodes?node=a").json["error"]
        self.assertEqual(refused["message"], "unknown query parameter; this path accepts: none")

    def test_an_answer_that_cannot_be_read_is_missing(self) -> None:
        self.answer(a=b'{"version":1}', b=item("b"), c=b"\xff", missing=["d"])
        reached = self.get("/v1/nodes")["reached"]
        self.assertEqual(reached, {"answered": 1, "missing": ["d", "a", "c"], "detail": ""})

    def test_a_users_connections_on_all_nodes_oldest_first(self) -> None:
        self.answer(
            a=ConnectionsFound(2, [connection("x", 3.0), connection("y", 1.0)]),
            b=ConnectionsFound(1500, [connection(f"{n:04}", 2.0, "b") for n in range(1000)]),
        )
        found = self.get("/v1/connections?user_id=7&workspace_id=1")
        self.assertEqual((found["count"], len(found["connections"])), (1502, 1000))
        self.assertEqual([one["connection_id"] for one in found["connections"][:2]], ["y", "0000"])
        self.assertEqual(self.others.asked, [("connections", {"user_id": 7, "workspaces": [1]}, "")])
        self.get("/v1/connections?user_id=acme")
        self.assertEqual(self.others.asked[1][1], {"user_id": "acme", "workspaces": None})

    def test_chats_are_added_up_over_the_nodes(self) -> None:
        self.answer(
            a=TopicsFound(2, [TopicItem(1, 5, 2.0), TopicItem("x", 1, 0.0)]),
            b=TopicsFound(3, [TopicItem(1, 1, 2.5), TopicItem(2, 9, 0.0)]),
        )
        found = self.get("/v1/topics?workspace_id=3")
        self.assertEqual(
            found["topics"],
            [
                {"chat_id": 1, "members": 6, "rate": 2.5, "nodes": {"a": 5, "b": 1}},
                {"chat_id": 2, "members": 9, "rate": 0.0, "nodes": {"b": 9}},
                {"chat_id": "x", "members": 1, "rate": 0.0, "nodes": {"a": 1}},
            ],
        )
        self.assertFalse(found["complete"])
        self.assertEqual(self.others.asked, [("topics", {"workspace_id": 3}, "")])


class Telling(Case):
    def test_what_was_done_is_added_up_and_who_was_not_reached_is_said(self) -> None:
        reached = {"answered": 2, "missing": ["c"], "detail": ""}
        self.answer(a=Count(2), b=Count(1), missing=["c"])
        body = {"workspace_id": 1, "user_id": "u", "reconnect": True}
        self.assertEqual(
            self.node.call("POST", "/v1/disconnect", body).json, {"closed": 3, "reached": reached}
        )
        body = {"workspace_id": 1, "user_id": 2, "chat_id": 3}
        self.assertEqual(
            self.node.call("POST", "/v1/unsubscribe", body).json, {"ended": 3, "reached": reached}
        )
        self.assertEqual(
            self.others.asked,
            [
                ("disconnect", {"workspace_id": 1, "user_id": "u", "reconnect": True}, ""),
                ("unsubscribe", {"workspace_id": 1, "user_id": 2, "chat_id": 3}, ""),
            ],
        )

    def test_unsubscribe_refuses_another_body(self) -> None:
        for wrong in (
            {},
            {"workspace_id": 1, "user_id": 1},
            {"workspace_id": 1, "user_id": 1, "chat_id": "1"},
            [],
        ):
            self.assertEqual(self.node.call("POST", "/v1/unsubscribe", wrong).code, "bad_request")
        self.assertEqual(self.others.asked, [])

    def test_one_node_is_told_by_its_name_and_without_one_this(self) -> None:
        for command in ("drain", "reload"):
            self.others.asked.clear()
            self.answer(b=Done())
            response = self.node.call("POST", f"/v1/{command}", {"node": "b"})
            word = "draining" if command == "drain" else "reloading"
            self.assertEqual((response.status, response.json), (202, {"node": "b", word: True}))
            for body in (None, {}, {"node": ""}):
                self.assertEqual(self.node.call("POST", f"/v1/{command}", body).status, 202)
            mine = [(command, {}, "node-1")] * 3
            self.assertEqual(self.others.asked, [(command, {}, "b"), *mine])
            for wrong in ({"node": 1}, {"node": "x" * 65}, {"name": "b"}, [], 0):
                self.assertEqual(self.node.call("POST", f"/v1/{command}", wrong).code, "bad_request")

    def test_a_share_of_one_nodes_clients_is_sent_away(self) -> None:
        self.answer(b=Shedding(12, 9.0))
        response = self.node.call("POST", "/v1/shed", {"node": "b", "share": 0.3})
        self.assertEqual(
            (response.status, response.json), (202, {"node": "b", "clients": 12, "seconds": 9.0})
        )
        self.assertEqual(self.others.asked, [("shed", {"share": 0.3}, "b")])
        for refused in ("already_shedding", "not_serving", "what a newer node says"):
            self.answer(b=Shedding(refused=refused))
            response = self.node.call("POST", "/v1/shed", {"node": "b", "share": 1})
            self.assertEqual((response.status, response.code), (409, refused))
        self.answer()
        self.assertEqual(self.node.call("POST", "/v1/shed", {"node": "b", "share": 1}).code, "no_such_node")
        self.answer(missing=["b"])
        self.assertEqual(self.node.call("POST", "/v1/shed", {"node": "b", "share": 1}).code, "timeout")
        self.others.asked.clear()
        for wrong in (
            {"node": "b"},
            {"share": 0.5},
            {"node": "", "share": 0.5},
            *({"node": "b", "share": share} for share in (0, -0.1, 1.01, "0.5", None, True)),
            {"node": "b", "share": 0.5, "more": 1},
            [],
        ):
            self.assertEqual(self.node.call("POST", "/v1/shed", wrong).code, "bad_request", wrong)
        self.assertEqual(self.others.asked, [])

    def test_a_node_that_nobody_knows_or_that_does_not_answer(self) -> None:
        response = self.node.call("POST", "/v1/drain", {"node": "zz"})
        self.assertEqual((response.status, response.code), (404, "no_such_node"))
        self.answer(detail="NATS is away")
        response = self.node.call("POST", "/v1/drain", {"node": "zz"})
        self.assertIn("NATS is away", response.json["error"]["message"])
        self.answer(missing=["b"])
        response = self.node.call("POST", "/v1/drain", {"node": "b"})
        self.assertEqual((response.status, response.code), (504, "timeout"))

    def test_the_key_has_to_be_for_the_workspace(self) -> None:
        self.assertEqual(self.node.call("GET", "/v1/nodes", auth=False).status, 401)
        self.assertEqual(
            self.node.call("POST", "/v1/unsubscribe", {}, {"Authorization": f"Bearer {KEY}x"}).status, 401
        )
        self.assertEqual(self.others.asked, [])
