"""Spans and metrics for OpenTelemetry; needs the extra `opentelemetry`.

    client = AsyncVoiceClient.from_env(on_event=[OpenTelemetryEvents()])

Names follow the semantic conventions for HTTP clients. No span and no metric
has a phone number, a verification code or an idempotency key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..events import SubmitEvent
from . import code_label, missing

try:
    from opentelemetry import metrics, trace
except ModuleNotFoundError as _error:
    msg = "opentelemetry"
    raise missing(msg, _error) from None

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from ..verification.values import VerificationEvent

_NAME = "ihuyi_voice"
# As the semantic conventions say for `http.client.request.duration`.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class OpenTelemetryEvents:
    """Makes one span of each request, and counts.

    A request that the client tried to send is a span `POST` of kind CLIENT, with
    the attributes `http.request.method`, `url.full` (without query),
    `server.address`, `server.port`, and where they apply
    `http.response.status_code`, `http.request.resend_count` and `error.type`. A
    request that was refused before, or replayed from the store, is a span
    `ihuyi_voice.submit` of kind INTERNAL. The parent is the span that is
    current where the function of `on_event` is called: the caller's.

    Span attributes of our own: `ihuyi_voice.operation`, `.status`, `.code` and
    `.voice_id`.

    Metrics: `http.client.request.duration` in seconds for what the client tried
    to send, `ihuyi_voice.requests` by operation, status and code, and
    `ihuyi_voice.verification.events` by event and call.

    Args:
        tracer_provider: the global one by default.
        meter_provider: the global one by default.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
        self._duration = meter.create_histogram(
            "http.client.request.duration",
            unit="s",
            description="Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._requests = meter.create_counter(
            "ihuyi_voice.requests",
            unit="{request}",
            description="Requests to the gateway, by how they ended.",
        )
        self._verifications = meter.create_counter(
            "ihuyi_voice.verification.events",
            unit="{event}",
            description="What happened to verifications.",
        )

    def __call__(self, event: SubmitEvent | VerificationEvent) -> None:
        """Report an event."""
        if isinstance(event, SubmitEvent):
            http = _http_attributes(event) if event.attempts else {}
            self._make_span(event, http)
            if http:
                duration = {k: v for k, v in http.items() if k not in _ONLY_OF_SPANS}
                self._duration.record(event.seconds, duration)
            self._requests.add(1, {**_own_attributes(event), "ihuyi_voice.code": code_label(event)})
        else:
            attributes = {"ihuyi_voice.event": str(event.name)}
            if event.call is not None:
                attributes["ihuyi_voice.call"] = event.call.value
            self._verifications.add(1, attributes)

    def _make_span(self, event: SubmitEvent, http: dict[str, str | int]) -> None:
        attributes: dict[str, str | int] = {**http, **_own_attributes(event)}
        if event.code is not None:
            attributes["ihuyi_voice.code"] = event.code
        if event.voice_id is not None:
            attributes["ihuyi_voice.voice_id"] = event.voice_id
        if event.error:
            attributes["error.type"] = event.error
        ended_at = int(event.ended_at * 1e9)
        span = self._tracer.start_span(
            "POST" if http else f"ihuyi_voice.{event.operation}",
            kind=trace.SpanKind.CLIENT if http else trace.SpanKind.INTERNAL,
            attributes=attributes,
            # The event comes at the end.
            start_time=ended_at - int(event.seconds * 1e9),
        )
        if event.failed:
            span.set_status(trace.Status(trace.StatusCode.ERROR, event.reason))
        span.end(end_time=ended_at)


_ONLY_OF_SPANS = ("url.full", "http.request.resend_count")


def _own_attributes(event: SubmitEvent) -> dict[str, str]:
    return {
        "ihuyi_voice.operation": event.operation,
        "ihuyi_voice.status": event.status.value,
    }


def _http_attributes(event: SubmitEvent) -> dict[str, str | int]:
    parts = urlsplit(event.url)
    attributes: dict[str, str | int] = {
        "http.request.method": "POST",
        "url.full": event.url,
        "url.scheme": parts.scheme,
        "server.address": parts.hostname or "",
        "server.port": int(event.host.rpartition(":")[2]),
    }
    if event.http_status is not None:
        attributes["http.response.status_code"] = event.http_status
    if event.attempts > 1:
        attributes["http.request.resend_count"] = event.attempts - 1
    if event.error:
        attributes["error.type"] = event.error
    return attributes
