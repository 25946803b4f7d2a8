"""The webhook authenticator with a real local backend: what it asks, and that no error lets anyone in."""

import json
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock, deferLater
from twisted.logger import Logger, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.server import Request

from notify.auth.backend import Backend as Asking
from notify.auth.backend import WebhookSettings
from notify.auth.jwt import JWTSettings
from notify.auth.sharing import Answers
from notify.auth.webhook import WebhookAuthenticator
from notify.components import Context
from notify.config import Duration, Size, convert
from notify.errors import StartError, Unauthorized, Unavailable
from notify.identity import Identity, Peer
from notify.testing import make_context
from notify.testing.contracts.authenticator import PEER, AuthenticatorContract
from notify.topics import chat, user
from tests.support.auth import SECRET, serve, temporary_file, token

ME = Identity(1, 2)


def soon() -> int:
    return int(time.time()) + 60


class Backend:
    """A backend that gives the answer that the test sets, and records its requests."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.headers: list[dict[bytes, list[bytes]]] = []
        self.answer: Any = {"allowed": True}
        self.status = 200
        self.held: list[Deferred[bytes]] | None = None

    def __call__(self, request: Request) -> bytes | Deferred[bytes]:
        assert request.method == b"POST"
        assert request.content is not None
        self.asked.append(json.loads(request.content.read()))
        self.headers.append(dict(request.requestHeaders.getAllRawHeaders()))  # type: ignore[arg-type]
        request.setResponseCode(self.status)
        answer = self.answer(self.asked[-1]) if callable(self.answer) else self.answer
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if self.held is None:
            return body
        held: Deferred[bytes] = Deferred()
        self.held.append(held)
        return held.addCallback(lambda _: body)


class Case(TestCase):
    async def make(self, **settings: Any) -> WebhookAuthenticator:
        self.backend = Backend()
        self.url = await serve(self, self.backend)
        for name in ("authorize_url", "authorize_many_url", "authenticate_url"):
            if settings.get(name) is True:
                settings[name] = self.url + name
        if not settings.get("authenticate_url"):
            settings.setdefault("jwt", JWTSettings(secret=SECRET))
        self.context: Context = make_context(reactor)
        authenticator = WebhookAuthenticator(WebhookSettings(**settings), self.context)
        self.addCleanup(authenticator.stop)
        await authenticator.start()
        return authenticator

    def count(self, question: str, answer: str) -> float:
        return self.context.metrics.webhook.labels(question, answer)._value.get()


class WebhookContract(Case, AuthenticatorContract):
    async def make_authenticator(self) -> Any:
        self.known: dict[str, tuple[int, int]] = {}
        authenticator = await self.make(authorize_url=True, authenticate_url=True)
        self.backend.answer = self.say
        return authenticator

    def say(self, asked: dict[str, Any]) -> Any:
        if "token" not in asked:
            return {"allowed": True}
        if asked["token"] not in self.known:
            return {"authenticated": False}
        user_id, workspace_id = self.known[asked["token"]]
        return {"authenticated": True, "user_id": user_id, "workspace_id": workspace_id}

    async def make_token(self, user_id: int, workspace_id: int) -> str:
        made = f"token-{len(self.known)}-of-{user_id}"
        self.known[made] = (user_id, workspace_id)
        return made


class EmbeddedJWTContract(Case, AuthenticatorContract):
    async def make_authenticator(self) -> Any:
        return await self.make(authorize_url=True)

    async def make_token(self, user_id: int, workspace_id: int) -> str:
        return token(id=user_id, workspace_id=workspace_id, exp=soon())


class Explained(Case):
    """How a refusal can be explained: see :class:`~notify.interfaces.IExplainer`."""

    async def test_whom_a_refused_token_names_where_tokens_are_read_here(self) -> None:
        wrong = token(id=1, workspace_id=2, exp=1)
        self.assertEqual((await self.make(authorize_url=True)).claims(wrong), (2, 1))
        self.assertIsNone((await self.make(authenticate_url=True)).claims(wrong))

    async def test_why_a_chat_is_not_somebodys(self) -> None:
        webhook = await self.make(authorize_url=True)
        self.assertEqual(webhook.why_not(ME, chat(2, 10)), "the webhook said no")
        few = Identity(1, 2, chats=frozenset({11}))
        self.assertEqual(webhook.why_not(few, chat(2, 10)), "the token does not name this chat")
        denies = await self.make(authorize_url=True, on_error="deny")
        self.assertIn("on_error is deny", denies.why_not(ME, chat(2, 10)))


class Authorize(Case):
    async def test_asks_the_backend_and_does_as_it_says(self) -> None:
        webhook = await self.make(authorize_url=True)
        self.backend.answer = lambda asked: {"allowed": asked["chat_id"] == 10}
        self.assertTrue(await webhook.authorize(ME, chat(2, 10)))
        self.assertFalse(await webhook.authorize(ME, chat(2, 11)))
        self.assertEqual(
            self.backend.asked[0], {"user_id": 1, "workspace_id": 2, "chat_id": 10, "claims": {}}
        )
        self.assertEqual((self.count("authorize", "yes"), self.count("authorize", "no")), (1, 1))

    async def test_shows_the_shared_secret(self) -> None:
        for secret in ({"secret": "q" * 16}, {"secret_file": temporary_file(self, b"q" * 16 + b"\n")}):
            webhook = await self.make(authorize_url=True, **secret)
            await webhook.authorize(ME, chat(2, 10))
            self.assertEqual(self.backend.headers[0][b"Authorization"], [b"Bearer " + b"q" * 16])
        webhook = await self.make(authorize_url=True)
        await webhook.authorize(ME, chat(2, 10))
        self.assertNotIn(b"Authorization", self.backend.headers[0])

    async def test_no_error_lets_anyone_in(self) -> None:
        webhook = await self.make(authorize_url=True)
        for status, answer in (
            (500, {"allowed": True}),
            (201, {"allowed": True}),
            (302, {"allowed": True}),
            (403, {"allowed": True}),
            (200, b""),
            (200, b"<html>"),
            (200, {}),
            (200, []),
            (200, True),
            (200, {"allowed": 1}),
            (200, {"allowed": "true"}),
            (200, {"allowed": None}),
            (200, b'{"allowed": true'),
            (200, b"[" * 9999),
            (200, b'{"allowed": true}' + b" " * 300_000),
        ):
            self.backend.status, self.backend.answer = status, answer
            await self.assertFailure(webhook.authorize(ME, chat(2, 10)), Unavailable)
        self.assertEqual(self.count("authorize", "error"), 15)

    async def test_errors_can_be_told_as_refusals(self) -> None:
        webhook = await self.make(authorize_url=True, on_error="deny")
        self.backend.status = 500
        self.assertIs(await webhook.authorize(ME, chat(2, 10)), False)

    async def test_errors_are_not_remembered(self) -> None:
        webhook = await self.make(authorize_url=True)
        self.backend.status = 500
        await self.assertFailure(webhook.authorize(ME, chat(2, 10)), Unavailable)
        self.backend.status = 200
        self.assertTrue(await webhook.authorize(ME, chat(2, 10)))

    async def test_the_log_says_once_that_it_fails_and_once_that_it_answers_again(self) -> None:
        events: list[Any] = []
        self.patch(Asking, "log", Logger(observer=events.append))
        webhook = await self.make(authorize_url=True, secret="q" * 16)
        for status in (500, 500, 200, 200):
            self.backend.status = status
            await webhook.authorize(ME, chat(2, status)).addErrback(lambda failure: failure.trap(Unavailable))
        self.assertEqual([event["log_level"] for event in events], [LogLevel.error, LogLevel.info])
        self.assertNotIn("q" * 16, repr(events))

    async def test_does_not_follow_a_redirect(self) -> None:
        other = Backend()
        elsewhere = await serve(self, other)

        def redirect(request: Request) -> bytes:
            request.redirect(elsewhere.encode())
            return b'{"allowed": true}'

        url = await serve(self, redirect)
        webhook = await self.make(authorize_url=url)
        await self.assertFailure(webhook.authorize(ME, chat(2, 10)), Unavailable)
        self.assertEqual(other.asked, [])

    async def test_gives_up_in_time(self) -> None:
        webhook = await self.make(authorize_url=True, timeout=Duration(0.05))
        self.backend.held = []
        await self.assertFailure(webhook.authorize(ME, chat(2, 10)), Unavailable)

    async def test_stopping_ends_what_is_under_way(self) -> None:
        webhook = await self.make(authorize_url=True)
        self.backend.held = []
        asked = webhook.authorize(ME, chat(2, 10))
        while not self.backend.held:  # until the request has arrived
            await deferLater(reactor, 0.01)
        await webhook.stop()
        error = await self.assertFailure(asked, Unavailable)
        self.assertIn("stopping", str(error))

    async def test_nobody_listens(self) -> None:
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")  # type: ignore[attr-defined]
        free = port.getHost().port
        await port.stopListening()
        webhook = await self.make(authorize_url=f"http://127.0.0.1:{free}/")
        error = await self.assertFailure(webhook.authorize(ME, chat(2, 10)), Unavailable)
        self.assertIn("cannot connect", str(error))

    async def test_the_same_question_is_asked_once_and_its_answer_remembered(self) -> None:
        webhook = await self.make(authorize_url=True)
        same = [webhook.authorize(ME, chat(2, 10)) for _ in range(100)]
        self.assertEqual(set(await gatherResults(same)), {True})
        self.assertTrue(await webhook.authorize(Identity(1, 2, 99.0), chat(2, 10)))
        self.assertEqual(len(self.backend.asked), 1)
        for identity, topic in (
            (Identity(3, 2), chat(2, 10)),
            (Identity(1, 3), chat(3, 10)),
            (Identity(1, 2, claims=(("role", "guest"),)), chat(2, 10)),
            (ME, chat(2, 11)),
        ):
            await webhook.authorize(identity, topic)
        self.assertEqual(len(self.backend.asked), 5)

    async def test_answers_are_forgotten_after_their_time(self) -> None:
        webhook = await self.make(authorize_url=True, allow_ttl=Duration(0), deny_ttl=Duration(60))
        for _ in range(2):
            self.assertTrue(await webhook.authorize(ME, chat(2, 10)))
        self.backend.answer = {"allowed": False}
        for _ in range(2):
            self.assertFalse(await webhook.authorize(ME, chat(2, 10)))
        self.assertEqual(len(self.backend.asked), 3)

    async def test_one_who_gives_up_leaves_the_others_waiting(self) -> None:
        webhook = await self.make(authorize_url=True)
        first, second = webhook.authorize(ME, chat(2, 10)), webhook.authorize(ME, chat(2, 10))
        first.cancel()
        await self.assertFailure(first, CancelledError)
        self.assertTrue(await second)
        self.assertEqual(len(self.backend.asked), 1)

    async def test_too_many_questions_at_once_are_not_queued(self) -> None:
        webhook = await self.make(authorize_url=True, max_pending=3, connections=1)
        asked = [webhook.authorize(ME, chat(2, number)) for number in range(5)]
        for refused in asked[3:]:
            error = await self.assertFailure(refused, Unavailable)
            self.assertIn("too many", str(error))
        self.assertEqual(await gatherResults(asked[:3]), [True] * 3)

    async def test_no_more_questions_are_under_way_than_connections(self) -> None:
        webhook = await self.make(authorize_url=True, connections=2, timeout=Duration(10))
        self.backend.held = []
        arrived: list[int] = []

        def answer(asked: Any) -> Any:
            arrived.append(asked["chat_id"])
            if len(arrived) >= 2:
                reactor.callLater(0, release)  # type: ignore[attr-defined]
            return {"allowed": True}

        under_way: list[int] = []

        def release() -> None:
            assert self.backend.held is not None
            under_way.append(len(self.backend.held))
            held, self.backend.held[:] = list(self.backend.held), []
            for each in held:
                each.callback(b"")

        self.backend.answer = answer
        await gatherResults([webhook.authorize(ME, chat(2, number)) for number in range(6)])
        self.assertEqual(max(under_way), 2)
        self.assertEqual(sorted(arrived), list(range(6)))

    async def test_the_chats_of_the_token_bound_what_is_asked(self) -> None:
        webhook = await self.make(authorize_url=True)
        narrow = Identity(1, 2, chats=frozenset({10}))
        self.assertTrue(await webhook.authorize(narrow, chat(2, 10)))
        self.assertFalse(await webhook.authorize(narrow, chat(2, 11)))
        self.assertFalse(await webhook.authorize(narrow, user(2, 1)))
        self.assertEqual(len(self.backend.asked), 1)

    async def test_without_an_url_for_it_the_chats_of_the_token_decide(self) -> None:
        webhook = await self.make(authenticate_url=True)
        self.assertTrue(await webhook.authorize(ME, chat(2, 10)))
        self.assertFalse(await webhook.authorize(Identity(1, 2, chats=frozenset()), chat(2, 10)))
        self.assertEqual(self.backend.asked, [])


class Authenticate(Case):
    async def ask(self, webhook: WebhookAuthenticator, token: str = "t", peer: Peer = PEER) -> Identity:
        return await webhook.authenticate(token, peer)

    async def test_asks_the_backend_whose_token_it_is(self) -> None:
        webhook = await self.make(authenticate_url=True)
        expires = soon()
        self.backend.answer = {
            "authenticated": True,
            "user_id": 1,
            "workspace_id": 2,
            "expires_at": expires,
            "issued_at": 1000,
            "chats": [10],
            "claims": {"role": "guest"},
        }
        self.assertEqual(
            await self.ask(webhook, "Zoë's token"),
            Identity(1, 2, expires, frozenset({10}), (("role", "guest"),), 1000.0),
        )
        self.assertEqual(
            self.backend.asked,
            [{"token": "Zoë's token", "host": "192.0.2.7", "origin": "https://chat.example"}],
        )

    async def test_its_claims_are_asked_back_for_a_chat(self) -> None:
        webhook = await self.make(authenticate_url=True, authorize_url=True)
        self.backend.answer = {
            "authenticated": True,
            "user_id": 1,
            "workspace_id": 2,
            "claims": {"b": "2", "a": "1"},
            "allowed": True,
        }
        await webhook.authorize(await self.ask(webhook), chat(2, 10))
        self.assertEqual(self.backend.asked[1]["claims"], {"a": "1", "b": "2"})

    async def test_an_answer_is_remembered_by_a_clock_that_need_not_be_the_time_of_day(self) -> None:
        webhook = await self.make(authenticate_url=True, allow_ttl=Duration(60))
        webhook._now = lambda: 1000.0
        self.backend.answer = {
            "authenticated": True, "user_id": 1, "workspace_id": 2, "expires_at": 1010.0,
        }  # fmt: skip
        for _ in range(2):
            await self.ask(webhook)
        self.assertEqual(len(self.backend.asked), 1)
        webhook._now = lambda: 1010.0
        await self.assertFailure(webhook.authenticate("t", PEER), Unauthorized)

    async def test_a_refusal_is_remembered_and_asked_again_later(self) -> None:
        webhook = await self.make(authenticate_url=True)
        self.backend.answer = {"authenticated": False}
        for _ in range(3):
            await self.assertFailure(webhook.authenticate("t", PEER), Unauthorized)
        self.assertEqual(len(self.backend.asked), 1)
        self.assertEqual(self.count("authenticate", "no"), 1)

    async def test_an_answer_is_remembered_for_the_same_token_from_the_same_place(self) -> None:
        webhook = await self.make(authenticate_url=True)
        self.backend.answer = {"authenticated": True, "user_id": 1, "workspace_id": 2}
        await gatherResults([webhook.authenticate("t", PEER) for _ in range(50)])
        self.assertEqual(len(self.backend.asked), 1)
        await self.ask(webhook, "u")
        await self.ask(webhook, "t", Peer("192.0.2.8"))
        self.assertEqual(len(self.backend.asked), 3)

    async def test_an_answer_is_not_remembered_longer_than_the_token_lives(self) -> None:
        webhook = await self.make(authenticate_url=True)
        past = soon() - 120
        self.backend.answer = {"authenticated": True, "user_id": 1, "workspace_id": 2, "expires_at": past}
        for _ in range(2):
            await self.assertFailure(webhook.authenticate("t", PEER), Unauthorized)
        self.assertEqual(len(self.backend.asked), 2)

    async def test_no_error_lets_anyone_in(self) -> None:
        good = {"authenticated": True, "user_id": 1, "workspace_id": 2}
        for on_error, told in (("unavailable", Unavailable), ("deny", Unauthorized)):
            webhook = await self.make(authenticate_url=True, on_error=on_error)
            for number, (status, answer) in enumerate(
                (
                    (500, good),
                    (401, good),
                    (200, {**good, "authenticated": 1}),
                    (200, {"authenticated": True}),
                    (200, {**good, "user_id": None}),
                    (200, {**good, "user_id": "1"}),
                    (200, {**good, "user_id": True}),
                    (200, {**good, "user_id": 1.5}),
                    (200, {**good, "workspace_id": 2**63}),
                    (200, {**good, "expires_at": "soon"}),
                    (200, {**good, "expires_at": 1e300}),
                    (200, {**good, "expires_at": -1}),
                    (200, {**good, "issued_at": "now"}),
                    (200, {**good, "issued_at": soon() + 60}),
                    (200, {**good, "issued_at": 1000 * time.time()}),
                    (200, {**good, "chats": ["10"]}),
                    (200, {**good, "chats": 10}),
                    (200, {**good, "claims": {"a": 1}}),
                    (200, {**good, "claims": {str(n): "" for n in range(33)}}),
                    (200, b"null"),
                )
            ):
                self.backend.status, self.backend.answer = status, answer
                await self.assertFailure(webhook.authenticate(f"t{number}", PEER), told)

    async def test_a_token_that_is_too_long_is_not_asked_about(self) -> None:
        webhook = await self.make(authenticate_url=True, max_token=Size(100))
        await self.assertFailure(webhook.authenticate("t" * 101, PEER), Unauthorized)
        self.assertEqual(self.backend.asked, [])

    async def test_remembers_no_token(self) -> None:
        webhook = await self.make(authenticate_url=True)
        self.backend.answer = {"authenticated": True, "user_id": 1, "workspace_id": 2}
        await self.ask(webhook, "the-token-itself")
        self.assertNotIn("the-token-itself", repr(webhook._authentications._answers._kept))


class Start(SynchronousTestCase):
    def not_started(self, **settings: Any) -> str:
        with self.assertRaises(StartError) as error:
            WebhookAuthenticator(WebhookSettings(**settings), make_context())
        self.assertTrue(str(error.exception).endswith("."))
        return str(error.exception)

    def test_needs_an_url_and_a_way_to_verify_tokens(self) -> None:
        url = "http://backend.internal/"
        self.assertIn("asks nobody", self.not_started())
        self.assertIn("[auth.webhook.jwt]", self.not_started(authorize_url=url))
        self.assertIn("NOTIFY_AUTH__WEBHOOK__JWT__SECRET", self.not_started(authorize_url=url))
        both = {"authenticate_url": url, "jwt": JWTSettings(secret=SECRET)}
        self.assertIn("remove one", self.not_started(**both))
        self.assertIn("auth.webhook.authorize_url", self.not_started(authorize_url="backend"))

    def test_the_shared_secret_is_one_long_line_of_text(self) -> None:
        def start(**settings: Any) -> str:
            return self.not_started(authenticate_url="http://backend.internal/", **settings)

        self.assertIn("16 or more", start(secret="short"))
        self.assertIn("printable", start(secret="q" * 16 + "\nX-Admin: 1"))
        self.assertIn("ASCII", start(secret="é" * 16))
        self.assertIn("keep one", start(secret="q" * 16, secret_file="x"))
        self.assertIn("No such file", start(secret_file="/nonexistent/secret"))
        self.assertIn("empty", start(secret_file=temporary_file(self)))
        self.assertIn("ASCII", start(secret_file=temporary_file(self, b"\xff" * 20)))

    def test_settings_come_from_a_table_with_the_jwt_table_in_it(self) -> None:
        made = convert(
            {"authorize_url": "http://a/", "timeout": "1s", "jwt": {"algorithms": ["HS512"], "leeway": "2s"}},
            WebhookSettings,
            "x.toml",
            "auth.webhook",
        )
        self.assertEqual((made.timeout, made.jwt.algorithms, made.jwt.leeway), (1, ("HS512",), 2))
        for bad in ({"on_error": "allow"}, {"jwt": {"nonsense": 1}}, {"connections": 0}):
            with self.assertRaisesRegex(StartError, "auth.webhook."):
                convert(bad, WebhookSettings, "x.toml", "auth.webhook")


class Memory(SynchronousTestCase):
    """Remembered answers."""

    def test_the_least_recently_used_go_first(self) -> None:
        answers: Answers[str, int] = Answers(Clock(), 2)
        answers.put("a", 1, 10)
        answers.put("b", 2, 10)
        answers.get("a")
        answers.put("c", 3, 10)
        self.assertEqual([answers.get(name) for name in "abc"], [1, None, 3])
        self.assertEqual(len(answers), 2)

    def test_answers_end_with_their_time(self) -> None:
        clock = Clock()
        answers: Answers[str, int] = Answers(clock, 2)
        answers.put("a", 1, 10)
        clock.advance(9.9)
        self.assertEqual(answers.get("a"), 1)
        clock.advance(0.1)
        self.assertIsNone(answers.get("a"))
        self.assertEqual(len(answers), 0)

    def test_what_is_over_or_has_no_room_is_not_kept(self) -> None:
        for size, until in ((0, 10), (2, 0)):
            answers: Answers[str, int] = Answers(Clock(), size)
            answers.put("a", 1, until)
            self.assertEqual(len(answers), 0)


class Review(Case):
    """The backend is asked again about live subscriptions."""

    async def test_nothing_remembered_is_good_enough_and_the_new_answer_is_remembered(self) -> None:
        webhook = await self.make(authorize_url=True)
        self.assertTrue(await webhook.authorize(ME, chat(2, 10)))
        self.backend.answer = {"allowed": False}
        self.assertTrue(await webhook.authorize(ME, chat(2, 10)))
        self.assertEqual(await webhook.review(ME, [chat(2, 10)]), {chat(2, 10): False})
        self.assertFalse(await webhook.authorize(ME, chat(2, 10)))
        self.assertEqual(len(self.backend.asked), 2)
        self.assertEqual(self.count("recheck", "no"), 1)

    async def test_many_subscriptions_of_many_users_go_in_one_question(self) -> None:
        webhook = await self.make(authorize_url=True, authorize_many_url=True)
        self.backend.answer = lambda asked: {"allowed": [one["chat_id"] != 11 for one in asked["questions"]]}
        topics = [chat(2, 10), chat(2, 11)]
        other = Identity(3, 2, claims=(("role", "guest"),))
        mine, same, others = await gatherResults([webhook.review(who, topics) for who in (ME, ME, other)])
        self.assertEqual(mine, {topics[0]: True, topics[1]: False})
        self.assertEqual([same, others], [mine, mine])
        self.assertEqual(
            self.backend.asked,
            [
                {
                    "questions": [
                        {"user_id": user_id, "workspace_id": 2, "chat_id": chat_id, "claims": claims}
                        for user_id, claims in ((1, {}), (3, {"role": "guest"}))
                        for chat_id in (10, 11)
                    ]
                }
            ],
        )

    async def test_an_answer_that_does_not_count_tells_of_nothing(self) -> None:
        webhook = await self.make(authorize_url=True, authorize_many_url=True)
        topics = [chat(2, 10), chat(2, 11)]
        for status, answer in (
            (200, {"allowed": [True]}),
            (200, {"allowed": [True, True, True]}),
            (200, {"allowed": [True, 1]}),
            (200, {"allowed": True}),
            (403, {"allowed": [False, False]}),
        ):
            self.backend.status, self.backend.answer = status, answer
            self.assertEqual(await webhook.review(ME, topics), {})
        one_by_one = await self.make(authorize_url=True)
        self.backend.status = 500
        self.assertEqual(await one_by_one.review(ME, topics), {})

    async def test_the_chats_of_the_token_bound_what_is_asked(self) -> None:
        webhook = await self.make(authorize_url=True)
        narrow = Identity(1, 2, chats=frozenset({10}))
        told = await webhook.review(narrow, [chat(2, 10), chat(2, 11)])
        self.assertEqual(told, {chat(2, 10): True, chat(2, 11): False})
        self.assertEqual(len(self.backend.asked), 1)

    async def test_without_an_url_for_it_there_is_nothing_to_ask_again(self) -> None:
        webhook = await self.make(authenticate_url=True)
        self.assertEqual(webhook.recheck, 0)
        self.assertEqual(await webhook.review(ME, [chat(2, 10)]), {chat(2, 10): True})
        self.assertEqual((await self.make(authorize_url=True)).recheck, 300)

    async def test_what_was_said_of_a_user_is_forgotten(self) -> None:
        webhook = await self.make(authorize_url=True, authenticate_url=True)
        self.backend.answer = {"authenticated": True, "user_id": 1, "workspace_id": 2, "allowed": True}

        async def ask() -> int:
            await webhook.authenticate("t", PEER)
            for who in (ME, Identity(3, 2), Identity(1, 3)):
                await webhook.authorize(who, chat(who.workspace_id, 10))
            return len(self.backend.asked)

        self.assertEqual((await ask(), await ask()), (4, 4))
        webhook.forget(2, 1)
        self.assertEqual((await ask(), await ask()), (6, 6))

    async def test_an_answer_that_was_under_way_is_neither_given_nor_remembered(self) -> None:
        webhook = await self.make(authorize_url=True)
        self.backend.held = []
        asked = webhook.authorize(ME, chat(2, 10))
        while not self.backend.held:
            await deferLater(reactor, 0.01)
        webhook.forget(2, 1)
        self.backend.answer = {"allowed": False}
        again = webhook.authorize(ME, chat(2, 10))
        while len(self.backend.held) < 2:
            await deferLater(reactor, 0.01)
        older, newer = self.backend.held
        newer.callback(b"")
        self.assertFalse(await again)
        older.callback(b"")
        while len(self.backend.held) < 3:
            await deferLater(reactor, 0.01)
        self.backend.held[2].callback(b"")
        self.assertFalse(await asked)
        self.assertFalse(await webhook.authorize(ME, chat(2, 10)))
        self.assertEqual(len(self.backend.asked), 3)

    async def test_nobody_comes_in_by_what_was_said_before_he_was_forgotten(self) -> None:
        webhook = await self.make(authorize_url=True, authenticate_url=True)
        self.backend.answer = {"authenticated": True, "user_id": 1, "workspace_id": 2}
        for forgotten, asked in ((1, 2), (3, 1)):
            self.backend.asked, self.backend.held = [], []
            coming = webhook.authenticate(f"token {forgotten}", PEER)
            while not self.backend.held:
                await deferLater(reactor, 0.01)
            webhook.forget(2, forgotten)
            [first], self.backend.held = self.backend.held, None
            first.callback(b"")
            self.assertEqual((await coming).user_id, 1)
            # The remembered answers for another user stay valid.
            self.assertEqual(len(self.backend.asked), asked)

    async def test_stopping_ends_what_waits(self) -> None:
        webhook = await self.make(authorize_url=True, authorize_many_url=True)
        webhook.review(ME, [chat(2, 10)])
        await webhook.stop()
        self.assertEqual(self.backend.asked, [])


class Plain(SynchronousTestCase):
    """A backend that is asked over a network without TLS."""

    def cautions(self, **urls: str) -> list[str]:
        return WebhookAuthenticator.cautions(WebhookSettings(**urls))

    def test_is_warned_of_by_the_name_of_the_key(self) -> None:
        for host in ("10.0.0.7", "backend.internal", "[2001:db8::1]"):
            [caution] = self.cautions(authorize_url=f"http://{host}:9000/", authenticate_url="https://b/")
            self.assertIn("'auth.webhook.authorize_url' is http://", caution)
            self.assertNotIn("9000", caution)
        for url in (
            "http://127.0.0.1:9000/",
            "http://localhost/",
            "http://[::1]/",
            "https://backend.internal/",
        ):
            self.assertEqual(self.cautions(authorize_url=url), [])

    def test_the_log_says_so_at_start(self) -> None:
        settings = WebhookSettings(authenticate_url="http://backend.internal/")
        with capturedLogs() as events:
            webhook = WebhookAuthenticator(settings, make_context())
            self.successResultOf(webhook.start())
        [line] = [event for event in events if event["log_level"] is LogLevel.warn]
        self.assertIn("authenticate_url", formatEvent(line))
