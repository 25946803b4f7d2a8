"""Finds plugins by name and makes them, built-in and third-party alike."""

from __future__ import annotations

from importlib import import_module
from random import Random
from typing import Any

from msgspec import Struct
from twisted.plugin import IPlugin as ITwistedPlugin
from twisted.plugin import getPlugins
from zope.interface import Interface, Invalid, implementer
from zope.interface.verify import verifyObject

import notify.plugins
from notify.config import PLUGIN_TABLES, Config, ConfigError, PluginTable, convert
from notify.interfaces import IAuthenticator, IBroker, IPlugin, IRegistry
from notify.observe.metrics import Metrics

INTERFACES: dict[str, type[Interface]] = {"auth": IAuthenticator, "broker": IBroker, "registry": IRegistry}


@implementer(ITwistedPlugin, IPlugin)
class Plugin(Struct, frozen=True):
    """What a file in ``notify/plugins/`` offers. See :class:`~notify.interfaces.IPlugin`.

    Twisted's cache of plugins keeps only what provides its own interface, too.
    """

    kind: str
    name: str
    factory: str


class Context(Struct, frozen=True):
    """What every plugin is given besides its settings.

    ``node`` is this process's name, unique among the nodes and stable over restarts where the operator set it.
    ``random`` is the source of all randomness, ``reactor`` of all time.
    """

    reactor: Any
    metrics: Metrics
    random: Random
    node: str
    config: Config


def plugins(kind: str) -> dict[str, IPlugin]:
    """The plugins of a kind, by name. The first found wins, and a built-in name cannot be taken."""
    found: dict[str, IPlugin] = {}
    for plugin in sorted(
        getPlugins(IPlugin, notify.plugins), key=lambda p: not p.factory.startswith("notify.")
    ):
        if plugin.kind == kind:
            found.setdefault(plugin.name, plugin)
    return found


def _load(kind: str, table: PluginTable, source: str) -> tuple[Any, Any]:
    """The class that a table names, and its settings. Raises ``ConfigError``."""
    known = plugins(kind)
    for name in (table.plugin, *table.tables):
        if name not in known:
            raise ConfigError(
                f"{source}: unknown plugin '{name}' in [{kind}]; known are: {', '.join(sorted(known))}."
            )
    plugin = known[table.plugin]
    module, _, attribute = plugin.factory.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{source}: plugin '{plugin.name}' in [{kind}] cannot be loaded: {error}."
        ) from None
    settings = convert(table.tables.get(plugin.name, {}), factory.Settings, source, f"{kind}.{plugin.name}")
    return factory, settings


def find(kind: str, config: Config) -> tuple[Any, Any]:
    """The class that the configuration names for ``kind``, and its settings; nothing is made. Raises ``ConfigError``."""
    return _load(kind, getattr(config, kind), config.source)


def check(config: Config) -> None:
    """Load every plugin that the configuration names and read its settings, making none. Raises ``ConfigError``."""
    for kind in PLUGIN_TABLES:
        _load(kind, getattr(config, kind), config.source)


def make(kind: str, context: Context) -> Any:
    """The component that the configuration names for ``kind``, verified against its interface.

    Raises ``StartError``: unknown name (the known ones are listed), wrong settings, or not what it claims to be.
    """
    config = context.config
    factory, settings = _load(kind, getattr(config, kind), config.source)
    component = factory(settings, context)
    try:
        verifyObject(INTERFACES[kind], component)
    except Invalid as error:
        name = getattr(config, kind).plugin
        raise ConfigError(
            f"plugin '{name}' in [{kind}] is not what it should be: {' '.join(str(error).split())}."
        ) from None
    return component
