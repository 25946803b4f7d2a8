"""Workspaces, chats and users with text ids, from the command line through a whole server and back."""

from __future__ import annotations

import json
from typing import Any

from notify.client import Settings, TwistedClient
from tests.support.auth import SECRET
from tests.support.cli import Server

WORKSPACE, ROOM, USER = "acme", "6f1c9a52-2c5e-4b43-9d7e-0f6c4a8d1b2e", "01JD9Z5V8M2Q4W6X7Y8Z9A0B1C"


class TextIds(Server):
    timeout = 60

    async def token_of(self, user: str, *more: str) -> str:
        arguments = ("token", "--user", user, "--workspace", WORKSPACE, *more)
        result = await self.run_command(*arguments, NOTIFY_AUTH__JWT__SECRET=SECRET)
        self.assertEqual(result.err, "")
        return result.out.strip()

    async def ok(self, *arguments: str) -> str:
        result = await self.run_command(*arguments)
        self.assertEqual((result.status, result.err), (0, ""), arguments)
        return result.out

    async def test_the_command_line_speaks_them(self) -> None:
        token = await self.token_of(USER, "--chats", f"{ROOM},10")
        listening = self.spawn("listen", "--chat", ROOM, "--chat", "10", NOTIFY_TOKEN=token)
        await listening.until(lambda: f"connected as user {USER}" in listening.err)
        here = ("--workspace", WORKSPACE)
        for chat in (ROOM, "10"):
            while not (present := await self.ok("presence", *here, "--chat", chat)):
                pass
            self.assertEqual(json.loads(present), {"user_id": USER, "connections": 1})
        await self.ok("publish", *here, "--chat", ROOM, "--sender", USER, "--id", "m-1", "--content", "hello")
        await self.ok("publish", *here, "--chat", "10", "--content", "ten")
        await self.ok("publish", *here, "--user", USER, "--kind", "mention", "--data", "null")
        await listening.until(lambda: listening.out.count("\n") == 3)
        found = {line.get("chat_id"): line for line in map(json.loads, listening.out.splitlines())}
        self.assertEqual((found[ROOM]["message_id"], found[ROOM]["sender_id"]), ("m-1", USER))
        self.assertEqual(found[10]["content"], "ten")
        self.assertEqual(found[None]["user_id"], USER)
        [kept] = await self.history(f"workspace.{WORKSPACE}.chat.{ROOM}.messages")
        self.assertEqual(kept["chat_id"], ROOM)

    async def test_what_looks_like_an_integer_is_never_text(self) -> None:
        for arguments in (["--chat", "010"], ["--chat", "-0"], ["--workspace", "1" * 30, "--chat", "1"]):
            with self.assertRaises(SystemExit):
                await self.run_command("publish", *arguments, "--content", "x")
        await self.ok("publish", "--workspace", "7", "--chat", "-5", "--content", "x")
        [kept] = await self.history("workspace.7.chat.-5.messages")
        self.assertEqual((kept["workspace_id"], kept["chat_id"]), (7, -5))

    async def test_events_come_in_their_places_to_clients_that_ask_and_to_no_others(self) -> None:
        token = await self.token_of(USER)
        seen: list[Any] = []
        clients = [
            TwistedClient(self.environ["NOTIFY_URL"], token, settings=Settings(features=features))
            for features in (("events",), ())
        ]
        chats = [
            clients[0].chat(
                ROOM, on_event=lambda event: seen.append((event.kind, event.refers_to, event.data))
            ),
            clients[1].chat(ROOM),
        ]
        self.assertRaises(ValueError, clients[1].chat, "other", on_event=print)
        common = {"workspace_id": WORKSPACE, "chat_id": ROOM, "sender_id": USER, "timestamp": 1_700_000_000}
        payloads = [
            {**common, "message_id": "m-1", "content": "one"},
            {**common, "message_id": "m-2", "kind": "edited", "data": {"content": "1"}, "refers_to": "m-1"},
            {**common, "message_id": 3, "kind": "joined", "data": None},
            {**common, "message_id": "m-4", "content": "two"},
        ]
        for client, chat in zip(clients, chats, strict=True):
            await client.start()
            self.addCleanup(client.close)
            await chat.ready()
        subject = f"workspace.{WORKSPACE}.chat.{ROOM}.messages"
        lines = [json.dumps({"subject": subject, "payload": payload}) for payload in payloads]
        result = await self.run_command("publish", "--quiet", stdin="\n".join(lines).encode())
        self.assertEqual((result.status, result.err), (0, ""))
        for chat in chats:
            got = [await anext(chat), await anext(chat)]
            self.assertEqual([message.content for message in got], ["one", "two"])
            self.assertEqual((got[0].message_id, got[0].chat_id), ("m-1", ROOM))
        self.assertEqual(seen, [("edited", "m-1", {"content": "1"}), ("joined", None, None)])
        self.assertEqual(await self.history(subject), payloads)

    async def test_tenants_whose_ids_look_alike_are_apart(self) -> None:
        rooms: list[tuple[Any, Any]] = [(1, 10), ("w1", 10), (1, "c10"), ("w1", "c10")]
        for workspace, chat in rooms:
            here = ("--workspace", str(workspace), "--chat", str(chat))
            await self.ok("publish", *here, "--content", f"{workspace}/{chat}")
        for workspace, chat in rooms:
            [kept] = await self.history(f"workspace.{workspace}.chat.{chat}.messages")
            self.assertEqual(kept["content"], f"{workspace}/{chat}")
