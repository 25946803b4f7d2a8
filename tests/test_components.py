"""Plugins are found by name, loaded when named, and checked when made; also from third-party distributions."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify import components
from notify.brokers.memory import MemoryBroker
from notify.components import Plugin
from notify.config import Config, ConfigError, PluginTable, load
from notify.testing import make_context
from tests.support.running import SECRET, Twistd

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "plugin"


class Finding(SynchronousTestCase):
    def test_the_built_in_ones_are_known(self) -> None:
        self.assertEqual(set(components.plugins("auth")), {"jwt", "webhook"})
        self.assertEqual(set(components.plugins("broker")), {"memory", "jetstream"})
        self.assertEqual(set(components.plugins("registry")), {"memory", "jetstream_kv"})
        self.assertEqual(set(components.plugins("control")), {"memory", "nats"})

    def test_the_control_follows_the_broker_unless_it_is_named(self) -> None:
        for broker, control, found in (
            ("memory", "", "MemoryControl"),
            ("jetstream", "", "NATSControl"),
            ("jetstream", "memory", "MemoryControl"),
        ):
            config = Config(broker=PluginTable(broker), control=PluginTable(control))
            self.assertEqual(components.find("control", config)[0].__name__, found)
        config = Config(control=PluginTable("kafka"))
        error = self.assertRaises(ConfigError, components.find, "control", config)
        self.assertIn("unknown plugin 'kafka' in [control]; known plugins are: memory, nats", str(error))

    def test_looking_at_them_imports_none(self) -> None:
        code = (
            "import sys; from notify.components import plugins; plugins('broker'); plugins('auth');"
            "print([m for m in sys.modules if m.startswith(('nats', 'jwt', 'notify.brokers.', 'notify.auth.'))])"
        )
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual(shown.stdout.strip(), "[]")


class Making(SynchronousTestCase):
    def setUp(self) -> None:
        self.found = components.plugins
        self.patch(components, "plugins", lambda kind: {**self.found(kind), **self.extra})
        self.extra: dict[str, Plugin] = {}

    def make(self, name: str, factory: str = "", **settings: object) -> object:
        if factory:
            self.extra[name] = Plugin("broker", name, factory)
        config = Config(broker=PluginTable(name, {name: settings} if settings else {}))
        return components.make("broker", make_context(config=config))

    def fault(self, name: str, factory: str = "") -> str:
        return str(self.assertRaises(ConfigError, self.make, name, factory))

    def test_gives_each_its_own_settings(self) -> None:
        broker = self.make("memory", history_size=3)
        assert isinstance(broker, MemoryBroker)
        self.assertEqual(broker._settings.history_size, 3)

    def test_an_unknown_name_lists_the_known_ones(self) -> None:
        self.assertIn(
            "unknown plugin 'kafka' in [broker]; known plugins are: jetstream, memory", self.fault("kafka")
        )

    def test_one_that_cannot_be_loaded_says_why(self) -> None:
        self.assertIn(
            "'bad' in [broker] cannot be loaded: No module named 'nowhere'", self.fault("bad", "nowhere:X")
        )
        self.assertIn("cannot be loaded", self.fault("worse", "notify.brokers.memory:Missing"))

    def test_a_broker_that_goes_with_an_unknown_control_is_told_so(self) -> None:
        MemoryBroker.control = "kafka"  # type: ignore[attr-defined]
        self.addCleanup(delattr, MemoryBroker, "control")
        error = self.assertRaises(ConfigError, components.find, "control", Config())
        self.assertIn("unknown plugin 'kafka' in [control]; known plugins are: memory, nats", str(error))

    def test_one_that_is_not_what_it_claims_says_what_is_missing(self) -> None:
        fault = self.fault("registry", "notify.registries.memory:MemoryRegistry")
        self.assertIn("plugin 'registry' in [broker] is not what it should be", fault)
        self.assertNotIn("\n", fault)


class ThirdParty(TestCase):
    """The example of docs/plugins.md, installed from a distribution of its own, and a server that uses it."""

    timeout = 120

    async def test_a_plugin_from_another_distribution_runs(self) -> None:
        target = Path(self.mktemp()).resolve()
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--target",
        ]
        await deferToThread(
            subprocess.run, [*install, str(target), str(EXAMPLE)], check=True, capture_output=True
        )
        path = Path(self.mktemp()).resolve()
        path.write_text(
            f'[listen]\npublic = "tcp:0:interface=127.0.0.1"\ninternal = "tcp:0:interface=127.0.0.1"\n'
            f'[broker]\nplugin = "quiet"\n[broker.quiet]\nfrom_hour = 22\n[auth.jwt]\nsecret = "{SECRET}"\n'
        )
        server = Twistd(
            "-n", "--pidfile=", "notify", "-c", str(path), cwd=path.parent, PYTHONPATH=str(target)
        )
        self.addCleanup(server.kill)
        await server.says("quiet from 22 to 7[\\s\\S]*ready: public")

    def test_its_contract_tests_pass(self) -> None:
        shown = subprocess.run(
            [sys.executable, "-m", "twisted.trial", "--reactor=asyncio", "test_quiet"],
            cwd=EXAMPLE,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(shown.returncode, 0, shown.stdout + shown.stderr)
        self.assertRegex(shown.stdout, r"PASSED \(successes=\d\d\)")

    def test_without_it_its_name_is_unknown(self) -> None:
        config = load(None, {"NOTIFY_BROKER__PLUGIN": "quiet"})
        self.assertRaisesRegex(ConfigError, "unknown plugin 'quiet'", components.check, config)

    def test_it_imports_what_the_page_says_stays_where_it_is(self) -> None:
        page = (EXAMPLE.parent.parent / "plugins.md").read_text()
        part = page.partition("## What to import\n")[2].partition("\n## ")[0]
        named = set(re.findall(r"`(notify\.[\w.]+)`", part))
        used = {
            name
            for path in EXAMPLE.rglob("*.py")
            for name in re.findall(r"^from (notify\.[\w.]+) import", path.read_text(), re.MULTILINE)
        }
        self.assertGreater(len(used), 5)
        self.assertEqual(
            {name for name in used if not any(f"{name}.".startswith(f"{n}.") for n in named)}, set()
        )
        for name in named:
            import_module(name)

    def test_the_page_quotes_it(self) -> None:
        page = (EXAMPLE.parent.parent / "plugins.md").read_text()
        code = "".join(path.read_text() for path in sorted(EXAMPLE.rglob("*.py")))
        lines = {line.strip() for line in code.splitlines()}
        blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
        self.assertEqual(len(blocks), 5)
        for line in "".join(blocks).splitlines():
            if line.strip() not in ("", "..."):
                self.assertIn(line.strip(), lines)
