"""Pages of history through whole servers: all encodings, one and several processes, memory and JetStream."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.sync.client import connect

from notify.wire.proto import notify_pb2 as pb
from tests.support.natsd import NatsServer
from tests.support.process import Server, token, wait_for

JETSTREAM = '[broker]\nplugin = "jetstream"\n[broker.jetstream]\nservers = ["{}"]\n'
WORKERS = '[server]\nnode = "n"\nworkers = 2\n'
SUBJECT = "workspace.1.chat.{}.messages"


class Client:
    """A client with one encoding; it returns frames in their JSON form."""

    def __init__(self, server: Server, subprotocol: str, *features: str) -> None:
        self.subprotocol = subprotocol
        url = f"ws://127.0.0.1:{server.public}/ws"
        self.context = connect(url, subprotocols=[subprotocol], close_timeout=1, max_size=None)
        self.socket = self.context.__enter__()
        self.waiting: list[Any] = []
        self.send(type="auth", token=token(1), features=["history", *features])
        assert "history" in self.receive()["features"]

    def close(self) -> None:
        self.context.__exit__(None, None, None)

    def send(self, type: str, **fields: Any) -> None:
        if self.subprotocol != "notify.v1.protobuf":
            self.socket.send(json.dumps({"type": type, **fields}))
            return
        message, id = pb.ClientMessage(), fields.pop("id", None)
        if id is not None:
            message.id = id
        body = getattr(message, type)
        body.SetInParent()
        for name, value in fields.items():
            if isinstance(value, dict):
                getattr(body, name).CopyFrom(pb.Since(**value))
            elif isinstance(value, list):
                getattr(body, name).extend(value)
            else:
                setattr(body, name, value)
        self.socket.send(pb.ClientFrame(messages=[message]).SerializeToString())

    def receive(self) -> Any:
        while not self.waiting:
            data = self.socket.recv(20)
            if isinstance(data, bytes):
                self.waiting += [plain(one) for one in pb.ServerFrame.FromString(data).messages]
            else:
                found = json.loads(data)
                self.waiting += found if isinstance(found, list) else [found]
        return self.waiting.pop(0)

    def ask(self, **fields: Any) -> Any:
        self.send(**fields)
        return self.receive()


def plain(message: pb.ServerMessage) -> dict[str, Any]:
    """The JSON form of a protobuf message."""
    kind = message.WhichOneof("body")
    body, found = getattr(message, kind), {"type": kind}
    for field, value in body.ListFields():
        found[field.name] = value
    if kind == "history":
        found["messages"] = [plain(one) for one in body.messages]
        found["more"] = body.more
        found.setdefault("seq", 0)
    if kind == "auth_result":
        found["features"] = list(body.features)
    if kind in ("chat_message", "chat_event"):
        found.setdefault("prev", 0)
    if kind == "chat_event":
        found["data"] = json.loads(body.data)
    if message.WhichOneof("request") == "id":
        found["id"] = message.id
    return found


class Histories(TestCase):
    timeout = 120

    def publish(self, server: Server, number: int, kind: str = "", chat_id: int = 10) -> None:
        payload = {
            "message_id": number,
            "chat_id": chat_id,
            "workspace_id": 1,
            "sender_id": 2,
            "timestamp": number,
        }
        payload |= {"kind": kind, "data": {"n": number}} if kind else {"content": f"message {number}"}
        status, text = server.http(
            "POST", "/v1/publish", {"subject": SUBJECT.format(chat_id), "payload": payload}
        )
        assert status == 200, text

    def browse(self, server: Server) -> None:
        wait_for("the server is ready", lambda: server.http("GET", "/health/ready")[0] == 200)
        for n in range(1, 121):
            self.publish(server, n, "edited" if n % 10 == 0 else "")
        messages = [n for n in range(1, 121) if n % 10]
        for subprotocol in ("notify.v1.json", "notify.v1.json.batch", "notify.v1.protobuf"):
            for features, expected in (((), messages), (("events",), list(range(1, 121)))):
                client = Client(server, subprotocol, *features)
                self.through(client, expected)
                self.goes_on(server, client)
                client.close()
        self.by_http(server)

    def through(self, client: Client, expected: list[int]) -> None:
        """Read backwards and forwards, and check what is refused."""
        page = client.ask(type="history", chat_id=10, limit=50, id=7)
        self.assertEqual(page["id"], 7)
        self.newest = {"epoch": page["epoch"], "seq": page["seq"]}
        back = self.numbers(page)
        while page["more"]:
            page = client.ask(type="history", chat_id=10, before=self.newest | {"seq": page["start"]})
            back = self.numbers(page) + back
        got = [number for number in back if number <= 120]
        self.assertEqual(got, expected)
        place, forward = {"epoch": page["epoch"], "seq": page["start"]}, self.numbers(page)[:1]
        while True:
            page = client.ask(type="history", chat_id=10, after=place, limit=100)
            forward += self.numbers(page)
            place = {"epoch": page["epoch"], "seq": page["seq"]}
            if not page["more"]:
                break
        self.assertEqual(forward, back)
        for wrong, code in (
            ({"before": {"epoch": "x", "seq": 1}}, "history_unavailable"),
            ({"after": {"epoch": "x", "seq": 1}}, "history_unavailable"),
            ({"after": self.newest | {"seq": 2**40}}, "history_unavailable"),
            ({"after": self.newest, "before": self.newest}, "invalid_message"),
            ({"limit": 101}, "invalid_message"),
        ):
            answer = client.ask(type="history", chat_id=10, id=9, **wrong)
            self.assertEqual((answer["type"], answer["code"], answer["id"]), ("error", code, 9), wrong)

    def goes_on(self, server: Server, client: Client) -> None:
        """A subscription can continue at the position of the newest page, also in an empty chat."""
        empty = 1000 + self.newest["seq"]
        for chat_id in (10, empty):
            page = client.ask(type="history", chat_id=chat_id)
            self.publish(server, 500, chat_id=chat_id)
            since = {"epoch": page["epoch"], "seq": page["seq"]}
            answer = client.ask(type="subscribe", chat_id=chat_id, since=since, id=1)
            self.assertTrue(answer["recovered"], answer)
            self.assertEqual(client.receive()["message_id"], 500)
            live = client.ask(type="history", chat_id=chat_id, limit=1)["messages"]
            self.assertEqual([one["message_id"] for one in live], [500])

    def numbers(self, page: Any) -> list[int]:
        self.assertEqual(page["type"], "history", page)
        for one in page["messages"]:
            number = one["message_id"]
            if one["type"] == "chat_event":
                self.assertEqual(one["data"], {"n": number})
            elif number != 500:
                self.assertEqual(one["content"], f"message {number}")
        return [one["message_id"] for one in page["messages"]]

    def by_http(self, server: Server) -> None:
        status, position = server.http("GET", f"/v1/position?subject={SUBJECT.format(10)}")
        self.assertEqual(status, 200, position)
        path = f"/v1/history?subject={SUBJECT.format(10)}&before=newest&limit=1"
        page = server.http("GET", path)[1]
        self.assertEqual(page["next"], f"{position['epoch']}:{position['seq']}")
        subjects = [SUBJECT.format(n) for n in range(20, 30)]
        payload = {"message_id": 1, "sender_id": 1, "content": "all", "timestamp": 1}
        client = Client(server, "notify.v1.json")
        client.ask(type="subscribe", chat_id=25, id=1)
        body, key = {"subjects": subjects, "payload": payload}, {"Idempotency-Key": "k"}
        for _ in range(2):
            status, answer = server.http("POST", "/v1/broadcast", body, **key)
            self.assertEqual((status, answer["accepted"]), (200, 10), answer)
        self.assertEqual(client.receive()["content"], "all")
        self.assertEqual(client.ask(type="ping", id=2)["type"], "pong")  # the message came only once
        client.close()

    def serve(self, configuration: str) -> None:
        with Server(configuration) as server:
            self.browse(server)

    async def test_memory(self) -> None:
        await deferToThread(self.serve, "")

    async def test_several_processes(self) -> None:
        await deferToThread(self.serve, WORKERS)

    async def test_jetstream(self) -> None:
        nats = NatsServer().start()
        self.addCleanup(nats.remove)
        await nats.up()
        await deferToThread(self.serve, JETSTREAM.format(nats.url))
