"""``notify publish``: publish one message from options, or any number as JSON lines, through the HTTP API."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import stat
import time
from http import HTTPStatus
from itertools import islice
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any, BinaryIO

from msgspec import Struct

from notify.cli.progress import Progress
from notify.cli.terminal import (
    API_URL,
    CommandError,
    Terminal,
    duration,
    identifier,
    number,
    secret,
    secret_options,
    url,
    url_option,
)

if TYPE_CHECKING:
    from notify.client import Position, Publisher, PublishFailed

SUMMARY = "publish messages through the HTTP API"
DESCRIPTION = """\
Publish one chat message or event (--chat), one notification (--user), or JSON lines from standard input, each of the
form {"subject": "...", "payload": {...}} that docs/protocol.md describes. Lines are sent in order and in batches, each
with an idempotency key, and retried if the server is unavailable for a moment. Each accepted message prints one JSON
line with its position. A refused line is reported with its number, and the others continue; the exit status is 0 only
if every message was accepted. With --atomic, up to 1000 lines are published as one: all of them, or none."""
EXAMPLES = """\
  export NOTIFY_API_KEY=...
  notify publish --chat 1 --content 'Hello'
  notify publish --workspace 7 --chat 1 --sender 5 --content 'Hello'
  notify publish --chat 1 --event edit --refers-to 17 --data '{"content": "Hello!"}'
  notify publish --user 5 --kind mention --data '{"chat_id": 1}'
  notify publish --api-key-file /etc/notify/key --quiet < messages.jsonl
  notify publish --atomic --key move-3 < both-halves.jsonl"""

_MOST_LINE = 1024 * 1024
_AT_ONCE = 500
#: maximum number of lines that the server accepts as an all-or-nothing list
_MOST_AS_ONE = 1000
#: attempts if the server cannot be reached, which take some seconds: a user is waiting, and the address may be wrong
_TRIES = 6
#: errors that concern a single message; any other error would also affect the next one
_OF_ONE = frozenset(
    (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
)


class Line(Struct, frozen=True):
    """One line of the input: its number, the offset in the input at which it ends, and either a message or what is wrong with it."""

    number: int
    end: int
    subject: str = ""
    payload: dict[str, Any] = {}
    wrong: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--workspace", type=identifier, default=1, metavar="ID", help="the workspace (default: 1)"
    )
    to = parser.add_mutually_exclusive_group()
    to.add_argument(
        "--chat", type=identifier, metavar="ID", help="publish a message or an event to this chat"
    )
    to.add_argument("--user", type=identifier, metavar="ID", help="publish a notification to this user")
    parser.add_argument("--content", metavar="TEXT", help="the chat message's text")
    parser.add_argument(
        "--event", metavar="KIND", help="publish an event of this kind to the chat, not a message"
    )
    parser.add_argument(
        "--refers-to", type=identifier, metavar="ID", help="the message that the event is about"
    )
    parser.add_argument(
        "--sender", type=identifier, metavar="ID", help="who sends the chat message or event (default: 1)"
    )
    parser.add_argument("--kind", metavar="TEXT", help="the notification's kind")
    parser.add_argument("--data", metavar="JSON", help="the notification's or event's data (default: null)")
    parser.add_argument("--id", type=identifier, metavar="ID", help="the message's id (default: random)")
    parser.add_argument("--timestamp", type=number, metavar="SECONDS", help="Unix time (default: now)")
    parser.add_argument(
        "--atomic", action="store_true", help="publish the lines as one: either all are stored, or none"
    )
    parser.add_argument(
        "--key",
        metavar="TEXT",
        help="the idempotency key of one message, or of the lines of --atomic (default: random)",
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        default=30.0,
        metavar="TIME",
        help="how long to keep trying to publish a message, or the lines of a batch (default: 30s)",
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="do not print positions")
    url_option(parser, "the HTTP API's address", "NOTIFY_API_URL", API_URL)
    secret_options(parser, "api-key", "the API key", "NOTIFY_API_KEY")


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`CommandError`."""
    from notify.client import Publisher

    message = _message(options)
    if message is None and terminal.stdin.isatty():
        raise CommandError(
            "There is nothing to publish: use --chat, --user, or JSON lines on standard input."
        )
    key = secret(options, terminal, "api-key", "API key", "NOTIFY_API_KEY")
    try:
        # A single message is a single request; a stream would need a handshake first.
        publisher = Publisher(
            url(options, terminal, "NOTIFY_API_URL", API_URL),
            key,
            timeout=options.timeout,
            tries=_TRIES,
            stream=message is None,
        )
    except ValueError as error:
        raise CommandError(f"--url is wrong: {error}.") from None
    with publisher:
        if message is not None:
            return _publish_one(publisher, message, options, terminal)
        return (
            _publish_all(publisher, options, terminal)
            if options.atomic
            else _Lines(publisher, options, terminal).run()
        )


def _message(options: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    """The one message given by the options, or None. Raises :class:`CommandError` for incompatible options."""
    kind = _kind(options)
    if kind is None:
        return None
    its_id = secrets.randbits(63) if options.id is None else options.id
    timestamp = int(time.time()) if options.timestamp is None else options.timestamp
    made = {"workspace_id": options.workspace, "timestamp": timestamp}
    if kind == "user":
        if options.kind is None:
            raise CommandError("--user needs the notification's kind: give --kind TEXT.")
        made |= {"notification_id": its_id, "user_id": options.user}
        made |= {"kind": options.kind, "data": _data(options)}
        return f"workspace.{options.workspace}.user.{options.user}.notifications", made
    sender = 1 if options.sender is None else options.sender
    made |= {"message_id": its_id, "chat_id": options.chat, "sender_id": sender}
    if kind == "event":
        made |= {"kind": options.event, "data": _data(options)}
        if options.refers_to is not None:
            made["refers_to"] = options.refers_to
    elif options.content is None:
        raise CommandError(
            "--chat needs a message's text or an event's kind: give --content TEXT or --event KIND."
        )
    else:
        made["content"] = options.content
    return f"workspace.{options.workspace}.chat.{options.chat}.messages", made


#: what an option can be used with: for the error message, and as kinds of message
_GOES_WITH = {
    "content": ("--chat", ["chat"]),
    "sender": ("--chat", ["chat", "event"]),
    "event": ("--chat", ["event"]),
    "refers_to": ("--event", ["event"]),
    "kind": ("--user", ["user"]),
    "data": ("--user or --event", ["user", "event"]),
    **dict.fromkeys(("id", "timestamp"), ("--chat or --user", ["chat", "event", "user"])),
    "key": ("--chat, --user or --atomic", ["chat", "event", "user", "lines"]),
}


def _kind(options: argparse.Namespace) -> str | None:
    """The kind of message: ``chat``, ``event`` or ``user``; None: lines."""
    kind = "user" if options.user is not None else None if options.chat is None else "chat"
    if options.atomic:
        if kind is not None:
            raise CommandError("--atomic is for lines on standard input; leave it out for a single message.")
        kind = "lines"
    if kind == "chat" and options.event is not None:
        kind = "event"
        if options.content is not None:
            raise CommandError("--content publishes a message and --event an event: give only one of them.")
    for name, (belongs, kinds) in _GOES_WITH.items():
        if getattr(options, name) is not None and kind not in kinds:
            raise CommandError(f"--{name.replace('_', '-')} goes with {belongs}.")
    return None if kind == "lines" else kind


def _data(options: argparse.Namespace) -> Any:
    try:
        return json.loads(options.data or "null", parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise CommandError("--data is not JSON: write text as '\"text\"'.") from None


def _publish_one(
    publisher: Publisher, message: tuple[str, dict[str, Any]], options: argparse.Namespace, terminal: Terminal
) -> int:
    from notify.client import PublishFailed

    subject, payload = message
    try:
        position = publisher.publish(subject, payload, key=options.key)
    except PublishFailed as error:
        known = "It was not published" if error.nothing_stored else "It may or may not have been published"
        raise CommandError(f"{known}: {_advice(error)}") from None
    if not options.quiet:
        terminal.out(_result(subject, position))
    return 0


def _publish_all(publisher: Publisher, options: argparse.Namespace, terminal: Terminal) -> int:
    from notify.client import PublishFailed

    lines = list(islice(read_lines(terminal.stdin), _MOST_AS_ONE + 1))
    if len(lines) > _MOST_AS_ONE:
        raise CommandError(f"Nothing was published: --atomic takes at most {_MOST_AS_ONE} lines.")
    wrong = next((line for line in lines if line.wrong), None)
    if wrong is not None:
        raise CommandError(f"Nothing was published because of line {wrong.number}: {wrong.wrong}.")
    key = secrets.token_hex(16) if options.key is None else options.key
    try:
        positions = publisher.publish_all([(line.subject, line.payload) for line in lines], key=key)
    except PublishFailed as error:
        if error.nothing_stored:
            raise CommandError(f"Nothing was published: {_advice(error)}") from None
        # Not "all or nothing": some of the lines may have been published before, under the same key.
        raise CommandError(
            f"It is not known whether all lines are published: {_advice(error)} Publish the same lines again with --key {key} "
            "within the server's duplicate_window: then all are, each of them once."
        ) from None
    for line, position in zip(lines, positions, strict=True):
        if not options.quiet:
            terminal.out(_result(line.subject, position, line.number))
    return 0


def _result(subject: str, position: Position, line: int | None = None) -> str:
    found = {"subject": subject, "epoch": position.epoch, "seq": position.seq}
    return json.dumps(found if line is None else {"line": line, **found})


def _advice(error: PublishFailed) -> str:
    """What went wrong, and where to look."""
    text = str(error).removeprefix("unknown: ").removeprefix("unreachable: ").rstrip(".")
    if error.status == HTTPStatus.UNAUTHORIZED:
        return f"{text}: check the API key."
    if error.status is None:
        return f"{text}; check --url, and that the server is running."
    return f"{text}."


class _Lines:
    """Publishes JSON lines. A thread reads them, so that available lines are sent at once and in as few requests as possible."""

    def __init__(self, publisher: Publisher, options: argparse.Namespace, terminal: Terminal) -> None:
        self._publisher = publisher
        self._quiet = options.quiet
        self._terminal = terminal
        self._progress = Progress(terminal.stderr, _size(terminal.stdin), terminal.progress)
        self._queue: Queue[Line | None] = Queue(maxsize=2 * _AT_ONCE)
        self._published = self._failed = 0

    def run(self) -> int:
        """Returns the exit status. Raises :class:`CommandError` if it is pointless to continue."""
        Thread(target=self._read, daemon=True).start()
        batch: list[Line] | None = self._batch()
        while batch is not None:
            for line in batch:
                if line.wrong:
                    self._fail(line.number, line.wrong)
            self._publish([line for line in batch if not line.wrong])
            if batch:
                self._progress.update(batch[-1].end, self._published, self._failed)
            batch = self._batch()
        self._progress.clear()
        if self._failed:
            self._terminal.say(f"notify publish: {self._summary()}")
        return 1 if self._failed else 0

    def _read(self) -> None:
        for line in read_lines(self._terminal.stdin):
            self._queue.put(line)
        self._queue.put(None)

    def _batch(self) -> list[Line] | None:
        """The lines read so far, up to one request's worth; waits for the first. None at the end of the input."""
        line = self._queue.get()
        batch = []
        while line is not None:
            batch.append(line)
            if len(batch) == _AT_ONCE:
                break
            try:
                line = self._queue.get_nowait()
            except Empty:
                break
        else:
            if not batch:
                return None
            self._queue.put(None)
        return batch

    def _publish(self, lines: list[Line]) -> None:
        from notify.client import PublishFailed

        while lines:
            try:
                positions: list[Position | None] = list(
                    self._publisher.publish_many([(line.subject, line.payload) for line in lines])
                )
                error = None
            except PublishFailed as failed:
                positions, error = failed.positions, failed
            errors = error.errors if error is not None else [None] * len(positions)
            for line, position, wrong in zip(lines, positions, errors, strict=False):
                if position is not None:
                    self._published += 1
                    if not self._quiet:
                        self._terminal.out(_result(line.subject, position, line.number))
                else:
                    self._fail(line.number, str(wrong))
            if error is not None and error.status not in _OF_ONE:
                self._progress.clear()
                raise CommandError(
                    f"Stopped after line {lines[len(positions) - 1].number}: {_advice(error)} {self._summary()} "
                    "Publish the failed lines and all later ones again."
                )
            lines = lines[len(positions) :]

    def _fail(self, number: int, reason: str) -> None:
        self._failed += 1
        self._progress.clear()
        self._terminal.say(f"line {number}: {reason}")

    def _summary(self) -> str:
        return f"{self._published:,} published, {self._failed:,} failed."


def _size(stream: BinaryIO) -> int | None:
    """The length of the input in bytes if it is a file."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def read_lines(stream: BinaryIO) -> Any:
    """Yield a :class:`Line` for each line that is not blank, validated as the server will validate it."""
    number = end = 0
    while data := stream.readline(_MOST_LINE + 1):
        number += 1
        too_long = len(data) > _MOST_LINE
        end += len(data)
        while len(data) > _MOST_LINE and not data.endswith(b"\n"):
            data = stream.readline(_MOST_LINE + 1)
            end += len(data)
        if too_long:
            yield Line(number, end, wrong=f"longer than {_MOST_LINE} bytes")
        elif data.strip():
            yield _parse(number, end, data)


def _parse(number: int, end: int, data: bytes) -> Line:
    import msgspec

    from notify.messages import Poison, parse_event
    from notify.topics import Topic

    try:
        found = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "") or "not readable"
        return Line(number, end, wrong=f"not JSON: {reason[:1].lower()}{reason[1:]}")
    if not isinstance(found, dict) or set(found) != {"subject", "payload"}:
        return Line(number, end, wrong='not of the form {"subject": ..., "payload": {...}}')
    subject, payload = found["subject"], found["payload"]
    if not isinstance(subject, str) or not isinstance(payload, dict):
        return Line(number, end, wrong="subject must be text, and payload an object")
    try:
        parse_event(Topic.from_subject(subject), msgspec.json.encode(payload))
    except Poison as error:
        return Line(number, end, wrong=str(error))
    except (ValueError, OverflowError, RecursionError) as error:
        return Line(number, end, wrong=f"subject or payload is not valid: {error}")
    return Line(number, end, subject, payload)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
