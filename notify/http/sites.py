"""The sites of the two listeners: which path is served by what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime

from notify.config import Limits
from notify.core.signals import Signals
from notify.core.witness import Witness
from notify.http import admin
from notify.http.answers import Answer, answer, encode
from notify.http.broadcast import Broadcaster
from notify.http.cluster import Cluster, ConnectionReader, NodeReader, TopicReader
from notify.http.commands import (
    MAX_COMMAND,
    Disconnector,
    Draining,
    Order,
    Reloading,
    Shedder,
    Unsubscriber,
)
from notify.http.files import File
from notify.http.hosts import Hosts
from notify.http.keys import ApiKeys
from notify.http.openapi import document
from notify.http.pipeline import PATH, Sockets, Streams
from notify.http.publish import Publisher
from notify.http.reads import HistoryReader, PositionReader, PresenceReader
from notify.http.request import Request, Route
from notify.http.server import Site
from notify.http.signals import MARGIN, Signaller
from notify.http.trace import TraceReader
from notify.ids import Id
from notify.interfaces import IBroker, IControl, IRegistry
from notify.observe.health import Health, HealthReport, Live, PublicHealth
from notify.observe.metrics import Metrics
from notify.observe.tracing import NO_TRACER, Tracer

#: bytes of a publish request with the default payload limit
MAX_BODY = 4 * 2**20
#: requests that an unknown client may send without waiting for answers; browsers never do
MOST_AHEAD = 16

#: parts of the demo page's folder that are not served: npm's files, and the page for the internal listener
_LEFT_OUT = ("node_modules", "admin")

NO_NAMES = Hosts()


def _status(report: HealthReport) -> int:
    return HTTPStatus.OK if report.ready else HTTPStatus.SERVICE_UNAVAILABLE


def most_body(limits: Limits) -> int:
    """The most bytes of a publish request, or of one message of a stream."""
    return max(MAX_BODY, limits.max_frame + 64 * 1024)


def internal_site(
    *,
    reactor: IReactorTime,
    broker: IBroker,
    registry: IRegistry,
    control: IControl,
    node: str,
    health: Health,
    keys: ApiKeys,
    limits: Limits,
    metrics: Metrics,
    sockets: Sockets,
    signals: Signals,
    revoker: Callable[[Request], Deferred[Answer]],
    render: Callable[[], bytes | Deferred[bytes]] | None = None,
    tracer: Tracer = NO_TRACER,
    hosts: Hosts = NO_NAMES,
    logs: Callable[[], bool] = lambda: True,
    witness: Callable[[], Witness | None] = lambda: None,
    pace: Callable[[Id, int], Deferred[None] | None] = lambda workspace, size: None,
) -> Site:
    """The internal listener's site (docs/http-api.md).

    - ``node`` is this node's name.
    - ``sockets`` makes WebSockets that take messages of :func:`most_body` bytes.
    - ``revoker`` answers ``/v1/revoke``.
    - ``render`` returns the metrics as text, if they include those of other processes.
    - ``hosts`` are the host names under which metrics may be requested.
    - ``logs()`` tells whether anybody reads the log lines of answers.
    - ``witness()`` is told of publishes.
    - ``pace(workspace, size)`` is what a message waits for before it is published, if anything.
    """

    def ready(request: Request) -> Answer:
        report = health.report()
        return answer(report, _status(report))

    def show_metrics(request: Request) -> Deferred[Answer]:
        hosts.check(request.host)
        metrics.broker_up.set(broker.status().ready)
        kind = CONTENT_TYPE_LATEST.encode("ascii")
        rendered: Any = maybeDeferred(render or metrics.render)
        rendered.addCallback(lambda text: Answer(HTTPStatus.OK, text, kind))
        shown: Deferred[Answer] = rendered
        return shown

    max_body = most_body(limits)
    description = Answer(HTTPStatus.OK, encode(document(limits.max_frame, max_body)))
    get, post = b"GET", b"POST"
    cluster = Cluster(control)
    publisher = Publisher(broker, metrics, limits.max_frame, tracer, witness, pace)
    streams = Streams(
        publisher,
        sockets,
        keys.stands,
        reactor,
        metrics.publish_streams,
        lambda reason, peer: site.hung_up(reason, peer),
    )

    def command(handler: Callable[[Request], Deferred[Answer]], json: bool = False) -> Route:
        return Route({post: handler}, scope="control", max_body=MAX_COMMAND, json=json)

    routes = {
        b"/v1/publish": Route(
            {post: publisher},
            scope="publish",
            max_body=max_body,
            json=True,
        ),
        b"/v1/broadcast": Route(
            {post: Broadcaster(publisher, limits.max_frame, max_body)},
            scope="publish",
            max_body=max_body,
            json=True,
        ),
        PATH.encode(): Route({get: streams}, scope="publish"),
        b"/v1/signal": Route(
            {post: Signaller(signals)}, scope="publish", max_body=limits.max_frame + MARGIN, json=True
        ),
        b"/v1/history": Route({get: HistoryReader(broker)}, scope="read"),
        b"/v1/position": Route({get: PositionReader(broker)}, scope="read"),
        b"/v1/presence": Route({get: PresenceReader(registry)}, scope="read"),
        b"/v1/nodes": Route({get: NodeReader(cluster)}, scope="read"),
        b"/v1/connections": Route({get: ConnectionReader(cluster)}, scope="read"),
        b"/v1/topics": Route({get: TopicReader(cluster)}, scope="read"),
        b"/v1/trace": Route({get: TraceReader(cluster, keys.stands, reactor)}, scope="read"),
        b"/v1/disconnect": command(Disconnector(cluster), json=True),
        b"/v1/unsubscribe": command(Unsubscriber(cluster), json=True),
        b"/v1/revoke": command(revoker, json=True),
        b"/v1/shed": command(Shedder(cluster), json=True),
        b"/v1/reload": command(Order(cluster, node, "reload", Reloading)),
        b"/v1/drain": command(Order(cluster, node, "drain", Draining)),
        b"/health/live": Route({get: lambda request: answer(Live())}),
        b"/health/ready": Route({get: ready}),
        b"/health": Route({get: ready}),
        b"/metrics": Route({get: show_metrics}),
        b"/openapi.json": Route({get: lambda request: description}),
        **admin.routes(hosts),
    }
    site = Site(reactor, routes, keys, metrics, logs=logs, wind_up=streams.close)
    return site


def public_site(
    *,
    reactor: IReactorTime,
    health: Health,
    metrics: Metrics,
    timeout: Callable[[], float],
    demo: Path | None = None,
    demo_routes: Mapping[bytes, Route] | None = None,
    logs: Callable[[], bool] = lambda: True,
) -> Site:
    """The public listener's site: ``/health``, and the demo page if its folder is given.

    The folder's files are served under ``/``, and ``index.html`` also as ``/``. ``demo_routes`` are the requests of
    that page. ``timeout()`` is the idle timeout of a connection, in seconds; ``logs`` is as for the internal site.
    """

    def show_health(request: Request) -> Answer:
        report = health.report()
        return answer(PublicHealth("ok" if report.ready else "unavailable"), _status(report))

    routes = {b"/health": Route({b"GET": show_health}), **(demo_routes or {})}
    for path, file in _files(demo):
        routes.setdefault(path, Route({b"GET": file}))
    return Site(reactor, routes, None, metrics, timeout=timeout, most_ahead=MOST_AHEAD, logs=logs)


def _files(folder: Path | None) -> Iterable[tuple[bytes, File]]:
    """Every file in a folder by the path it is served at. No request can reach any other file."""
    if folder is None:
        return
    root = folder.resolve()
    for path in sorted(root.rglob("*")):
        inside = path.resolve().is_relative_to(root)
        parts = path.relative_to(root).parts
        if not inside or not path.is_file() or any(p.startswith(".") or p in _LEFT_OUT for p in parts):
            continue
        file = File(path)
        yield b"/" + "/".join(parts).encode(), file
        if parts == ("index.html",):
            yield b"/", file
