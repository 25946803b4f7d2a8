"""The log: formats, levels per part, and floods."""

import io
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger, LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.config import ConfigError, Duration, Log, load
from notify.observe import logging
from notify.observe.logging import Output, writes_to_journal


class Narrators(SynchronousTestCase):
    """Debug lines are formatted only if the log takes them."""

    def lines(self, **settings: Any) -> list[str]:
        stream = io.StringIO()
        self.patch(logging, "_output", Output(stream, Log(**settings)))
        narrator = logging.Narrator("notify.clients")
        with capturedLogs() as events:
            narrator.debug("{who} is in", who="a")
            narrator.info("{who} is known", who="b")
        return [formatEvent(event) for event in events]

    def test_nothing_is_made_of_what_nobody_reads(self) -> None:
        self.assertEqual(self.lines(), ["b is known"])
        self.assertEqual(self.lines(level="debug", levels={"clients": "info"}), ["b is known"])

    def test_its_part_or_all_can_be_read(self) -> None:
        both = ["a is in", "b is known"]
        self.assertEqual(self.lines(levels={"clients": "debug"}), both)
        self.assertEqual(self.lines(level="debug"), both)

    def test_a_reload_changes_it(self) -> None:
        self.assertEqual(self.lines(), ["b is known"])
        logging.observer().configure(Log(level="debug"))
        self.assertTrue(logging.takes_debug("notify.clients"))
        logging.observer().configure(Log())
        self.assertFalse(logging.takes_debug("notify.clients"))


class LogCase(TestCase):
    def make(self, *, journal: bool = False, **settings: Any) -> None:
        self.now = 0.0
        self.stream = io.StringIO()
        self.output = Output(self.stream, Log(**settings), journal, lambda: self.now)

    def logger(self, namespace: str = "notify.core.session") -> Logger:
        return Logger(namespace=namespace, observer=self.output)

    def lines(self) -> list[str]:
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return text.splitlines()


class TwistedTests(LogCase):
    """Twisted's own log lines."""

    def test_its_rooms_are_one_part(self) -> None:
        self.make()
        self.logger("twisted.scripts._twistd_unix.UnixAppLogger").info("starting up")
        (line,) = self.lines()
        self.assertIn(" info  twisted: starting up", line)

    def test_ports_are_told_from_debug_on_or_where_asked_for(self) -> None:
        for settings, shown in (
            ({}, 0),
            ({"level": "debug"}, 1),
            ({"levels": {"log_legacy": "info"}}, 1),
            ({"level": "error"}, 0),
        ):
            self.make(**settings)  # type: ignore[arg-type]
            self.logger("log_legacy").info("(TCP Port 8081 Closed)")
            self.assertEqual(len(self.lines()), shown, settings)

    def test_factories_are_told_from_debug_on_or_where_asked_for(self) -> None:
        for settings, shown in (({}, 0), ({"level": "debug"}, 1), ({"levels": {"twisted": "info"}}, 1)):
            self.make(**settings)  # type: ignore[arg-type]
            self.logger("twisted.internet.protocol.Factory").info("Starting factory")
            self.assertEqual(len(self.lines()), shown, settings)

    def test_its_failures_are_told(self) -> None:
        self.make()
        self.logger("log_legacy").critical("Unhandled error")
        self.assertEqual(len(self.lines()), 1)


class FormTests(LogCase):
    def test_text_has_time_level_part_and_message(self) -> None:
        self.make()
        self.logger("notify.brokers.memory").warn("no room for {count}", count=3)
        (line,) = self.lines()
        self.assertRegex(
            line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d warn  brokers\.memory: no room for 3$"
        )

    def test_the_journal_gets_a_priority_on_every_line(self) -> None:
        self.make(journal=True, level="debug")
        log = self.logger("notify.x")
        for level in (LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error, LogLevel.critical):
            log.emit(level, "two\nlines")
        self.assertEqual(
            self.lines(), [line for n in (7, 6, 4, 3, 2) for line in (f"<{n}>x: two", f"<{n}>lines")]
        )

    def test_json_carries_the_structured_fields(self) -> None:
        self.make(format="json")
        self.logger().info("closed with {code}", code=4001, connection="n1-7", user=None, peer=object())
        (line,) = self.lines()
        entry = json.loads(line)
        self.assertRegex(entry.pop("time"), r"^\d{4}-.*\+00:00$")
        self.assertEqual(
            entry,
            {
                "level": "info",
                "part": "core.session",
                "message": "closed with 4001",
                "code": 4001,
                "connection": "n1-7",
                "user": None,
            },
        )

    def test_json_survives_text_that_is_not_unicode(self) -> None:
        self.make(format="json")
        self.logger().info("name {name}", name="a\ud800\nb")
        (line,) = self.lines()
        self.assertEqual(json.loads(line)["name"], "a?\nb")

    def test_a_failure_comes_with_its_traceback_but_not_the_values_of_variables(self) -> None:
        for settings in ({"format": "json"}, {"format": "text"}):
            self.make(**settings)
            try:
                token = "top" + "secret"
                raise KeyError(len(token))
            except KeyError:
                self.logger().failure("it broke", Failure(captureVars=True))
            text = "\n".join(self.lines())
            self.assertIn("it broke", text)
            self.assertIn("KeyError", text)
            self.assertNotIn("topsecret", text)

    def test_a_stream_that_is_closed_harms_nobody(self) -> None:
        self.make()
        self.stream.close()
        self.logger().info("anyone?")


class LevelTests(LogCase):
    def test_what_is_below_the_level_is_left_out(self) -> None:
        self.make(level="warn")
        self.logger().info("chatter")
        self.logger().error("trouble")
        self.assertEqual(len(self.lines()), 1)

    def test_a_part_and_what_is_under_it_has_its_own_level(self) -> None:
        self.make(levels={"auth": "debug", "twisted": "error"})
        self.logger("notify.auth.jwt").debug("seen")
        self.logger("notify.authority").debug("not of that part")
        self.logger("twisted.internet.tcp").warn("too low")
        self.logger("twisted.internet.tcp").error("seen")
        self.assertEqual([line.split(": ")[1] for line in self.lines()], ["seen", "seen"])

    def test_levels_change_while_it_runs(self) -> None:
        self.make()
        self.logger().debug("not yet")
        self.output.configure(Log(level="debug", format="json"))
        self.logger().debug("now")
        self.assertEqual([json.loads(line)["message"] for line in self.lines()], ["now"])

    def test_a_level_that_is_none_is_refused_by_name(self) -> None:
        error = self.assertRaises(ConfigError, load, None, {"NOTIFY_LOG__LEVELS__AUTH": "loud"})
        self.assertIn("log.levels", str(error))

    def test_levels_come_from_the_environment_too(self) -> None:
        config = load(None, {"NOTIFY_LOG__LEVELS__AUTH": "debug", "NOTIFY_LOG__WINDOW": "1m"})
        self.assertEqual(config.log.levels, {"auth": "debug"})
        self.assertEqual(config.log.window, Duration(60))


class FloodTests(LogCase):
    def flood(self, count: int) -> None:
        for number in range(count):
            self.logger().warn("bad frame from {peer}", peer=number)

    def test_one_place_writes_no_more_than_its_burst_in_a_window(self) -> None:
        self.make(burst=5)
        self.flood(1000)
        self.assertEqual(len(self.lines()), 5)

    def test_other_places_and_levels_are_not_held_back(self) -> None:
        self.make(burst=5)
        self.flood(1000)
        self.lines()
        self.logger().error("bad frame from {peer}", peer=1)
        self.logger("notify.transport.websocket").warn("bad frame from {peer}", peer=1)
        self.logger().warn("something else")
        self.assertEqual(len(self.lines()), 3)

    def test_afterwards_it_says_how_many_were_kept_back(self) -> None:
        self.make(burst=5, window=Duration(10), format="json")
        self.flood(1000)
        self.lines()
        self.now = 10.0
        self.flood(1)
        summary, fresh = map(json.loads, self.lines())
        self.assertEqual(summary["kept_back"], 995)
        self.assertEqual(summary["level"], "warn")
        self.assertEqual(summary["message"], "995 more like this were not logged: bad frame from {peer}")
        self.assertEqual(fresh["message"], "bad frame from 0")

    def test_a_traceback_that_the_interpreter_prints_always_passes(self) -> None:
        self.make(burst=1)
        for _ in range(10):
            self.logger("stderr").error("{log_io}", log_io="  File ...")
        self.assertEqual(len(self.lines()), 10)

    def test_what_is_critical_always_passes(self) -> None:
        self.make(burst=1)
        for _ in range(10):
            self.logger().critical("the end")
        self.assertEqual(len(self.lines()), 10)

    def test_the_audit_is_neither_bounded_nor_left_out_at_a_higher_level(self) -> None:
        self.make(burst=1, level="error")
        for number in range(50):
            self.logger("notify.audit").info("key {key}: drain {number}", key="ops", number=number)
        lines = self.lines()
        self.assertEqual(len(lines), 50)
        self.assertIn(" info  audit: key ops: drain 49", lines[-1])
        self.make(levels={"audit": "warn"})
        self.logger("notify.audit").info("asked not to")
        self.assertEqual(self.lines(), [])

    def test_a_burst_of_zero_is_no_bound(self) -> None:
        self.make(burst=0)
        self.flood(500)
        self.assertEqual(len(self.lines()), 500)

    def test_formats_made_up_from_outside_do_not_grow_it_without_bound(self) -> None:
        self.make(burst=1)
        for number in range(5000):
            self.logger().info(f"place {number}")
        self.assertLessEqual(len(self.output._sampler._counts), 1000)  # type: ignore[union-attr]

    def test_changed_settings_report_what_was_kept_back_before(self) -> None:
        self.make(burst=1)
        self.flood(3)
        self.output.configure(Log())
        self.assertIn("2 more like this", self.lines()[-1])


class RelayTests(LogCase):
    """A worker's log lines in the log of the first process."""

    def relayed(self, say: Callable[[Logger], object], **settings: Any) -> list[str]:
        """The lines in the first process's log; the worker has the same settings."""
        self.make(**settings)
        said: list[Any] = []
        relay = logging.Relay(lambda *line: said.append(line))
        relay.configure(Log(**settings))
        say(Logger(namespace="notify.core.session", observer=relay))
        self.patch(logging, "Logger", lambda namespace: Logger(namespace=namespace, observer=self.output))
        for line in said:
            logging.relayed("n-w1", *line)
        return self.lines()

    def test_its_text_and_its_plain_fields_come_with_its_name(self) -> None:
        def say(logger: Logger) -> None:
            logger.info("{what} of {who!r}", what="a {brace}", who="x")

        (line,) = self.relayed(say)
        self.assertTrue(line.endswith("info  core.session: n-w1: a {brace} of 'x'"), line)
        (line,) = self.relayed(say, format="json")
        told = json.loads(line)
        self.assertEqual((told["worker"], told["part"], told["who"]), ("n-w1", "core.session", "x"))
        self.assertEqual(told["message"], "n-w1: a {brace} of 'x'")

    def test_fields_that_twisteds_older_log_gives_disturb_nothing(self) -> None:
        about = {
            "log_namespace": "a",
            "log_level": LogLevel.info,
            "log_format": "old",
            "format": "x",
            "level": 3,
        }
        (line,) = self.relayed(lambda logger: logger.observer(about))
        self.assertTrue(line.endswith("a: n-w1: old"), line)

    def test_a_failure_comes_with_its_traceback_and_level(self) -> None:
        def say(logger: Logger) -> None:
            try:
                raise RuntimeError("broken")
            except RuntimeError:
                logger.failure("it failed")

        lines = self.relayed(say)
        self.assertIn("critical core.session: n-w1: it failed", lines[0])
        self.assertIn("RuntimeError: broken", lines[-1])

    def test_the_worker_lets_through_what_the_settings_do_and_the_first_process_samples_nothing_again(
        self,
    ) -> None:
        def say(logger: Logger) -> None:
            for number in range(30):
                logger.info("{number}", number=number)
                logger.debug("{number}", number=number)

        lines = self.relayed(say, burst=5)
        self.assertEqual([line.rpartition(" ")[2] for line in lines], ["0", "1", "2", "3", "4"])


class JournalStreamTests(TestCase):
    def test_the_stream_that_journal_stream_names_is_the_journal(self) -> None:
        with tempfile.TemporaryFile("w") as stream, tempfile.TemporaryFile("w") as other:
            about = os.fstat(stream.fileno())
            environ = {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"}
            self.assertTrue(writes_to_journal(environ, stream))
            self.assertFalse(writes_to_journal(environ, other))
            self.assertFalse(writes_to_journal({}, stream))

    def test_a_stream_without_a_file_is_not(self) -> None:
        with tempfile.TemporaryFile("w") as stream:
            stream.close()
            self.assertFalse(writes_to_journal({"JOURNAL_STREAM": "1:2"}, stream))
