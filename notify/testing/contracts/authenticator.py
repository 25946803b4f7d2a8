"""The contract of every authenticator (:class:`notify.interfaces.IAuthenticator`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zope.interface.verify import verifyObject

from notify.errors import Unauthorized
from notify.identity import Identity, Peer
from notify.ids import INT64_MAX, Id
from notify.interfaces import IAuthenticator, IReviewer, ISuccessor
from notify.topics import chat

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase as Suite
else:
    Suite = object

#: users and workspaces with every form of id
IDS: tuple[tuple[Id, Id], ...] = (
    (1, 2),
    (0, 0),
    (-5, 7),
    (INT64_MAX, -INT64_MAX - 1),
    ("01JD9Z5V8M2Q4W6X7Y8Z9A0B1C", "acme"),
    ("6f1c9a52-2c5e-4b43-9d7e-0f6c4a8d1b2e", 7),
    ("a", "_-" * 32),
)

PEER = Peer("192.0.2.7", "https://chat.example")

#: invalid tokens that any client may send
NONSENSE = (
    "",
    " ",
    ".",
    "..",
    "...",
    "null",
    "\x00",
    "a" * 65536,
    "." * 65536,
    "\ud800",
    "Zoë.🦊.\N{RIGHT-TO-LEFT OVERRIDE}",
    "eyJhbGciOiJub25lIn0.eyJpZCI6MSwid29ya3NwYWNlX2lkIjoxfQ.",
)


class AuthenticatorContract(Suite):
    """Subclass this together with a ``TestCase``, and say how to create an authenticator and its tokens."""

    async def make_authenticator(self) -> IAuthenticator:
        """Return a new authenticator that is not started. Clean up with ``addCleanup``."""
        raise NotImplementedError

    async def make_token(self, user_id: Id, workspace_id: Id) -> str:
        """Return a token that the authenticator accepts now for this user. Each call may return another one."""
        raise NotImplementedError

    async def started(self) -> IAuthenticator:
        """A running authenticator."""
        authenticator = await self.make_authenticator()
        await authenticator.start()
        self.addCleanup(authenticator.stop)
        return authenticator

    async def refused(self, authenticator: Any, token: str) -> str:
        """The reason for which it refuses the token."""
        with self.assertRaises(Unauthorized) as refusal:
            await authenticator.authenticate(token, PEER)
        return str(refusal.exception)

    async def test_provides_the_interface(self) -> None:
        authenticator: Any = await self.started()
        self.assertTrue(verifyObject(IAuthenticator, authenticator))
        for besides in (IReviewer, ISuccessor):
            if besides.providedBy(authenticator):
                self.assertTrue(verifyObject(besides, authenticator))

    async def test_says_whose_token_it_is(self) -> None:
        authenticator = await self.started()
        for user_id, workspace_id in IDS:
            identity = await authenticator.authenticate(await self.make_token(user_id, workspace_id), PEER)
            self.assertIsInstance(identity, Identity)
            self.assertEqual((identity.user_id, identity.workspace_id), (user_id, workspace_id))

    async def test_the_same_token_is_good_again(self) -> None:
        authenticator = await self.started()
        token = await self.make_token(1, 2)
        first = await authenticator.authenticate(token, PEER)
        self.assertEqual(await authenticator.authenticate(token, PEER), first)

    async def test_refuses_nonsense_and_does_not_quote_it(self) -> None:
        authenticator = await self.started()
        for token in NONSENSE:
            reason = await self.refused(authenticator, token)
            self.assertNotIn(token if len(token) > 3 else "\x00", reason)

    async def test_refuses_a_token_that_was_changed(self) -> None:
        authenticator = await self.started()
        token = await self.make_token(1, 2)
        for changed in (token[:-1], token[1:], token + "A", token + "\n", " " + token, token * 2):
            await self.refused(authenticator, changed)

    async def test_answers_for_a_chat_with_a_truth_value(self) -> None:
        authenticator = await self.started()
        identity = await authenticator.authenticate(await self.make_token(1, 2), PEER)
        self.assertIsInstance(await authenticator.authorize(identity, chat(2, 10)), bool)

    async def test_the_chats_of_an_identity_bound_what_it_may_receive(self) -> None:
        authenticator = await self.started()
        identity = Identity(1, 2, chats=frozenset({10}))
        self.assertFalse(await authenticator.authorize(identity, chat(2, 11)))

    async def test_a_reviewer_tells_of_the_chats_that_it_is_asked_about_and_takes_any_user_to_forget(
        self,
    ) -> None:
        authenticator: Any = await self.started()
        if not IReviewer.providedBy(authenticator):
            return
        self.assertGreaterEqual(min(authenticator.recheck, authenticator.grace), 0)
        topics = [chat(2, 10), chat(2, "a")]
        told = await authenticator.review(Identity(1, 2, chats=frozenset({10})), topics)
        self.assertLessEqual(set(told), set(topics))
        self.assertEqual({type(allowed) for allowed in told.values()} - {bool}, set())
        self.assertIs(told.get(chat(2, "a"), False), False)
        self.assertEqual(await authenticator.review(Identity(1, 2), []), {})
        for workspace_id, user_id in ((2, 1), ("acme", "nobody")):
            authenticator.forget(workspace_id, user_id)

    async def test_a_successor_takes_over_from_anyone(self) -> None:
        successor: Any = await self.make_authenticator()
        if ISuccessor.providedBy(successor):
            for before in (await self.started(), object()):
                successor.take_over(before)
        await successor.start()
        self.addCleanup(successor.stop)
        identity = await successor.authenticate(await self.make_token(1, 2), PEER)
        self.assertEqual(identity.user_id, 1)

    async def test_a_cancelled_question_leaves_the_next_one_alone(self) -> None:
        authenticator = await self.started()
        token = await self.make_token(1, 2)
        for question in (
            authenticator.authenticate(token, PEER),
            authenticator.authorize(Identity(1, 2), chat(2, 10)),
        ):
            question.addErrback(lambda failure: None)
            question.cancel()
        identity = await authenticator.authenticate(token, PEER)
        self.assertEqual(identity.user_id, 1)
