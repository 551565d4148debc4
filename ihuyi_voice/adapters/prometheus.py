"""Counters and a histogram for Prometheus; needs the extra `prometheus`.

    events = PrometheusEvents()
    client = VoiceClient.from_env(on_event=[events])
    verifier = Verifier(client, key=..., on_event=[events])

Labels have few values, so they fit several processes (`PROMETHEUS_MULTIPROC_DIR`)
as well. Approvals per start of a verification:

    rate(ihuyi_voice_verification_events_total{event="approved"}[1h])
      / ignoring(event, call)
    rate(ihuyi_voice_verification_events_total{event="started"}[1h])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..events import SubmitEvent
from . import code_label, missing

try:
    from prometheus_client import REGISTRY, Counter, Histogram
except ModuleNotFoundError as _error:
    msg = "prometheus"
    raise missing(msg, _error) from None

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry

    from ..verification.values import VerificationEvent

BUCKETS: tuple[float, ...] = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)
"""Upper bounds of the histogram, in seconds: a request takes at most the client's timeout."""


class PrometheusEvents:
    """Counts events. Create one for each registry, and give it to all clients and verifiers.

    - `ihuyi_voice_requests_total`: by operation, status and code. The code is
      one of the gateway's table, "other", or "" for none.
    - `ihuyi_voice_request_seconds`: a histogram, by operation and status.
    - `ihuyi_voice_verification_events_total`: by event and by how the call of
      the event ended, "" for none.

    Args:
        registry: where the metrics are registered.
        buckets: upper bounds of the histogram, in seconds.

    Raises:
        ValueError: the registry has these metrics already.
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, buckets: Sequence[float] = BUCKETS
    ) -> None:
        self._requests = Counter(
            "ihuyi_voice_requests",
            "Requests to the gateway, by how they ended.",
            ("operation", "status", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "ihuyi_voice_request_seconds",
            "Seconds from the wait for a slot to the outcome of a request.",
            ("operation", "status"),
            registry=registry,
            buckets=tuple(buckets),
        )
        self._verifications = Counter(
            "ihuyi_voice_verification_events",
            "What happened to verifications.",
            ("event", "call"),
            registry=registry,
        )

    def __call__(self, event: SubmitEvent | VerificationEvent) -> None:
        """Count an event."""
        if isinstance(event, SubmitEvent):
            status = event.status.value
            self._requests.labels(event.operation, status, code_label(event)).inc()
            self._seconds.labels(event.operation, status).observe(event.seconds)
        else:
            call = "" if event.call is None else event.call.value
            self._verifications.labels(str(event.name), call).inc()
