"""``twistd notify``: its options, and the composition root that builds one service from a configuration.

Only this module knows all the others.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from socket import gethostname
from typing import Any

from msgspec import Struct, structs
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.python import usage

from notify import components, dev
from notify.config import Config, ConfigError, having, load
from notify.core import access
from notify.core.dispatcher import Dispatcher
from notify.core.hub import Hub
from notify.core.live import InForce, Live
from notify.core.presence import PresenceWatch
from notify.core.signals import Signals
from notify.core.steering import Steering
from notify.core.timers import Wheel
from notify.dev.demo import demo_routes
from notify.errors import StartError
from notify.http.hosts import Hosts
from notify.http.keys import ApiKeys, read_keys
from notify.http.revoke import Revoker
from notify.http.server import Site
from notify.http.sites import internal_site, most_body, public_site
from notify.interfaces import IBroker, IControl, ICurrent, IPatient, IRegistry, ISignals
from notify.observe import logging, tracing
from notify.observe.health import Health
from notify.observe.metrics import Metrics
from notify.roles.head import head
from notify.roles.role import Role
from notify.service import daemon, secrecy
from notify.service import reactor as reactors
from notify.service import signals as process
from notify.service.drain import Drain
from notify.service.garbage import Collector
from notify.service.lifecycle import Lifecycle
from notify.service.reload import Reloader
from notify.service.service import Listener, NotifyService, Part
from notify.service.systemd import Systemd
from notify.transport import fanout
from notify.transport.admission import Admission
from notify.transport.events import EventFactory
from notify.transport.listener import PublicFactory
from notify.transport.origins import parse_origins
from notify.transport.tcp import open_files, open_more_files
from notify.transport.texts import TextFactory
from notify.transport.websocket import ConnectionFactory
from notify.wire.addresses import Network, parse_networks

#: the maximum age of a token in seconds; a revocation has to be kept for as long
OLDEST = 366 * 86400

#: the folder of the demo page
DEMO = Path(__file__).parent / "web"


class World(Struct, frozen=True):
    """A server's outside world besides its reactor: randomness, the Unix time, and a connection to NATS.

    ``alone``: the process belongs to this server alone, which may therefore change process-wide settings.
    """

    random: Random = SystemRandom()
    now: Callable[[], float] = time.time
    connect: Callable[..., Any] | None = None
    alone: bool = True


REAL = World()


class Options(usage.Options):
    """The options of ``twistd notify``."""

    longdesc = (
        "A real-time notification server. Without --config it uses its defaults and the environment "
        "(NOTIFY_LISTEN__PUBLIC=tcp:9000 and so on); etc/notify.toml lists every key."
    )
    optFlags = [  # noqa: RUF012
        ["dev", None, "Try it out: memory broker, keys for this run only, demo page, commands to paste."]
    ]
    compData = usage.Completions(optActions={"config": usage.CompleteFiles("*.toml")})  # type: ignore[no-untyped-call]
    config: Config

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["config"] = []

    def opt_config(self, path: str) -> None:
        """A configuration file (TOML); may be given several times: the later ones override the earlier, key by key."""
        self["config"].append(path)

    opt_c = opt_config

    def postOptions(self) -> None:
        """Read the configuration and install the reactor.

        This is the one hook that both twistd and twist call early enough.
        """
        try:
            if self["dev"] and self["config"]:
                raise StartError("--dev makes its own configuration: give either --dev or --config.")
            # A daemon may change its working directory, and a reload reads the files again.
            self["config"] = [os.path.abspath(path) for path in self["config"]]
            self.config = dev.configuration(os.environ) if self["dev"] else load(self["config"], os.environ)
            # Before the plugins are loaded, because they may import the reactor.
            reactors.install(self.config.server.event_loop)
            components.check(self.config)
        except StartError as error:
            raise SystemExit(f"notify: {error}") from None
        if self.parent is not None and not self.parent.get("logger"):
            self.parent["logger"] = "notify.observe.logging.observer"

    def read(self) -> Config:
        """Read the configuration again from the files that the options name. Raises ``ConfigError``."""
        if self["dev"]:
            # The keys of ``--dev`` are made for one run, so there is nothing to read again.
            return self.config
        config = load(self["config"], os.environ)
        components.check(config)
        return config


def makeService(options: Options) -> IService:
    """The service that twistd runs, inside a daemon if twistd makes one."""
    from twisted.internet import reactor as installed

    running: Any = installed
    twistd, foreground = options.parent, daemon.Foreground()
    try:
        # Another runner (twist) has no daemon and no user.
        if twistd is not None and "nodaemon" in twistd:
            user = daemon.user(twistd)
            _choose_log(options, twistd, user)
            if not twistd["nodaemon"]:
                foreground = daemon.detach()
                reactors.forked(running)
                # The process is already a daemon: twistd must not daemonize again, and its umask for daemons stays.
                twistd["nodaemon"] = True
                twistd["umask"] = 0o077 if twistd["umask"] is None else twistd["umask"]
            # With chroot, twistd writes the pid file itself, once it is in the new root.
            if twistd["pidfile"] and not twistd["chroot"]:
                path, twistd["pidfile"] = twistd["pidfile"], ""
                daemon.write_pid_file(path, user)
        logging.configure(options.config.log)
        open_more_files()
        role = head(running, options.config, node_name(options.config))
        if role is not None:
            _fit_for_workers(options, twistd)
        service = build(
            options.config,
            running,
            show=_show if options["dev"] else None,
            read=options.read,
            environ=os.environ,
            foreground=foreground,
            role=role,
        )
    except StartError as error:
        foreground.failed(str(error))
        raise SystemExit(1) from None
    # If a watchdog (SIGABRT) or a fault in a library ends the process, it logs where it was.
    if (last_words := logging.descriptor()) is not None:
        faulthandler.enable(last_words)

    def hurry() -> None:
        service.drain.hurry()
        if role is not None:
            role.crew.hurry()

    # Twisted installs its own handlers when the reactor starts.
    told = process.Signals(service.lifecycle, hurry, service.reloader.reload)
    running.callWhenRunning(told.install, running.callFromThread)
    signal.signal(signal.SIGUSR1, lambda *_: running.callFromThread(logging.reopen))
    return service


def _fit_for_workers(options: Options, twistd: usage.Options | None) -> None:
    """Raise ``StartError`` for options of twistd that do not work with a server of several processes."""
    if options["dev"]:
        raise StartError("--dev runs one process only: leave out [server] workers.")
    if twistd is not None and twistd.get("chroot"):
        raise StartError("--chroot works with one process only: leave out [server] workers.")


def _choose_log(options: Options, twistd: usage.Options, user: daemon.User) -> None:
    """Send the log to where twistd's options say. Raises ``StartError``."""
    leaves = not twistd["nodaemon"]
    if leaves and options["dev"]:
        raise StartError(
            "--dev prints keys and commands to the terminal: run `twistd --nodaemon notify --dev`."
        )
    file = twistd["logfile"] or ("twistd.log" if leaves else "-")
    if twistd["logger"] is not logging.observer:
        pass  # the operator's own observer: it writes as it likes
    elif twistd["syslog"]:
        logging.use(logging.Syslog(twistd["prefix"]))
    elif file != "-":
        try:
            logging.use(logging.File(file, user.acting))
        except OSError as error:
            raise StartError(
                f"--logfile: user {user.name} cannot write {file}: {error.strerror}. Use a folder that this user owns."
            ) from None
    elif leaves:
        raise StartError("--logfile=-: a daemon has no terminal; name a file, or use --syslog or --nodaemon.")


def build(
    config: Config,
    reactor: Any,
    show: Callable[[str], None] | None = None,
    read: Callable[[], Config] | None = None,
    environ: Mapping[str, str] | None = None,
    world: World = REAL,
    foreground: daemon.Foreground | None = None,
    role: Role | None = None,
) -> NotifyService:
    """Build one service from a configuration. Raises ``StartError``.

    - ``show`` is given the instructions of ``--dev``, which binds to loopback only.
    - ``read`` reads the configuration again, for a reload.
    - ``environ`` tells whether systemd wants to be notified.
    - ``world`` is the outside world, or a simulation that a seed determines.
    - ``foreground`` is told whether the service runs.
    - ``role`` is the role of this process among several.
    """
    role = role or Role()
    # Parts: the plugins that the operator chose, and what everything uses.
    metrics, random, wheel = Metrics(reactors.running_on(reactor)), world.random, Wheel(reactor)
    role.metrics = metrics
    node = role.node or node_name(config)
    context = components.Context(reactor, metrics, random, node, config, world.now, world.connect, role.part)
    prepare = partial(in_force, context)
    live = Live(prepare(config))
    broker: IBroker = role.make("broker", context)
    registry: IRegistry = role.make("registry", context)
    control: IControl = role.make("control", context)
    tracer = tracing.make(config.tracing, context.node)

    # Core: who gets which message.
    soon = role.soon(reactor)
    way = fanout.choose()
    metrics.fans_out_in(fanout.name(way))
    dispatcher = Dispatcher(broker, registry, metrics, live, soon, wheel.after, reactor.seconds, tracer, way)
    presence = PresenceWatch(registry, wheel.after)
    carrier: ISignals | None = ISignals(broker, None)
    current: ICurrent | None = ICurrent(control, None)
    patient: IPatient | None = IPatient(broker, None)
    if current is not None and patient is not None:
        # A user whose tokens were revoked during a disconnect must get nothing that was published meanwhile.
        patient.after(current.current)
    signals = Signals(carrier, metrics, live, soon, reactor.seconds, way)
    if carrier is not None:
        carrier.hear(role.ear(signals))
    hub = Hub(live, dispatcher, registry, presence, signals, metrics, wheel, world.now, random)

    # Health, and the one way to shut the service down.
    health = Health(broker.status, ("internal", "public"))
    lifecycle = Lifecycle(
        reactor,
        Systemd(environ or {}),
        health,
        metrics,
        clients=lambda: role.clients(len(hub.connections)),
        # Not immediately: a caller over HTTP must get its answer first.
        leave=lambda: reactor.callLater(0, reactor.stop),
        fault=lambda: reloader.fault,
    )

    def patience() -> float:
        return live.now.limits.handshake_timeout

    logs = partial(logging.takes_debug, Site.__module__)

    # Listeners: the API on the internal port; WebSockets, health and the demo page on the public one.
    api = internal_site(
        reactor=reactor,
        broker=broker,
        registry=registry,
        control=control,
        node=context.node,
        health=health,
        keys=ApiKeys(lambda: live.now.keys, metrics.keys_refused, reactor.seconds),
        limits=config.limits,
        metrics=metrics,
        sockets=TextFactory(wheel, reactor, most_body(config.limits)),
        render=lambda: role.render(metrics),
        tracer=tracer,
        hosts=Hosts((gethostname(), *config.listen.internal_hosts)),
        logs=logs,
        revoker=Revoker(control, hub),
        signals=signals,
        witness=lambda: hub.witness,
        pace=role.pace,
    )
    pages = public_site(
        reactor=reactor,
        health=health,
        metrics=metrics,
        timeout=patience,
        demo=DEMO if config.listen.demo else None,
        demo_routes=demo_routes(partial(dev.issue_token, config), broker)
        if config.listen.demo and show
        else None,
        logs=logs,
    )
    websockets = ConnectionFactory(hub, reactor, config.compression)
    events = EventFactory(websockets)
    admission = Admission(
        limits=lambda: live.now.limits,
        trusted=lambda: live.now.trusted,
        files=lambda: role.files(open_files()),
        seconds=reactor.seconds,
        counted=metrics.sockets.set,
        refused=lambda reason: metrics.turned_away.labels(reason).inc(),
    )
    front = PublicFactory(
        websockets,
        pages,
        role.admits(admission),
        wheel,
        patience,
        lambda: role.serves and not health.starting,
        events if config.listen.events else None,
    )
    internal = Listener(
        "internal",
        config.listen.internal,
        api,
        health,
        api.settled,
        loopback=show is not None,
        tls_failed=lambda why: metrics.tls_failures.labels("internal", why).inc(),
    )
    public = Listener(
        "public",
        config.listen.public,
        front,
        health,
        loopback=show is not None,
        tls_failed=lambda why: metrics.tls_failures.labels("public", why).inc(),
    )

    internal, public = role.internal(internal), role.public(public, front, health)

    # The service: start, reload, drain, stop.
    def refuse() -> Deferred[None]:
        # Clients that leave from now on come back to another node.
        dispatcher.wind_down()
        return public.close().addCallback(lambda _: role.sent_away(live.now.drain.duration))

    drain = Drain(
        reactor,
        random,
        connections=hub.connections.keys,
        sockets=lambda: websockets.countConnections + events.count,
        refuse=refuse,
        finish=internal.close,
        report=partial(role.progress, lifecycle),
    )
    reloader = Reloader(
        config,
        live,
        read or (lambda: config),
        prepare,
        lambda: role.applied(partial(access.renew, hub), reloader.config),
        lambda: role.reloaded(lifecycle, reloader),
        metrics.reloads,
        world.now,
    )

    steering = Steering(
        hub,
        context.node,
        broker=broker.status,
        stage=lambda: "starting" if health.starting else drain.progress.stage.value,
        reloads=lambda: reloader.outcome,
        reload=lambda: role.reload(reloader),
        drain=lambda: role.drain(lifecycle),
        shed=role.shed,
    )
    role.steered(steering, reloader.reload, lifecycle)

    sink, collector = role.sink(dispatcher), Collector(wheel)
    parts = (
        Part(start=wheel.start, stop=wheel.stop),
        Part(stop=tracer.stop),
        *([Part(start=collector.start, stop=collector.stop)] if world.alone else []),
        *([Part(start=secrecy.conceal)] if world.alone and not config.server.dumpable else []),
        # Before any part that may have to wait, so that a node can be told to leave while it is still starting.
        Part(start=lambda: control.start(steering.do), stop=control.stop),
        Part(start=lambda: live.now.authenticator.start(), stop=lambda: live.now.authenticator.stop()),
        Part(start=lambda: broker.start(sink.deliver, sink.lost), stop=broker.stop),
        Part(start=lambda: registry.start(presence.changed), stop=registry.stop),
        # No client is admitted before this node knows who must not be.
        Part(start=lambda: control.watch(steering.heard)),
        *role.parts(),
    )

    def announce() -> None:
        if show is not None:
            show(dev.instructions(config, public.number, internal.number, environ or {}))

    return NotifyService(
        reactor, parts, internal, public, lifecycle, drain, reloader, announce, node, foreground
    )


def in_force(context: components.Context, config: Config) -> InForce:
    """The part of a configuration that a reload replaces; its authenticator is not started yet. Raises ``ConfigError``."""
    if not 60 <= config.limits.token_age <= OLDEST:
        raise ConfigError(
            f"{config.source}: 'limits.token_age' is wrong: it must be from a minute to a year."
        )
    return InForce(
        keys=read_keys(config.api, config.source),
        trusted=_trusted_proxies(config),
        authenticator=components.make("auth", structs.replace(context, config=config)),
        limits=config.limits,
        allowed_origins=_allowed_origins(config),
        drain=config.drain,
        log=config.log,
    )


def node_name(config: Config) -> str:
    """The configured name, or one made of host name and public endpoint, which is stable over restarts."""
    made = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{gethostname()}-{config.listen.public}")
    return config.server.node or made[:64]


def _trusted_proxies(config: Config) -> tuple[Network, ...]:
    try:
        return parse_networks(config.listen.trusted_proxies)
    except ValueError as error:
        raise ConfigError(
            f"{having(config.source, 'listen.trusted_proxies')}: 'listen.trusted_proxies' is wrong: {error}."
        ) from None


def _allowed_origins(config: Config) -> tuple[str, ...]:
    try:
        return parse_origins(config.listen.allowed_origins)
    except ValueError as error:
        raise ConfigError(
            f"{having(config.source, 'listen.allowed_origins')}: 'listen.allowed_origins' is wrong: {error}."
        ) from None


def _show(text: str) -> None:
    # Not to sys.stdout, which twistd sends to the log: the token and the key must appear on the console only.
    print(text, file=sys.__stdout__, flush=True)
