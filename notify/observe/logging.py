"""Where the process's log goes, and in which format.

The default is text: with priorities in front if the journal reads it, with the time if a person does. On request it
is JSON, one object a line, with every structured field. Levels can be set for each part. What one place in the code
may write is bounded, since much of what is logged is caused from outside.
"""

from __future__ import annotations

import os
import sys
import syslog
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import msgspec
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.config import Log

log = Logger()

#: the syslog(3) number of each level
_PRIORITY = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}
#: the namespace of what is always logged
AUDIT = "notify.audit"
#: the field that names the worker that logged the line
RELAYED = "worker"
#: call sites that are counted at once; a process has far fewer
_PLACES = 1000


class Sampler:
    """Passes at most ``burst`` events of one place within ``window`` seconds, and logs how many it dropped.

    A place is a namespace, a level and a format: what the code chose, never outside input. ``seconds`` returns the
    time. Critical events and audit events always pass.
    """

    def __init__(
        self, observer: Callable[[LogEvent], None], burst: int, window: float, seconds: Callable[[], float]
    ) -> None:
        self._observer = observer
        self._burst = burst
        self._window = window
        self._seconds = seconds
        self._ends = 0.0
        self._counts: dict[tuple[str, str, str], int] = {}

    def __call__(self, event: LogEvent) -> None:
        """Pass an event on, or drop it."""
        now = self._seconds()
        if now >= self._ends:
            self.flush()
            self._ends = now + self._window
        place = (
            str(event.get("log_namespace")),
            _level(event),
            str(event.get("log_format")),
        )
        if place not in self._counts and len(self._counts) >= _PLACES:
            self.flush()
        count = self._counts[place] = self._counts.get(place, 0) + 1
        if count <= self._burst or not self._burst or self._always(event):
            self._observer(event)

    @staticmethod
    def _always(event: LogEvent) -> bool:
        # The interpreter prints a traceback line by line, and the last line says the most. A worker's events were
        # already sampled in the worker.
        return (
            event.get("log_level") is LogLevel.critical
            or event.get("log_namespace") in ("stderr", AUDIT)
            or RELAYED in event
        )

    def flush(self) -> None:
        """Begin a new window, and log what was dropped in the previous one."""
        counts, self._counts = self._counts, {}
        for (namespace, level, format), count in counts.items():
            if self._burst and count > self._burst:
                self._observer(
                    {
                        "log_namespace": namespace,
                        "log_level": LogLevel.levelWithName(level),
                        "log_time": time.time(),
                        "log_format": "{kept_back} more like this were not logged: {like}",
                        "kept_back": count - self._burst,
                        "like": format,
                    }
                )


@implementer(ILogObserver)
class Output:
    """Writes events to a stream as the settings say. The settings can be changed at any time."""

    def __init__(
        self,
        stream: TextIO,
        settings: Log | None = None,
        journal: bool = False,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._text = journal_lines if journal else text_line
        self._seconds = seconds
        self._sampler: Sampler | None = None
        self.configure(settings or Log())

    def configure(self, settings: Log) -> None:
        """Log as ``settings`` say from now on."""
        if self._sampler is not None:
            self._sampler.flush()
        self._debug: dict[str, bool] = {}
        self._levels = levels = LogLevelFilterPredicate(LogLevel.levelWithName(settings.level))
        if settings.level == "info":
            # Twisted's legacy log: ports that were opened and closed.
            levels.setLogLevelForNamespace("log_legacy", LogLevel.warn)
            if "twisted" not in settings.levels:
                # A factory that starts and stops: twice for each connection to a backend.
                levels.setLogLevelForNamespace("twisted.internet.protocol", LogLevel.warn)
        levels.setLogLevelForNamespace(AUDIT, LogLevel.info)
        for part, name in settings.levels.items():
            level = LogLevel.levelWithName(name)
            for namespace in (f"notify.{part}", part):
                levels.setLogLevelForNamespace(namespace, level)
        self._form = json_line if settings.format == "json" else self._text
        self._sampler = Sampler(self._let_through, settings.burst, settings.window, self._seconds)
        self._observer = FilteringLogObserver(cast(ILogObserver, self._sampler), [levels])

    def __call__(self, event: LogEvent) -> None:
        """See :class:`twisted.logger.ILogObserver`."""
        self._observer(event)

    def takes_debug(self, namespace: str) -> bool:
        """Whether a debug event of this namespace is written."""
        takes = self._debug.get(namespace)
        if takes is None:
            least: object = self._levels.logLevelForNamespace(namespace)
            takes = self._debug[namespace] = least is LogLevel.debug
        return takes

    def _let_through(self, event: LogEvent) -> None:
        self._write(self._form(event), event)

    def _write(self, lines: str, event: LogEvent) -> None:
        try:
            self._stream.write(lines)
            self._stream.flush()
        except (OSError, ValueError):
            # Nobody reads the log any more; the server continues.
            pass


class File(Output):
    """Writes events to a file. If the file is renamed while it runs, :meth:`reopen` continues in a new one.

    The file is opened under ``acting()``: as the user who will reopen it later. Raises ``OSError``.
    """

    def __init__(
        self, path: str, acting: Callable[[], AbstractContextManager[None]] = nullcontext, **more: Any
    ) -> None:
        self._path = os.path.abspath(path)
        with acting():
            #: the descriptor of the open file, which never changes
            self.descriptor = self._open()
        # Bytes that are not UTF-8 must not end a line, let alone the log.
        super().__init__(os.fdopen(self.descriptor, "w", encoding="utf-8", errors="backslashreplace"), **more)

    def reopen(self) -> None:
        """Open the file again. Raises ``OSError``, and then continues in the old one."""
        new = self._open()
        self._stream.flush()
        # The descriptor keeps its number: the interpreter's last words go there as well.
        os.dup2(new, self.descriptor, inheritable=False)
        os.close(new)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY, 0o640)


class Syslog(Output):
    """Writes events to syslog(3), each with its priority."""

    def __init__(self, ident: str, **more: Any) -> None:
        syslog.openlog(ident, syslog.LOG_PID, syslog.LOG_DAEMON)
        super().__init__(sys.stdout, **more)
        self._text = plain_lines
        self.configure(Log())

    def _write(self, lines: str, event: LogEvent) -> None:
        for line in lines.splitlines():
            syslog.syslog(_PRIORITY[_level(event)], line.replace("\0", ""))


def _level(event: LogEvent) -> str:
    return str(getattr(event.get("log_level"), "name", "info"))


def _part(event: LogEvent) -> str:
    name = str(event.get("log_namespace") or "-")
    # The submodule of Twisted helps nobody, and "twisted" is what [log.levels] calls all of it.
    return "twisted" if name.startswith("twisted.") else name.removeprefix("notify.")


def _traceback(event: LogEvent) -> str:
    failure = event.get("log_failure")
    if not isinstance(failure, Failure):
        return ""
    # Never "verbose": that prints the values of variables, including tokens.
    return str(failure.getTraceback(elideFrameworkCode=True, detail="default")).rstrip()


def _message(event: LogEvent) -> str:
    return "\n".join(filter(None, (formatEvent(event), _traceback(event))))


def _plain(event: LogEvent) -> dict[str, Any]:
    """The fields with plain values."""
    return {
        key: value
        for key, value in event.items()
        if not key.startswith("log_") and isinstance(value, str | int | float | bool | None)
    }


def text_line(event: LogEvent) -> str:
    """An event for a person at a terminal or reading a file."""
    when = datetime.fromtimestamp(event.get("log_time", 0.0)).astimezone().isoformat(" ", "milliseconds")
    return f"{when} {_level(event):5} {_part(event)}: {_message(event)}\n"


def plain_lines(event: LogEvent) -> str:
    """An event for a reader that knows time and level by other means."""
    return f"{_part(event)}: {_message(event)}\n"


def journal_lines(event: LogEvent) -> str:
    """An event for the journal, which adds the time; each line carries its priority (sd-daemon(3))."""
    prefix = f"<{_PRIORITY[_level(event)]}>"
    return "".join(f"{prefix}{line}\n" for line in plain_lines(event).splitlines())


def json_line(event: LogEvent) -> str:
    """An event as a JSON object: time, level, part, message, and every field with a plain value."""
    fields = _plain(event)
    fields |= {
        "time": datetime.fromtimestamp(event.get("log_time", 0.0), UTC).isoformat(timespec="milliseconds"),
        "level": _level(event),
        "part": _part(event),
        "message": formatEvent(event),
    }
    if traceback := _traceback(event):
        fields["traceback"] = traceback
    # A lone surrogate is not UTF-8, and would make the line impossible to write.
    return msgspec.json.encode(_printable(fields)).decode() + "\n"


def _printable(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for key, value in fields.items()
    }


def writes_to_journal(environ: Mapping[str, str], stream: TextIO) -> bool:
    """Whether ``stream`` goes to the journal, which takes a leading ``<N>`` as the priority.

    ``$JOURNAL_STREAM`` names the journal's device and inode (systemd.exec(5)). A stream that was redirected to a file
    since then is another one.
    """
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


class Relay(Output):
    """Passes events that the settings allow to ``say``: namespace, level, text, and the plain fields as JSON."""

    def __init__(self, say: Callable[[str, str, str, bytes], object]) -> None:
        self._say = say
        super().__init__(sys.stderr)

    def _let_through(self, event: LogEvent) -> None:
        fields = msgspec.json.encode(_printable(_plain(event)))
        self._say(str(event.get("log_namespace")), _level(event), _message(event), fields)


def relayed(worker: str, namespace: str, level: str, text: str, fields: bytes) -> None:
    """Log what a worker has given to its :class:`Relay`."""
    plain = msgspec.json.decode(fields)
    for taken in ("level", "format"):
        plain.pop(taken, None)
    escaped = text.replace("{", "{{").replace("}", "}}")
    Logger(namespace).emit(
        LogLevel.levelWithName(level), f"{worker}: {escaped}", **{**plain, RELAYED: worker}
    )


def relay(say: Callable[[str, str, str, bytes], object]) -> Relay:
    """From now on, send a worker's log to the first process."""
    global _output
    _output = Relay(say)
    return _output


_output: Output | None = None


def observer() -> Output:
    """The log of this process, on its standard output. ``twistd --logger=notify.observe.logging.observer``."""
    global _output
    if _output is None:
        # twistd replaces sys.stdout with a file that logs.
        stream = sys.__stdout__ or sys.stdout
        _output = Output(stream, journal=writes_to_journal(os.environ, stream))
    return _output


def use(output: Output) -> None:
    """Send this process's log there. Must be called before twistd begins to write it."""
    global _output
    _output = output


def descriptor() -> int | None:
    """The descriptor for the process's last words: the log file's, or the terminal's; None: there is none."""
    output = observer()
    if isinstance(output, File):
        return output.descriptor
    return sys.__stderr__.fileno() if sys.__stderr__ is not None else None


def reopen() -> None:
    """If the log is a file that was renamed (logrotate), continue in a new one."""
    output = observer()
    if not isinstance(output, File):
        log.warn("no log file to open again: the log goes elsewhere")
        return
    try:
        output.reopen()
    except OSError as error:
        log.error(
            "the log file cannot be opened again, it goes on in the old one: {reason}", reason=str(error)
        )
    else:
        log.info("the log goes on here")


def configure(settings: Log) -> None:
    """Apply ``settings`` to this process's log, before or after twistd has begun to write it."""
    observer().configure(settings)


def takes_debug(namespace: str) -> bool:
    """Whether a debug event of this namespace would be written, for callers whose events are expensive to make."""
    return (_output or observer()).takes_debug(namespace)


class Narrator(Logger):
    """A logger whose debug lines cost next to nothing while they are off, for what happens with each client."""

    def debug(self, format: str | None = None, **fields: object) -> None:
        """Log, if the settings in force allow it."""
        if takes_debug(self.namespace):
            self.emit(LogLevel.debug, format, **fields)


#: what happens to each client: ``[log.levels] clients = "debug"``
clients = Narrator("notify.clients")
