"""``notify listen``: a client that prints what it receives, and never loses its place."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from notify.cli.terminal import (
    WEBSOCKET_URL,
    CommandError,
    Terminal,
    identifier,
    read_file,
    secret,
    secret_options,
    url,
    url_option,
)
from notify.ids import Id

if TYPE_CHECKING:
    from notify.client import (
        ChatMessage,
        FileStore,
        Loss,
        Notification,
        Position,
        State,
        Stream,
        TwistedClient,
    )

SUMMARY = "print messages as they arrive"
DESCRIPTION = """\
Connect to a server, subscribe to chats and to the user's notifications, and print one JSON line per message on
standard output, each message once and in order, across any number of reconnects. Standard error tells what happens to
the connection. A gap that cannot be filled is printed as a line of type "lost". Ctrl-C ends the command with status 0.

With --positions, the position in each stream is kept in a file, and the next run continues from it."""
EXAMPLES = """\
  export NOTIFY_TOKEN=$(notify token --config notify.toml --user 1)
  notify listen --chat 1
  notify listen --chat 1 --chat 2 --url wss://chat.example/ws --positions ~/.notify-positions
  notify listen --chat 1 --since 9f2c1a:41 --count 10
  notify listen --token-file token | jq .content"""

#: messages for the close codes after which a client reconnects (docs/protocol.md)
_GONE = {
    1012: "the server restarts",
    1013: "the server is full",
    4000: "the server failed",
    4001: "this client read too slowly",
    4002: "the token has expired, or was revoked",
    4003: "this client did not answer in time",
    4004: "the server could not keep the messages without a gap",
}
#: and for those after which it does not
_ENDED = {
    4500: "the token is not accepted",
    4501: "authentication took too long",
    4502: "this client's messages were not valid",
    4503: "an operator disconnected this user",
    4504: "this client sent too much",
}

_SINCE = re.compile(r"([!-~]{1,64}):(0|[1-9][0-9]{0,18})", re.ASCII)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--chat", type=identifier, action="append", default=[], metavar="ID", help="a chat; may be repeated"
    )
    parser.add_argument("--no-notifications", action="store_true", help="leave out the user's notifications")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--since", metavar="EPOCH:SEQ", help="begin after this position, as printed, in each chat"
    )
    begin.add_argument("--positions", metavar="FILE", help="begin where the last run with this file ended")
    parser.add_argument("--count", type=int, metavar="N", help="end after this many messages")
    parser.add_argument("--quiet", "-q", action="store_true", help="do not report on the connection")
    url_option(parser, "the server's address", "NOTIFY_URL", WEBSOCKET_URL)
    secret_options(parser, "token", "the token", "NOTIFY_TOKEN")


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`CommandError`."""
    from twisted.internet import reactor

    from notify.service.reactor import steady

    if options.count is not None and options.count < 1:
        raise CommandError("--count must be at least 1.")
    if options.no_notifications and not options.chat:
        raise CommandError(
            "There is nothing to listen to: give a chat with --chat, or leave out --no-notifications."
        )
    steady(reactor)
    listener = _Listener(options, terminal, reactor)
    reactor.callWhenRunning(listener.start)
    reactor.run()
    if listener.error is not None:
        raise listener.error
    return 0


class _Places:
    """A store of positions: those to begin after, or those in a file."""

    def __init__(self, begin: Mapping[str, Position], file: FileStore | None = None) -> None:
        self._begin, self._file = begin, file
        self._kept: dict[str, Position | None] = {}

    def load(self, key: str) -> Position | None:
        return self._begin.get(key) if self._file is None else self._file.load(key)

    def save(self, positions: Mapping[str, Position]) -> None:
        if self._file is not None:
            found = {key: self._kept.get(key, position) for key, position in positions.items()}
            self._file.save({key: position for key, position in found.items() if position is not None})

    def keep(self, chat: Id | None, position: Position | None) -> None:
        """From now on the position of a stream stays this one, whatever arrives."""
        self._kept["notifications" if chat is None else f"chat:{chat}"] = position


class _Listener:
    """One run, from the reactor's start to its end."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal, reactor: Any) -> None:
        from notify.client import TwistedClient

        self._options, self._terminal, self._reactor = options, terminal, reactor
        self._left: int | None = options.count
        self._ended = False
        #: what ended the run, if not the user
        self.error: BaseException | None = None
        self._places = _places(options)
        first = secret(options, terminal, "token", "token", "NOTIFY_TOKEN")
        path: str | None = options.token_file

        def token() -> str:
            # The file may hold a newer token by now, with which the connection outlives the first one.
            if path is None or path == "-":
                return first
            return read_file(path, terminal).decode("utf-8", "replace").strip()

        try:
            self._client: TwistedClient = TwistedClient(
                url(options, terminal, "NOTIFY_URL", WEBSOCKET_URL),
                token,
                reactor=reactor,
                store=self._places,
                on_state=self._state,
            )
        except ValueError as error:
            raise CommandError(f"--url is wrong: {error}.") from None

    def start(self) -> None:
        """Subscribe and connect. Stops the reactor when it is over."""
        from twisted.internet.defer import ensureDeferred

        self._reactor.addSystemEventTrigger("before", "shutdown", self._leave)
        streams: list[Stream[Any]] = [self._client.chat(chat) for chat in dict.fromkeys(self._options.chat)]
        if not self._options.no_notifications:
            streams.append(self._client.notifications)
        for stream in streams:
            stream.on_lost = self._lost
            ensureDeferred(self._read(stream)).addErrback(lambda failure: self._end(failure.value))
        ensureDeferred(self._client.start()).addErrback(lambda failure: self._end(failure.value))

    def _leave(self) -> Any:
        from twisted.internet.defer import ensureDeferred

        self._ended = True
        return ensureDeferred(self._client.close())

    async def _read(self, stream: Stream[Any]) -> None:
        from notify.client import Chat, Refused

        try:
            async for message in stream:
                if self._ended:
                    # Received but not shown: the stored position of this stream stays before it.
                    self._places.keep(stream.id if isinstance(stream, Chat) else None, stream.position)
                    break
                self._print(message)
                if self._left == 0:
                    break
        except Refused as error:
            raise CommandError(f"Chat {getattr(stream, 'id', '')} was refused: {error}.") from None

    def _print(self, message: ChatMessage | Notification) -> None:
        import msgspec

        from notify.client import ChatMessage

        kind = "chat_message" if isinstance(message, ChatMessage) else "notification"
        found = msgspec.structs.asdict(message)
        position = found.pop("position")
        self._terminal.out(
            msgspec.json.encode(
                {"type": kind, **found, "epoch": position.epoch, "seq": position.seq}
            ).decode()
        )
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._end(None)

    def _lost(self, loss: Loss) -> None:
        import msgspec

        self._terminal.out(msgspec.json.encode({"type": "lost", **msgspec.structs.asdict(loss)}).decode())

    def _state(self, state: State) -> None:
        if self._options.quiet or self._ended:
            return
        if state.name == "connected":
            self._terminal.say(f"connected as user {state.user_id}")
        elif state.name == "waiting":
            why = _GONE.get(state.code or 0, state.reason)
            self._terminal.say(f"not connected ({why}); trying again in {state.delay or 0:.1f} s")

    def _end(self, error: BaseException | None) -> None:
        from notify.client import ClientClosed

        if self._ended:
            return
        self._ended = True
        if isinstance(error, ClientClosed):
            error = CommandError(f"The server closed the connection: {_closed(error.code, error.reason)}.")
        self.error = error
        if self._reactor.running:
            self._reactor.stop()


def _places(options: argparse.Namespace) -> _Places:
    """The positions to begin after. Raises :class:`CommandError`."""
    from notify.client import FileStore, Position

    if options.positions is not None:
        try:
            file = FileStore(options.positions)
            file.save({})
        except (OSError, ValueError) as error:
            raise CommandError(f"--positions {options.positions} cannot be used: {error}.") from None
        return _Places({}, file)
    if options.since is None:
        return _Places({})
    match = _SINCE.fullmatch(options.since)
    if match is None or int(match[2]) >= 2**63:
        raise CommandError("--since must be a position as printed: EPOCH:SEQ.")
    position = Position(match[1], int(match[2]))
    return _Places({f"chat:{chat}": position for chat in options.chat})


def _closed(code: int | None, reason: str) -> str:
    meaning = _ENDED.get(code or 0, reason or "the connection was closed")
    return meaning if code is None else f"{meaning} ({code})"
