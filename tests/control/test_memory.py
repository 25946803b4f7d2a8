"""The control of a single process."""

import time
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from notify.control.memory import MemoryControl, MemorySettings
from notify.errors import StartError, Unavailable
from notify.interfaces import IControl
from notify.testing import make_context
from notify.testing.contracts import ControlContract


class Contract(ControlContract, TestCase):
    async def make_control(self, node: str) -> IControl:
        return MemoryControl(MemorySettings(), make_context(node=node))


class ContractWithFile(ControlContract, TestCase):
    async def make_control(self, node: str) -> IControl:
        folder = Path(self.mktemp())
        folder.mkdir()
        return MemoryControl(MemorySettings(str(folder)), make_context(reactor, node=node))


class StateDirectory(TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.until = time.time() + 60

    async def started(self, folder: str | None = None) -> MemoryControl:
        settings = MemorySettings(str(self.folder) if folder is None else folder)
        control = MemoryControl(settings, make_context(reactor))
        await control.start(lambda command, argument: succeed(b""))
        return control

    async def heard(self, control: MemoryControl) -> list[tuple[str, bytes]]:
        heard: list[tuple[str, bytes]] = []
        await control.watch(lambda *record: heard.append(record))
        return heard

    async def test_what_was_kept_is_there_after_a_restart(self) -> None:
        control = await self.started()
        waits = [control.keep(key, lambda there: b"\xff", self.until) for key in ("a", "b", "c")]
        for kept in waits:
            self.assertTrue(await kept)
        self.assertEqual(
            await self.heard(await self.started()), [("a", b"\xff"), ("b", b"\xff"), ("c", b"\xff")]
        )

    async def test_systemds_directory_does_where_none_is_configured(self) -> None:
        self.patch(__import__("os"), "environ", {"STATE_DIRECTORY": str(self.folder)})
        self.assertTrue(await (await self.started("")).keep("a", lambda there: b"1", self.until))
        self.assertEqual(await self.heard(await self.started("")), [("a", b"1")])

    async def test_without_one_it_says_that_nothing_outlives_the_process(self) -> None:
        self.patch(__import__("os"), "environ", {})
        control = await self.started("")
        self.assertFalse(await control.keep("a", lambda there: b"1", self.until))
        self.assertEqual(await self.heard(control), [("a", b"1")])

    async def test_a_disk_that_does_not_take_it_is_told_and_it_holds_here_all_the_same(self) -> None:
        control = await self.started()
        self.folder.rmdir()
        heard = await self.heard(control)
        kept = control.keep("a", lambda there: b"1", self.until)
        error = await self.assertFailure(kept, Unavailable)
        self.assertIn("cannot be written: No such file", str(error))
        self.assertEqual(heard, [("a", b"1")])

    async def test_a_file_that_is_damaged_ends_the_start(self) -> None:
        (self.folder / "kept.json").write_bytes(b'{"a":')
        error = await self.assertFailure(self.started_or_not(), StartError)
        self.assertIn("kept.json cannot be read: it is damaged", str(error))

    async def test_a_directory_that_is_away_ends_the_start(self) -> None:
        # It may hold revocations of tokens: a start without it would let revoked users in.
        self.assertTrue(await (await self.started()).keep("a", lambda there: b"1", self.until))
        self.folder.rename(self.folder.with_suffix(".elsewhere"))
        error = await self.assertFailure(self.started_or_not(), StartError)
        self.assertIn(f"state_directory: {self.folder} is missing", str(error))
        self.folder.with_suffix(".elsewhere").rename(self.folder)
        self.assertEqual(await self.heard(await self.started()), [("a", b"1")])

    def started_or_not(self) -> object:
        from twisted.internet.defer import Deferred

        return Deferred.fromCoroutine(self.started())

    async def test_who_asked_and_left_disturbs_nobody(self) -> None:
        control = await self.started()
        kept = control.keep("a", lambda there: b"1", self.until)
        kept.addErrback(lambda _: None)
        kept.cancel()
        self.assertTrue(await control.keep("b", lambda there: b"2", self.until))
        self.assertEqual(await self.heard(await self.started()), [("a", b"1"), ("b", b"2")])

    async def test_what_has_ended_is_not_kept_any_more(self) -> None:
        clock = Clock()
        self.patch(__import__("os"), "environ", {})
        control = MemoryControl(MemorySettings(), make_context(clock))
        await control.start(lambda command, argument: succeed(b""))
        now = control._now()
        before: list[object] = []
        await control.keep("a", lambda there: b"1", now + 10)
        await control.keep("b", lambda there: b"1", now + 99)
        clock.advance(10)
        self.assertEqual(await self.heard(control), [("b", b"1")])
        await control.keep("a", lambda there: before.append(there) or b"2", now + 50)
        self.assertEqual(before, [None])
