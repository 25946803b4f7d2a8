"""``POST /v1/revoke``: what it accepts, sends to the nodes, stores, and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from notify.core import revocations
from notify.core.revocations import Revocation
from notify.core.steering import Count
from notify.errors import Unavailable
from notify.identity import Identity
from notify.interfaces import Gathered
from notify.testing import FakeConnection
from notify.topics import user
from tests.http.test_cluster import Others
from tests.http.test_keys import limited
from tests.support.http import Node

MONTH = 30 * 86400.0


class Keeping(Others):
    """Nodes that answer, and a store that works or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = Gathered(
            [("a", msgspec.json.encode(Count(2))), ("b", msgspec.json.encode(Count(1)))], ["c"]
        )
        self.there: bytes | None = None
        self.kept: list[tuple[str, Revocation, float]] = []
        self.answer: Callable[[], Deferred[bool]] = lambda: succeed(True)

    def keep(self, key: str, merge: Callable[[bytes | None], bytes], until: float) -> Deferred[bool]:
        self.kept.append((key, msgspec.json.decode(merge(self.there), type=Revocation), until))
        return self.answer()


class Revoking(SynchronousTestCase):
    def setUp(self) -> None:
        self.control = Keeping()
        self.node = Node(control=self.control)
        self.node.clock.advance(1000.0)

    def revoke(self, **body: Any) -> Any:
        return self.node.call("POST", "/v1/revoke", {"workspace_id": 1, "user_id": 7, **body})

    def test_all_nodes_are_told_and_it_is_kept(self) -> None:
        until = 1000.0 + MONTH
        self.assertEqual(
            self.revoke().json,
            {
                "closed": 3, "before": 1000.0, "until": until, "kept": True,
                "reached": {"answered": 2, "missing": ["c"], "detail": ""},
            },
        )  # fmt: skip
        wanted = Revocation(1, 7, 1000.0, until)
        self.assertEqual(self.control.asked, [("revoke", msgspec.to_builtins(wanted), "")])
        self.assertEqual(self.control.kept, [("revoked.1.7", wanted, until)])

    def test_an_earlier_time_takes_nothing_back(self) -> None:
        self.control.there = Revocation(1, 7, 800.0, 900.0 + MONTH).over(None)
        self.assertEqual(self.revoke(before=500).json["before"], 500.0)
        self.assertEqual(self.control.kept[0][1], Revocation(1, 7, 800.0, 1000.0 + MONTH))
        # Nor if the stored value cannot be read, but this node knows an earlier revocation.
        self.node.hub.revocations.add(Revocation(1, 7, 700.0, 5000.0 + MONTH))
        self.control.there = b"?"
        self.assertEqual(self.revoke(before=500).json["before"], 700.0)
        self.assertEqual(self.control.kept[1][1:], (Revocation(1, 7, 700.0, 5000.0 + MONTH), 5000.0 + MONTH))

    def test_what_is_not_kept_is_an_error_that_says_what_was_done(self) -> None:
        self.control.answer = lambda: fail(Unavailable("NATS is away"))
        response = self.revoke()
        self.assertEqual((response.status, response.code, response["Retry-After"]), (503, "not_kept", "1"))
        text = response.json["error"]["message"]
        self.assertIn(
            "3 connections closed, on 2 nodes, not on c; but it could not be stored (NATS is away)", text
        )
        self.assertIn("repeat the request", text)
        self.assertEqual(len(self.control.asked), 1)

    def test_that_it_ends_with_the_process_is_said(self) -> None:
        self.control.answer = lambda: succeed(False)
        self.assertIs(self.revoke().json["kept"], False)

    def test_the_future_and_other_bodies_are_refused(self) -> None:
        self.assertIn("in the future", self.revoke(before=1000.5).json["error"]["message"])
        for wrong in ({"before": -1}, {"before": "now"}, {"before": True}, {"user_id": "7"}, {"chat_id": 1}):
            self.assertEqual(self.revoke(**wrong).code, "bad_request", wrong)
        self.assertEqual((self.control.asked, self.control.kept), ([], []))
        self.assertEqual(self.revoke(before=1000).status, 200)

    def test_without_room_nothing_is_done(self) -> None:
        self.patch(revocations, "MOST", 0)
        response = self.revoke()
        self.assertEqual((response.status, response.code), (503, "too_many_revocations"))
        self.assertEqual((self.control.asked, self.control.kept), ([], []))

    def test_it_leaves_a_line_in_the_log(self) -> None:
        with capturedLogs() as events:
            self.revoke(before=900)
        [line] = [text for text in map(formatEvent, events) if text and "revoke tokens" in text]
        self.assertIn("revoke tokens of user 7 of workspace 1 before 900.0", line)

    def test_a_key_of_other_workspaces_may_not(self) -> None:
        node = limited(workspaces=frozenset({7}))
        for workspace_id, status in ((7, 200), (8, 403)):
            body = {"workspace_id": workspace_id, "user_id": 1}
            self.assertEqual(node.call("POST", "/v1/revoke", body).status, status)


class OneNode(SynchronousTestCase):
    def test_its_connections_are_closed_and_older_tokens_refused(self) -> None:
        node = Node()
        node.clock.advance(1000.0)
        connection = FakeConnection(7, 1)
        node.hub.enter(connection)
        self.successResultOf(node.hub.dispatcher.subscribe(connection, user(1, 7), None))
        answer = node.call("POST", "/v1/revoke", {"workspace_id": 1, "user_id": 7}).json
        self.assertEqual((answer["closed"], answer["kept"]), (1, False))
        self.assertEqual(connection.closed, (4002, "token revoked"))
        self.assertTrue(node.hub.revocations.refuses(Identity(7, 1, None, None, (), 999.0)))
        self.assertFalse(node.hub.revocations.refuses(Identity(7, 1, None, None, (), 1000.0)))
