"""The command line against a whole server: publish, listen, presence; and check-config, help and errors."""

import io
import json
import shlex
import socket
from contextlib import redirect_stdout
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from notify import topics
from notify.cli import COMMANDS
from notify.cli import main as cli
from notify.cli.progress import Progress
from notify.cli.publish import read_lines
from notify.testing import FakeConnection
from notify.wire.encodings import encoding, featured
from tests.support.auth import SECRET, temporary_file
from tests.support.cli import Server, command
from tests.support.natsd import until


def chat_line(number: int, chat: int = 2, **changed: Any) -> bytes:
    payload = {
        "message_id": number,
        "chat_id": chat,
        "workspace_id": 1,
        "sender_id": 1,
        "content": f"message {number}",
        "timestamp": 1700000000,
        **changed,
    }
    return json.dumps({"subject": f"workspace.1.chat.{chat}.messages", "payload": payload}).encode() + b"\n"


class Publish(Server):
    async def test_publishes_a_chat_message(self) -> None:
        result = await self.run_command(
            "publish", "--chat", "10", "--content", "Zoë", "--sender", "3", "--id", "5"
        )
        self.assertEqual((result.status, result.err), (0, ""))
        answer = json.loads(result.out)
        self.assertEqual((answer["subject"], answer["seq"]), ("workspace.1.chat.10.messages", 1))
        [event] = await self.history("workspace.1.chat.10.messages")
        self.assertEqual((event["content"], event["sender_id"], event["message_id"]), ("Zoë", 3, 5))

    async def test_publishes_a_notification(self) -> None:
        arguments = (
            "--workspace",
            "7",
            "--user",
            "5",
            "--kind",
            "mention",
            "--data",
            '{"a": [1]}',
            "--quiet",
        )
        result = await self.run_command("publish", *arguments)
        self.assertEqual((result.status, result.out, result.err), (0, "", ""))
        [event] = await self.history("workspace.7.user.5.notifications")
        self.assertEqual((event["kind"], event["data"]), ("mention", {"a": [1]}))

    async def test_a_repeat_with_the_same_key_publishes_nothing(self) -> None:
        arguments = (
            "publish",
            "--chat",
            "10",
            "--content",
            "x",
            "--id",
            "1",
            "--timestamp",
            "1",
            "--key",
            "k",
        )
        first, second = await self.run_command(*arguments), await self.run_command(*arguments)
        self.assertEqual(first.out, second.out)
        self.assertEqual(len(await self.history("workspace.1.chat.10.messages")), 1)

    async def test_publishes_lines_in_order(self) -> None:
        lines = b"".join(chat_line(number) for number in range(1, 701))
        result = await self.run_command("publish", stdin=lines)
        self.assertEqual((result.status, result.err), (0, ""))
        answers = [json.loads(line) for line in result.out.splitlines()]
        self.assertEqual([answer["line"] for answer in answers], list(range(1, 701)))
        events = await self.history("workspace.1.chat.2.messages")
        self.assertEqual([event["message_id"] for event in events], [answer["line"] for answer in answers])

    async def test_names_bad_lines_and_publishes_the_others(self) -> None:
        lines = [
            chat_line(1),
            b"nonsense\n",
            b"\n",
            b'{"subject": "workspace.1.chat.2.messages"}\n',
            chat_line(5, chat_id=3),
            b'{"subject": "elsewhere", "payload": {}}\n',
            chat_line(7, message_id=2**63),
            b'{"subject": "workspace.1.chat.2.messages", "payload": NaN}\n',
            b"\xff\n",
            b"[" * 100_000 + b"\n",
            b'"' + b"x" * 2_000_000 + b'"\n',
            chat_line(12, content="\ud800"),
            chat_line(13).rstrip(),
        ]
        result = await self.run_command("publish", "--quiet", stdin=b"".join(lines))
        self.assertEqual((result.status, result.out), (1, ""))
        said = result.err.splitlines()
        self.assertEqual(
            [line.split(":")[0] for line in said[:-1]],
            [f"line {n}" for n in (2, 4, 5, 6, 7, 8, 9, 10, 11, 12)],
        )
        self.assertIn("not JSON", said[0])
        self.assertIn("not those of the subject", said[2])
        self.assertEqual(said[-1], "notify publish: 2 published, 10 failed.")
        events = await self.history("workspace.1.chat.2.messages")
        self.assertEqual([event["message_id"] for event in events], [1, 13])

    async def test_publishes_lines_as_one_or_none_of_them(self) -> None:
        subject = "workspace.1.chat.2.messages"
        lines = [chat_line(number) for number in range(1, 4)]
        for wrong in (b"nonsense\n", chat_line(4, content="x" * 70_000)):
            result = await self.run_command("publish", "--atomic", stdin=b"".join([*lines, wrong]))
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertIn("Nothing was published", result.err)
        result = await self.run_command("publish", "--atomic", stdin=chat_line(1) * 1001)
        self.assertIn("at most 1000 lines", result.err)
        self.assertEqual(await self.history(subject), [])
        arguments = ("publish", "--atomic", "--key", "both")
        first = await self.run_command(*arguments, stdin=b"".join(lines))
        self.assertEqual((first.status, first.err), (0, ""))
        self.assertEqual([json.loads(line)["line"] for line in first.out.splitlines()], [1, 2, 3])
        again = await self.run_command(*arguments, stdin=b"".join(lines))
        self.assertEqual((again.status, again.out), (0, first.out))
        self.assertEqual([event["message_id"] for event in await self.history(subject)], [1, 2, 3])
        self.assertEqual((await self.run_command("publish", "--atomic", stdin=b"")).status, 0)

    async def test_a_wrong_key_stops_it_at_once(self) -> None:
        result = await self.run_command("publish", stdin=chat_line(1) * 3, NOTIFY_API_KEY="x" * 20)
        self.assertEqual(result.status, 1)
        self.assertIn("check the API key", result.err)
        self.assertIn("Stopped after line", result.err)
        self.assertNotIn("x" * 20, result.err)

    async def test_publishes_an_event(self) -> None:
        for more in (
            ("--data", '{"content": "better"}', "--refers-to", "m-1", "--sender", "3", "--id", "e-1"),
            (),
        ):
            result = await self.run_command(
                "publish", "--chat", "10", "--event", "edit", "--timestamp", "9", *more
            )
            self.assertEqual((result.status, result.err), (0, ""))
        first, second = await self.history("workspace.1.chat.10.messages")
        self.assertEqual(first, {
            "message_id": "e-1", "chat_id": 10, "workspace_id": 1, "sender_id": 3, "kind": "edit", "data": {"content": "better"},
            "timestamp": 9, "refers_to": "m-1",
        })  # fmt: skip
        self.assertEqual((second["sender_id"], second["data"], "refers_to" in second), (1, None, False))

    async def test_the_key_may_be_in_a_file(self) -> None:
        path = temporary_file(self, self.environ["NOTIFY_API_KEY"].encode() + b"\n")
        result = await self.run_command(
            "publish", "--api-key-file", path, "--chat", "1", "--content", "x", NOTIFY_API_KEY="wrong"
        )
        self.assertEqual(result.status, 0)

    async def test_what_the_server_refuses_is_said(self) -> None:
        result = await self.run_command("publish", "--chat", "1", "--content", "x" * 70_000)
        self.assertEqual(result.status, 1)
        self.assertIn("not published", result.err)

    async def test_where_nobody_is_reached_it_says_that_nothing_was_published(self) -> None:
        result = await self.run_command(
            "publish", "--chat", "1", "--content", "x", "--url", "http://127.0.0.1:1", "--timeout", "1s"
        )
        self.assertEqual(result.status, 1)
        self.assertIn("It was not published: the server cannot be reached", result.err)
        self.assertNotIn("unreachable", result.err)

    async def test_without_an_answer_it_says_that_nothing_is_known(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            result = await self.run_command(
                "publish", "--chat", "1", "--content", "x", "--url", url, "--timeout", "300ms"
            )
        self.assertEqual(result.status, 1)
        self.assertIn("It may or may not have been published: no answer from the server", result.err)
        self.assertNotIn("unknown", result.err)

    async def test_of_lines_published_as_one_it_says_no_more_than_is_known(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            arguments = ("publish", "--atomic", "--url", url, "--timeout", "300ms")
            chosen = await self.run_command(*arguments, "--key", "both", stdin=chat_line(1))
            made = await self.run_command(*arguments, stdin=chat_line(1))
        # A part of the lines may have been published under the same key before.
        for result in (chosen, made):
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertIn(
                "It is not known whether all lines are published: no answer from the server", result.err
            )
        self.assertIn("with --key both", chosen.err)
        # The key that was made is told: the lines can be published with it once more.
        key = made.err.partition("with --key ")[2].split()[0]
        again = await self.run_command("publish", "--atomic", "--key", key, stdin=chat_line(1))
        self.assertEqual((again.status, again.err), (0, ""))

    async def test_shows_progress_to_whoever_watches(self) -> None:
        lines = b"".join(chat_line(number) for number in range(20))
        self.patch(Progress.__init__, "__defaults__", (iter(range(1000)).__next__,))
        watched = await self.run_command("publish", "--quiet", stdin=lines, tty=True)
        self.assertIn("20 published", watched.err)
        self.assertTrue(watched.err.endswith("\r\x1b[K"), watched.err)
        silent = await self.run_command("publish", "--quiet", stdin=lines)
        self.assertEqual(silent.err, "")

    async def test_stops_in_order_while_more_input_may_come(self) -> None:
        process = self.spawn("publish", NOTIFY_API_KEY="x" * 20)
        assert process.transport is not None
        process.transport.write(chat_line(1))  # type: ignore[attr-defined]
        self.assertEqual(await process.ended(), 1)
        self.assertEqual(process.err.count("\n"), 2, process.err)

    async def test_lines_are_published_as_they_come(self) -> None:
        process = self.spawn("publish")
        assert process.transport is not None
        for number in (1, 2):
            process.transport.write(chat_line(number))  # type: ignore[attr-defined]
            await process.until(lambda: process.out.count("\n") >= number)  # noqa: B023
        process.transport.closeStdin()  # type: ignore[attr-defined]
        self.assertEqual(await process.ended(), 0)


class Signal(Server):
    async def test_members_are_told(self) -> None:
        made = featured(encoding("notify.v1.json"), frozenset(("signals",)))
        member = FakeConnection(8, encoding=made)
        front: Any = self.service.public.factory
        signals = front.websocket.hub.signals
        signals.join(member, topics.chat(1, 10))
        self.addCleanup(signals.leave, member, topics.chat(1, 10))
        arguments = ("--chat", "10", "--user", "7", "--kind", "cursor", "--data", '{"x": 1}')
        result = await self.run_command("signal", *arguments)
        self.assertEqual((result.status, result.out, result.err), (0, "", ""))
        await until(lambda: member.frames)
        [frame] = member.take()
        self.assertEqual((frame["user_id"], frame["kind"], frame["data"]), (7, "cursor", {"x": 1}))

    async def test_says_what_is_wrong(self) -> None:
        for options, expected in (
            (("--kind", "x", "--data", "{"), "--data is not JSON"),
            (("--kind", "x", "--data", "NaN"), "--data is not JSON"),
            (("--kind", ""), "refused"),
            (("--kind", "x", "--data", json.dumps("x" * 2000)), "1024 bytes"),
        ):
            result = await self.run_command("signal", "--chat", "10", "--user", "7", *options)
            self.assertEqual((result.status, result.out), (1, ""), options)
            self.assertIn(expected, result.err)


class Presence(Server):
    async def test_shows_who_is_there(self) -> None:
        listener = self.spawn("listen", "--chat", "10")
        await listener.until(lambda: "connected as user 1" in listener.err)
        while not (result := await self.run_command("presence", "--chat", "10")).out:
            self.assertEqual(result.status, 0)
        self.assertEqual(json.loads(result.out), {"user_id": 1, "connections": 1})

    async def test_says_what_is_wrong(self) -> None:
        for environ, expected in (
            ({"NOTIFY_API_KEY": "x" * 20}, "does not know this API key"),
            ({"NOTIFY_API_KEY": ""}, "$NOTIFY_API_KEY"),
            ({"NOTIFY_API_URL": "http://127.0.0.1:1"}, "that the server is running"),
            ({"NOTIFY_API_URL": "127.0.0.1:8081"}, "--url is wrong"),
            ({"NOTIFY_API_URL": self.environ["NOTIFY_API_URL"] + "/elsewhere"}, "refused"),
        ):
            result = await self.run_command("presence", "--chat", "10", **environ)
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertIn(expected, result.err)


class Listen(Server):
    async def publish(self, content: str, chat: int = 10) -> dict[str, Any]:
        result = await self.run_command("publish", "--chat", str(chat), "--content", content)
        return json.loads(result.out)

    def contents(self, text: str) -> list[Any]:
        return [json.loads(line)["content"] for line in text.splitlines()]

    async def subscribed(self, chat: int = 10) -> None:
        """Wait until presence says that someone is subscribed."""
        while not (await self.run_command("presence", "--chat", str(chat))).out:
            pass

    async def test_prints_messages_and_notifications_as_json_lines(self) -> None:
        process = self.spawn("listen", "--chat", "10")
        await process.until(lambda: "connected as user 1" in process.err)
        await self.subscribed()
        await self.publish("Zoë\nand a line end")
        await self.run_command("publish", "--user", "1", "--kind", "mention", "--data", '{"a":1}')
        await process.until(lambda: process.out.count("\n") == 2)
        found = {line["type"]: line for line in map(json.loads, process.out.splitlines())}
        self.assertEqual(found["chat_message"]["content"], "Zoë\nand a line end")
        self.assertEqual(found["notification"]["data"], {"a": 1})
        self.assertGreater(found["chat_message"]["seq"], 0)
        process.signal("INT")
        self.assertEqual(await process.ended(), 0)
        self.assertNotIn("Traceback", process.err)

    async def test_begins_after_a_position_and_ends_after_a_count(self) -> None:
        first = await self.publish("one")
        for content in ("two", "three", "four"):
            await self.publish(content)
        since = f"{first['epoch']}:{first['seq']}"
        process = self.spawn("listen", "--chat", "10", "--since", since, "--count", "2", "--quiet")
        self.assertEqual(await process.ended(), 0)
        self.assertEqual(self.contents(process.out), ["two", "three"])
        self.assertEqual(process.err, "")

    async def test_goes_on_where_the_last_run_ended(self) -> None:
        path = temporary_file(self, b"{}")
        first = self.spawn("listen", "--chat", "10", "--positions", path, "--count", "1")
        await self.subscribed()
        await self.publish("one")
        self.assertEqual(await first.ended(), 0)
        for content in ("two", "three"):
            await self.publish(content)
        second = self.spawn("listen", "--chat", "10", "--positions", path, "--count", "2")
        self.assertEqual(await second.ended(), 0)
        self.assertEqual(self.contents(second.out), ["two", "three"])

    async def test_a_count_over_several_chats_leaves_no_message_behind(self) -> None:
        path = temporary_file(self, b"{}")
        chats = ("--chat", "10", "--chat", "11", "--chat", "12")
        first = self.spawn("listen", *chats, "--positions", path)
        for chat in (10, 11, 12):
            await self.subscribed(chat)
            await self.publish("before", chat)
        await first.until(lambda: first.out.count("\n") == 3)
        first.signal("TERM")
        await first.ended()
        for number in range(3):
            for chat in (10, 11, 12):
                await self.publish(f"{chat}-{number}", chat)
        seen: list[Any] = []
        for _ in range(9):
            one = self.spawn("listen", *chats, "--positions", path, "--count", "1")
            self.assertEqual(await one.ended(), 0)
            seen += self.contents(one.out)
        for chat in (10, 11, 12):
            mine = [content for content in seen if content.startswith(str(chat))]
            self.assertEqual(mine, [f"{chat}-{number}" for number in range(3)])

    async def test_resumes_by_itself_when_its_connection_is_cut(self) -> None:
        url, cut = await self.cut_line()
        process = self.spawn("listen", "--chat", "10", NOTIFY_URL=url)
        await self.subscribed()
        await self.publish("one")
        await process.until(lambda: "one" in process.out)
        cut()
        for content in ("two", "three"):
            await self.publish(content)
        await process.until(lambda: "three" in process.out)
        self.assertEqual(self.contents(process.out), ["one", "two", "three"])
        self.assertIn("trying again in", process.err)
        self.assertEqual(process.err.count("connected as user 1"), 2)

    async def test_says_where_messages_are_lost(self) -> None:
        since = ("--since", "another-epoch:1")
        await self.publish("one")
        process = self.spawn("listen", "--chat", "10", *since)
        await process.until(lambda: '"lost"' in process.out)
        lost = json.loads(process.out.splitlines()[0])
        self.assertEqual((lost["type"], lost["chat_id"], lost["before"]["seq"]), ("lost", 10, 1))

    async def test_ends_with_the_reason_where_coming_back_makes_no_sense(self) -> None:
        for environ, expected in (
            ({"NOTIFY_TOKEN": "nonsense"}, "the token is not accepted (4500)"),
            ({"NOTIFY_TOKEN": ""}, "set $NOTIFY_TOKEN"),
            ({"NOTIFY_TOKEN": "Zoë\n1"}, "plain ASCII"),
            ({"NOTIFY_URL": "http://127.0.0.1/"}, "--url is wrong"),
        ):
            process = self.spawn("listen", **environ)
            self.assertEqual(await process.ended(), 1)
            self.assertIn(expected, process.err)
            self.assertNotIn("Traceback", process.err)

    async def test_wrong_options_are_said_in_a_sentence(self) -> None:
        for arguments, expected in (
            (("--no-notifications",), "nothing to listen to"),
            (("--count", "0"), "at least 1"),
            (("--chat", "1", "--since", "1"), "EPOCH:SEQ"),
            (("--positions", temporary_file(self, b"x")), "not a file of positions"),
            (("--positions", "/nonexistent/positions"), "cannot be used"),
        ):
            result = await self.run_command("listen", *arguments)
            self.assertEqual(result.status, 1)
            self.assertIn(expected, result.err)

    async def test_ends_quietly_when_its_reader_leaves(self) -> None:
        process = self.spawn("listen", "--chat", "10", "--quiet")
        await self.subscribed()
        assert process.transport is not None
        process.transport.closeStdout()  # type: ignore[attr-defined]
        await self.publish("one")
        self.assertEqual(await process.ended(), 141)
        self.assertEqual(process.err, "")


class Narrow(Server):
    """A server whose tokens name their chats."""

    settings = {"NOTIFY_AUTH__JWT__CHATS_CLAIM": "chats"}  # noqa: RUF012

    def token(self, user_id: int, chats: list[int] | None = None) -> str:
        return super().token(user_id, chats or [])

    async def test_a_refused_chat_ends_listening(self) -> None:
        process = self.spawn("listen", "--chat", "10")
        self.assertEqual(await process.ended(), 1)
        self.assertIn("Chat 10 was refused: forbidden", process.err)

    async def test_a_chat_that_the_token_names_is_heard(self) -> None:
        process = self.spawn("listen", "--chat", "10", "--count", "1", NOTIFY_TOKEN=self.token(1, [10]))
        while not (await self.run_command("presence", "--chat", "10")).out:
            pass
        await self.run_command("publish", "--chat", "10", "--content", "x")
        self.assertEqual(await process.ended(), 0)
        self.assertEqual(json.loads(process.out)["content"], "x")


class CheckConfig(SynchronousTestCase):
    def check(self, text: str) -> tuple[int, str]:
        path = temporary_file(self, text.encode())
        result = command("check-config", path)
        self.assertEqual(result.out == "", result.status != 0)
        return result.status, (result.out or result.err).replace(path, "FILE")

    def test_says_that_a_good_one_is_good(self) -> None:
        status, text = self.check(f'[auth.jwt]\nsecret = "{SECRET}"')
        self.assertEqual(status, 0)
        self.assertIn("FILE is good: auth jwt, broker memory", text)

    def test_a_socket_that_systemd_will_hand_over_is_good(self) -> None:
        for how in ("domain=INET6:name=ws", "domain=UNIX:index=0"):
            status, text = self.check(f'[auth.jwt]\nsecret = "{SECRET}"\n[listen]\npublic = "systemd:{how}"')
            self.assertEqual(status, 0, text)

    def test_warns_of_what_works_and_is_dangerous(self) -> None:
        url = "http://backend.internal/authorize"
        status, text = self.check(
            f'[auth]\nplugin = "webhook"\n[auth.webhook]\nauthorize_url = "{url}"\n[auth.webhook.jwt]\nsecret = "{SECRET}"'
        )
        self.assertEqual(status, 0)
        self.assertIn("Caution: 'auth.webhook.authorize_url' is http:// to another machine", text)
        self.assertIn("FILE is good: auth webhook", text)

    def test_says_in_one_sentence_what_is_wrong_with_a_bad_one(self) -> None:
        good = f'[auth.jwt]\nsecret = "{SECRET}"\n'
        for text, expected in (
            ("", "No key to verify tokens"),
            ("[auth.jwt]\nsecret = 'short'", "at least 32"),
            ("[auth.jwt]\nalgorithms = ['RS256']\npublic_key_file = '/nonexistent'", "No such file"),
            ("[auth]\nplugin = 'nothing'", "unknown plugin 'nothing'"),
            (
                good + "[listen]\npublic = 'nonsense:1'",
                "listen.public: 'nonsense:1' is not a server endpoint",
            ),
            (good + "[listen]\ninternal = 'tcp'", "listen.internal: 'tcp' is not a server endpoint"),
            (
                good + "[listen]\npublic = 'systemd:domain=INET9:name=ws'",
                "with the domain INET, INET6 or UNIX",
            ),
            (
                good + "[listen]\npublic = 'systemd:domain=INET6'",
                "it must have the form systemd:domain=INET6:name=ws",
            ),
            (good + "[listen]\npublic = 'systemd:domain=INET6:index=ws'", "or a number as its index"),
            (good + "[listen]\npublik = 'tcp:1'", "unknown key 'listen.publik'"),
            (good + "[limits]\nmax_frame = 'big'", "'limits.max_frame' is wrong"),
            (good + "[api]\nkeys_file = '/nonexistent'", "'api.keys_file' is wrong"),
            (good + "[api]\nkeys = ['short']", "'api.keys' is wrong"),
            ("[auth", "not valid TOML"),
        ):
            status, said = self.check(text)
            self.assertEqual(status, 1)
            self.assertIn(expected, said)
            self.assertTrue(said.startswith("notify check-config: "), said)
            self.assertEqual(said.count("\n"), 1)
            self.assertNotIn("short'", said)

    def test_takes_several_files_and_names_the_one_with_the_fault(self) -> None:
        shared = temporary_file(self, f'[auth.jwt]\nsecret = "{SECRET}"\n'.encode())
        own = temporary_file(self, b'[listen]\npublic = "tcp:8090"\n')
        self.assertEqual(command("check-config", own).status, 1)
        result = command("check-config", shared, own)
        self.assertEqual(result.status, 0)
        self.assertIn(f"{shared}, {own} is good", result.out)
        self.assertIn("public tcp:8090", result.out)
        bad = temporary_file(self, b"[limits]\nreplays = 1\n")
        self.assertIn(f"{bad}: unknown key 'limits.replays'", command("check-config", shared, bad, own).err)

    def test_reads_the_environment_too(self) -> None:
        self.assertEqual(command("check-config", NOTIFY_AUTH__JWT__SECRET=SECRET).status, 0)
        result = command("check-config", NOTIFY_AUTH__JWT__SECRET=SECRET, NOTIFY_LIMITS__REPLAY="x")
        self.assertIn("NOTIFY_LIMITS__REPLAY", result.err)
        self.assertEqual(command("check-config", "/nonexistent").status, 1)


class Help(SynchronousTestCase):
    def test_every_command_has_a_summary_and_examples_that_its_parser_takes(self) -> None:
        parser = cli.make_parser()
        for name in COMMANDS:
            module = cli.command(name)
            self.assertTrue(module.SUMMARY)
            lines = [line.strip() for line in module.EXAMPLES.splitlines()]
            used = [line[line.index(f"notify {name}") :] for line in lines if f"notify {name}" in line]
            self.assertTrue(used, name)
            for line in used:
                words = shlex.split(line.rstrip(")"))[1:]
                for stop in ("<", "|"):
                    words = words[: words.index(stop)] if stop in words else words
                self.assertEqual(parser.parse_args(words).command, name)

    def test_says_its_version(self) -> None:
        with redirect_stdout(io.StringIO()) as out, self.assertRaises(SystemExit) as end:
            command("--version")
        self.assertEqual(end.exception.code, 0)
        self.assertRegex(out.getvalue(), r"^notify \d")

    def test_publish_says_which_options_go_together(self) -> None:
        for arguments, expected in (
            (("--content", "x"), "--content goes with --chat"),
            (("--chat", "1", "--content", "x", "--kind", "y"), "--kind goes with --user"),
            (("--user", "1", "--kind", "y", "--sender", "2"), "--sender goes with --chat"),
            (("--key", "k"), "--key goes with --chat, --user or --atomic"),
            (("--atomic", "--id", "1"), "--id goes with --chat or --user"),
            (("--atomic", "--chat", "1", "--content", "x"), "--atomic is for lines"),
            (("--user", "1", "--kind", "y", "--event", "edit"), "--event goes with --chat"),
            (("--chat", "1", "--content", "x", "--refers-to", "2"), "--refers-to goes with --event"),
            (("--chat", "1", "--content", "x", "--data", "1"), "--data goes with --user or --event"),
            (("--chat", "1", "--content", "x", "--event", "edit"), "give only one of them"),
            (("--chat", "1"), "--content TEXT or --event KIND"),
            (("--chat", "1", "--event", "edit", "--data", "{"), "--data is not JSON"),
            (("--chat", "1"), "--content TEXT"),
            (("--user", "1"), "--kind TEXT"),
            (("--user", "1", "--kind", "k", "--data", "x"), "--data is not JSON"),
            (("--chat", "1", "--content", "x"), "$NOTIFY_API_KEY"),
            (("--chat", "1", "--content", "x", "--api-key", "k" * 16, "--url", "x"), "--url is wrong"),
        ):
            result = command("publish", *arguments)
            self.assertEqual(result.status, 1)
            self.assertIn(expected, result.err)


class Lines(SynchronousTestCase):
    def test_each_line_says_how_far_the_input_was_read(self) -> None:
        data = chat_line(1) + b"\n" + b"x" * 3_000_000 + b"\n" + chat_line(2)
        lines = list(read_lines(io.BytesIO(data)))
        self.assertEqual([line.number for line in lines], [1, 3, 4])
        self.assertEqual([bool(line.wrong) for line in lines], [False, True, False])
        self.assertEqual(lines[-1].end, len(data))


class Bar(SynchronousTestCase):
    def test_waits_before_it_shows_and_then_shows_share_and_rate(self) -> None:
        now = [0.0]
        stream = io.StringIO()
        progress = Progress(stream, 1000, True, lambda: now[0])
        progress.update(100, 1, 0)
        self.assertEqual(stream.getvalue(), "")
        now[0] = 2.0
        progress.update(500, 4000, 3)
        self.assertEqual(
            stream.getvalue(),
            "\r[###############...............]  50%  4,000 published, 2,000/s, 3 failed\x1b[K",
        )
        progress.update(900, 5000, 3)
        self.assertEqual(stream.getvalue().count("\r"), 1)
        progress.clear()
        self.assertTrue(stream.getvalue().endswith("\r\x1b[K"))

    def test_without_a_total_it_counts(self) -> None:
        now = [0.0]
        stream = io.StringIO()
        progress = Progress(stream, None, True, lambda: now[0])
        now[0] = 1.0
        progress.update(0, 10, 0)
        self.assertEqual(stream.getvalue(), "\r10 published, 10/s\x1b[K")
