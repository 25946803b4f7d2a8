"""Configuration: which values are read, and the one-sentence error for each fault."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from notify.components import check
from notify.config import Config, ConfigError, Duration, Size, load

SECRET = "0123456789abcdef0123456789abcdef"


class ConfigTests(SynchronousTestCase):
    def load(self, text: str, **environ: str) -> Config:
        path = Path(self.mktemp())
        path.write_text(text)
        self.path = str(path)
        return load(self.path, environ)

    def fault(self, text: str, **environ: str) -> str:
        try:
            check(self.load(text, **environ))
        except ConfigError as error:
            self.assertNotIn("\n", str(error))
            return str(error).replace(self.path, "FILE")
        raise AssertionError("no error")

    def files(self, *texts: str) -> list[str]:
        paths = []
        for number, text in enumerate(texts):
            path = Path(f"{self.mktemp()}-{number}")
            path.write_text(text)
            paths.append(str(path))
        return paths

    def test_of_several_files_the_later_override_key_by_key_and_arrays_as_a_whole(self) -> None:
        paths = self.files(
            '[limits]\nreplay = 5\nmax_invalid = 3\n[listen]\nallowed_origins = ["https://a.example", "https://b.example"]\n'
            '[broker]\nplugin = "jetstream"\n[broker.jetstream]\nservers = ["nats://a:1", "nats://b:1"]\nreplicas = 3\n',
            '[limits]\nreplay = 6\n[listen]\nallowed_origins = ["https://c.example"]\n[broker.jetstream]\nservers = ["nats://c:1"]\n',
            "[limits]\nmax_invalid = 4\n",
        )
        config = load(paths, {"NOTIFY_LIMITS__MAX_INVALID": "9"})
        self.assertEqual((config.limits.replay, config.limits.max_invalid), (6, 9))
        self.assertEqual(config.listen.allowed_origins, ("https://c.example",))
        self.assertEqual(config.broker.plugin, "jetstream")
        self.assertEqual(config.broker.tables["jetstream"], {"servers": ["nats://c:1"], "replicas": 3})
        self.assertEqual(load(paths[::-1], {}).limits.replay, 5)

    def test_of_several_files_the_one_with_the_fault_is_named(self) -> None:
        good = f'[auth.jwt]\nsecret = "{SECRET}"\n[limits]\nreplay = 5\n[listen]\nallowed_origins = ["https://a.example"]\n'
        replaced = ("'limits.replay'", "'listen.allowed_origins", "'limits'")
        for bad, key in (
            ("[limits]\nreplays = 1\n", "unknown key 'limits.replays'"),
            ("[limits]\nreplay = -1\n", "'limits.replay' is wrong"),
            ("[listen]\nallowed_origins = [1]\n", "'listen.allowed_origins[0]' is wrong"),
            ("[auth.jwt]\nleeway = 'x'\n", "'auth.jwt.leeway' is wrong"),
            ("[auth.jwt]\nlee = 1\n", "unknown key 'auth.jwt.lee'"),
            ("[auth]\nlee = 1\n", "unknown key 'auth.lee'"),
            ("[auth]\nplugin = 'x'\n", "unknown plugin 'x' in [auth]"),
            ("[broker.x]\ny = 1\n", "unknown plugin 'x' in [broker]"),
            ("limits = 1\n", "'limits' is wrong"),
            ("source = 'x'\n", "unknown key 'source'"),
            ("[", "not valid TOML"),
        ):
            # A fault is no fault any more if a later, good file replaces it.
            for texts in ((good, bad), (bad, good))[: 1 if key.startswith(replaced) else 2]:
                paths = self.files(*texts)
                with self.assertRaises(ConfigError) as raised:
                    check(load(paths, {}))
                said = str(raised.exception)
                self.assertTrue(said.startswith(f"{paths[texts.index(bad)]}: {key}"), said)
        paths = self.files(good, good)
        with self.assertRaisesRegex(ConfigError, "NOTIFY_LIMITS__REPLAY"):
            load(paths, {"NOTIFY_LIMITS__REPLAY": "x"})
        with self.assertRaisesRegex(ConfigError, "/nowhere: cannot be read"):
            load([*paths, "/nowhere"], {})

    def test_without_anything_the_defaults_hold(self) -> None:
        self.assertEqual(load(None, {}).limits, Config().limits)

    def test_tables_durations_and_sizes_are_read(self) -> None:
        config = self.load(
            '[limits]\nauth_timeout = "250ms"\nmax_frame = "1MiB"\nreplay = 5\n[drain]\ndelay = 2\n'
        )
        self.assertEqual((config.limits.auth_timeout, config.limits.max_frame), (0.25, 2**20))
        self.assertEqual((config.limits.replay, config.drain.delay), (5, 2.0))
        self.assertEqual(config.source, self.path)

    def test_units(self) -> None:
        for text, seconds in (("5s", 5), ("1.5m", 90), ("2h", 7200), ("7d", 604800), (3, 3), (0.5, 0.5)):
            self.assertEqual(Duration.parse(text), seconds)
        for text, size in (("512B", 512), ("64KiB", 65536), ("2GiB", 2**31), ("1TiB", 2**40), (7, 7)):
            self.assertEqual(Size.parse(text), size)
        for bad in ("5", "5 s", "-5s", "s", True, -1, None, float("nan"), float("inf")):
            self.assertRaises(ValueError, Duration.parse, bad)
        for bad in ("5", "5kb", -1, 1.5, True, None):
            self.assertRaises(ValueError, Size.parse, bad)

    def test_each_fault_names_the_key_and_what_is_allowed(self) -> None:
        secret = f'[auth.jwt]\nsecret = "{SECRET}"\n'
        for text, pattern in (
            ("nonsense", r"^FILE: not valid TOML: "),
            ("source = 'x'", r"^FILE: unknown key 'source'; known keys are: .*limits"),
            ("[limit]", r"^FILE: unknown key 'limit'; known keys are: .*limits"),
            ("limits = 1", r"^FILE: 'limits' is wrong: expected 'object', got 'int'"),
            ("[limits]\nreplays = 1", r"^FILE: unknown key 'limits.replays'; known keys are: .*replay"),
            ("[limits]\nreplay = 'many'", r"^FILE: 'limits.replay' is wrong: expected 'int', got text"),
            ("[limits]\nreplay = -1", r"'limits.replay' is wrong: expected 'int' >= 0"),
            (
                "[limits]\nmax_connections = 'many'",
                r"'limits.max_connections' is wrong: it must be a number or \"auto\"\.$",
            ),
            ("[limits]\nmax_connections = -1", r"'limits.max_connections' is wrong: expected 'int' >= 0"),
            (
                "[limits]\nauth_timeout = '5 years'",
                r"'limits.auth_timeout' is wrong: write a duration like",
            ),
            (
                "[broker]\nplugin = 'kafka'",
                r"unknown plugin 'kafka' in \[broker\]; known plugins are: .*jetstream.*memory",
            ),
            ("[broker.kafka]", r"unknown plugin 'kafka' in \[broker\]"),
            (
                "[broker]\nsize = 1",
                r"unknown key 'broker.size'; \[broker\] takes 'plugin' and one table per plugin",
            ),
            (
                secret + "[broker.memory]\nsize = 1",
                r"unknown key 'broker.memory.size'; known keys are: history_size",
            ),
            (
                secret + "[broker.memory]\nhistory_age = true",
                r"'broker.memory.history_age' is wrong: write a duration",
            ),
            ("[api]\nkeys = 'abc'", r"'api.keys' is wrong"),
            ("[log]\nlevel = 'loud'", r"'log.level' is wrong: it must be one of debug, info, warn, error\.$"),
            (
                "[server]\nnode = 'a b'",
                r"'server.node' is wrong: it may have at most 64 characters, and only letters, digits, '_' and '-'",
            ),
        ):
            self.assertRegex(self.fault(text), pattern)

    def test_a_file_that_cannot_be_read_or_is_not_text(self) -> None:
        self.assertRaisesRegex(ConfigError, "cannot be read: No such file", load, "/nowhere", {})
        path = Path(self.mktemp())
        path.write_bytes(b"\xff\xfe")
        self.assertRaisesRegex(ConfigError, "not valid TOML", load, str(path), {})

    def test_the_environment_overrides_and_adds(self) -> None:
        config = self.load(
            "[limits]\nreplay = 5\nmax_subscriptions = 6\n",
            NOTIFY_LIMITS__REPLAY="7",
            NOTIFY_LIMITS__MAX_FRAME="1MiB",
            NOTIFY_LIMITS__SEND_QUEUE="4096",
            NOTIFY_LISTEN__ALLOWED_ORIGINS="https://a, https://b",
            NOTIFY_LISTEN__TRUSTED_PROXIES='["10.0.0.0/8"]',
            NOTIFY_LISTEN__DEMO="true",
            NOTIFY_BROKER__PLUGIN="jetstream",
            NOTIFY_BROKER__JETSTREAM__SERVERS="nats://one:4222,nats://two:4222",
            NOTIFY_SOCKET="/run/systemd/notify",
            OTHER__KEY="x",
        )
        self.assertEqual((config.limits.replay, config.limits.max_subscriptions), (7, 6))
        self.assertEqual((config.limits.max_frame, config.limits.send_queue), (2**20, 4096))
        self.assertEqual(config.listen.allowed_origins, ("https://a", "https://b"))
        self.assertEqual(config.listen.trusted_proxies, ("10.0.0.0/8",))
        self.assertTrue(config.listen.demo)
        self.assertEqual(config.broker.plugin, "jetstream")
        check(self.load("", NOTIFY_BROKER__MEMORY__HISTORY_SIZE="3", NOTIFY_AUTH__JWT__SECRET=SECRET))

    def test_a_number_or_a_word_is_read_from_both(self) -> None:
        for value, expected in (("auto", "auto"), ("0", 0), ("12", 12)):
            config = self.load("", NOTIFY_LIMITS__MAX_CONNECTIONS=value)
            self.assertEqual(config.limits.max_connections, expected)
        self.assertEqual(self.load("[limits]\nmax_connections = 12").limits.max_connections, 12)
        self.assertEqual(self.load('[limits]\nmax_connections = "auto"').limits.max_connections, "auto")

    def test_faults_of_the_environment_name_the_variable_and_never_its_value(self) -> None:
        for variable, value in (
            ("NOTIFY_LIMITS__REPLAY", "s3cret"),
            ("NOTIFY_LIMITS__REPLAY", "1.5"),
            ("NOTIFY_LIMITS__MAX_CONNECTIONS", "s3cret"),
            ("NOTIFY_LIMITS__MAX_CONNECTIONS", "-1"),
            ("NOTIFY_LISTEN__DEMO", "s3cret"),
            ("NOTIFY_API__KEYS", "[s3cret"),
            ("NOTIFY_LIMITS", "s3cret"),
            ("NOTIFY_AUTH__JWT", "s3cret"),
        ):
            try:
                check(self.load("", **{variable: value}))
            except ConfigError as error:
                self.assertNotIn("s3cret", str(error))
                if "__" in variable and variable != "NOTIFY_AUTH__JWT":
                    self.assertIn(variable, str(error))
