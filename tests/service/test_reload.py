"""Which keys change without a restart, and that a reload applies all changes or none."""

from __future__ import annotations

import re

from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from notify.config import Config, ConfigError, Drain, Duration, Limits, Listen, Log, PluginTable, Size
from notify.core.live import InForce, Live
from notify.errors import StartError
from notify.interfaces import ISuccessor
from notify.observe import logging
from notify.observe.metrics import Metrics
from notify.service.reload import FIXED, LIVE, Changes, Reloader, changes, merge
from tests.support.programs import ROOT
from tests.support.world import TableAuthenticator


class ChangesTests(TestCase):
    def test_the_configuration_that_is_shipped_marks_what_can_change_live(self) -> None:
        said, live = set[str](), set[str]()
        table, comment, all_of = "", "", dict[str, str]()
        for line in (ROOT / "etc" / "notify.toml").read_text().splitlines():
            if header := re.fullmatch(r"\[([\w.]+)\]", line):
                table, comment = header[1], ""
            elif key := re.match(r"#(\w+) = ", line):
                name = f"{table}.{key[1]}"
                if "All (live)" in comment:
                    all_of[f"{table}."] = comment
                above = next((words for start, words in all_of.items() if name.startswith(start)), comment)
                if "(live)" in above and f"(live) but {key[1]}." not in above:
                    said.add(name)
                if name not in FIXED and any(name == one or name.startswith(f"{one}.") for one in LIVE):
                    live.add(name)
            elif line.startswith("# "):
                comment += line
            if not line.startswith("# "):
                comment = ""
        self.assertEqual(said, live)

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


class SlowAuthenticator(TableAuthenticator):
    """Starts when the test lets it."""

    def __init__(self, case: ReloaderTests) -> None:
        super().__init__()
        self.case = case

    def start(self) -> Deferred[None]:
        self.case.preparing.append(Deferred())
        return self.case.preparing[-1]

    def stop(self) -> Deferred[None]:
        self.case.stopped.append(self)
        return succeed(None)


class ReloaderTests(TestCase):
    def setUp(self) -> None:
        self.next: Config | Exception = Config()
        self.preparing: list[Deferred[None]] = []
        self.stopped: list[SlowAuthenticator] = []
        self.done = 0
        self.applied: list[object] = []
        self.first = SlowAuthenticator(self)
        self.live = Live(InForce(self.first))
        self.reloads = Metrics().reloads
        self.reloader = Reloader(Config(), self.live, self.read, self.prepare, self.apply, self.finished,
                                 self.reloads, lambda: 1234.5)  # fmt: skip
        self.patch(logging, "configure", lambda log: None)

    def read(self) -> Config:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def prepare(self, config: Config) -> InForce:
        return InForce(SlowAuthenticator(self), log=config.log)

    @property
    def level(self) -> str:
        """The level in force."""
        return self.live.now.log.level

    def apply(self) -> None:
        self.applied.append(self.live.now.authenticator)

    def finished(self) -> None:
        self.done += 1

    def test_nothing_is_applied_before_all_is_prepared(self) -> None:
        self.next = Config(log=Log(level="debug"))
        self.reloader.reload()
        self.assertEqual((self.level, self.stopped, self.done), ("info", [], 0))
        self.preparing.pop().callback(None)
        self.assertEqual((self.level, self.stopped, self.done), ("debug", [self.first], 1))
        self.assertEqual(self.applied, [self.live.now.authenticator])
        self.assertEqual(self.reloader.config.log.level, "debug")

    def test_what_became_of_it_is_kept_and_counted(self) -> None:
        self.assertEqual(self.reloader.outcome, (None, ""))
        self.next = ConfigError("no such file")
        self.reloader.reload()
        self.assertEqual(self.reloader.outcome, (1234.5, "no such file"))
        self.assertEqual(self.reloader.fault, "The last reload changed nothing: no such file")
        self.next = Config()
        self.reloader.reload()
        self.preparing.pop().errback(RuntimeError("a fault"))
        self.flushLoggedErrors(RuntimeError)
        self.assertEqual(self.reloader.outcome, (1234.5, "it failed; see the log for the reason"))
        self.reloader.reload()
        self.preparing.pop().callback(None)
        self.assertEqual((self.reloader.outcome, self.reloader.fault), ((1234.5, ""), ""))
        counts = [self.reloads.labels(result)._value.get() for result in ("ok", "failed")]
        self.assertEqual(counts, [1, 2])

    def test_what_others_could_not_follow_is_in_force_here_and_told(self) -> None:
        waits: Deferred[None] = Deferred()
        self.reloader._applied = lambda: waits
        self.next = Config(log=Log(level="debug"))
        self.reloader.reload()
        self.preparing.pop().callback(None)
        self.assertEqual((self.level, self.done), ("debug", 0))
        waits.errback(StartError("n-w2 did not answer"))
        self.assertEqual((self.level, self.done), ("debug", 1))
        self.assertEqual(self.reloader.outcome, (1234.5, "n-w2 did not answer"))
        self.assertEqual(
            self.reloader.fault, "The last reload is not in force everywhere: n-w2 did not answer"
        )
        self.assertEqual(self.reloads.labels("failed")._value.get(), 1)

    def test_a_successor_takes_over_before_it_starts(self) -> None:
        took: list[object] = []

        @implementer(ISuccessor)
        class Successor(SlowAuthenticator):
            def take_over(self, before: object) -> None:
                took.append((before, len(self.case.preparing)))

        self.reloader._prepare = lambda config: InForce(Successor(self), log=config.log)
        self.reloader.reload()
        self.assertEqual(took, [(self.first, 0)])
        self.preparing.pop().callback(None)
        self.assertIsInstance(self.live.now.authenticator, Successor)

    def test_what_cannot_be_read_or_prepared_changes_nothing(self) -> None:
        self.next = ConfigError("no such file")
        self.reloader.reload()
        self.next = Config(log=Log(level="debug"))
        self.reloader.reload()
        self.preparing.pop().errback(ConfigError("the key is not a key"))
        self.assertEqual((self.level, self.stopped, self.done), ("info", [], 2))
        self.assertIs(self.live.now.authenticator, self.first)
        self.assertEqual(self.reloader.config, Config())

    def test_asked_for_during_a_reload_it_reads_once_more(self) -> None:
        self.reloader.reload()
        self.next = replace(Config(), log=Log(level="warn"))
        self.reloader.reload()
        self.reloader.reload()
        self.assertEqual(len(self.preparing), 1)
        self.preparing.pop().callback(None)
        self.preparing.pop().callback(None)
        self.assertEqual((len(self.stopped), self.done), (2, 1))
        self.assertEqual((self.level, self.reloader.config.log.level), ("warn", "warn"))

    def test_a_fault_of_ours_is_logged_and_does_not_block_the_next(self) -> None:
        self.next = ZeroDivisionError()
        self.reloader.reload()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.done, 1)
