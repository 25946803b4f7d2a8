"""The commands of docs/http-api.md, run as they are printed there, against a real server."""

import json
import os
import re
from pathlib import Path
from typing import Any

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from notify.http.openapi import document
from notify.identity import Peer
from notify.testing import FakeConnection
from notify.topics import chat, user
from tests.support.http import KEY, Node
from tests.support.programs import program

PAGE = (Path(__file__).parent.parent.parent / "docs" / "http-api.md").read_text("utf-8")

#: what differs from run to run
VOLATILE = {"at", "epoch", "next", "detail", "opened", "uptime", "silent", "version", "until"}


def steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: f"<{k}>" if k in VOLATILE and v is not None else steady(v) for k, v in value.items()}
    return [steady(item) for item in value] if isinstance(value, list) else value


class HttpApiPageTest(TestCase):
    timeout = 60

    async def test_every_command_gives_the_answer_that_is_printed_below_it(self) -> None:
        from twisted.internet import reactor

        program("curl")
        node = Node(reactor=reactor)
        node.up()
        connection = FakeConnection(7, 1)
        connection.peer = Peer("127.0.0.1", "", "wPq3bXk-71zRfeaC", "Mozilla/5.0")
        node.hub.enter(connection)
        for topic in (user(1, 7), chat(1, 10)):
            await node.hub.dispatcher.subscribe(connection, topic, None)
        node.wheel.start()
        self.addCleanup(node.wheel.stop)
        port = reactor.listenTCP(0, node.site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        environment = {
            "PATH": os.environ["PATH"],
            "NOTIFY_API_URL": f"http://127.0.0.1:{port.getHost().port}",
            "NOTIFY_API_KEY": KEY,
        }
        examples = re.findall(r"```sh\n(curl.*?)```\n\n```json\n(.*?)```", PAGE, re.DOTALL)
        self.assertEqual(len(examples), PAGE.count("```sh\ncurl"))
        self.assertGreater(len(examples), 8)
        for command, printed in examples:
            out, err, status = await getProcessOutputAndValue("/bin/sh", ["-c", command], environment)
            self.assertEqual((status, err), (0, b""), command)
            self.assertEqual(steady(json.loads(out)), steady(json.loads(printed)), command)
        self.assertEqual((connection.closed, node.reloads, node.drains), ((4503, ""), 1, 1))

    def test_names_every_path_and_every_status(self) -> None:
        paths = document(1, 1)["paths"]
        for path in paths:
            self.assertIn(path, PAGE)
        statuses = {s for operations in paths.values() for o in operations.values() for s in o["responses"]}
        for status in statuses - {"101", "200", "202", "207"}:
            self.assertIn(f"| {status} | ", PAGE)
