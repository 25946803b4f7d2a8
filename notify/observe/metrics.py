"""All metrics of the server, in one registry, served at /metrics.

Names and labels are a contract with dashboards and alerts (etc/). No label ever carries a value that a client or a
message chose.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from notify._version import __version__
from notify.observe.fast_metrics import FastCounter, FastHistogram

_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The server's metrics: one instance in each process; tests make their own. ``event_loop`` is the loop's name."""

    def __init__(self, event_loop: str = "asyncio") -> None:
        self.registry = r = CollectorRegistry()
        self.connections = Gauge(
            "notify_connections", "Open WebSocket connections and event streams.", registry=r
        )
        self.event_streams = Gauge(
            "notify_event_streams", "Event streams among the open connections.", registry=r
        )
        self.sockets = Gauge(
            "notify_sockets", "Sockets of the public port, each from its accept to its end.", registry=r
        )
        self.turned_away = Counter(
            "notify_connections_refused",
            "Sockets of the public port that were refused, by reason: files, full, arriving, address_connections, "
            "address_arriving, address_handshakes.",
            ["reason"],
            registry=r,
        )
        self.accepted = Counter(
            "notify_connections_accepted", "WebSockets and event streams opened.", registry=r
        )
        self.refused_handshakes = Counter(
            "notify_handshakes_refused",
            "WebSocket handshakes, and requests for event streams, that opened nothing, by the status of the answer; 403: the page's Origin is not allowed.",
            ["status"],
            registry=r,
        )
        self.tls_failures = Counter(
            "notify_tls_failures",
            "TLS handshakes that failed, by listener and why: fault, unfinished when the client left or was too slow, "
            "endless when it went on asking for new keys.",
            ["listener", "why"],
            registry=r,
        )
        self.auth = Counter(
            "notify_auth",
            "Authentications, by result: ok, refused, revoked, unavailable, timeout, full (max_connections_per_user).",
            ["result"],
            registry=r,
        )
        self.key_fetches = Counter(
            "notify_key_fetches", "Fetches of the JWK Set, by result: ok, failed.", ["result"], registry=r
        )
        self.webhook = Counter(
            "notify_webhook",
            "Questions to the auth webhook, by question (authenticate, authorize, recheck) and answer: yes, no, error. "
            "Remembered and shared answers do not count; a recheck of several with a no among them is a no.",
            ["question", "answer"],
            registry=r,
        )
        self.subscriptions = Gauge(
            "notify_subscriptions", "Chats that connections are subscribed to.", registry=r
        )
        self.ended = Counter(
            "notify_subscriptions_ended",
            "Subscriptions that the server ended, by what the client was told: forbidden, unavailable.",
            ["code"],
            registry=r,
        )
        self.topics = Gauge(
            "notify_topics", "Topics that this node follows, those that linger included.", registry=r
        )
        self.published = FastCounter(
            "notify_published",
            "Publishes through this node, by result: ok, poison, forbidden, unavailable, unknown, failed.",
            ["result"],
            registry=r,
        )
        self.publish_streams = Gauge(
            "notify_publish_streams",
            "Open connections of /v1/stream, over which backends publish.",
            registry=r,
        )
        self.received = FastCounter(
            "notify_received", "Messages delivered by the broker to this node.", registry=r
        ).labels()
        self.delivered = FastCounter(
            "notify_delivered", "Messages written to connections, each counted once a connection.", registry=r
        ).labels()
        self.signals_sent = Counter(
            "notify_signals_sent",
            "Signals of this node's clients, and of backends, that were handed to the broker.",
            registry=r,
        )
        self.signals_received = Counter(
            "notify_signals_received", "Signals that came from the broker for somebody here.", registry=r
        )
        self.signals_delivered = Counter(
            "notify_signals_delivered",
            "Writes of signals to connections; those of one chat that came together are one.",
            registry=r,
        )
        self.signals_dropped = Counter(
            "notify_signals_dropped",
            "Signals dropped, by reason: rate (of a client over its rate), unavailable (no broker to carry them), crowded "
            "(more than a chat may have), poison, and slow (not written to a client that had not taken what came before).",
            ["reason"],
            registry=r,
        )
        self.delivery_seconds = FastHistogram(
            "notify_delivery_seconds",
            "From broker to the last socket of this node.",
            buckets=_LATENCY,
            registry=r,
        ).labels()
        self.replays = Counter(
            "notify_replays",
            "Resumptions, by outcome: recovered, lost, too_long, unavailable.",
            ["outcome"],
            registry=r,
        )
        self.replay_reads = Counter(
            "notify_replay_reads",
            "Times the broker was asked for history for those who resumed; one serves all who wait for a topic.",
            registry=r,
        )
        self.replays_from_memory = Counter(
            "notify_replays_from_memory",
            "Resumptions recovered at once, out of what this node had in memory.",
            registry=r,
        )
        self.pages = Counter(
            "notify_pages",
            "Pages of history that clients asked for, by outcome: memory (out of what this node had), read, lost, unavailable.",
            ["outcome"],
            registry=r,
        )
        self.slow_clients = Counter(
            "notify_slow_clients", "Connections closed for a full send queue.", registry=r
        )
        self.closes = Counter(
            "notify_closes", "Connections closed, by close code sent or received.", ["code"], registry=r
        )
        self.errors = Counter("notify_errors", "Error frames sent, by code.", ["code"], registry=r)
        self.poison = Counter("notify_poison", "Payloads that could not be delivered to anyone.", registry=r)
        self.broker_up = Gauge("notify_broker_up", "1 while the broker can be used.", registry=r)
        self.broker_connects = Counter(
            "notify_broker_connects",
            "Connections made to the broker; more than one means that one was lost.",
            registry=r,
        )
        self.broker_gaps = Counter(
            "notify_broker_gaps", "Times a followed topic was behind its stream and was mended.", registry=r
        )
        self.broker_filled = Counter(
            "notify_broker_filled",
            "Messages read from the stream because they had not come live.",
            registry=r,
        )
        self.broker_lost = Counter(
            "notify_broker_lost", "Followed topics whose continuity could not be shown.", registry=r
        )
        self.broker_faults = Gauge(
            "notify_broker_faults",
            "What keeps the broker from being of full use, as its status says.",
            registry=r,
        )
        self.history_holes = Gauge(
            "notify_history_holes", "Numbers inside the stream that no message has any more.", registry=r
        )
        self.history_epochs = Counter(
            "notify_history_epochs", "Times the history was found to be another one.", registry=r
        )
        self.audit_failures = Counter(
            "notify_audit_failures",
            "Copies of the stream that were found to lack what their leader has.",
            registry=r,
        )
        self.dead_letters = Counter(
            "notify_dead_letters", "Dead letters, by result: kept, known, failed.", ["result"], registry=r
        )
        self.presence_orphans = Counter(
            "notify_presence_orphans",
            "Presence entries that outlived their node and were removed.",
            registry=r,
        )
        self.reloads = Counter(
            "notify_reloads", "Reloads of the configuration, by result: ok, failed.", ["result"], registry=r
        )
        for result in ("ok", "failed"):
            self.reloads.labels(result)  # there from the first scrape, so that the first one shows
        self.nodes = Gauge(
            "notify_nodes", "Nodes that this one knows to be there, itself included.", registry=r
        )
        self.revocations = Gauge(
            "notify_revocations", "Users of whom this node refuses the tokens that were revoked.", registry=r
        )
        self.draining = Gauge("notify_draining", "1 while the server drains.", registry=r)
        self.drain_left = Gauge(
            "notify_drain_left", "Clients that the drain has still to send away.", registry=r
        )
        self.http_requests = FastCounter(
            "notify_http_requests",
            "HTTP answers, by path and status; paths that do not exist count as no_such_path.",
            ["path", "status"],
            registry=r,
        )
        self.keys_refused = Counter(
            "notify_api_keys_refused",
            "Requests refused for their API key, by reason: missing, unknown, slowed (too many unknown ones from there), scope.",
            ["reason"],
            registry=r,
        )
        self.http_seconds = FastHistogram(
            "notify_http_seconds",
            "From a request's headers to its whole answer, by path.",
            ["path"],
            buckets=_LATENCY,
            registry=r,
        )
        self.http_hangups = Counter(
            "notify_http_hangups",
            "HTTP clients that were cut off, by reason: ahead (sent requests without waiting for the answers), slow "
            "(a request was not whole in time), unread (did not read its answers).",
            ["reason"],
            registry=r,
        )
        self._build = Info(
            "notify_build",
            "The version that runs, its event loop, and whether it fans out in C or in Python.",
            registry=r,
        )
        self._about = {"version": __version__, "event_loop": event_loop}
        self._build.info(self._about)
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        GCCollector(registry=r)

    def fans_out_in(self, language: str) -> None:
        """Report the chosen fan-out implementation, which never changes during the life of the process."""
        self._build.info({**self._about, "fan_out": language})

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)
