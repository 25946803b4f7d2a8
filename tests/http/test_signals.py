"""``POST /v1/signal``: who may send which signals, and the answer if the broker carries none."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.memory import MemoryBroker, MemorySettings
from notify.config import Limits, Size
from notify.testing import FakeConnection, make_context
from notify.topics import Topic, chat
from notify.wire.encodings import encoding, featured
from tests.http.test_keys import limited
from tests.support.http import Node

ROOM = chat(1, 10)
SIGNAL: dict[str, Any] = {"workspace_id": 1, "chat_id": 10, "user_id": 7, "kind": "typing", "data": None}


class NoSignalsBroker:
    """A custom broker that carries no signals."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.start, self.status = broker.start, broker.status


class Signalling(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node(limits=Limits(signal_size=Size(100)))

    def member(self, user_id: int, topic: Topic = ROOM) -> FakeConnection:
        made = featured(encoding("notify.v1.json"), frozenset(("signals",)))
        connection = FakeConnection(user_id, id=str(user_id), encoding=made)
        self.node.signals.join(connection, topic)
        return connection

    def signal(self, **body: Any) -> Any:
        return self.node.call("POST", "/v1/signal", {**SIGNAL, **body})

    def test_members_are_told_but_the_user_in_whose_name_it_is(self) -> None:
        user, other, elsewhere = self.member(7), self.member(8), self.member(9, chat(1, 11))
        response = self.signal(data={"x": 1})
        self.assertEqual(
            (response.status, response.json), (202, {"workspace_id": 1, "chat_id": 10, "sent": True})
        )
        self.node.clock.advance(0)
        self.assertEqual(
            other.take(),
            [{"type": "signal", "chat_id": 10, "user_id": 7, "kind": "typing", "data": {"x": 1}}],
        )
        self.assertEqual((user.take(), elsewhere.take()), ([], []))

    def test_what_is_no_signal_is_refused_without_being_quoted(self) -> None:
        for wrong in (
            {"kind": ""},
            {"kind": "x" * 65},
            {"kind": 5},
            {"user_id": "5"},
            {"chat_id": None},
            {"sekret": 1},
            {"workspace_id": 2**63},
        ):
            response = self.signal(**wrong)
            self.assertEqual((response.status, response.code), (400, "bad_request"), wrong)
            self.assertNotIn("sekret", response.json["error"]["message"])
        ids = b'{"kind":"k","chat_id":1,"workspace_id":1,"user_id":1'
        deep = b"[" * 30_000 + b"]" * 30_000
        for raw in (b"", b"[]", b"{", ids + b"}", ids + b',"data":1e999}', ids + b',"data":"\xff"}'):
            self.assertEqual(self.node.call("POST", "/v1/signal", body=raw).status, 400, raw)
        self.node = Node(limits=Limits(signal_size=Size(100_000)))
        self.assertEqual(
            self.node.call("POST", "/v1/signal", body=ids + b',"data":' + deep + b"}").status, 400
        )

    def test_data_has_a_bound(self) -> None:
        self.assertEqual(self.signal(data="x" * 98).status, 202)
        response = self.signal(data="x" * 99)
        self.assertEqual((response.status, response.code), (413, "too_large"))

    def test_a_key_needs_the_scope_and_the_workspace(self) -> None:
        for fields, status in (
            ({"scopes": frozenset({"publish"})}, 202),
            ({"scopes": frozenset({"publish"}), "workspaces": frozenset({1, 5})}, 202),
            ({"workspaces": frozenset({2})}, 403),
            ({"scopes": frozenset({"read", "control"})}, 403),
        ):
            self.node = limited(**fields)
            other = self.member(8)
            response = self.signal()
            self.assertEqual(response.status, status, fields)
            self.node.clock.advance(0)
            self.assertEqual(len(other.take()), int(status == 202))

    def test_while_the_broker_is_away_it_is_lost_and_said_so(self) -> None:
        self.node.broker.stop()
        response = self.signal()
        self.assertEqual((response.status, response.code, response["Retry-After"]), (503, "unavailable", "1"))

    def test_a_broker_that_carries_none_is_told_of(self) -> None:
        context = make_context()
        self.node = Node(broker=NoSignalsBroker(MemoryBroker(MemorySettings(), context)))
        response = self.signal()
        self.assertEqual((response.status, response.code), (501, "unsupported"))
