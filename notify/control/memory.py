"""The control of a single process: it carries out every command itself, and stores records itself.

A node with a state directory stores them in a file there, ``kept.json``, which outlives the process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.components import Context
from notify.config import Settings
from notify.control.rounds import failed
from notify.errors import StartError, Unavailable
from notify.interfaces import Gathered, IControl
from notify.state import directory, write


class MemorySettings(Settings, frozen=True):
    """``[control.memory]``."""

    #: where records are stored across restarts; empty: systemd's $STATE_DIRECTORY, or nowhere
    state_directory: str = ""


class Kept(Struct, frozen=True):
    """One record, and the Unix time in seconds until which it is kept."""

    record: bytes
    until: float


_read = msgspec.json.Decoder(dict[str, Kept]).decode


@implementer(IControl)
class MemoryControl:
    """See :class:`~notify.interfaces.IControl`."""

    Settings = MemorySettings
    #: with several processes the first one runs the control for all
    alone = True
    log = Logger()

    def __init__(self, settings: MemorySettings, context: Context) -> None:
        self._node = context.node
        self._reactor, self._now = context.reactor, context.now
        context.metrics.nodes.set(1)
        self._do: Callable[[str, bytes], Deferred[bytes]] | None = None
        self._heard: Callable[[str, bytes], None] = lambda key, record: None
        self._kept: dict[str, Kept] = {}
        folder = directory(settings.state_directory)
        self._path = folder / "kept.json" if folder else None
        self._writing = Lock()

    def start(self, do: Callable[[str, bytes], Deferred[bytes]]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`. An unreadable file or a missing directory fails the start."""
        if self._path is not None:
            try:
                self._kept = _read(self._path.read_bytes())
            except FileNotFoundError:
                # Either this is the very first start, or the records are on a disk that is not mounted.
                if not self._path.parent.is_dir():
                    advice = "whose tokens were revoked is kept there: make it, or mount its disk"
                    return fail(
                        StartError(
                            f"[control.memory] state_directory: {self._path.parent} is missing; {advice}."
                        )
                    )
            except (OSError, msgspec.DecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is damaged"
                advice = "it holds whose tokens were revoked: mend it, or remove it"
                return fail(StartError(f"{self._path} cannot be read: {reason}; {advice}."))
        self._do = do
        return succeed(None)

    def ask(self, command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        """See :class:`~notify.interfaces.IControl`."""
        if node not in ("", self._node):
            return succeed(Gathered([], []))
        if self._do is None:
            return succeed(Gathered([], [self._node]))
        gathered: Deferred[Gathered] = Deferred()
        done: Deferred[bytes] = maybeDeferred(self._do, command, argument)
        told = done.addCallbacks(self._done, self._failed, errbackArgs=(command,))
        # The caller may have cancelled, but the command is carried out all the same.
        told.addCallback(gathered.callback)
        return gathered

    def keep(self, key: str, merge: Callable[[bytes | None], bytes], until: float) -> Deferred[bool]:
        """See :class:`~notify.interfaces.IControl`."""
        if self._do is None:
            return fail(Unavailable("this node does not run"))
        now = self._now()
        kept_now = {key: one for key, one in self._kept.items() if one.until > now}
        before = kept_now.get(key)
        record = merge(before.record if before else None)
        # Always a new dict: a thread may be writing the previous one.
        self._kept = {**kept_now, key: Kept(record, until)}
        self._heard(key, record)
        if self._path is None:
            return succeed(False)
        # The caller may have cancelled, but the record is stored all the same.
        kept: Deferred[bool] = Deferred()
        self._reactor.callInThread(self._write, self._path, kept)
        return kept

    def watch(self, heard: Callable[[str, bytes], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._heard, now = heard, self._now()
        for key, one in self._kept.items():
            if one.until > now:
                heard(key, one.record)
        return succeed(None)

    def _write(self, path: Path, kept: Deferred[bool]) -> None:
        """Runs in a thread, one at a time. Writes the newest records by then."""
        outcome: bool | Failure = True
        with self._writing:
            try:
                write(path, msgspec.json.encode(self._kept))
            except OSError as error:
                outcome = Failure(Unavailable(f"{path} cannot be written: {error.strerror}"))  # type: ignore[no-untyped-call]
        # A failure makes it an errback; a cancelled Deferred ignores it.
        self._reactor.callFromThread(kept.callback, outcome)

    def _done(self, answer: bytes) -> Gathered:
        return Gathered([(self._node, answer)], [])

    def _failed(self, failure: Failure, command: str) -> Gathered:
        failed(self.log, failure, command)
        return Gathered([], [self._node])

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._do = None
        return succeed(None)
