"""docs/cookbook/membership.md: a removed member hears nothing more and does not come back, with each authenticator."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any
from urllib.error import HTTPError

from twisted.trial.unittest import SynchronousTestCase
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from notify.auth.tokens import issue
from notify.client import Publisher
from tests.support.pages import Asked, serve_pages
from tests.support.process import KEY, SECRET, Client, Server, wait_for
from tests.support.programs import ROOT
from tests.support.recipes import EXAMPLES, Program, addresses, answer, recipe

WEBHOOK = """
[auth]
plugin = "webhook"
[auth.webhook]
authorize_url = "{url}/authorize"
[auth.webhook.jwt]
secret = "{secret}"
"""


class Membership(SynchronousTestCase):
    """A backend with a table of members; the client is the program of docs/auth.md, run as user 1."""

    def setUp(self) -> None:
        self.members: dict[int, set[int]] = {7: set(), 8: {1}}
        self.listed = True
        self.away = 0
        self.backend = serve_pages(self, ROOT, answer=self.answer)

    def answer(self, asked: Asked) -> tuple[int, str, bytes]:
        if asked.path == "/token":
            if self.away:
                self.away -= 1
                return 503, "text/plain", b""
            return 200, "text/plain", self.token().encode()
        question = json.loads(asked.body)
        return answer({"allowed": question["user_id"] in self.members.get(question["chat_id"], ())})

    def token(self) -> str:
        chats = [chat for chat, users in self.members.items() if 1 in users]
        return issue(SECRET, 1, 1, 300, time.time(), chats if self.listed else None)

    def frames(self, server: Server, token: str, *chats: int) -> list[Any]:
        """What the server answers to a client with this token that subscribes to these chats."""
        with connect(f"ws://127.0.0.1:{server.public}/ws", close_timeout=1) as socket:
            client = Client(socket)
            client.send(type="auth", token=token)
            try:
                client.receive()
            except ConnectionClosed:
                return [client.closed()[0]]
            answers = []
            for chat in chats:
                client.send(type="subscribe", chat_id=chat, id=chat)
                got = client.receive()
                answers.append(got.get("code", got["type"]))
            return answers

    def members_of(self, server: Server, chat: int) -> list[Any]:
        return server.http("GET", f"/v1/presence?workspace_id=1&chat_id={chat}")[1]["users"]

    @contextmanager
    def client(self, server: Server) -> Iterator[tuple[Publisher, Program]]:
        """A publisher, and the recipe's client, connected: by now its user is a member, but it was not told yet."""
        self.recipe = recipe(self, "membership", **addresses(server))
        environ = {**addresses(server), "TOKEN_URL": f"{self.backend}/token"}
        with (
            Publisher(addresses(server)["NOTIFY_API_URL"], KEY) as publisher,
            Program(EXAMPLES / "members.py", **environ) as client,
        ):
            self.assertEqual(client.line(), "connected")
            self.members[7].add(1)
            yield publisher, client

    def lives(self, server: Server, remove: Any) -> str:
        """A user joins, hears, is removed, and hears no more; returns a token from before the removal."""
        with self.client(server) as (publisher, client):
            self.recipe.joined(publisher, 7, 1)
            wait_for("it is in", lambda: self.members_of(server, 7))
            before = self.token()
            publisher.chat(1, 7, 6, "welcome")
            self.assertEqual(client.line(), "7 welcome")

            self.members[7].discard(1)
            told = remove()
            self.assertEqual(told["reached"]["missing"], [])
            self.assertEqual(client.line(), "7 forbidden")
            self.assertEqual(self.members_of(server, 7), [])
            publisher.chat(1, 7, 6, "among ourselves")
            # The client is still connected, and gets what is for it: no other message came before that.
            self.recipe.joined(publisher, 8, 1)
            wait_for("it is in the other chat", lambda: self.members_of(server, 8))
            publisher.chat(1, 8, 6, "to all")
            self.assertEqual(client.line(), "8 to all")
        return before

    def test_with_a_claim_of_chats(self) -> None:
        with Server('[auth.jwt]\nchats_claim = "chats"\n') as server:
            before = self.lives(server, lambda: self.recipe.removed_with_chats_claim(1))
            self.assertEqual(self.frames(server, before, 7), [4002])
            self.assertEqual(self.frames(server, self.token(), 7, 8), ["forbidden", "subscribed"])

    def test_the_backend_has_no_token_when_the_client_is_told(self) -> None:
        with (
            Server('[auth.jwt]\nchats_claim = "chats"\n') as server,
            self.client(server) as (publisher, client),
        ):
            self.away = 1
            self.recipe.joined(publisher, 7, 1)
            wait_for("it is in", lambda: self.members_of(server, 7))
            publisher.chat(1, 7, 6, "welcome")
            self.assertEqual(client.line(), "7 welcome")

    def test_with_a_claim_of_chats_unsubscribing_is_not_enough(self) -> None:
        with Server('[auth.jwt]\nchats_claim = "chats"\n') as server:
            self.recipe = recipe(self, "membership", **addresses(server))
            self.members[7].add(1)
            before = self.token()
            self.members[7].discard(1)
            self.recipe.removed_with_webhook(1, 7)
            self.assertEqual(self.frames(server, before, 7), ["subscribed"])

    def test_with_the_webhook(self) -> None:
        self.listed = False
        with Server(WEBHOOK.format(url=self.backend, secret=SECRET)) as server:
            before = self.lives(server, lambda: self.recipe.removed_with_webhook(1, 7))
            self.assertEqual(self.frames(server, before, 7, 8), ["forbidden", "subscribed"])

    def test_with_the_webhook_who_is_removed_before_the_commit_comes_back(self) -> None:
        self.listed = False
        with Server(WEBHOOK.format(url=self.backend, secret=SECRET)) as server:
            self.recipe = recipe(self, "membership", **addresses(server))
            self.members[7].add(1)
            token = self.token()
            self.assertEqual(self.frames(server, token, 7), ["subscribed"])
            self.recipe.removed_with_webhook(1, 7)
            self.assertEqual(self.frames(server, token, 7), ["subscribed"])
            self.members[7].discard(1)
            # The remembered answer lets the client in for `allow_ttl`; the call after the commit forgets it.
            self.assertEqual(self.frames(server, token, 7), ["subscribed"])
            self.recipe.removed_with_webhook(1, 7)
            self.assertEqual(self.frames(server, token, 7), ["forbidden"])

    def test_with_the_webhook_a_remembered_no_is_forgotten_for_who_joins(self) -> None:
        self.listed = False
        deny = WEBHOOK.format(url=self.backend, secret=SECRET).replace(
            "[auth.webhook.jwt]", 'deny_ttl = "10m"\n[auth.webhook.jwt]'
        )
        with Server(deny) as server:
            self.recipe = recipe(self, "membership", **addresses(server))
            self.assertEqual(self.frames(server, self.token(), 7), ["forbidden"])
            self.members[7].add(1)
            self.assertEqual(self.frames(server, self.token(), 7), ["forbidden"])
            self.recipe.removed_with_webhook(1, 7)
            self.assertEqual(self.frames(server, self.token(), 7), ["subscribed"])

    def test_a_call_that_was_not_done_raises(self) -> None:
        with Server() as server:
            environ = {**addresses(server), "NOTIFY_API_KEY": "a-key-that-nobody-has"}
            self.recipe = recipe(self, "membership", **environ)
            with self.assertRaises(HTTPError):
                self.recipe.removed_with_webhook(1, 7)
        with self.assertRaises(OSError):
            self.recipe.removed_with_webhook(1, 7)

    def test_an_answer_that_was_cut_off_or_is_none_raises_what_the_caller_repeats(self) -> None:
        answers = (
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"what?\r\n\r\n",
            b"",
        )
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            self.recipe = recipe(self, "membership", NOTIFY_API_URL=url, NOTIFY_API_KEY=KEY)
            for answer in answers:
                thread = Thread(target=self.say, args=(server, answer))
                thread.start()
                try:
                    with self.assertRaises(OSError):
                        self.recipe.removed_with_chats_claim(1)
                finally:
                    thread.join()

    def say(self, server: socket.socket, what: bytes) -> None:
        """Answer one request with this, and close."""
        connection, _ = server.accept()
        with connection:
            request = b""
            while not request.endswith(b"}"):
                request += connection.recv(65536)
            connection.sendall(what)
