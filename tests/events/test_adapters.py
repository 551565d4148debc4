"""The adapters, each with the real library."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry, generate_latest

from ihuyi_voice import AsyncVoiceClient, Verifier, VoiceClient
from ihuyi_voice.adapters.opentelemetry import OpenTelemetryEvents
from ihuyi_voice.adapters.prometheus import PrometheusEvents
from ihuyi_voice.adapters.structlog import StructlogEvents
from ihuyi_voice.sandbox import Chaos
from tests.events.kinds import CODE, MASKED, MOBILE, opened

if TYPE_CHECKING:
    from pathlib import Path

    from ihuyi_voice.testing import VoiceGateway

KEY = "the application's own secret key"


def verify_once(url: str, adapter: Any) -> None:
    """Place one call, give a wrong code, then the right one."""
    with VoiceClient("sandbox", "sandbox-key", base_url=url) as client:
        verifier = Verifier(client, key=KEY, on_event=[adapter])
        started = verifier.start(MOBILE, purpose="login")
        verifier.check(started.id, "000000", mobile=MOBILE, purpose="login")


# --- Prometheus ---------------------------------------------------------------


def test_prometheus_counts_requests(voice_gateway: VoiceGateway) -> None:
    registry = CollectorRegistry()
    voice_gateway.blacklist = frozenset({"13900000001"})
    with opened("blocking", voice_gateway.url, PrometheusEvents(registry)) as face:
        face.call("submit", MOBILE, CODE)
        face.run([(f"139{n:08d}", "1125") for n in range(3)])
        voice_gateway.chaos = Chaos(code=4099)
        face.call("submit", MOBILE, CODE)
        face.call("submit", "1", CODE)

    def count(*labels: str, metric: str = "ihuyi_voice_requests_total") -> float | None:
        names = ("operation", "status", "code")
        return registry.get_sample_value(metric, dict(zip(names, labels, strict=False)))

    assert 1.0 == count("submit", "accepted", "2")
    assert 2.0 == count("submit_many", "accepted", "2")
    assert 1.0 == count("submit_many", "refused", "4030")
    # A code outside the gateway's table has no label of its own.
    assert 1.0 == count("submit", "refused", "other")
    assert 1.0 == count("submit", "invalid", "")
    seconds = "ihuyi_voice_request_seconds"
    assert 2.0 == count("submit_many", "accepted", metric=f"{seconds}_count")
    assert 0.0 < (count("submit", "accepted", metric=f"{seconds}_sum") or 0.0)
    shown = generate_latest(registry).decode()
    assert MASKED not in shown
    assert CODE not in shown


def test_prometheus_counts_verifications(voice_gateway: VoiceGateway) -> None:
    registry = CollectorRegistry()
    verify_once(voice_gateway.url, PrometheusEvents(registry))

    def count(event: str, call: str = "") -> float | None:
        labels = {"event": event, "call": call}
        return registry.get_sample_value("ihuyi_voice_verification_events_total", labels)

    assert (1.0, 1.0, 1.0) == (count("started"), count("called", "accepted"), count("checked"))
    assert count("approved") is None


def test_prometheus_adds_up_processes(voice_gateway: VoiceGateway, tmp_path: Path) -> None:
    script = """
import sys
from ihuyi_voice import VoiceClient
from ihuyi_voice.adapters.prometheus import PrometheusEvents
with VoiceClient("sandbox", "sandbox-key", base_url=sys.argv[1], quota=None,
                 on_event=[PrometheusEvents()]) as client:
    client.submit("13912345678", "1125")
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", script, voice_gateway.url],
            check=True,
            env=environment,
            timeout=60,
        )
    collect = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry(); MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""
    done = subprocess.run(
        [sys.executable, "-c", collect],
        check=True,
        env=environment,
        timeout=60,
        capture_output=True,
        text=True,
    )
    line = 'ihuyi_voice_requests_total{code="2",operation="submit",status="accepted"} 2.0'
    assert line in done.stdout


# --- OpenTelemetry ------------------------------------------------------------


class Telemetry:
    """The real SDK, kept in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider(metric_readers=[self.reader])
        self.events = OpenTelemetryEvents(self.tracers, self.meters)

    def points(self) -> dict[str, list[Any]]:
        """The data points of each metric."""
        data: Any = self.reader.get_metrics_data()
        (resource,) = data.resource_metrics
        return {
            metric.name: list(metric.data.data_points)
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def test_a_submit_is_a_client_span(voice_gateway: VoiceGateway) -> None:
    telemetry = Telemetry()
    before = time.time_ns()
    with opened("blocking", voice_gateway.url, telemetry.events) as face:
        result: Any = face.call("submit", MOBILE, CODE)
    (span,) = telemetry.exporter.get_finished_spans()
    host, _, port = voice_gateway.url.removeprefix("http://").partition(":")
    assert {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.full": f"{voice_gateway.url}/webservice/voice.php",
        "url.scheme": "http",
        "server.address": host,
        "server.port": int(port),
        "ihuyi_voice.operation": "submit",
        "ihuyi_voice.status": "accepted",
        "ihuyi_voice.code": 2,
        "ihuyi_voice.voice_id": result.voice_id,
    } == dict(span.attributes or {})
    assert ("POST", SpanKind.CLIENT, StatusCode.UNSET) == (
        span.name,
        span.kind,
        span.status.status_code,
    )
    assert span.start_time is not None
    assert span.end_time is not None
    # The clock of spans and the clock of durations may differ a little.
    assert before - 1_000_000 <= span.start_time < span.end_time <= time.time_ns()


def test_the_times_of_a_span_are_those_of_the_request() -> None:
    """The event of a blocking client comes some time after the request has ended."""
    telemetry = Telemetry()
    seen: list[Any] = []
    with opened("blocking", "http://127.0.0.1:9", seen.append, connect_attempts=2) as face:
        face.call("submit", MOBILE, CODE)
    telemetry.events(seen[0])
    (span,) = telemetry.exporter.get_finished_spans()
    assert span.start_time is not None
    assert span.end_time == int(seen[0].ended_at * 1e9)
    assert span.end_time - span.start_time == int(seen[0].seconds * 1e9)
    attributes = dict(span.attributes or {})
    assert (1, "NotSentError") == (
        attributes["http.request.resend_count"],
        attributes["error.type"],
    )
    assert "http.response.status_code" not in attributes
    assert StatusCode.ERROR is span.status.status_code


def test_what_was_not_tried_is_no_client_span(voice_gateway: VoiceGateway) -> None:
    telemetry = Telemetry()
    with opened("asyncio", voice_gateway.url, telemetry.events) as face:
        face.call("submit", MOBILE, "98x6")
    (span,) = telemetry.exporter.get_finished_spans()
    assert ("ihuyi_voice.submit", SpanKind.INTERNAL) == (span.name, span.kind)
    assert {
        "ihuyi_voice.operation": "submit",
        "ihuyi_voice.status": "invalid",
        "error.type": "InvalidRequestError",
    } == dict(span.attributes or {})
    assert "http.client.request.duration" not in telemetry.points()


async def test_the_parent_is_the_callers_span(voice_gateway: VoiceGateway) -> None:
    telemetry = Telemetry()
    async with AsyncVoiceClient(
        "sandbox", "sandbox-key", base_url=voice_gateway.url, on_event=[telemetry.events]
    ) as client:
        with telemetry.tracers.get_tracer("app").start_as_current_span("request") as request:
            await client.submit(MOBILE, CODE)
            async with client.submit_many([("13900000000", CODE)]) as run:
                await run.finish()
    *ours, _ = telemetry.exporter.get_finished_spans()
    expected = [request.get_span_context().span_id] * 2
    assert expected == [span.parent.span_id for span in ours if span.parent is not None]


def test_opentelemetry_measures(voice_gateway: VoiceGateway) -> None:
    telemetry = Telemetry()
    with opened("blocking", voice_gateway.url, telemetry.events) as face:
        face.run([(f"139{n:08d}", CODE) for n in range(3)])
    verify_once(voice_gateway.url, telemetry.events)
    points = telemetry.points()
    (duration,) = points["http.client.request.duration"]
    assert 3 == duration.count
    assert {
        "http.request.method",
        "http.response.status_code",
        "server.address",
        "server.port",
        "url.scheme",
    } == set(duration.attributes)
    assert 0.005 == duration.explicit_bounds[0]
    (requests,) = points["ihuyi_voice.requests"]
    assert (
        3,
        {
            "ihuyi_voice.operation": "submit_many",
            "ihuyi_voice.status": "accepted",
            "ihuyi_voice.code": "2",
        },
    ) == (requests.value, dict(requests.attributes))
    counted = {
        (point.attributes["ihuyi_voice.event"], point.attributes.get("ihuyi_voice.call"))
        for point in points["ihuyi_voice.verification.events"]
    }
    assert {("started", None), ("called", "accepted"), ("checked", None)} == counted
    texts = repr([span.to_json() for span in telemetry.exporter.get_finished_spans()])
    for secret in (CODE, MASKED, "1390000000"):
        assert secret not in texts
        assert secret not in repr(points)


# --- structlog ----------------------------------------------------------------


def test_structlog_has_the_fields(voice_gateway: VoiceGateway) -> None:
    voice_gateway.blacklist = frozenset({"13900000001"})
    with (
        structlog.testing.capture_logs() as lines,
        opened("blocking", voice_gateway.url, StructlogEvents()) as face,
    ):
        face.call("submit", MOBILE, CODE)
        face.call("submit", "13900000001", CODE)
    good, bad = lines
    assert ("submit", "info", MASKED, "accepted", 2) == (
        good["event"],
        good["log_level"],
        good["mobile"],
        good["status"],
        good["code"],
    )
    assert ("submit", "warning", "refused", "BlockedMobileError") == (
        bad["event"],
        bad["log_level"],
        bad["status"],
        bad["error"],
    )
    assert MOBILE not in repr(lines)
    assert CODE not in repr(lines)


def test_structlog_logs_verifications(voice_gateway: VoiceGateway) -> None:
    with structlog.testing.capture_logs() as lines:
        verify_once(voice_gateway.url, StructlogEvents(structlog.get_logger("mine")))
    assert ["started", "called", "checked"] == [line["name"] for line in lines]
    assert {"verification"} == {line["event"] for line in lines}
    assert "accepted" == lines[1]["call"]


# --- without the library ------------------------------------------------------


@pytest.mark.measures_processes
@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("prometheus", "prometheus_client"),
        ("opentelemetry", "opentelemetry"),
        ("structlog", "structlog"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    extra: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys\n"
        f"sys.modules[{module!r}] = None\n"
        f"try: import ihuyi_voice.adapters.{extra}\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    needed = f"ihuyi_voice.adapters.{extra} needs {module}"
    install = f"pip install 'ihuyi-voice[{extra}]', or '.[{extra}]' in a checkout"
    assert f"{needed}: {install}\n" == done.stdout


def test_a_client_imports_no_adapter() -> None:
    script = (
        "import sys; from ihuyi_voice import VoiceClient\n"
        "print({'prometheus_client', 'structlog', 'ihuyi_voice.adapters'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert "set()\n" == done.stdout
