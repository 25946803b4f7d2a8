"""Finds plugins by name and makes them, built-in and third-party alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from random import Random
from typing import Any

from msgspec import Struct
from twisted.plugin import IPlugin as ITwistedPlugin
from twisted.plugin import getPlugins
from zope.interface import Interface, Invalid, implementer
from zope.interface.verify import verifyObject

import notify.plugins
from notify.config import FOLLOW, PLUGIN_TABLES, Config, ConfigError, convert, having
from notify.interfaces import IAuthenticator, IBroker, IControl, IPlugin, IRegistry
from notify.observe.metrics import Metrics

INTERFACES: dict[str, type[Interface]] = {
    "auth": IAuthenticator,
    "broker": IBroker,
    "registry": IRegistry,
    "control": IControl,
}


@implementer(ITwistedPlugin, IPlugin)
class Plugin(Struct, frozen=True):
    """What a file in ``notify/plugins/`` offers. See :class:`~notify.interfaces.IPlugin`.

    It also provides ``IPlugin`` itself, because Twisted's plugin cache keeps only objects that provide its own
    interface.
    """

    kind: str
    name: str
    factory: str


class Context(Struct, frozen=True):
    """What every plugin is given besides its settings.

    - ``node`` is this process's name: unique among the nodes, and stable over restarts if the operator set it.
    - ``random`` is the source of all randomness.
    - ``reactor`` is the source of all durations, by a monotonic clock with an arbitrary zero.
    - ``now`` returns the time of day, in seconds since 1970, to compare with dates.
    - ``part`` distinguishes the processes of one server, for files that a plugin keeps; empty: there is only one.
    - ``connect`` replaces the connection of plugins on NATS (``notify.nats.connection.Connection``) where a cluster
      is simulated.
    """

    reactor: Any
    metrics: Metrics
    random: Random
    node: str
    config: Config
    now: Callable[[], float] = time.time
    connect: Callable[..., Any] | None = None
    part: str = ""


@cache
def _all_plugins() -> list[IPlugin]:
    """All plugins, searched for only once.

    A reload therefore finds the same plugins as the start, even if files were replaced or this user may not read
    them.
    """
    return list(getPlugins(IPlugin, notify.plugins))


def plugins(kind: str) -> dict[str, IPlugin]:
    """The plugins of a kind, by name. The first one found wins, and a built-in name cannot be taken."""
    found: dict[str, IPlugin] = {}
    for plugin in sorted(_all_plugins(), key=lambda p: not p.factory.startswith("notify.")):
        if plugin.kind == kind:
            found.setdefault(plugin.name, plugin)
    return found


def find(kind: str, config: Config, name: str = "") -> tuple[Any, Any]:
    """The class of a plugin, and its settings; no instance is made. Raises ``ConfigError``.

    ``name`` empty: the name in the configuration, which for the control may be left to the broker. A plugin that
    shares another kind's table finds it this way and need not import that kind.
    """
    known, table = plugins(kind), getattr(config, kind)
    chosen = table.plugin
    if kind == "control" and chosen == FOLLOW:
        chosen = getattr(find("broker", config)[0], "control", "memory")
    for named in (chosen, *table.tables):
        if named not in known:
            key = f"{kind}.{named if named in table.tables else 'plugin'}"
            raise ConfigError(
                f"{having(config.source, key)}: unknown plugin '{named}' in [{kind}]; known plugins are: {', '.join(sorted(known))}."
            )
    plugin = known[name or chosen]
    module, _, attribute = plugin.factory.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{having(config.source, f'{kind}.plugin')}: plugin '{plugin.name}' in [{kind}] cannot be loaded: {error}."
        ) from None
    raw = table.tables.get(plugin.name, {})
    return factory, convert(raw, factory.Settings, config.source, f"{kind}.{plugin.name}")


def check(config: Config) -> None:
    """Load every plugin that the configuration names and check its settings, without making any. Raises ``ConfigError``."""
    for kind in PLUGIN_TABLES:
        find(kind, config)


def cautions(config: Config) -> list[str]:
    """One sentence for each plugin setting that works but is dangerous. Raises ``ConfigError``."""
    found: list[str] = []
    for kind in PLUGIN_TABLES:
        factory, settings = find(kind, config)
        found += getattr(factory, "cautions", lambda settings: [])(settings)
    return found


def make(kind: str, context: Context) -> Any:
    """The component that the configuration names for ``kind``, verified against its interface.

    Raises ``StartError`` if the name is unknown (the text lists the known ones), if the settings are wrong, or if the
    component does not provide its interface.
    """
    config = context.config
    factory, settings = find(kind, config)
    component = factory(settings, context)
    try:
        verifyObject(INTERFACES[kind], component)
    except Invalid as error:
        name = getattr(config, kind).plugin
        raise ConfigError(
            f"plugin '{name}' in [{kind}] is not what it should be: {' '.join(str(error).split())}."
        ) from None
    return component
