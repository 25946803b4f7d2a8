"""API keys: how they are written, what each may do and in which workspaces, and how fast they may be guessed."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.config import Api, ConfigError
from notify.core.live import SCOPES, ApiKey
from notify.http import ApiKeys, read_keys, unlimited
from notify.http.answers import Refused
from notify.http.guesses import AT_ONCE, Guesses, group
from notify.testing import FakeConnection, chat_payload
from notify.topics import chat, user
from tests.support.http import Node, temporary_folder

ONE, TWO = "1-sixteen-characters", "2-sixteen-characters"


class ReadKeysTest(TestCase):
    def file(self, data: bytes) -> str:
        path = temporary_folder(self) / "keys"
        path.write_bytes(data)
        return str(path)

    def test_joins_the_configuration_and_the_file(self) -> None:
        path = self.file(f"# keys\n\n  {TWO}  \n".encode())
        self.assertEqual(read_keys(Api(keys=(ONE,), keys_file=path), "x.toml"), unlimited((ONE, TWO)))
        self.assertEqual(read_keys(Api(), "x.toml"), ())

    def test_says_what_is_wrong_without_quoting_a_key(self) -> None:
        for api in (
            Api(keys=("sesame",)),
            Api(keys=(ONE, "sesame " * 5)),
            Api(keys=("sesamé" * 5,)),
            Api(keys_file=self.file(b"sesame\n")),
            Api(keys_file=self.file(b"\xffsesame-sesame-sesame\n")),
            Api(keys_file="/nowhere/keys"),
        ):
            error = self.assertRaises(ConfigError, read_keys, api, "x.toml")
            self.assertTrue(str(error).startswith("x.toml: 'api.keys"), error)
            self.assertNotIn("sesam", str(error))

    def test_a_line_may_say_what_its_key_is_called_and_what_it_is_good_for(self) -> None:
        path = self.file(
            f"{ONE} name=chat scopes=publish,read workspaces=7,acme\n{TWO} name=ops\n{ONE}x\n".encode()
        )
        one, two, three = read_keys(Api(keys_file=path), "x.toml")
        self.assertEqual(
            (one.name, one.scopes, one.workspaces), ("chat", {"publish", "read"}, frozenset({7, "acme"}))
        )
        self.assertEqual((two.name, two.scopes, two.workspaces), ("ops", SCOPES, None))
        self.assertEqual((three.name, three.limited), ("#3", False))

    def test_a_line_that_is_not_understood_is_told_by_its_number_and_gives_nothing_away(self) -> None:
        for line, reason in (
            (f"{ONE} sesame", "may be followed only by"),
            (f"{ONE} sesame=1", "may be followed only by"),
            (f"{ONE} name=a name=b", "each at most once"),
            (f"{ONE} scopes=read", "no name"),
            (f"{ONE} name=", "invalid name"),
            (f"{ONE} name=sésame", "invalid name"),
            (f"{ONE} name=a scopes=", "publish"),
            (f"{ONE} name=a scopes=read,sesame", "control, publish, read"),
            (f"{ONE} name=a workspaces=", "has an invalid workspace"),
            (f"{ONE} name=a workspaces=7,,8", "an id is"),
            (f"{ONE} name=a workspaces=07", "an id is"),
            (f"{ONE} name=x scopes=read\n{ONE}", "twice"),
            ("name=sesame-sesame-sesame", "has no key"),
            (f"{ONE} name=x scopes=read\nworkspaces=7,8,9,10,11", "has no key"),
            (f"{ONE}\u2028{TWO}", "may be followed only by"),
            (f"{TWO} name=a\n{ONE} name=a", "same name as another"),
        ):
            path = self.file(f"#\n{line}\n".encode())
            error = str(self.assertRaises(ConfigError, read_keys, Api(keys_file=path), "x.toml"))
            self.assertIn(f"line {line.count(chr(10)) + 2} of ", error)
            self.assertIn(reason, error)
            for secret in ("sesame", "sésame", ONE):
                self.assertNotIn(secret, error)


class ApiKeysTest(TestCase):
    def test_any_of_the_keys_is_good_and_the_scheme_has_no_case(self) -> None:
        keys = ApiKeys(lambda: unlimited([ONE, TWO]))
        for header in (f"Bearer {ONE}", f"bearer {TWO}", f"BEARER  {ONE}"):
            keys.check(header.encode())

    def test_replaced_keys_are_no_good_any_more(self) -> None:
        good = [ONE]
        keys = ApiKeys(lambda: unlimited(good))
        keys.check(f"Bearer {ONE}".encode())
        good[:] = [TWO]
        keys.check(f"Bearer {TWO}".encode())
        refused = self.assertRaises(Refused, keys.check, f"Bearer {ONE}".encode())
        self.assertEqual(refused.status, 401)
        good.clear()
        self.assertEqual(self.assertRaises(Refused, keys.check, f"Bearer {TWO}".encode()).status, 403)


def limited(**fields: Any) -> Node:
    """A node with one key that has these limits."""
    node = Node()
    [key] = unlimited(["a-key-for-tests-only"])
    made = ApiKey(key.digest, "chat-backend", **fields)
    assert node.site.keys is not None
    node.site.keys._in_force = lambda: (made,)
    return node


class Scopes(SynchronousTestCase):
    """What a key may do; ``paths`` are the endpoints that require one."""

    paths = (
        ("publish", "POST", "/v1/publish", {"subject": chat(7, 1).subject, "payload": {}}),
        ("publish", "POST", "/v1/broadcast", {"subjects": [chat(7, 1).subject], "payload": {}}),
        ("publish", "GET", "/v1/stream", None),
        (
            "publish",
            "POST",
            "/v1/signal",
            {"workspace_id": 7, "chat_id": 1, "user_id": 1, "kind": "typing", "data": None},
        ),
        ("read", "GET", "/v1/history?subject=workspace.7.chat.1.messages", None),
        ("read", "GET", "/v1/position?subject=workspace.7.chat.1.messages", None),
        ("read", "GET", "/v1/presence?workspace_id=7&chat_id=1", None),
        ("read", "GET", "/v1/connections?user_id=1", None),
        ("read", "GET", "/v1/nodes", None),
        ("read", "GET", "/v1/topics?workspace_id=7", None),
        ("read", "GET", "/v1/trace?workspace_id=7", None),
        ("control", "POST", "/v1/disconnect", {"workspace_id": 7, "user_id": 1}),
        ("control", "POST", "/v1/unsubscribe", {"workspace_id": 7, "user_id": 1, "chat_id": 1}),
        ("control", "POST", "/v1/revoke", {"workspace_id": 7, "user_id": 1}),
        ("control", "POST", "/v1/shed", {"node": "node-1", "share": 0.5}),
        ("control", "POST", "/v1/reload", None),
        ("control", "POST", "/v1/drain", None),
    )

    def test_every_path_that_needs_a_key_is_tried_here(self) -> None:
        secured = {path.decode(): route.scope for path, route in Node().site.routes.items() if route.scope}
        self.assertEqual(secured, {path.partition("?")[0]: scope for scope, _, path, _ in self.paths})
        self.assertEqual(set(secured.values()), SCOPES)

    def test_out_of_its_scope_it_is_told_so(self) -> None:
        for scope in SCOPES:
            node = limited(scopes=frozenset({scope}))
            for needed, method, path, body in self.paths:
                response = node.call(method, path, body)
                if needed == scope:
                    self.assertNotIn(response.status, (401, 403), path)
                else:
                    self.assertEqual((response.status, response.code), (403, "forbidden"), path)
                    message = response.json["error"]["message"]
                    self.assertIn(f"'chat-backend' does not have the scope '{needed}'", message)
            self.assertGreater(node.metrics.keys_refused.labels("scope")._value.get(), 0)
            self.assertEqual((node.drains, node.reloads), (scope == "control", scope == "control"))


class Workspaces(SynchronousTestCase):
    def test_a_key_for_some_workspaces_reaches_no_other(self) -> None:
        node = limited(workspaces=frozenset({8, "acme"}))
        for _, method, path, body in Scopes.paths:
            if "connections" in path:
                path += "&workspace_id=7"
            if "stream" in path:
                continue  # for a stream, each message is checked: tests/http/test_pipeline.py
            response = node.call(method, path, body)
            self.assertEqual((response.status, response.code), (403, "forbidden"), path)
            self.assertIn("some workspaces only", response.json["error"]["message"])
        self.assertEqual(node.drains, 0)
        for path in ("/v1/presence?workspace_id=8&chat_id=1", "/v1/presence?workspace_id=acme&chat_id=1"):
            self.assertEqual(node.call("GET", path).status, 200)

    def test_each_message_of_a_list_stands_for_itself(self) -> None:
        node = limited(workspaces=frozenset({8}))
        body = [
            {"subject": topic.subject, "payload": chat_payload(topic).decode()}
            for topic in (chat(8, 1), chat(7, 1), chat(8, 2))
        ]
        text = (
            "["
            + ",".join(f'{{"subject":"{one["subject"]}","payload":{one["payload"]}}}' for one in body)
            + "]"
        )
        response = node.call("POST", "/v1/publish", body=text.encode())
        self.assertEqual(response.status, 207)
        self.assertEqual([one["status"] for one in response.json["results"]], [200, 403, 200])
        self.assertEqual(response.json["results"][1]["error"]["code"], "forbidden")
        self.assertEqual(node.metrics.published.labels("forbidden").count, 1)

    def test_connections_of_other_workspaces_are_not_listed(self) -> None:
        node = limited(workspaces=frozenset({8}))
        for workspace_id in (7, 8):
            connection = FakeConnection(1, workspace_id, id=f"c{workspace_id}")
            node.hub.enter(connection)
            node.registry.join(connection, user(workspace_id, 1))
        found = node.call("GET", "/v1/connections?user_id=1").json
        self.assertEqual([one["workspace_id"] for one in found["connections"]], [8])
        self.assertEqual(found["count"], 1)


class Audit(SynchronousTestCase):
    def lines(self, node: Node, method: str, path: str, body: Any = None) -> list[str]:
        with capturedLogs() as events:
            node.call(method, path, body, headers={"X-Request-Id": "r-1"})
        return [formatEvent(event) for event in events if event.get("log_namespace") == "notify.audit"]

    def test_each_use_of_control_leaves_a_line_with_the_name_of_the_key(self) -> None:
        node = limited()
        node.registry.join(FakeConnection(1, 7), user(7, 1))
        [line] = self.lines(node, "POST", "/v1/disconnect", {"workspace_id": 7, "user_id": 1})
        self.assertEqual(
            line,
            "API key chat-backend from 192.168.1.1, request r-1: disconnect user 1 of workspace 7",
        )
        [line] = self.lines(
            node, "POST", "/v1/unsubscribe", {"workspace_id": 7, "user_id": 1, "chat_id": "x"}
        )
        self.assertTrue(line.endswith("r-1: end the subscriptions of user 1 of workspace 7 to chat x"), line)
        [line] = self.lines(node, "POST", "/v1/shed", {"node": "a\nb", "share": 0.5})
        self.assertTrue(line.endswith("r-1: send 0.5 of the clients of a\\nb away"), line)
        [line] = self.lines(node, "POST", "/v1/drain")
        self.assertEqual(line, "API key chat-backend from 192.168.1.1, request r-1: drain node-1")
        [line] = self.lines(node, "POST", "/v1/reload", {"node": "a\nb"})
        self.assertEqual(line, "API key chat-backend from 192.168.1.1, request r-1: reload a\\nb")
        self.assertEqual(self.lines(node, "GET", "/v1/connections?user_id=1"), [])

    def test_a_bare_key_is_named_by_its_place(self) -> None:
        [line] = self.lines(Node(), "POST", "/v1/drain")
        self.assertTrue(line.startswith("API key #1 from "), line)


class Guessing(SynchronousTestCase):
    """Wrong keys from one address."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.count = Counter("refused", "", ["reason"], registry=CollectorRegistry())
        self.keys = ApiKeys(lambda: unlimited([ONE, TWO]), self.count, self.clock.seconds)

    def status(self, key: str, host: str = "192.0.2.1") -> int:
        try:
            self.keys.check(f"Bearer {key}".encode(), host)
        except Refused as refused:
            if refused.status == 429:
                self.assertGreaterEqual(int(refused.headers[b"Retry-After"]), 1)
            return refused.status
        return 200

    def test_is_slowed_counted_and_logged(self) -> None:
        with capturedLogs() as events:
            statuses = [self.status(f"wrong-key-number-{n}") for n in range(300)]
        self.assertEqual((statuses.count(401), statuses.count(429)), (AT_ONCE, 300 - AT_ONCE))
        self.assertEqual(self.count.labels("unknown")._value.get(), AT_ONCE)
        self.assertEqual(self.count.labels("slowed")._value.get(), 300 - AT_ONCE)
        lines = [formatEvent(event) for event in events]
        self.assertEqual(set(lines), {"a wrong API key from 192.0.2.1"})
        self.assertNotIn("wrong-key", str(events))

    def test_a_good_key_is_worth_no_more_than_a_wrong_one_until_the_address_has_waited(self) -> None:
        for n in range(50):
            self.status(f"wrong-key-number-{n}")
        self.assertEqual(self.status(ONE), 429)
        self.clock.advance(2)
        self.assertEqual(self.status(ONE), 200)
        self.assertEqual(self.status("wrong-key-number-x"), 401)
        self.assertEqual(self.status("wrong-key-number-y"), 429)

    def test_over_http_too(self) -> None:
        node = Node()
        statuses = [
            node.call(
                "GET",
                "/v1/connections?user_id=1",
                headers={"Authorization": f"Bearer wrong-key-number-{n}"},
                auth=False,
            )
            for n in range(12)
        ]
        self.assertEqual([response.status for response in statuses], [401] * 10 + [429] * 2)
        self.assertEqual((statuses[-1].code, statuses[-1]["Retry-After"]), ("too_many_wrong_keys", "2"))
        self.assertEqual(node.call("GET", "/health/live").status, 200)

    def test_who_was_good_before_and_other_addresses_do_not_suffer(self) -> None:
        self.assertEqual(self.status(ONE), 200)
        for n in range(50):
            self.status(f"wrong-key-number-{n}")
        self.assertEqual((self.status(ONE), self.status(TWO)), (200, 429))
        self.assertEqual(self.status(TWO, "192.0.2.2"), 200)

    def test_a_key_that_was_good_before_and_is_not_now_is_a_guess(self) -> None:
        good = [ONE, TWO]
        self.keys = ApiKeys(lambda: unlimited(good), None, self.clock.seconds)
        self.assertEqual(self.status(ONE), 200)
        good.remove(ONE)
        self.assertEqual([self.status(ONE) for _ in range(12)], [401] * 10 + [429] * 2)

    def test_an_address_is_a_whole_network_in_ipv6(self) -> None:
        for one, same in (
            ("2001:db8::1", "2001:db8::ffff:2"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("fe80::1%eth0", "fe80::2%eth1"),
        ):
            self.assertEqual(group(one), group(same))
        self.assertNotEqual(group("2001:db8::1"), group("2001:db8:0:1::1"))
        self.assertEqual(group(""), b"")

    def test_what_is_remembered_is_bounded(self) -> None:
        guesses = Guesses()
        for n in range(20_000):
            guesses.wrong(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", b"", 0)
            guesses.right(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", b"")
        self.assertLessEqual((len(guesses._wrong), len(guesses._good)), (10_000, 10_000))
