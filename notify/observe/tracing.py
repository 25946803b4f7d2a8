"""One trace from publish through the broker to the socket.

The context travels as a W3C ``traceparent``: in the header of the HTTP request, in the header of the NATS message,
and in ``Message.trace``. Spans are made with OpenTelemetry if ``[tracing] endpoint`` is set. Without it, or without
the package, contexts are passed on unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from notify.config import ConfigError, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OTelSpan

Attributes = Mapping[str, str | int | bool]

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


def valid(traceparent: str) -> str:
    """The ``traceparent`` if it is valid (W3C Trace Context, section 3.2), otherwise empty. It is untrusted input."""
    return traceparent if _TRACEPARENT.fullmatch(traceparent) else ""


@runtime_checkable
class Span(Protocol):
    """A timed piece of work. As a context manager, it ends with the block and records its exception."""

    @property
    def traceparent(self) -> str:
        """The parent for whatever is called next; empty: there is no trace."""

    def set(self, name: str, value: str | int | bool) -> None:
        """Add an attribute."""

    def fail(self, reason: str) -> None:
        """The work failed; ``reason`` must not quote any token or content."""

    def end(self) -> None:
        """The work is over. A second call does nothing."""

    def __enter__(self) -> Span: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    """Makes spans."""

    def span(
        self, name: str, parent: str = "", attributes: Attributes | None = None, *, root: bool = False
    ) -> Span:
        """Begin a span under ``parent``, a traceparent. Without a parent, only a ``root`` span begins a trace."""

    def stop(self) -> None:
        """Send the remaining spans; blocks for at most some seconds."""


class PassingSpan:
    """Not a span: passes its parent on."""

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def set(self, name: str, value: str | int | bool) -> None:
        """See :class:`Span`."""

    def fail(self, reason: str) -> None:
        """See :class:`Span`."""

    def end(self) -> None:
        """See :class:`Span`."""

    def __enter__(self) -> PassingSpan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


_NOTHING = PassingSpan("")


class NoTracer:
    """Makes no spans, and passes contexts on."""

    def span(
        self, name: str, parent: str = "", attributes: Attributes | None = None, *, root: bool = False
    ) -> Span:
        """See :class:`Tracer`."""
        return PassingSpan(valid(parent)) if parent else _NOTHING

    def stop(self) -> None:
        """See :class:`Tracer`."""


NO_TRACER = NoTracer()


class RecordingSpan:
    """An OpenTelemetry span."""

    def __init__(self, span: OTelSpan) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """See :class:`Span`."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set(self, name: str, value: str | int | bool) -> None:
        """See :class:`Span`."""
        self._span.set_attribute(name, value)

    def fail(self, reason: str) -> None:
        """See :class:`Span`."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self) -> None:
        """See :class:`Span`."""
        if self._span.is_recording():
            self._span.end()

    def __enter__(self) -> RecordingSpan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            # Only the type: an exception's text may quote what a client sent.
            self.fail(kind.__name__)
        self.end()


class OTelTracer:
    """Makes spans with an OpenTelemetry provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("notify")

    def span(
        self, name: str, parent: str = "", attributes: Attributes | None = None, *, root: bool = False
    ) -> Span:
        """See :class:`Tracer`."""
        from opentelemetry import context, trace

        match = _TRACEPARENT.fullmatch(parent)
        if match is None and not root:
            return _NOTHING
        # Never the ambient context: in the single reactor thread it would belong to another caller.
        inside = context.Context()
        if match is not None:
            came = trace.SpanContext(
                int(match[1], 16),
                int(match[2], 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(int(match[3], 16)),
            )
            inside = trace.set_span_in_context(trace.NonRecordingSpan(came), inside)
        return RecordingSpan(self._tracer.start_span(name, inside, attributes=dict(attributes or {})))

    def stop(self) -> None:
        """See :class:`Tracer`."""
        self._provider.shutdown()


def make(settings: Tracing, node: str, exporter: SpanExporter | None = None) -> Tracer:
    """The tracer for these settings; ``exporter`` replaces the one for their endpoint.

    Spans are sent from a thread, in batches. Raises ``ConfigError`` if the package is missing.
    """
    if not settings.endpoint:
        return NO_TRACER
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError:
        raise ConfigError(
            "[tracing] endpoint needs OpenTelemetry: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or leave it empty."
        ) from None
    provider = TracerProvider(
        resource=Resource.create({"service.name": settings.service, "service.instance.id": node}),
        sampler=ParentBasedTraceIdRatio(settings.sample),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(exporter or OTLPSpanExporter(settings.endpoint, timeout=5))
    )
    return OTelTracer(provider)
