"""Reload: which changes of the configuration apply to a running server, and which need a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct
from prometheus_client import Counter
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.config import Config, PluginTable
from notify.core.live import InForce, Live
from notify.errors import StartError
from notify.interfaces import ISuccessor
from notify.observe import logging

log = Logger()

#: tables and keys that are applied live: those that ``InForce`` is made of; ``auth`` is made again as a whole
LIVE = frozenset(
    ("auth", "api", "drain", "limits", "log", "listen.allowed_origins", "listen.trusted_proxies"),
)
#: keys below them that are not, because parts of the server were built with their values
FIXED = frozenset(("limits.max_frame",))


class Changes(Struct, frozen=True):
    """The dotted keys that differ: those that can be applied now, and those that need a restart."""

    live: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


def changes(old: Config, new: Config) -> Changes:
    """The differences between two configurations, by key and never by value, since values may be secrets."""
    live: list[str] = []
    restart: list[str] = []
    for key in _differences(old, new, ""):
        parts = key.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        (live if above & LIVE and not above & FIXED else restart).append(key)
    return Changes(tuple(live), tuple(restart))


def merge(old: Config, new: Config) -> Config:
    """``new``, except that keys which cannot change live are as in ``old``: what is in force afterwards."""
    return msgspec.structs.replace(
        old,
        auth=new.auth,
        api=new.api,
        drain=new.drain,
        log=new.log,
        limits=msgspec.structs.replace(new.limits, max_frame=old.limits.max_frame),
        listen=msgspec.structs.replace(
            old.listen,
            allowed_origins=new.listen.allowed_origins,
            trusted_proxies=new.listen.trusted_proxies,
        ),
    )


def _differences(old: Struct, new: Struct, prefix: str) -> Iterator[str]:
    for field in msgspec.structs.fields(old):
        name, before, after = field.encode_name, getattr(old, field.name), getattr(new, field.name)
        if before == after or (not prefix and name == "source"):
            continue
        if isinstance(before, PluginTable):
            yield from _table_differences(before, after, name)
        elif isinstance(before, Struct):
            yield from _differences(before, after, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _table_differences(old: PluginTable, new: PluginTable, name: str) -> Iterator[str]:
    if old.plugin != new.plugin:
        yield f"{name}.plugin"
    for table in sorted({*old.tables, *new.tables}):
        before, after = old.tables.get(table, {}), new.tables.get(table, {})
        yield from (
            f"{name}.{table}.{key}" for key in sorted({*before, *after}) if before.get(key) != after.get(key)
        )


class Reloader:
    """Reads the configuration again and puts it in force: all live keys or, if any part is wrong, nothing.

    ``read`` returns the new configuration. ``prepare`` makes from it what is put in force, with an authenticator that
    is not started yet. Both raise ``StartError``. ``applied`` is called once it is in force, its result is waited
    for, and it may report that something else could not follow. ``done`` is called after each reload. ``reloads``
    counts them by result.
    """

    def __init__(
        self,
        config: Config,
        live: Live,
        read: Callable[[], Config],
        prepare: Callable[[Config], InForce],
        applied: Callable[[], object],
        done: Callable[[], object],
        reloads: Counter,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self._live = live
        self._read = read
        self._prepare = prepare
        self._applied = applied
        self._done = done
        self._reloads = reloads
        self._now = now
        #: the Unix time of the last reload, None before the first; and why it failed, or nothing
        self.outcome: tuple[float | None, str] = (None, "")
        #: if the last reload failed: a sentence that says why
        self.fault = ""
        self._running = self._again = False

    def reload(self) -> None:
        """Reload. If a reload is in progress, reload once more after it."""
        if self._running:
            self._again = True
            return
        self._running = True
        Deferred.fromCoroutine(self._reload()).addErrback(self._failed).addBoth(self._finished)

    async def _reload(self) -> None:
        try:
            new = self._read()
            found = changes(self.config, new)
            target = merge(self.config, new)
            wanted = self._prepare(target)
            successor: ISuccessor | None = ISuccessor(wanted.authenticator, None)
            if successor is not None:
                successor.take_over(self._live.now.authenticator)
            await wanted.authenticator.start()
        except StartError as error:
            self._over(str(error))
            log.error("not reloaded, the old configuration stays in force: {reason}", reason=str(error))
            return
        before, self._live.now = self._live.now, wanted
        self.config = target
        logging.configure(wanted.log)
        before.authenticator.stop()
        try:
            await maybeDeferred(self._applied)
        except StartError as error:
            self._over(str(error), "The last reload is not in force everywhere")
            log.error("reloaded, but not everywhere: {reason}", reason=str(error))
            return
        self._over()
        log.info("reloaded; changed: {keys}", keys=", ".join(found.live) or "no key; secrets were read again")
        if found.restart:
            log.warn("changed, but only a restart applies it: {keys}", keys=", ".join(found.restart))

    def _failed(self, failure: Failure) -> None:
        self._over("it failed; see the log for the reason")
        log.failure("not reloaded", failure)

    def _over(self, failed: str = "", what: str = "The last reload changed nothing") -> None:
        self.outcome = self._now(), failed
        self.fault = f"{what}: {failed}" if failed else ""
        self._reloads.labels("failed" if failed else "ok").inc()

    def _finished(self, _: object) -> None:
        self._running = False
        if self._again:
            self._again = False
            self.reload()
        else:
            self._done()
