"""A user's own deployment: faults are commands, and what was done is undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from notify.chaos import deployment
from notify.chaos.deployment import Deployment
from notify.chaos.plan import parse
from notify.chaos.target import TrialFailed
from notify.chaos.trial import Trial
from tests.chaos.running import tried
from tests.support.natsd import until
from tests.support.running import API_KEY, LocalServer, token


class Commands(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.target = Deployment(
            ["ws://127.0.0.1:1/ws"], ["http://127.0.0.1:1"], "key", ["a", "b"], 1, [1, 2]
        )
        self.marks = Path(self.mktemp())

    async def test_a_command_of_the_shell(self) -> None:
        await self.target.act(f"echo done > {self.marks}")
        self.assertEqual(self.marks.read_text(), "done\n")

    async def test_one_that_fails(self) -> None:
        with self.assertRaisesRegex(TrialFailed, r"ended with status 3: no such node$"):
            await self.target.act("echo first >&2; echo no such node >&2; exit 3")

    async def test_one_that_does_not_end(self) -> None:
        self.patch(deployment, "PATIENCE", 0.2)
        with self.assertRaisesRegex(TrialFailed, "was ended after 0.2 s"):
            await self.target.act("sleep 60 & wait")

    async def test_stopping_ends_what_runs_and_undoes_what_was_done(self) -> None:
        running = Deferred.fromCoroutine(self.target.act("sleep 60"))
        await until(lambda: self.target._running)
        await self.target.stop(["false", f"touch {self.marks}"])
        self.assertTrue(self.marks.exists())
        with self.assertRaisesRegex(TrialFailed, "status -9"):
            await running

    async def test_clients_take_addresses_and_tokens_in_turn(self) -> None:
        seats = self.target.seats(3)
        self.assertEqual([seat.token() for seat in seats], ["a", "b", "a"])
        self.assertEqual({(seat.workspace, seat.chats) for seat in seats}, {(1, (1, 2))})


class Whole(TestCase):
    """A server in this process, with the memory broker."""

    timeout = 60

    async def setUp(self) -> None:
        self.server = await LocalServer().start(self)

    def target(self, *tokens: str, key: str = API_KEY, **changed: Any) -> Deployment:
        given = {"urls": [self.server.ws], "apis": [self.server.api], **changed}
        return Deployment(given["urls"], given["apis"], key, tokens or (token(1), token(2)), 1, [1, "room"])

    async def test_holds(self) -> None:
        marks = Path(self.mktemp())
        report = await tried(
            self, self.target(), f"at=0.2s echo 1 >> {marks} / undo=0.4s echo 2 >> {marks}", seconds=1.5
        )
        self.assertEqual((report.verdict, report.doubts, report.wrongs), ("held", [], []))
        self.assertEqual(marks.read_text(), "1\n2\n")
        # Two chats and two users: a message for a user arrives on each of the user's three connections.
        self.assertEqual((report.topics, report.clients), (4, 6))
        self.assertGreater(report.counts.delivered, 3 * report.counts.acknowledged)

    async def test_a_fault_whose_command_fails_proves_nothing(self) -> None:
        report = await tried(self, self.target(), "at=0.1s exit 4", seconds=1.0)
        self.assertEqual(report.verdict, "unproven")
        self.assertIn("its command ended with status 4", report.doubts[0])

    async def test_an_address_that_is_down_is_passed_over(self) -> None:
        report = await tried(self, self.target(apis=["http://127.0.0.1:1", self.server.api]), seconds=1.0)
        self.assertEqual((report.verdict, report.counts.unknown), ("held", 0))

    async def test_messages_of_others_are_not_ours(self) -> None:
        target = self.target()
        act = target.act

        async def publish(command: str) -> None:
            await self.server.publish(1, "hello")
            await act(command)

        target.act = publish  # type: ignore[method-assign]
        report = await tried(self, target, "at=0.1s true", seconds=1.0)
        self.assertEqual((report.verdict, report.others), ("held", 6))

    async def test_a_wrong_key_and_a_wrong_token_are_said_at_once(self) -> None:
        with self.assertRaisesRegex(TrialFailed, "The HTTP API does not take messages: unauthorized"):
            await tried(self, self.target(key="wrong"), seconds=30.0)
        with self.assertRaisesRegex(TrialFailed, "A client was not let in: .*4500"):
            await tried(self, self.target("not a token"))

    async def test_what_is_not_undone_is_undone_when_it_is_stopped(self) -> None:
        marks = Path(self.mktemp())
        trial = Trial(
            reactor,
            self.target(),
            [parse(f"at=0s touch {marks} / undo=50s rm {marks}")],
            clients=1,
            rate=10,
            seconds=60,
            settle=1,
        )
        running = Deferred.fromCoroutine(trial.run())
        running.addErrback(lambda failure: None)
        await until(marks.exists)
        running.cancel()
        await trial.stop()
        self.assertFalse(marks.exists())
