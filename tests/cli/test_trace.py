"""``notify trace``, against a whole server, and with answers that a server might give."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from notify.cli import trace
from notify.cli.cluster import NOT_ALL
from notify.cli.terminal import CommandError, Terminal
from tests.support.cli import Server


class Followed(Server):
    settings = {"NOTIFY_SERVER__NODE": "node-a"}  # noqa: RUF012

    async def test_a_user_as_it_happens(self) -> None:
        process = self.spawn("trace", "--user", "1", "--seconds", "600")
        await process.until(lambda: "0 connections here" in process.out)
        listener = self.spawn("listen", "--chat", "10")
        await process.until(lambda: "subscribe" in process.out and "chat 10" in process.out)
        listener.signal("KILL")
        await process.until(lambda: "gone without a closing handshake" in process.out)
        self.assertIn("node-a", process.out)
        process.signal("INT")
        self.assertEqual(await process.ended(), 130)

    async def test_lines_of_json_until_the_time_is_over(self) -> None:
        result = await self.run_command("trace", "--user", "1", "--seconds", "1", "--json")
        first, *_, last = map(json.loads, result.out.splitlines())
        self.assertEqual((first["what"], first["node"], last["what"]), ("watching", "node-a", "end"))
        self.assertEqual((result.status, result.err), (0, ""))

    async def test_what_is_wrong(self) -> None:
        result = await self.run_command("trace", "--chat", "1", "--seconds", "601")
        self.assertEqual(result.status, 1)
        self.assertIn("'seconds' must be an integer from 1 to 600", result.err)


class Shown(SynchronousTestCase):
    def show(self, *events: dict[str, Any], **options: Any) -> list[str]:
        self.out = io.StringIO()
        terminal = Terminal(io.BytesIO(), self.out, io.StringIO(), {}, False)
        given = {
            "workspace": 1,
            "user": 7,
            "chat": None,
            "peer": None,
            "seconds": 60,
            "json": False,
            **options,
        }
        told = [f"data: {json.dumps({'at': 0.5, **event})}" for event in events]
        self.patch(trace, "lines", lambda *_: iter([": a comment", "", *told]))
        self.status = trace.run(SimpleNamespace(**given), terminal)  # type: ignore[arg-type]
        return self.out.getvalue().splitlines()

    def test_what_strangers_chose_is_neither_markup_nor_control(self) -> None:
        event = {
            "what": "turned_away",
            "peer": "192.0.2.1",
            "origin": "https://[bold]\x1b[2J:smile:\n",
            "outcome": "403",
        }
        line, _ = self.show(event, {"what": "end"})
        self.assertIn(
            "? somebody, from 192.0.2.1, origin https://[bold]\N{REPLACEMENT CHARACTER}[2J:smile:", line
        )
        self.assertNotIn("\x1b", line)

    def test_what_is_not_certain_is_marked(self) -> None:
        claim = {
            "what": "auth",
            "workspace_id": 1,
            "user_id": 7,
            "claimed": True,
            "outcome": "refused",
            "reason": "expired",
        }
        elsewhere = {"what": "auth", "workspace_id": 2, "user_id": 7, "outcome": "ok"}
        first, second, _ = self.show(claim, elsewhere, {"what": "end"})
        self.assertIn("? says it is user 7 of workspace 1: not verified, refused, expired", first)
        self.assertIn("? user 7 of ANOTHER workspace, 2, ok", second)

    def test_a_node_that_does_not_answer_is_in_the_status(self) -> None:
        self.show(
            {"what": "missing", "node": "b"}, {"what": "left_out", "node": "a", "count": 3}, {"what": "end"}
        )
        self.assertEqual(self.status, NOT_ALL)
        self.assertIn("3 events left out, too many to show", self.out.getvalue())

    def test_an_end_before_its_time_is_said(self) -> None:
        self.assertRaises(CommandError, self.show, {"what": "watching", "connections": 0})
