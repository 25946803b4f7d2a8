"""twistd's daemon: the command that waits at the terminal for its start, the user it becomes, and its pid file.

twistd's own daemonization reports success before the reactor runs, quotes only a hundred bytes of a failure, and
waits for ever if the process ends without a word. Here the command waits for the server's first report: that it runs,
or why not.
"""

from __future__ import annotations

import atexit
import os
import pwd
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from notify.errors import StartError


def _say(sentence: str) -> None:
    # Not to sys.stderr, which twistd sends to the log.
    print(f"notify: {sentence}", file=sys.__stderr__, flush=True)


class Foreground:
    """Reports to whoever started the server."""

    #: whether a command waits for the first report
    waits = False

    def up(self, sentence: str = "") -> None:
        """The server runs. ``sentence``: something worth knowing, or empty."""

    def failed(self, sentence: str) -> None:
        """The server does not run; the sentence says why."""
        _say(sentence)


class Waiting(Foreground):
    """A command that ends when it gets the first report through a pipe: a byte, ``0`` for success, and a sentence.

    A failure is reported when the process ends, so that nothing of it is left by then.
    """

    waits = True

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._fault = ""
        atexit.register(self._last_word)

    def up(self, sentence: str = "") -> None:
        """See :class:`Foreground`."""
        if self.waits:
            self.waits = False
            self._tell(f"0{sentence}")

    def failed(self, sentence: str) -> None:
        """See :class:`Foreground`."""
        if self.waits:
            self.waits = False
            self._fault = f"1{sentence}"

    def _last_word(self) -> None:
        if self._fault:
            self._tell(self._fault)

    def _tell(self, word: str) -> None:
        try:
            os.write(self._pipe, word.encode())
        except BrokenPipeError:
            pass  # the command was interrupted
        os.close(self._pipe)


def detach() -> Waiting:
    """Daemonize: returns in a new process without a terminal. The old one waits for the first report, and ends."""
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os.close(write)
        os._exit(_wait(read))
    os.close(read)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)
    return Waiting(write)


def _wait(read: int) -> int:
    """The exit status of the command in the foreground."""
    try:
        with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
            word = pipe.read()
    except KeyboardInterrupt:
        return 130
    failed = word[:1] != "0"
    if failed or word[1:]:
        _say(word[1:] or "the server ended before it was running; see the end of its log for the reason.")
    return int(failed)


class User(Struct, frozen=True):
    """The user that the process becomes once its ports are bound; ``None``: no change."""

    uid: int | None = None
    gid: int | None = None

    @property
    def name(self) -> str:
        """The user's name."""
        uid = os.geteuid() if self.uid is None else self.uid
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Act as this user for a while, if the process runs as root."""
        if os.geteuid() != 0 or (self.uid is None and self.gid is None):
            yield
            return
        own, groups = os.getegid(), os.getgroups()
        gid = own if self.gid is None else self.gid
        others = groups if self.uid is None else [gid]
        if self.uid is not None and self.name != str(self.uid):
            others = os.getgrouplist(self.name, gid)
        os.setgroups(others)
        os.setegid(gid)
        try:
            if self.uid is not None:
                os.seteuid(self.uid)
            yield
        finally:
            os.seteuid(0)
            os.setegid(own)
            os.setgroups(groups)


def user(options: Mapping[str, Any]) -> User:
    """The user that twistd's ``--uid`` and ``--gid`` name. Raises ``StartError`` if the process cannot become that user."""
    uid, gid = options.get("uid"), options.get("gid")
    if uid is None and gid is None:
        return User()
    if os.geteuid() != 0:
        raise StartError("--uid and --gid work only when root starts the server: leave them out.")
    if uid is not None and gid is None:
        try:
            gid = pwd.getpwuid(uid).pw_gid
        except KeyError:
            raise StartError(f"--uid: this machine has no user {uid}: give its group with --gid.") from None
    return User(uid, gid)


def write_pid_file(path: str, user: User) -> None:
    """Write the process's id to a file, and remove the file when the process ends. Raises ``StartError``.

    The file is written as the user, who can then remove it, and so that root never writes through a link of this
    user's. A file left behind would one day name another process, which a script might kill.
    """
    try:
        with user.acting():
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise StartError(
            f"--pidfile: user {user.name} cannot create {path}: {error.strerror}. Put it into a folder that this user owns, such as "
            "/run/notify/, or leave it out with --pidfile= (empty)."
        ) from None
    os.write(file, b"%d" % os.getpid())
    os.close(file)
    atexit.register(_remove, path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # something else removed it
