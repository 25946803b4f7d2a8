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

    Twisted's cache of plugins keeps only what provides its own interface, too.
    """

    kind: str
    name: str
    factory: str


class Context(Struct, frozen=True):
    """What every plugin is given besides its settings.

    ``node`` is this process's name, unique among the nodes and stable over restarts where the operator set it.
    ``random`` is the source of all randomness, ``reactor`` of all durations, by a clock that nobody sets and that begins
    anywhere; ``now`` gives the time of day, in seconds since 1970, for what is compared with a date.
    ``part`` tells the processes of one server apart, for what a plugin keeps on the disk; empty: there is one.
    ``connect`` stands in for the connection of plugins on NATS (``notify.nats.connection.Connection``) where a cluster is
    simulated.
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
    """Looked for once: a reload finds what the start found, also when files were replaced, or this user may not read them."""
    return list(getPlugins(IPlugin, notify.plugins))


def plugins(kind: str) -> dict[str, IPlugin]:
    """The plugins of a kind, by name. The first found wins, and a built-in name cannot be taken."""
    found: dict[str, IPlugin] = {}
    for plugin in sorted(_all_plugins(), key=lambda p: not p.factory.startswith("notify.")):
        if plugin.kind == kind:
            found.setdefault(plugin.name, plugin)
    return found


def find(kind: str, config: Config, name: str = "") -> tuple[Any, Any]:
    """The class of a plugin, and its settings; nothing is made. Raises ``ConfigError``.

    ``name`` empty: the one that the configuration names, which for the control may be left to the broker. A plugin that
    shares the table of another kind's finds it this way, and imports no other kind.
    """
    known, table = plugins(kind), getattr(config, kind)
    chosen = table.plugin
    if kind == "control" and chosen == FOLLOW:
        chosen = getattr(find("broker", config)[0], "control", "memory")
    for named in (chosen, *table.tables):
        if named not in known:
            key = f"{kind}.{named if named in table.tables else 'plugin'}"
            raise ConfigError(
                f"{having(config.source, key)}: unknown plugin '{named}' in [{kind}]; known are: {', '.join(sorted(known))}."
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
    """Load every plugin that the configuration names and read its settings, making none. Raises ``ConfigError``."""
    for kind in PLUGIN_TABLES:
        find(kind, config)


def cautions(config: Config) -> list[str]:
    """What the plugins' settings make dangerous, a sentence each, though they work. Raises ``ConfigError``."""
    found: list[str] = []
    for kind in PLUGIN_TABLES:
        factory, settings = find(kind, config)
        found += getattr(factory, "cautions", lambda settings: [])(settings)
    return found


def make(kind: str, context: Context) -> Any:
    """The component that the configuration names for ``kind``, verified against its interface.

    Raises ``StartError``: unknown name (the known ones are listed), wrong settings, or not what it claims to be.
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
