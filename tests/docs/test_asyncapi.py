"""docs/asyncapi.yaml is generated from the frames, and describes what the protocol's page and the scenarios have."""

from __future__ import annotations

import json
import re
import runpy
from typing import Any

import jsonschema
import yaml
from twisted.trial.unittest import SynchronousTestCase

from notify.testing import event_payload
from notify.topics import chat
from tests.support.programs import ROOT
from tests.support.world import World
from tests.whole.original import play

FILE = ROOT / "docs" / "asyncapi.yaml"
#: types of frames that both sides send
BOTH = ("presence", "history", "signal")


def references(part: Any) -> set[str]:
    """Every ``$ref`` in a document."""
    if isinstance(part, dict):
        return {part["$ref"]} if "$ref" in part else set().union(*map(references, part.values()), set())
    return set().union(*map(references, part), set()) if isinstance(part, list) else set()


class Description(SynchronousTestCase):
    def setUp(self) -> None:
        self.document: Any = yaml.safe_load(FILE.read_text())
        self.messages: dict[str, Any] = self.document["components"]["messages"]

    def validator(self, message: str) -> Any:
        schema = {**self.messages[message]["payload"], "components": self.document["components"]}
        return jsonschema.Draft202012Validator(schema)

    def test_is_made_of_the_frames(self) -> None:
        made = runpy.run_path(str(ROOT / "packaging" / "asyncapi.py"))["text"]()
        self.assertEqual(FILE.read_text(), made, "run `make asyncapi`")

    def test_every_reference_leads_somewhere(self) -> None:
        found = references(self.document)
        self.assertGreater(len(found), 30)
        for reference in found:
            place: Any = self.document
            for name in reference.removeprefix("#/").split("/"):
                self.assertIn(name, place, reference)
                place = place[name]

    def test_has_every_type_of_the_page_and_no_other(self) -> None:
        page = (ROOT / "docs" / "protocol.md").read_text()
        tables = page.partition("### Client to server")[2].partition("Integers are signed")[0]
        rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", tables, re.MULTILINE)
        types = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        self.assertEqual({message["name"] for message in self.messages.values()}, types)

    def test_every_integer_says_that_it_has_64_bits(self) -> None:
        def integers(part: Any) -> list[Any]:
            if isinstance(part, dict):
                mine = [part] if part.get("type") == "integer" else []
                return mine + [one for value in part.values() for one in integers(value)]
            return [one for value in part for one in integers(value)] if isinstance(part, list) else []

        found = integers(self.document["components"]["schemas"])
        self.assertGreater(len(found), 20)
        self.assertEqual({one.get("format") for one in found}, {"int64"})

    def check(self, frame: Any, ours: bool) -> str:
        """Assert that a frame is as described; return the name of its message."""
        name: str = frame["type"]
        if ours and name in BOTH:
            name = f"client_{name}"
        errors = [error.message for error in self.validator(name).iter_errors(frame)]
        self.assertEqual(errors, [], frame)
        return name

    def test_what_clients_send_in_the_scenarios_is_as_described(self) -> None:
        table = json.loads((ROOT / "tests" / "conformance" / "scenarios.json").read_text())
        sent = [action["frame"] for action in actions(table, "send")]
        self.assertGreater(len(sent), 100)
        self.assertEqual(
            {self.check(frame, True) for frame in sent},
            {"auth", "refresh", "subscribe", "unsubscribe", "ping", *(f"client_{name}" for name in BOTH)},
        )

    def test_what_the_server_sends_is_as_described(self) -> None:
        written = [json.loads(bytes.fromhex(one)) for step in play("notify.v1.json") for one in step]
        world = World()
        client, other = world.client(features=["events", "signals"]), world.client(2, features=["signals"])
        for one in (client, other):
            one.send(type="subscribe", chat_id="a-b", id=1)
        world.publish(chat(1, "a-b"), event_payload(chat(1, "a-b"), refers_to="m-1"))
        signal = {"type": "signal", "chat_id": "a-b", "kind": "typing", "data": {"x": None}}
        self.assertEqual(self.check(signal, True), "client_signal")
        other.send(**signal)
        world.turn()
        client.send(type="history", chat_id="a-b", limit=2, id=2)
        names = {self.check(frame, False) for frame in (*written, *client.result, *client.take())}
        self.assertEqual(
            names,
            {
                "auth_result", "subscribed", "ok", "pong", "presence", "error",
                "chat_message", "chat_event", "notification", "signal", "history",
            },
        )  # fmt: skip

    def test_what_is_invalid_is_not_described(self) -> None:
        subscribe = self.validator("subscribe")
        self.assertTrue(subscribe.is_valid({"type": "subscribe", "chat_id": "a-b"}))
        for wrong in ("5", "-5", "", "a b", "a" * 65, 2**63, 1.5, None):
            self.assertFalse(subscribe.is_valid({"type": "subscribe", "chat_id": wrong}), wrong)


def actions(part: Any, what: str) -> list[Any]:
    """The actions of one kind in the scenarios."""
    if isinstance(part, dict):
        mine = [part] if part.get("do") == what else []
        return mine + [one for value in part.values() for one in actions(value, what)]
    return [one for value in part for one in actions(value, what)] if isinstance(part, list) else []
