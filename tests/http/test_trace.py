"""``GET /v1/trace``: events of all nodes, streamed as they arrive, in bounded numbers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from notify.core.live import ApiKey
from notify.core.witness import Collected, Seen
from notify.http.keys import unlimited
from notify.http.trace import MOMENT, MOST, MOST_OF_TENANTS, SILENCE
from notify.interfaces import Gathered, IControl
from notify.testing import FakeConnection, notification_payload
from notify.topics import user
from tests.support.http import AUTH, KEY, Client, Node, request_bytes


@implementer(IControl)
class Nodes:
    """A control whose nodes answer what the test sets: once each, or when it fires ``held``."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: list[Gathered] = []
        self.held: list[Deferred[Gathered]] | None = None

    def start(self, do: Any) -> Deferred[None]:
        return succeed(None)

    def ask(self, command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        assert (command, node) == ("trace", "")
        self.asked.append(msgspec.json.decode(argument))
        if self.held is not None:
            self.held.append(Deferred())
            return self.held[-1]
        return succeed(self.answers.pop(0) if self.answers else Gathered([], []))

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def tell(self, missing: list[str] | None = None, detail: str = "", **told: Collected) -> None:
        answers = [(name, msgspec.json.encode(value)) for name, value in told.items()]
        self.answers.append(Gathered(answers, missing or [], detail))


class Reader:
    """A client that reads a trace stream."""

    def __init__(self, node: Node, query: str = "workspace_id=1&user_id=7", **headers: str) -> None:
        self.client = Client(node.site)
        self.client.send(request_bytes("GET", f"/v1/trace?{query}", None, {**AUTH, **headers}))
        head, _, self.rest = self.client.transport.value().partition(b"\r\n\r\n")
        self.head = head.decode("latin-1")
        self.client.transport.clear()

    @property
    def status(self) -> int:
        return int(self.head.split(" ")[1])

    def text(self) -> str:
        """What has arrived since the last read, without the chunk framing."""
        data, self.rest = self.rest + self.client.transport.value(), b""
        self.client.transport.clear()
        found = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            found, data = found + data[: int(size, 16)], data[int(size, 16) + 2 :]
        return found.decode()

    def events(self) -> list[Any]:
        blocks = self.text().split("\n\n")
        return [json.loads(block.removeprefix("data: ")) for block in blocks if block.startswith("data: ")]

    def kinds(self) -> list[tuple[str, str]]:
        return [(event["what"], event.get("node", "")) for event in self.events()]


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.nodes = Nodes()
        self.node = Node(control=self.nodes)

    def moment(self, times: int = 1) -> None:
        self.node.clock.pump([MOMENT] * times)


class Written(Case):
    def test_events_of_all_nodes_by_their_time_each_once(self) -> None:
        self.nodes.tell(
            a=Collected("life-a", 2, [Seen(3.0, "auth", "a"), Seen(5.0, "close", "a")]),
            b=Collected("life-b", 1, [Seen(4.0, "frame", "b")]),
        )
        reader = Reader(self.node)
        self.assertEqual(reader.status, 200)
        self.assertIn("Content-Type: text/event-stream", reader.head)
        self.assertIn("Cache-Control: no-store", reader.head)
        self.assertEqual(reader.kinds(), [("auth", "a"), ("frame", "b"), ("close", "a")])
        self.moment()
        first, second = self.nodes.asked
        self.assertEqual((first["after"], second["after"]), ({}, {"life-a": 2, "life-b": 1}))
        self.assertEqual(first["trace"], second["trace"])
        self.assertEqual(
            {
                name: first[name]
                for name in ("workspace_id", "user_id", "chat_id", "everywhere", "peer", "end")
            },
            {"workspace_id": 1, "user_id": 7, "chat_id": None, "everywhere": True, "peer": "", "end": False},
        )

    def test_who_does_not_answer_is_said_once_and_goes_on_from_where_it_was(self) -> None:
        a, b = Collected("life-a", 1), Collected("life-b", 7)
        self.nodes.tell(a=a, b=b)
        self.nodes.tell(["b"], "NATS is away", a=a)
        self.nodes.tell(["b"], "NATS is away", a=a)
        self.nodes.tell(a=a, b=b)
        reader = Reader(self.node)
        self.assertEqual(reader.events(), [])
        self.moment()
        missing, alone = reader.events()
        self.assertEqual((missing["what"], missing["node"]), ("missing", "b"))
        self.assertEqual((alone["what"], alone["reason"]), ("alone", "NATS is away"))
        self.moment()
        self.assertEqual(reader.events(), [])
        self.assertEqual(self.nodes.asked[-1]["after"], {"life-a": 1, "life-b": 7})
        self.moment()
        self.assertEqual(reader.kinds(), [("back", "b")])

    def test_what_is_left_out_and_who_has_no_room_is_said(self) -> None:
        for _ in range(2):
            self.nodes.tell(a=Collected("life", 1, [], left_out=12), b=Collected(busy=True))
        reader = Reader(self.node)
        events = reader.events()
        self.assertEqual([(one["what"], one["node"], one.get("count")) for one in events],
                         [("left_out", "a", 12), ("busy", "b", None)])  # fmt: skip
        self.moment()
        self.assertEqual(reader.kinds(), [("left_out", "a")])

    def test_it_ends_when_its_time_is_over_and_tells_the_nodes(self) -> None:
        reader = Reader(self.node, "workspace_id=1&chat_id=x&seconds=1")
        self.moment(5)
        self.assertEqual(reader.kinds(), [("end", "")])
        self.assertEqual((self.nodes.asked[-1]["end"], self.nodes.asked[-1]["chat_id"]), (True, "x"))
        asked = len(self.nodes.asked)
        self.moment(10)
        self.assertEqual(len(self.nodes.asked), asked)
        # The connection stays open.
        reader.client.send(request_bytes("GET", "/health/live"))
        self.assertEqual([response.status for response in reader.client.received()], [200])

    def test_silence_is_broken_by_comments(self) -> None:
        reader = Reader(self.node)
        self.moment(int(SILENCE / MOMENT) + 2)
        self.assertEqual(reader.text(), ": nothing happens\n\n")

    def test_a_client_that_goes_away_ends_it(self) -> None:
        reader = Reader(self.node)
        reader.client.lose()
        self.assertTrue(self.nodes.asked[-1]["end"])
        asked = len(self.nodes.asked)
        self.moment(10)
        self.assertEqual(len(self.nodes.asked), asked)

    def test_nobody_is_asked_while_the_client_takes_nothing_or_nodes_are_slow(self) -> None:
        reader = Reader(self.node)
        reader.client.channel.pauseProducing()
        asked = len(self.nodes.asked)
        self.moment(10)
        self.assertEqual(len(self.nodes.asked), asked)
        self.nodes.held = []
        reader.client.channel.resumeProducing()
        self.moment(10)
        self.assertEqual(len(self.nodes.held), 1)
        self.nodes.held[0].callback(Gathered([], []))
        self.moment()
        self.assertEqual(len(self.nodes.held), 2)


class Refusals(Case):
    def test_wrong_parameters(self) -> None:
        for query in (
            "workspace_id=1",
            "user_id=7",
            "workspace_id=1&user_id=7&chat_id=7",
            "workspace_id=1&user_id=07",
            "workspace_id=1&user_id=7&seconds=0",
            "workspace_id=1&user_id=7&seconds=601",
            "workspace_id=1&user_id=7&peer=somewhere",
        ):
            self.assertEqual(self.node.call("GET", f"/v1/trace?{query}").code, "bad_request", query)
        self.assertEqual(self.nodes.asked, [])

    def test_so_many_at_once(self) -> None:
        readers = [Reader(self.node) for _ in range(MOST)]
        response = self.node.call("GET", "/v1/trace?workspace_id=1&user_id=7")
        self.assertEqual((response.status, response.code), (429, "too_many_traces"))
        self.assertIsNotNone(response["Retry-After"])
        readers[0].client.lose()
        self.assertEqual(Reader(self.node).status, 200)

    def test_tenants_leave_the_operator_room(self) -> None:
        everybody = self.node.site.keys._in_force  # type: ignore[union-attr]
        self.limit()
        tenants = self.node.site.keys._in_force  # type: ignore[union-attr]
        readers = [Reader(self.node) for _ in range(MOST_OF_TENANTS)]
        self.assertEqual(Reader(self.node).status, 429)
        self.node.site.keys._in_force = lambda: everybody()  # type: ignore[union-attr]
        self.assertEqual([Reader(self.node).status for _ in range(MOST - MOST_OF_TENANTS)], [200, 200])
        self.assertEqual(Reader(self.node).status, 429)
        readers[0].client.lose()
        self.node.site.keys._in_force = tenants  # type: ignore[union-attr]
        self.assertEqual([Reader(self.node).status for _ in range(2)], [200, 429])

    def test_a_head_begins_nothing(self) -> None:
        self.assertEqual(Reader(self.node).status, 200)
        asked = len(self.nodes.asked)
        client = Client(self.node.site)
        client.send(request_bytes("HEAD", "/v1/trace?workspace_id=1&user_id=7", None, AUTH))
        self.assertEqual(len(self.nodes.asked), asked)

    def test_a_key_that_is_taken_away_or_narrowed_ends_what_it_began(self) -> None:
        for change in (self.limit, lambda: setattr(self.node.site.keys, "_in_force", lambda: ())):
            self.setUp()
            reader = Reader(self.node)
            self.moment()
            self.assertEqual(reader.kinds(), [])
            change()
            self.nodes.tell(a=Collected("life-a", 1, [Seen(3.0, "auth", "a")]))
            self.moment()
            [end] = reader.events()
            self.assertEqual(
                (end["what"], end["reason"]),
                ("end", "its API key is no longer valid, or no longer valid for this"),
            )
            self.assertTrue(self.nodes.asked[-1]["end"])

    def limit(self) -> None:
        [key] = unlimited([KEY])
        made = ApiKey(key.digest, "tenant", workspaces=frozenset({1}))
        assert self.node.site.keys is not None
        self.node.site.keys._in_force = lambda: (made,)

    def test_a_key_for_some_workspaces(self) -> None:
        self.limit()
        refused = self.node.call("GET", "/v1/trace?workspace_id=2&user_id=7")
        self.assertEqual((refused.status, refused.code), (403, "forbidden"))
        refused = self.node.call("GET", "/v1/trace?workspace_id=1&user_id=7&peer=192.0.2.1")
        self.assertEqual((refused.status, refused.code), (403, "forbidden"))
        self.assertEqual(Reader(self.node).status, 200)
        self.assertEqual(self.nodes.asked[0]["everywhere"], False)

    def test_who_traces_whom_is_in_the_log(self) -> None:
        with capturedLogs() as events:
            Reader(self.node, **{"X-Request-Id": "r-1"})
        [line] = [formatEvent(event) for event in events if event.get("log_namespace") == "notify.audit"]
        self.assertIn("#1", line)
        self.assertIn("trace user 7 of workspace 1 for 60 s", line)


class Whole(SynchronousTestCase):
    """A node with the in-process control."""

    def test_what_is_published_over_http_and_delivered(self) -> None:
        node = Node()
        node.broker.start(node.hub.dispatcher.deliver, node.hub.dispatcher.lost)
        connection = FakeConnection(7)
        node.hub.enter(connection)
        node.hub.dispatcher.subscribe(connection, user(1, 7), None)
        reader = Reader(node)
        self.assertEqual(reader.kinds(), [("watching", "node-1"), ("connection", "node-1")])
        for payload, topic in (
            (notification_payload(user(1, 7)), user(1, 7)),
            (b"{}", user(1, 7)),
            (b"{}", user(2, 8)),
        ):
            body = f'{{"subject": "{topic.subject}", "payload": {payload.decode()}}}'.encode()
            node.call("POST", "/v1/publish", body=body)
        node.call("POST", "/v1/publish", {"subject": "workspace.1.nothing", "payload": {}})
        node.clock.pump([MOMENT])
        publish, message, refused = sorted(
            reader.events(),
            key=lambda one: (one.get("outcome") == "invalid_message", one["what"] == "message"),
        )
        self.assertEqual((publish["what"], publish["outcome"], publish["seq"]), ("publish", "ok", 1))
        self.assertEqual((message["what"], message["connections"]), ("message", 1))
        self.assertEqual((refused["what"], refused["outcome"]), ("publish", "invalid_message"))
        reader.client.lose()
        self.assertIsNone(node.hub.witness)
