"""Configuration: reads TOML files and the environment into frozen, typed settings.

Every key except the secrets has a default here; ``etc/notify.toml`` lists them all. An environment variable overrides
a key: ``NOTIFY_BROKER__JETSTREAM__SERVERS`` is ``[broker.jetstream] servers``. Any error raises :class:`ConfigError`,
which names the file, the key and the allowed values.
"""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, field

from notify.errors import StartError

PREFIX = "NOTIFY_"

S = TypeVar("S", bound=Struct)


class ConfigError(StartError):
    """The configuration is unusable. One sentence: where, what, and what is allowed instead."""


class Duration(float):
    """Seconds. Written ``"250ms"``, ``"5s"``, ``"10m"``, ``"2h"``, ``"7d"``, or as a number of seconds."""

    _UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}  # noqa: RUF012

    @classmethod
    def parse(cls, value: object) -> Duration:
        """Raises ``ValueError`` for anything but a non-negative duration."""
        if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", value)):
            return cls(float(match[1]) * cls._UNITS[match[2]])
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e10:
            return cls(value)
        raise ValueError('write a duration like "250ms", "5s", "10m", "2h" or "7d"')


class Size(int):
    """Bytes. Written ``"64KiB"``, ``"1MiB"``, ``"2GiB"``, or as a number of bytes."""

    _UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}  # noqa: RUF012

    @classmethod
    def parse(cls, value: object) -> Size:
        """Raises ``ValueError`` for anything but a non-negative size."""
        if isinstance(value, str) and (match := re.fullmatch(r"(\d+)(B|KiB|MiB|GiB|TiB)", value)):
            return cls(int(match[1]) * cls._UNITS[match[2]])
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        raise ValueError('write a size like "512B", "64KiB", "1MiB" or "2GiB"')


Count = Annotated[int, Meta(ge=0, le=2**31)]


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """The base of every table: unknown keys are errors."""


class Server(Settings, frozen=True):
    """``[server]``: this process and the processes around it."""

    #: this node's name, unique among the nodes and stable over restarts; empty: made of host name and public port
    node: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{0,64}$")] = ""
    #: the number of processes that serve clients; with more than one, a further process does everything else. 1: one
    #: process does everything; "auto": as many as the processors it may use
    workers: Annotated[int, Meta(ge=1, le=64)] | Literal["auto"] = 1
    #: the event loop: "uvloop", "asyncio", or "auto", which is uvloop if it is installed
    event_loop: Literal["auto", "uvloop", "asyncio"] = "auto"
    #: allow core dumps, which contain keys and tokens, and debuggers of the same user; for tracking down a fault
    dumpable: bool = False


class Listen(Settings, frozen=True):
    """``[listen]``: Twisted server endpoints, and which browser origins may open a WebSocket or an event stream."""

    #: /ws, /events and /health (and the demo page)
    public: str = "tcp:8080"
    #: /v1, /metrics and /health
    internal: str = "tcp:8081:interface=127.0.0.1"
    #: host names under which /metrics may be requested, besides addresses, single-label names and names that nobody
    #: can register
    internal_hosts: tuple[str, ...] = ()
    #: origins like "https://chat.example"; empty: the same host only; "*": any. A request without an Origin is
    #: allowed, since it is not from a browser
    allowed_origins: tuple[str, ...] = ()
    #: addresses or networks of proxies whose X-Forwarded-For is trusted
    trusted_proxies: tuple[str, ...] = ()
    #: serve event streams (/events) on the public listener, for clients where WebSockets are blocked
    events: bool = True
    #: serve the demo page on the public listener
    demo: bool = False


#: in place of a plugin's name: use the one that belongs to the broker
FOLLOW = ""


class PluginTable(Settings, frozen=True):
    """``[auth]``, ``[broker]``, ``[registry]`` or ``[control]``: the plugin's name, and the raw table of each plugin."""

    plugin: str
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)


class Api(Settings, frozen=True):
    """``[api]``: who may use /v1. Without any key, nobody may."""

    keys: tuple[str, ...] = ()
    #: one key a line: ``KEY [name=NAME [scopes=SCOPE,...] [workspaces=ID,...]]``; blank lines and # comments are
    #: ignored
    keys_file: str = ""


class Limits(Settings, frozen=True):
    """``[limits]``: what one client, and all clients together, may use. For a count, 0 means no limit."""

    auth_timeout: Duration = Duration(5)
    handshake_timeout: Duration = Duration(5)
    #: a client must present a new token within this time, even if its token is valid for longer; 0: no bound
    reauthenticate: Duration = Duration(86400)
    #: the maximum age of a token that says when it was issued (iat); a revocation is kept for as long
    token_age: Duration = Duration(30 * 86400)
    #: the largest client frame and the largest published payload
    max_frame: Size = Size(64 * 1024)
    #: sockets of the public port; "auto": the limit of open files, less a reserve
    max_connections: Count | Literal["auto"] = "auto"
    max_connections_per_user: Count = 0
    #: limits for one address (in IPv6: a /64): connections, connections without a valid token yet, and handshakes a
    #: second (average and burst). They do not apply to loopback and private addresses; behind proxies they need
    #: trusted_proxies
    max_connections_per_address: Count = 1000
    max_arriving_per_address: Count = 500
    handshakes_per_second: Count = 50
    handshakes_burst: Count = 1000
    #: clients between handshake and token; further ones are turned away with 1013, to come back later
    max_arriving: Count = 5000
    max_subscriptions: Count = 1000
    #: bytes queued for one client; a client that exceeds it is closed with 4001
    send_queue: Size = Size(1024 * 1024)
    #: bytes queued for all clients together; past it, the client with the longest queue is closed with 4001
    send_queues: Size = Size(256 * 1024 * 1024)
    #: messages that one resume may replay; if more are needed, none is recovered
    replay: Annotated[int, Meta(ge=0, le=100_000)] = 1000
    #: messages, and bytes of messages, of all followed topics together that stay in memory for clients that resume;
    #: each message counts as half a KiB more than its payload
    recent_messages: Annotated[int, Meta(ge=1000, le=100_000_000)] = 100_000
    recent_bytes: Size = Size(64 * 1024 * 1024)
    #: how long a topic stays followed, and its messages in memory, after its last client on this node left
    linger: Duration = Duration(60)
    #: frames a second that one connection may send: average and burst
    frames_per_second: Count = 50
    frames_burst: Count = 1000
    #: signals a second that one connection may send: average and burst; each also counts as a frame
    signals_per_second: Count = 10
    signals_burst: Count = 30
    #: the largest data of one signal, in bytes
    signal_size: Size = Size(1024)
    #: signals a second sent to one chat's members on this node, counted once for each receiver; any more are dropped
    signals_fan_out: Count = 20_000
    #: invalid frames after which a connection is closed with 4502
    max_invalid: Annotated[int, Meta(ge=1, le=1000)] = 10
    #: how often the server pings an idle client, and how long it waits for the pong
    ping_interval: Duration = Duration(25)
    ping_timeout: Duration = Duration(20)


class Compression(Settings, frozen=True):
    """``[compression]``: permessage-deflate for clients that ask for it."""

    enabled: bool = False
    #: smaller messages are sent uncompressed
    minimum: Size = Size(512)
    #: zlib's level: 1 is fastest, 9 is smallest
    level: Annotated[int, Meta(ge=1, le=9)] = 6


class Drain(Settings, frozen=True):
    """``[drain]``: how the server shuts down."""

    #: how long the server reports not ready but still accepts clients, so that the load balancer notices
    delay: Duration = Duration(0)
    #: the time over which clients are disconnected in small steps
    duration: Duration = Duration(30)


Level = Annotated[str, Meta(pattern="^(debug|info|warn|error)$")]


class Log(Settings, frozen=True):
    """``[log]``: what is logged, and how."""

    #: debug, info, warn or error
    level: Level = "info"
    #: levels of single parts: a table of names like auth, "core.session", "brokers.jetstream" or twisted
    levels: dict[str, Level] = field(default_factory=dict)
    #: "text", or "json": one object a line
    format: Annotated[str, Meta(pattern="^(text|json)$")] = "text"
    #: lines that one place in the code may log within the window; any more are only counted. 0: no bound
    burst: Count = 20
    #: the length of that window
    window: Duration = Duration(10)


class Tracing(Settings, frozen=True):
    """``[tracing]``: OpenTelemetry traces; needs the extra ``otel``."""

    #: an OTLP/HTTP collector, like "http://127.0.0.1:4318/v1/traces"; empty: no spans, but contexts are passed on
    endpoint: str = ""
    #: the share of publishes without a trace from the caller that start one; a caller's trace is always honoured
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    #: the service name in traces
    service: str = "notify"


class Config(Settings, frozen=True):
    """The whole configuration."""

    server: Server = Server()
    listen: Listen = Listen()
    auth: PluginTable = PluginTable("jwt")
    broker: PluginTable = PluginTable("memory")
    registry: PluginTable = PluginTable("memory")
    control: PluginTable = PluginTable(FOLLOW)
    api: Api = Api()
    limits: Limits = Limits()
    compression: Compression = Compression()
    drain: Drain = Drain()
    log: Log = Log()
    tracing: Tracing = Tracing()
    #: the source named in errors; not a key
    source: str = "the defaults"


PLUGIN_TABLES = ("auth", "broker", "registry", "control")


class _FromEnvironment(str):
    """A value from an environment variable: text to be parsed as the key's type."""

    __slots__ = ("variable",)
    variable: str


class Source(str):
    """Where a configuration was read from, as errors name it; of several files, the one that set a key."""

    __slots__ = ("files", "keys")
    files: tuple[str, ...]
    #: the file that set each dotted key
    keys: dict[str, str]

    @classmethod
    def of(cls, files: Sequence[str]) -> Source:
        """The source for these files, in this order; without any, the environment."""
        source = cls(", ".join(files) or "the environment")
        source.files, source.keys = tuple(files), {}
        return source

    def read(self, key: str, file: str) -> None:
        """Record that this file set the dotted key and everything below it."""
        self.keys[key] = file

    def having(self, key: str) -> str:
        """The file that set the dotted key, or a key below it; if none did, the source as a whole."""
        key = key.partition("[")[0]  # for an element of an array: the array
        above = [key.rsplit(".", cut)[0] for cut in range(key.count(".") + 1)]
        below = [known for known in self.keys if known.startswith(f"{key}.")]
        return next((self.keys[known] for known in (*above, *below) if known in self.keys), self)


def having(source: str, key: str) -> str:
    """The name to use in an error about a dotted key: of several files, the one that set it."""
    return source.having(key) if isinstance(source, Source) else source


def load(paths: str | Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Read the files (one, several or none) in order, then the environment; later ones override.

    Tables are merged key by key. Any other value, including an array, replaces the earlier one as a whole. Raises
    :class:`ConfigError`.
    """
    data: dict[str, Any] = {}
    files = [paths] if isinstance(paths, str) else paths or ()
    source = Source.of(files)
    for path in files:
        try:
            read = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}.") from None
        if "source" in read:
            raise ConfigError(f"{path}: unknown key 'source'; known keys are: {_known(Config)}.")
        _lay_over(data, read, path, source)
    _overlay(data, environ)
    for name in PLUGIN_TABLES:
        table = data.get(name)
        if isinstance(table, dict):
            options = {key: value for key, value in table.items() if key != "plugin"}
            stray = [key for key, value in options.items() if not isinstance(value, dict)]
            if stray:
                key = f"{name}.{stray[0]}"
                raise ConfigError(
                    f"{source.having(key)}: unknown key '{key}'; [{name}] takes 'plugin' and one table per plugin, "
                    f"such as [{name}.{table.get('plugin', 'NAME')}]."
                )
            plugin = table.get("plugin", getattr(Config(), name).plugin)
            data[name] = {"plugin": plugin, "tables": options}
    return msgspec.structs.replace(convert(data, Config, source), source=source)


def _lay_over(
    below: dict[str, Any], above: dict[str, Any], path: str, source: Source, prefix: str = ""
) -> None:
    for key, value in above.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(below.get(key, {}), dict):
            _lay_over(below.setdefault(key, {}), value, path, source, f"{dotted}.")
        else:
            below[key] = value
            source.read(dotted, path)


#: stands in a plugin's table for text from the environment, until the type of its key is known
_VARIABLE = "\0variable"


class _Given(Struct, frozen=True):
    """A configuration, and what it was read from."""

    config: Config
    files: tuple[str, ...]
    keys: dict[str, str]


def dumps(config: Config) -> bytes:
    """A configuration as JSON, for another process of the same version."""

    def plain(value: object) -> object:
        if isinstance(value, _FromEnvironment):
            return {_VARIABLE: value.variable, "value": str(value)}
        if isinstance(value, Source):
            return str(value)
        return float(value) if isinstance(value, float) else int(value)  # type: ignore[call-overload]

    source = config.source
    files, keys = (source.files, source.keys) if isinstance(source, Source) else ((), {})
    return msgspec.json.encode({"config": config, "files": files, "keys": keys}, enc_hook=plain)


def loads(data: bytes) -> Config:
    """The inverse of :func:`dumps`."""

    def restored(value: Any) -> Any:
        if isinstance(value, dict) and _VARIABLE in value:
            text = _FromEnvironment(value["value"])
            text.variable = value[_VARIABLE]
            return text
        if isinstance(value, dict):
            return {key: restored(each) for key, each in value.items()}
        return [restored(each) for each in value] if isinstance(value, list) else value

    given = msgspec.json.decode(data, type=_Given, dec_hook=_decode)
    config, source = given.config, Source(given.config.source)
    source.files, source.keys = given.files, given.keys
    tables = {
        kind: msgspec.structs.replace(table, tables=restored(table.tables))
        for kind in PLUGIN_TABLES
        for table in (getattr(config, kind),)
    }
    return msgspec.structs.replace(config, source=source, **tables)


def convert(data: Mapping[str, Any], kind: type[S], source: str, prefix: str = "") -> S:
    """Make settings of type ``kind`` from raw data; ``prefix`` is the table's name. Raises :class:`ConfigError`."""
    dotted = f"{prefix}." if prefix else ""
    try:
        return msgspec.convert(_read_environment(dict(data), kind), kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        text = str(error)
        message, _, path = text.partition(" - at `")
        key = dotted + path.removeprefix("$").removeprefix(".").rstrip("`")
        if unknown := re.search(r"unknown field `(.*)`", message):
            table = key.rstrip(".")
            known = _known(_struct_at(kind, table.removeprefix(prefix).strip(".")))
            full = f"{table}.{unknown[1]}" if table else unknown[1]
            raise ConfigError(
                f"{having(source, full)}: unknown key '{full}'; known keys are: {known}."
            ) from None
        wrong = key.rstrip(".")
        raise ConfigError(f"{having(source, wrong)}: '{wrong}' is wrong: {_plain(message)}.") from None


def _plain(message: str) -> str:
    if choice := re.search(r"matching regex '\^\((.*)\)\$'", message):
        return f"it must be one of {choice[1].replace('|', ', ')}"
    if message.startswith("Invalid enum value"):
        return 'it must be a number or "auto"'
    if name := re.search(r"matching regex '\^\[A-Za-z0-9_-\]\{\d,(\d+)\}\$'", message):
        return f"it may have at most {name[1]} characters, and only letters, digits, '_' and '-'"
    return message[:1].lower() + message[1:].replace("`", "'").replace("'str'", "text")


def _known(kind: type[Struct]) -> str:
    return ", ".join(f.encode_name for f in msgspec.structs.fields(kind) if f.encode_name != "source")


def _struct_at(kind: type[Struct], path: str) -> type[Struct]:
    for part in filter(None, path.split(".")):
        found = {f.encode_name: f.type for f in msgspec.structs.fields(kind)}.get(part)
        if not (isinstance(found, type) and issubclass(found, Struct)):
            break
        kind = found
    return kind


def _decode(kind: type, value: Any) -> Any:
    if issubclass(kind, Duration | Size):
        return kind.parse(value)
    raise NotImplementedError(f"settings of type {kind!r}")


def _overlay(data: dict[str, Any], environ: Mapping[str, str]) -> None:
    for variable in sorted(environ):
        path = variable.removeprefix(PREFIX).lower().split("__")
        if not variable.startswith(PREFIX) or len(path) < 2:
            continue
        table = data
        for part in path[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(
                    f"environment variable {variable}: '{part}' is a key, not a table; check the name's parts between '__'."
                )
        value = _FromEnvironment(environ[variable])
        value.variable = variable
        table[path[-1]] = value


def _read_environment(data: dict[str, Any], kind: type[Struct]) -> dict[str, Any]:
    """Convert text from the environment to the types of its keys."""
    kinds = {f.encode_name: f.type for f in msgspec.structs.fields(kind)}
    for key, value in data.items():
        wanted = kinds.get(key)
        if isinstance(value, dict) and isinstance(wanted, type) and issubclass(wanted, Struct):
            data[key] = _read_environment(dict(value), wanted)
        elif isinstance(value, _FromEnvironment) and wanted is not None:
            data[key] = _from_text(value, wanted)
    return data


def _from_text(text: _FromEnvironment, wanted: Any) -> Any:
    plain = _bare(wanted)
    if isinstance(plain, type) and issubclass(plain, Struct):
        raise ConfigError(
            f"environment variable {text.variable} names a table: add '__' and one of its keys."
        )
    if get_origin(plain) in (tuple, list, frozenset):
        if text.startswith("["):
            try:
                return tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                raise ConfigError(
                    f"environment variable {text.variable} is not a valid TOML array: "
                    'write it like ["a", "b"], or like a,b.'
                ) from None
        return [part.strip() for part in text.split(",") if part.strip()]
    if plain in (Duration, Size):
        return int(text) if text.isdecimal() else str(text)
    if plain is str:
        return str(text)
    try:
        return msgspec.convert(str(text), plain, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"environment variable {text.variable} is wrong: {_plain(str(error))}.") from None


def _bare(wanted: Any) -> Any:
    """The type without Annotated and without ``| None``; a union of several types stays one."""
    if get_origin(wanted) is Annotated:
        return _bare(get_args(wanted)[0])
    if get_origin(wanted) in (Union, types.UnionType):
        choices = [one for one in get_args(wanted) if one is not type(None)]
        return _bare(choices[0]) if len(choices) == 1 else wanted
    return wanted
