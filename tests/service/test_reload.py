"""Which keys change live, and that a reload applies all of them or none."""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from notify.config import Config, ConfigError, Drain, Duration, Limits, Listen, Log, PluginTable, Size
from notify.service.reload import Changes, Reloader, changes, merge


class ChangesTests(TestCase):
    def test_nothing_differs(self) -> None:
        self.assertEqual(changes(Config(), Config(source="another file")), Changes())

    def test_keys_are_named_by_table_and_never_by_value(self) -> None:
        new = Config(
            listen=Listen(public="tcp:1", allowed_origins=("https://a",)),
            limits=Limits(max_frame=Size(1), replay=5),
            auth=PluginTable("jwt", {"jwt": {"secret": "s3cret"}}),
            broker=PluginTable("jetstream", {"jetstream": {"servers": ["nats://user:s3cret@x"]}}),
        )
        found = changes(Config(), new)
        self.assertEqual(found.live, ("listen.allowed_origins", "auth.jwt.secret", "limits.replay"))
        self.assertEqual(
            found.restart,
            ("listen.public", "broker.plugin", "broker.jetstream.servers", "limits.max_frame"),
        )
        self.assertNotIn("s3cret", repr(found))

    def test_merged_only_what_can_change_live_has_changed(self) -> None:
        new = Config(
            listen=Listen(public="tcp:1", allowed_origins=("https://a",)),
            limits=Limits(max_frame=Size(1), replay=5),
            log=Log(level="debug"),
            drain=Drain(Duration(1), Duration(2)),
            broker=PluginTable("jetstream"),
        )
        merged = merge(Config(), new)
        self.assertEqual(changes(Config(), merged).restart, ())
        self.assertEqual(changes(Config(), merged).live, changes(Config(), new).live)
        self.assertEqual(changes(merged, new).live, ())


class ReloaderTests(TestCase):
    def setUp(self) -> None:
        self.next: Config | Exception = Config()
        self.applied: list[Config] = []
        self.preparing: list[Deferred[None]] = []
        self.done = 0
        self.reloader = Reloader(Config(), self.read, self.prepare, self.finished)

    def read(self) -> Config:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    async def prepare(self, config: Config) -> Callable[[], Any]:
        waiting: Deferred[None] = Deferred()
        self.preparing.append(waiting)
        await waiting
        return lambda: self.applied.append(config)

    def finished(self) -> None:
        self.done += 1

    def test_nothing_is_applied_before_all_is_prepared(self) -> None:
        self.next = Config(log=Log(level="debug"))
        self.reloader.reload()
        self.assertEqual((self.applied, self.done), ([], 0))
        self.preparing.pop().callback(None)
        self.assertEqual(([c.log.level for c in self.applied], self.done), (["debug"], 1))
        self.assertEqual(self.reloader.config.log.level, "debug")

    def test_what_cannot_be_read_or_prepared_changes_nothing(self) -> None:
        self.next = ConfigError("no such file")
        self.reloader.reload()
        self.next = Config(log=Log(level="debug"))
        self.reloader.reload()
        self.preparing.pop().errback(ConfigError("the key is not a key"))
        self.assertEqual((self.applied, self.done), ([], 2))
        self.assertEqual(self.reloader.config, Config())

    def test_asked_for_during_a_reload_it_reads_once_more(self) -> None:
        self.reloader.reload()
        self.next = replace(Config(), log=Log(level="warn"))
        self.reloader.reload()
        self.reloader.reload()
        self.assertEqual(len(self.preparing), 1)
        self.preparing.pop().callback(None)
        self.preparing.pop().callback(None)
        self.assertEqual((len(self.applied), self.done), (2, 1))
        self.assertEqual(self.reloader.config.log.level, "warn")

    def test_a_fault_of_ours_is_logged_and_does_not_block_the_next(self) -> None:
        self.next = ZeroDivisionError()
        self.reloader.reload()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.done, 1)
