"""Authentication in a whole server: tokens expire; keys and backends become unreachable and come back."""

import json
import time
import urllib.request
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from notify.auth.tokens import issue
from notify.client import ClientClosed, Refused, TwistedClient
from tests.support.auth import SECRET, jwk, jwks, private_key, serve
from tests.support.cli import KEY, Server


def now() -> float:
    return time.time()


class Watched(Server):
    def client(self, token: Any) -> TwistedClient:
        """A client whose states are recorded, each with its time; ``seen`` waits for a state."""
        self.states: list[tuple[float, Any]] = []
        self.waiting: list[tuple[Any, Deferred[None]]] = []

        def note(state: Any) -> None:
            self.states.append((now(), state))
            for waiting in list(self.waiting):
                if waiting[0](state):
                    self.waiting.remove(waiting)
                    waiting[1].callback(None)

        client = TwistedClient(self.environ["NOTIFY_URL"], token, reactor=reactor, on_state=note)
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        return client

    async def seen(self, wanted: Any) -> None:
        if not any(wanted(state) for _, state in self.states):
            done: Deferred[None] = Deferred()
            self.waiting.append((wanted, done))
            await done.addTimeout(20, reactor)  # type: ignore[arg-type]


class Expiry(Watched):
    async def test_a_live_connection_is_closed_when_its_token_ends(self) -> None:
        # exp is in whole seconds. The exact time is tested with a fake clock (tests/core/test_authentication.py): here a
        # busy machine may be late.
        token = issue(SECRET, 1, 1, 2, now())
        expires = int(now() + 2)
        answers = iter([token])
        client = self.client(lambda: next(answers))
        await client.start()
        await self.seen(lambda state: state.code == 4002)
        [at] = [at for at, state in self.states if state.code == 4002]
        self.assertGreaterEqual(at, expires)
        self.assertLess(at, expires + 10)


class Webhook(Watched):
    """A backend decides; it is unreachable at first."""

    settings: ClassVar[dict[str, str]] = {
        "NOTIFY_AUTH__PLUGIN": "webhook",
        "NOTIFY_AUTH__WEBHOOK__DENY_TTL": "0s",
        "NOTIFY_AUTH__WEBHOOK__ALLOW_TTL": "0s",
    }

    async def setUp(self) -> None:
        self.away = True
        url = await serve(self, self.answer)
        self.settings = {
            **self.settings,
            "NOTIFY_AUTH__WEBHOOK__AUTHENTICATE_URL": url + "authenticate",
            "NOTIFY_AUTH__WEBHOOK__AUTHORIZE_URL": url + "authorize",
        }
        await super().setUp()

    def answer(self, request: Any) -> bytes:
        if self.away:
            request.setResponseCode(503)
            return b""
        if request.path == b"/authenticate":
            if b"good" not in request.content.read():
                return b'{"authenticated": false}'
            return b'{"authenticated": true, "user_id": 5, "workspace_id": 1}'
        return b'{"allowed": %s}' % (b"true" if b'"chat_id":10,' in request.content.read() else b"false")

    async def test_a_client_comes_in_once_the_backend_answers(self) -> None:
        client = self.client("good")
        started = Deferred.fromCoroutine(client.start())
        await self.seen(lambda state: state.name == "waiting")
        self.assertFalse(started.called)
        self.away = False
        await started
        self.assertEqual(client.state.user_id, 5)

    async def test_the_backend_says_which_chats(self) -> None:
        self.away = False
        client = self.client("good")
        await client.start()
        await client.chat(10).ready()
        with self.assertRaises(Refused) as refusal:
            await client.chat(11).ready()
        self.assertEqual(refusal.exception.code, "forbidden")

    async def test_a_token_that_the_backend_refuses_is_final(self) -> None:
        self.away = False
        with self.assertRaises(ClientClosed) as end:
            await self.client("bad").start()
        self.assertEqual(end.exception.code, 4500)


class TakenAway(Watched):
    """Memberships that end while the client is connected."""

    settings: ClassVar[dict[str, str]] = {
        "NOTIFY_AUTH__PLUGIN": "webhook",
        "NOTIFY_AUTH__WEBHOOK__RECHECK": "500ms",
        "NOTIFY_AUTH__WEBHOOK__RECHECK_GRACE": "1s",
    }

    async def setUp(self) -> None:
        self.members = {10, 11}
        self.away = False
        url = await serve(self, self.answer)
        self.settings = {
            **self.settings,
            "NOTIFY_AUTH__WEBHOOK__JWT__SECRET": SECRET,
            "NOTIFY_AUTH__WEBHOOK__AUTHORIZE_URL": url + "authorize",
            "NOTIFY_AUTH__WEBHOOK__AUTHORIZE_MANY_URL": url + "many",
        }
        await super().setUp()

    def answer(self, request: Any) -> bytes:
        if self.away:
            request.setResponseCode(503)
        asked = json.loads(request.content.read())
        if request.path == b"/many":
            return json.dumps(
                {"allowed": [one["chat_id"] in self.members for one in asked["questions"]]}
            ).encode()
        return json.dumps({"allowed": asked["chat_id"] in self.members}).encode()

    async def test_a_live_subscription_ends_by_itself(self) -> None:
        client = self.client(issue(SECRET, 1, 1, 600, now()))
        await client.start()
        chats = [client.chat(chat_id) for chat_id in (10, 11)]
        for each in chats:
            await each.ready()
        self.members.remove(11)
        with self.assertRaises(Refused) as end:
            await chats[1].__anext__()
        self.assertEqual(end.exception.code, "forbidden")
        self.assertEqual((client.state.name, chats[0].state), ("connected", "live"))

    async def test_who_was_sent_away_does_not_come_back_on_a_remembered_yes(self) -> None:
        first = self.client(issue(SECRET, 1, 1, 600, now()))
        await first.start()
        await first.chat(11).ready()
        self.members.remove(11)

        def disconnect() -> int:
            request = urllib.request.Request(
                self.environ["NOTIFY_API_URL"] + "/v1/disconnect",
                b'{"workspace_id": 1, "user_id": 1}',
                {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(json.loads(answer.read())["closed"])

        self.assertEqual(await deferToThread(disconnect), 1)
        await self.seen(lambda state: state.code == 4503)
        second = self.client(issue(SECRET, 1, 1, 600, now()))
        await second.start()
        with self.assertRaises(Refused):
            await second.chat(11).ready()

    async def test_while_the_backend_is_away_it_ends_after_the_grace_and_is_back_afterwards(self) -> None:
        client = self.client(issue(SECRET, 1, 1, 600, now()))
        await client.start()
        kept = client.chat(10)
        await kept.ready()
        self.away = True
        while kept.state != "waiting":
            await deferLater(reactor, 0.05)  # type: ignore[arg-type]
        self.away = False
        await kept.ready()
        self.assertEqual((client.state.name, kept.state), ("connected", "live"))


class Rotation(Watched):
    """Keys from a URL that is unreachable at first; then its keys rotate."""

    settings: ClassVar[dict[str, str]] = {
        "NOTIFY_AUTH__JWT__ALGORITHMS": "ES256",
        "NOTIFY_AUTH__JWT__SECRET": "",
        "NOTIFY_AUTH__JWT__JWKS_COOLDOWN": "100ms",
    }

    async def setUp(self) -> None:
        self.published: list[Any] | None = None
        self.refused = 0

        def answer(request: Any) -> bytes:
            if self.published is None:
                self.refused += 1
                request.setResponseCode(503)
            return jwks(*(self.published or []))

        url = await serve(self, answer)
        self.settings = {**self.settings, "NOTIFY_AUTH__JWT__JWKS_URL": url}
        await super().setUp()

    def signed(self, number: int, kid: str) -> str:
        return issue(private_key("ES256", number), 1, 1, 600, now(), algorithm="ES256", headers={"kid": kid})

    async def test_clients_come_in_once_there_are_keys_and_after_each_rotation(self) -> None:
        first = self.client(self.signed(0, "a"))
        started = Deferred.fromCoroutine(first.start())
        await self.seen(lambda state: state.name == "waiting")
        self.published = [jwk("ES256", 0, kid="a")]
        await started
        self.published = [jwk("ES256", 1, kid="b")]
        second = self.client(self.signed(1, "b"))
        await second.start()
        self.assertEqual((first.state.name, second.state.name), ("connected", "connected"))
        with self.assertRaises(ClientClosed) as end:
            await self.client(self.signed(2, "b")).start()
        self.assertEqual(end.exception.code, 4500)

    async def test_a_reload_while_the_url_is_away_locks_nobody_out(self) -> None:
        self.published = [jwk("ES256", 0, kid="a")]
        await self.client(self.signed(0, "a")).start()
        self.published = None
        before = self.service.reloader._live.now
        self.service.reloader.reload()
        while self.service.reloader._live.now is before:
            await deferLater(reactor, 0.02)  # type: ignore[arg-type]
        await self.client(self.signed(0, "a")).start()
        self.assertGreaterEqual(self.refused, 1)
