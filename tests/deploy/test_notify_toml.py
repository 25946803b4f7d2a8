"""etc/notify.toml lists every key with the default that the code has, and nothing else."""

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import TestCase

from notify import components
from notify.config import PLUGIN_TABLES, Config, PluginTable, convert, load

FILE = Path(__file__).parent.parent.parent / "etc" / "notify.toml"


def uncommented() -> dict[str, Any]:
    """The file's values, with each ``#key = value`` uncommented; prose has a space after its #."""
    return tomllib.loads(re.sub(r"(?m)^#(?=[^ \n])", "", FILE.read_text()))


def tables() -> dict[str, type[msgspec.Struct]]:
    """Every table of the configuration that has keys of its own, by its dotted name."""
    found = {}
    for field in msgspec.structs.fields(Config):
        if field.name == "source":
            continue
        if field.type is not PluginTable:
            found[field.name] = field.type
            continue
        for name, plugin in components.plugins(field.name).items():
            module, _, attribute = plugin.factory.partition(":")
            if module.startswith("notify."):
                found[f"{field.name}.{name}"] = getattr(import_module(module), attribute).Settings
    return found


def at(data: dict[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        data = data.get(part, {})
    return data


class NotifyTomlTests(TestCase):
    def test_as_shipped_it_changes_nothing(self) -> None:
        config = load(str(FILE), {})
        for field in msgspec.structs.fields(Config):
            value = getattr(config, field.name)
            if isinstance(value, PluginTable):
                self.assertEqual(value.plugin, getattr(Config(), field.name).plugin)
                self.assertEqual(set(map(len, value.tables.values())) - {0}, set(), field.name)
            elif field.name != "source":
                self.assertEqual(value, getattr(Config(), field.name), field.name)

    def test_it_lists_every_key_and_no_other(self) -> None:
        data = uncommented()
        wrong = []
        for name, kind in tables().items():
            known = {field.encode_name for field in msgspec.structs.fields(kind)}
            listed = set(at(data, name))
            wrong += [f"etc/notify.toml lacks [{name}] {key}" for key in sorted(known - listed)]
            wrong += [f"etc/notify.toml has unknown [{name}] {key}" for key in sorted(listed - known)]
        self.assertEqual(wrong, [])

    def test_it_has_no_table_that_the_code_does_not_know(self) -> None:
        listed = {
            f"{name}.{key}" if name in PLUGIN_TABLES else name
            for name, table in uncommented().items()
            for key in (table if name in PLUGIN_TABLES else [""])
            if key != "plugin"
        }
        self.assertEqual(listed - set(tables()), set())

    def test_every_value_is_the_default_of_the_code(self) -> None:
        data = uncommented()
        wrong = []
        for name, kind in tables().items():
            listed = convert(at(data, name), kind, str(FILE), name)
            default = convert({}, kind, str(FILE), name)
            wrong += [
                f"[{name}] {key.name} = {getattr(listed, key.name)!r}, the default is {getattr(default, key.name)!r}"
                for key in msgspec.structs.fields(kind)
                if getattr(listed, key.name) != getattr(default, key.name)
            ]
        self.assertEqual(wrong, [])
