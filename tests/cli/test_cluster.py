"""The commands that concern all nodes, against a whole server, and with answers that a server might give."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from notify.cli import cluster, connections, main, nodes, topics
from notify.cli.terminal import Terminal
from tests.support.cli import Server

REACHED = {"answered": 1, "missing": [], "detail": ""}


class Commands(Server):
    settings = {"NOTIFY_SERVER__NODE": "node-a"}  # noqa: RUF012

    async def listening(self) -> Any:
        process = self.spawn("listen", "--chat", "10")
        await process.until(lambda: "connected as user 1" in process.err)
        while not (await self.run_command("presence", "--chat", "10")).out:
            pass
        return process

    async def json(self, *arguments: str) -> Any:
        result = await self.run_command(*arguments, "--json")
        self.assertEqual((result.status, result.err), (0, ""))
        answer = json.loads(result.out)
        self.assertEqual(answer.pop("reached", REACHED), REACHED)
        return answer

    async def lines(self, *arguments: str) -> list[str]:
        result = await self.run_command(*arguments)
        self.assertEqual((result.status, result.err), (0, ""))
        return result.out.splitlines()

    async def test_show_nodes_connections_and_chats(self) -> None:
        await self.listening()
        head, row = await self.lines("nodes")
        self.assertEqual(head.split()[:4], ["NODE", "VERSION", "UP", "CLIENTS"])
        self.assertTrue(row.startswith("node-a "), row)
        self.assertIn("serving", row)
        head, row = await self.lines("connections", "--user", "1")
        self.assertEqual((head.split()[-1], row.split()[-1]), ("CHATS", "10"))
        head, row = await self.lines("topics")
        self.assertEqual(row.split(), ["10", "0.0", "1", "node-a:", "1"])
        self.assertEqual((await self.json("nodes"))["nodes"][0]["connections"], 1)
        found = await self.json("connections", "--user", "1", "--workspace", "1")
        self.assertEqual(found["count"], 1)
        self.assertRegex(found["connections"][0]["client_id"], r"^[A-Za-z0-9_-]{16}$")
        self.assertEqual((await self.json("connections", "--user", "1", "--workspace", "2"))["count"], 0)
        self.assertEqual((await self.json("topics", "--workspace", "1"))["topics"][0]["members"], 1)

    async def test_end_a_subscription_and_a_connection(self) -> None:
        process = await self.listening()
        self.assertEqual(await self.lines("unsubscribe", "--user", "1", "--chat", "10"), ["1 ended"])
        await process.until(lambda: "forbidden" in process.err)
        other = await self.listening()
        self.assertEqual(await self.lines("disconnect", "--user", "1", "--reconnect"), ["1 closed"])
        self.assertEqual((await self.json("disconnect", "--user", "2")), {"closed": 0})
        # The client comes back, and then is closed for good.
        while (await self.json("disconnect", "--user", "1"))["closed"] == 0:
            pass
        await other.until(lambda: "an operator disconnected this user" in other.err)

    async def test_revoke_tokens(self) -> None:
        process = await self.listening()
        result = await self.run_command("revoke", "--user", "1", "--before", "1")
        self.assertEqual((result.status, result.out), (0, "0 closed\n"))
        self.assertIn("this holds only until it restarts", result.err)
        result = await self.run_command("revoke", "--user", "1", "--json")
        answer = json.loads(result.out)
        self.assertEqual((result.status, answer["closed"], answer["kept"]), (0, 1, False))
        await process.until(lambda: "the token has expired" in process.err)
        result = await self.run_command("revoke", "--user", "1", "--before", "99999999999")
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertIn("before is in the future", result.err)
        for time in ("nan", "inf", "-1", "x"):
            said = io.StringIO()
            with redirect_stderr(said), self.assertRaises(SystemExit):
                main.make_parser().parse_args(["revoke", "--user", "1", f"--before={time}"])
            self.assertIn("a Unix time in seconds", said.getvalue())

    async def test_shed_a_share_of_a_nodes_clients(self) -> None:
        process = await self.listening()
        self.assertEqual(
            await self.lines("shed", "--node", "node-a", "--share", "1"),
            ["node-a is sending 1 of its clients away, over 0 s"],
        )
        await process.until(lambda: "the server restarts" in process.err)
        self.assertEqual((await self.json("shed", "--node", "node-a", "--share", "0.4"))["clients"], 0)
        for share in ("0", "1.1", "nan", "x", "-1"):
            said = io.StringIO()
            with redirect_stderr(said), self.assertRaises(SystemExit):
                main.make_parser().parse_args(["shed", "--node", "node-a", f"--share={share}"])
            self.assertIn("a number above 0 and at most 1", said.getvalue())

    async def test_reload_and_drain_a_node(self) -> None:
        self.assertEqual(await self.lines("reload"), ["node-a reads its configuration again"])
        while (await self.json("nodes"))["nodes"][0]["reloaded"] is None:
            pass
        # The process is that of the test, and must not end.
        self.patch(self.service.lifecycle, "_leave", lambda: None)
        self.assertEqual(await self.lines("drain", "--node", "node-a"), ["node-a drains"])
        self.assertTrue(self.service.lifecycle.leaving)
        self.assertEqual(await self.json("drain"), {"node": "node-a", "draining": True})

    async def test_say_what_is_wrong(self) -> None:
        result = await self.run_command("drain", "--node", "nobody")
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertIn("there is no node with this name", result.err)
        for command in ("nodes", "topics", "reload"):
            result = await self.run_command(command, NOTIFY_API_KEY="x" * 20)
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertIn("does not know this API key", result.err)


class Shown(SynchronousTestCase):
    """How an answer is printed."""

    def setUp(self) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.terminal = Terminal(io.BytesIO(), self.out, self.err, {}, False)

    def show(self, module: Any, answer: Any, **options: Any) -> int:
        self.patch(module, "call", lambda *_: answer)
        status: int = module.run(SimpleNamespace(json=False, command="it", **options), self.terminal)
        return status

    def test_who_did_not_answer_is_named_and_the_status_says_so(self) -> None:
        for reached, said in (
            ({"answered": 1, "missing": ["b", "c"], "detail": ""}, "notify it: no answer from b, c.\n"),
            ({"answered": 1, "missing": [], "detail": "alone"}, "notify it: alone.\n"),
            # NATS's own text, and text in the place of a node's name, cannot control the terminal either.
            (
                {"answered": 1, "missing": ["b\x1b[2J"], "detail": "alone\nb"},
                "notify it: alone\N{REPLACEMENT CHARACTER}b.\nnotify it: no answer from b\N{REPLACEMENT CHARACTER}[2J.\n",
            ),
        ):
            self.assertEqual(self.show(nodes, {"nodes": [], "reached": reached}), cluster.NOT_ALL)
            self.assertEqual(self.err.getvalue(), said)
            self.err.seek(0)
            self.err.truncate()

    def test_what_strangers_chose_is_neither_markup_nor_control(self) -> None:
        one = {
            "node": "[bold]a[/bold]",
            "connection_id": "c\x1b[2J",
            "workspace_id": 1,
            "opened": 0.0,
            "peer": "x" * 300,
            "client_id": "me",
            "client": "Mozilla [red]\x9b1m",
            "encoding": ":smile:",
            "queued": 5,
            "silent": 200.0,
            "subscriptions": 30,
            "chats": list(range(25)),
        }
        answer = {"count": 7, "connections": [one], "reached": REACHED}
        self.assertEqual(self.show(connections, answer, user=1, workspace=None), 0)
        _, row = self.out.getvalue().splitlines()
        for text in (
            "[bold]a[/bold]",
            "c\N{REPLACEMENT CHARACTER}[2J",
            "x" * 300,
            ":smile:",
            "3m ago",
            "Mozilla [red]\N{REPLACEMENT CHARACTER}1m",
            "19 and 10 more",
        ):
            self.assertIn(text, row)
        self.assertNotIn("\x1b", row)
        self.assertEqual(self.err.getvalue(), "notify connections: the oldest 1 of 7.\n")

    def test_a_long_list_of_chats_is_cut_and_counted(self) -> None:
        found = [{"chat_id": n, "rate": 123.4, "members": 2, "nodes": {"b": 1, "a": 1}} for n in range(30)]
        answer = {"topics": found, "complete": False, "reached": REACHED}
        self.assertEqual(self.show(topics, answer, workspace=1, most=2), 0)
        self.assertEqual(
            self.out.getvalue().splitlines()[1].split(), ["0", "123", "2", "a:", "1,", "b:", "1"]
        )
        self.assertEqual(self.err.getvalue(), "notify topics: 2 of more than 30.\n")

    def test_a_node_that_is_not_well(self) -> None:
        node = {
            "node": "a",
            "version": "1.0.0",
            "uptime": 200_000.0,
            "connections": 1,
            "topics": 2,
            "published": 0.0,
            "delivered": 1234.5,
            "stage": "closing",
            "broker": {"ready": False, "detail": "NATS is away"},
            "reloaded": 1_700_000_000.0,
            "reload_failed": "a sentence",
        }
        self.show(nodes, {"nodes": [node], "reached": REACHED})
        for text in ("2d", "1234", "closing", "not ready: NATS is away", "failed: a sentence"):
            self.assertIn(text, self.out.getvalue())
