"""The contract of every control (:class:`notify.interfaces.IControl`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface.verify import verifyObject

from notify.errors import Unavailable
from notify.interfaces import Gathered, IControl

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase as Suite
else:
    Suite = object

NODE = "node-1"


class Doer:
    """Carries out the commands of a node: it counts them, fails at ``fail``, and delays ``wait`` until :meth:`go_on`."""

    def __init__(self) -> None:
        self.done: list[tuple[str, object]] = []
        self._waiting: list[Deferred[bytes]] = []

    def __call__(self, command: str, argument: bytes) -> Deferred[bytes]:
        """See :class:`~notify.interfaces.IControl`."""
        self.done.append((command, msgspec.json.decode(argument)))
        if command == "fail":
            return fail(RuntimeError("this node fails"))
        if command == "wait":
            self._waiting.append(Deferred())
            return self._waiting[-1]
        return succeed(b'{"done":%d}' % len(self.done))

    def go_on(self) -> None:
        """Answer the delayed commands."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(b'"at last"')


class ControlContract(Suite):
    """Subclass this together with a ``TestCase``, and say how to create the control of a single node.

    ``keeps`` is false if the control cannot store records.
    """

    keeps = True

    async def make_control(self, node: str) -> IControl:
        """Return a new control, not started, of a node with this name. Clean up with ``addCleanup``."""
        raise NotImplementedError

    async def started(self) -> IControl:
        """A running control of the node :data:`NODE`. ``self.doer`` carries out its commands."""
        self.doer = Doer()
        control = await self.make_control(NODE)
        await control.start(self.doer)
        self.addCleanup(control.stop)
        return control

    async def keep(self, control: IControl, key: str, record: bytes, seconds: float = 60) -> bytes | None:
        """Store a record for ``seconds``. Returns the previous one."""
        before: list[bytes | None] = []

        def merge(there: bytes | None) -> bytes:
            before.append(there)
            return record

        await control.keep(key, merge, time.time() + seconds)
        return before[-1]

    async def ask(self, control: IControl, command: str, argument: object = None, node: str = "") -> Gathered:
        """Send a command with a value. Each implementation chooses its own ``detail``."""
        gathered = await control.ask(command, msgspec.json.encode(argument), node)
        return Gathered(gathered.answers, gathered.missing)

    async def test_provides_the_interface(self) -> None:
        self.assertTrue(verifyObject(IControl, await self.started()))

    async def test_this_node_does_what_it_asks_once_and_answers(self) -> None:
        control = await self.started()
        argument = {"user_id": 7, "text": "ü\u2028", "list": [1, None, 2.5]}
        self.assertEqual(await self.ask(control, "it", argument), Gathered([(NODE, b'{"done":1}')], []))
        self.assertEqual(await self.ask(control, "that"), Gathered([(NODE, b'{"done":2}')], []))
        self.assertEqual(self.doer.done, [("it", argument), ("that", None)])

    async def test_it_can_be_meant_by_its_name(self) -> None:
        control = await self.started()
        self.assertEqual(await self.ask(control, "it", 1, NODE), Gathered([(NODE, b'{"done":1}')], []))

    async def test_of_a_name_that_nobody_has_there_is_nobody_to_do_it(self) -> None:
        control = await self.started()
        self.assertEqual(await self.ask(control, "it", 1, "another"), Gathered([], []))
        self.assertEqual(self.doer.done, [])

    async def test_who_fails_is_among_those_who_did_not_answer(self) -> None:
        control = await self.started()
        self.assertEqual(await self.ask(control, "fail"), Gathered([], [NODE]))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(await self.ask(control, "it"), Gathered([(NODE, b'{"done":2}')], []))

    async def test_it_is_waited_for_and_others_can_ask_meanwhile(self) -> None:
        control = await self.started()
        waits = Deferred.fromCoroutine(self.ask(control, "wait"))
        self.assertEqual(await self.ask(control, "it"), Gathered([(NODE, b'{"done":2}')], []))
        self.assertFalse(waits.called)
        self.doer.go_on()
        self.assertEqual(await waits, Gathered([(NODE, b'"at last"')], []))

    async def test_who_is_not_interested_any_more_disturbs_nobody(self) -> None:
        control = await self.started()
        asked = control.ask("wait", b"null", "")
        asked.addErrback(lambda _: None)
        asked.cancel()
        self.doer.go_on()
        self.assertEqual(await self.ask(control, "it"), Gathered([(NODE, b'{"done":2}')], []))

    async def test_what_is_kept_is_heard_and_takes_the_place_of_what_was_there(self) -> None:
        control = await self.started()
        heard: list[tuple[str, bytes]] = []
        watching = control.watch(lambda *record: heard.append(record))
        if not self.keeps:
            await self.assertFailure(control.keep("a", lambda there: b"1", time.time() + 60), Unavailable)
            self.assertFalse(watching.called)
            return
        await watching
        self.assertEqual(heard, [])
        self.assertIsNone(await self.keep(control, "some.key-1", b"one"))
        self.assertIsNone(await self.keep(control, "some.key_2", b"\x00\xff"))
        self.assertEqual(await self.keep(control, "some.key-1", b"two"), b"one")
        self.assertEqual(dict(heard), {"some.key-1": b"two", "some.key_2": b"\x00\xff"})
        self.assertEqual([key for key, _ in heard], ["some.key-1", "some.key_2", "some.key-1"])

    async def test_nothing_is_kept_before_the_start_or_after_the_stop(self) -> None:
        control = await self.make_control(NODE)
        await self.assertFailure(control.keep("a", lambda there: b"1", time.time() + 60), Unavailable)
        await control.start(Doer())
        await control.stop()
        await self.assertFailure(control.keep("a", lambda there: b"1", time.time() + 60), Unavailable)

    async def test_nothing_is_done_before_the_start_or_after_the_stop(self) -> None:
        control = await self.make_control(NODE)
        self.assertEqual(await self.ask(control, "it"), Gathered([], [NODE]))
        doer = Doer()
        await control.start(doer)
        await control.stop()
        self.assertEqual(await self.ask(control, "it"), Gathered([], [NODE]))
        self.assertEqual(doer.done, [])
