"""Private names of nats-py that notify depends on: each still exists and means the same."""

from __future__ import annotations

import ast
import inspect
from functools import partial
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser
from twisted.trial.unittest import SynchronousTestCase, TestCase

import notify.nats
from notify.nats.bridge import as_deferred
from notify.nats.client import PRIVATE, RawClient, _long_way

#: the package whose modules hold objects of nats-py
PACKAGE = Path(notify.nats.__file__).parent
#: a named tuple's method; it is public in spite of its underscore
PUBLIC = {"_replace"}


def made() -> dict[str, Any]:
    """An object of each class of nats-py whose private names are used."""
    client = Client()
    return {
        "Client": client,
        "Subscription": Subscription(client, 1, "a"),
        "TcpTransport": TcpTransport(),
    }


def used(source: str, mine: set[str]) -> set[str]:
    """The private names that code uses on other objects, or on itself without defining them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr not in mine:
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and hasattr(Client, node.name):
            found.add(node.name)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            found |= {str(one.value) for one in node.args if isinstance(one, ast.Constant)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")} - PUBLIC


def own(source: str) -> set[str]:
    """The names that code defines or assigns as attributes."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


class Names(SynchronousTestCase):
    def test_each_one_is_there(self) -> None:
        objects = made()
        for path in PRIVATE:
            kind, _, name = path.partition(".")
            self.assertTrue(hasattr(objects[kind], name), f"nats-py no longer has {path}: {PRIVATE[path]}")

    def test_all_that_are_used_are_listed_and_used_in_one_place(self) -> None:
        listed = {path.partition(".")[2] for path in PRIVATE}
        for module in PACKAGE.glob("*.py"):
            source = module.read_text()
            theirs = used(source, own(source) - listed)
            self.assertEqual(theirs, listed if module.name == "client.py" else set(), module)

    def test_one_more_would_be_seen(self) -> None:
        source = (PACKAGE / "client.py").read_text()
        for more in ("client._err", "getattr(client, '_err', None)"):
            self.assertIn("_err", used(f"{source}\n{more}\n", own(source)))


class Meaning(TestCase):
    def test_a_message_has_the_parts_that_the_short_way_takes(self) -> None:
        self.assertEqual(
            list(inspect.signature(Client._process_msg).parameters),
            ["self", "sid", "subject", "reply", "data", "headers"],
        )

    async def test_the_parser_hands_messages_to_the_short_way(self) -> None:
        heard: list[tuple[bytes, ...]] = []
        client = RawClient()
        callback = partial(_long_way, lambda *message: heard.append(message))
        subscription = client._subs[1] = Subscription(client, 1, "a.b", cb=callback)
        for line in (
            b"MSG a.b 1 3\r\none\r\n",
            b"HMSG a.b 1 reply.to 18 21\r\nNATS/1.0\r\nA: b\r\n\r\ntwo\r\n",
        ):
            await as_deferred(Parser(client).parse(line))
        headers = b"NATS/1.0\r\nA: b\r\n\r\n"
        self.assertEqual(heard, [(b"a.b", "", b"one", b""), (b"a.b", "reply.to", b"two", headers)])
        self.assertEqual(subscription.pending_msgs, 0)
