"""``twistd notify``: its options, and the composition root that makes one service of a configuration.

Only this module knows everyone.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import SystemRandom
from socket import gethostname
from typing import Any

from msgspec import structs
from twisted.application.service import IService
from twisted.python import usage

from notify import components, dev
from notify.config import Config, ConfigError, load
from notify.core.dispatcher import Dispatcher, end_of_turn
from notify.core.hub import Hub
from notify.core.presence import PresenceWatch
from notify.core.timers import Wheel
from notify.dev.demo import demo_routes
from notify.errors import StartError
from notify.http.keys import ApiKeys, read_keys
from notify.http.sites import internal_site, public_site
from notify.interfaces import IAuthenticator, IBroker, IRegistry
from notify.observe import logging, tracing
from notify.observe.health import Health
from notify.observe.metrics import Metrics
from notify.service import reactor
from notify.service.lifecycle import Lifecycle
from notify.service.reload import Reloader
from notify.service.service import Listener, NotifyService
from notify.service.systemd import Systemd
from notify.transport.handshake import Network, parse_networks
from notify.transport.listener import PublicFactory
from notify.transport.websocket import ConnectionFactory

#: the demo page's folder
DEMO = Path(__file__).parent / "web"


class Options(usage.Options):
    """The options of ``twistd notify``."""

    longdesc = (
        "A real-time notification server. Without --config it runs on its defaults and the environment "
        "(NOTIFY_LISTEN__PUBLIC=tcp:9000 and so on); etc/notify.toml lists every key."
    )
    optParameters = [["config", "c", None, "The configuration file (TOML)."]]  # noqa: RUF012
    optFlags = [  # noqa: RUF012
        ["dev", None, "Try it out: memory broker, keys made for this run, demo page, commands to paste."]
    ]
    config: Config

    def postOptions(self) -> None:
        """Read the configuration, and install the reactor: the one place that twistd and twist share for it."""
        try:
            reactor.install()
            if self["dev"] and self["config"]:
                raise StartError("--dev makes its own configuration: give either --dev or --config.")
            self.config = self.read()
        except StartError as error:
            raise SystemExit(f"notify: {error}") from None
        parent = self.parent
        if parent is not None and not any(parent.get(option) for option in ("logger", "logfile", "syslog")):
            parent["logger"] = "notify.observe.logging.observer"
        logging.configure(self.config.log)

    def read(self) -> Config:
        """The configuration that the options name, anew. Raises ``ConfigError``."""
        if self["dev"]:
            # Its keys are made for one run: there is nothing to read again.
            return getattr(self, "config", None) or dev.configuration(os.environ)
        config = load(self["config"], os.environ)
        components.check(config)
        return config


def makeService(options: Options) -> IService:
    """The service that twistd runs."""
    from twisted.internet import reactor

    try:
        service = build(
            options.config,
            reactor,
            show=_show if options["dev"] else None,
            read=options.read,
            environ=os.environ,
        )
    except StartError as error:
        raise SystemExit(f"notify: {error}") from None
    # Ended by a watchdog (SIGABRT) or by a fault in a library, it says where it was.
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    # Twisted installs its own handlers when the reactor starts.
    installing: Any = reactor
    installing.callWhenRunning(service.lifecycle.install_signals, installing.callFromThread)
    return service


def build(
    config: Config,
    reactor: Any,
    show: Callable[[str], None] | None = None,
    read: Callable[[], Config] | None = None,
    environ: Mapping[str, str] | None = None,
) -> NotifyService:
    """One service of a configuration. Raises ``StartError``.

    ``show`` is given the instructions of ``--dev``; ``read`` gives the configuration anew, for a reload; ``environ``
    says whether there is a systemd to tell things to.
    """
    metrics, random, wheel = Metrics(), SystemRandom(), Wheel(reactor)
    context = components.Context(reactor, metrics, random, node_name(config), config)
    keys = ApiKeys(read_keys(config.api, config.source))
    trusted = _trusted_proxies(config)
    authenticator: IAuthenticator = components.make("auth", context)
    broker: IBroker = components.make("broker", context)
    registry: IRegistry = components.make("registry", context)
    limits = config.limits
    tracer = tracing.make(config.tracing, context.node)
    dispatcher = Dispatcher(
        broker,
        registry,
        metrics,
        end_of_turn(reactor),
        reactor.seconds,
        limits.replay,
        limits.send_queue,
        tracer,
    )
    presence = PresenceWatch(registry, wheel.after)
    hub = Hub(authenticator, dispatcher, registry, presence, metrics, limits, wheel, time.time, random)
    health = Health(broker.status, ("internal", "public"))
    internal = internal_site(
        reactor=reactor,
        broker=broker,
        registry=registry,
        connections=hub.connections.keys,
        drain=lambda: lifecycle.drain(),
        health=health,
        keys=keys,
        limits=limits,
        metrics=metrics,
        tracer=tracer,
    )
    connections = ConnectionFactory(hub, config.listen.allowed_origins, trusted, reactor, config.compression)
    pages = public_site(
        reactor=reactor,
        health=health,
        metrics=metrics,
        timeout=limits.handshake_timeout,
        demo=DEMO if config.listen.demo else None,
        demo_routes=demo_routes(partial(_demo_token, config), broker)
        if config.listen.demo and show
        else None,
    )
    public = PublicFactory(connections, pages, wheel, lambda: hub.limits.handshake_timeout)
    lifecycle = Lifecycle(reactor, Systemd(environ or {}), metrics, lambda: len(hub.connections))

    async def prepare(wanted: Config) -> Callable[[], None]:
        new_keys = read_keys(wanted.api, wanted.source)
        new_trusted = _trusted_proxies(wanted)
        authenticator = components.make("auth", structs.replace(context, config=wanted))
        await authenticator.start()

        def apply() -> None:
            before, hub.authenticator = hub.authenticator, authenticator
            hub.limits = wanted.limits
            dispatcher.limit, dispatcher.max_bytes = wanted.limits.replay, wanted.limits.send_queue
            connections.adopt(wanted.limits)
            connections.allowed_origins, connections.trusted = wanted.listen.allowed_origins, new_trusted
            pages.timeOut = wanted.limits.handshake_timeout
            keys.replace(new_keys)
            logging.configure(wanted.log)
            before.stop()

        return apply

    reloader = Reloader(config, read or (lambda: config), prepare, lifecycle.ready)
    lifecycle.reload = reloader.reload

    def announce(service: NotifyService) -> None:
        if show is not None:
            ports = service.public.port.getHost(), service.internal.port.getHost()
            show(dev.instructions(config, *(getattr(port, "port", 0) for port in ports)))

    return NotifyService(
        reactor,
        hub,
        broker,
        registry,
        health,
        Listener("internal", config.listen.internal, internal),
        Listener("public", config.listen.public, public),
        announce,
        lifecycle,
        lambda: reloader.config.drain,
        lambda: connections.countConnections,
        internal.settled,
        tracer.stop,
    )


def _demo_token(config: Config, user_id: int, seconds: float) -> str:
    return dev.issue_token(config, user_id, seconds=seconds)


def node_name(config: Config) -> str:
    """The configured name, or one of host name and public endpoint: the same after a restart."""
    made = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{gethostname()}-{config.listen.public}")
    return config.server.node or made[:64]


def _trusted_proxies(config: Config) -> tuple[Network, ...]:
    try:
        return parse_networks(config.listen.trusted_proxies)
    except ValueError as error:
        raise ConfigError(f"{config.source}: 'listen.trusted_proxies' is wrong: {error}.") from None


def _show(text: str) -> None:
    # Not to sys.stdout, which twistd sends to the log: the token and the key belong on the console alone.
    print(text, file=sys.__stdout__, flush=True)
