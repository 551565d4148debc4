"""The benchmark works: all candidates do the same work, and the figures are written.

The tests run it as its users do and never import it: peers may be missing. They
assert nothing about speed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(),
    reason="the installed package is tested without its benchmark",
)

FORM = "account=cf_benchmark&mobile=13912345678&content=1125&format=json"
# `printf cf_benchmark0123456789abcdef0123456789abcdef1391234567811251700000000 | md5sum`
SIGNED = f"{FORM}&time=1700000000&password=3c945a9dec0580db600dcc6074b13a5a"


def unless_missing(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"{module} is not installed"
    )


CANDIDATES = [
    "vendor-demo",
    pytest.param("requests", marks=unless_missing("requests")),
    pytest.param("requests-threads", marks=unless_missing("requests")),
    pytest.param("httpx", marks=unless_missing("httpx")),
    "aiohttp",
    "aiohttp-best",
    "raw",
    "submit",
    "submit-many",
    "submit-many-generator",
    "submit-many-quota",
    pytest.param("submit-many-limits", marks=unless_missing("sqlalchemy")),
    "voice-client-submit",
    "voice-client-submit-many",
]

# Coverage is not that of the benchmark, and with it each process takes twice as long to start.
UNMEASURED = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}


@contextlib.contextmanager
def stub_gateway(*options: str) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stub", *options],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=UNMEASURED,
    ) as stub:
        assert stub.stdin is not None
        assert stub.stdout is not None
        yield f"http://127.0.0.1:{int(stub.stdout.readline())}"
        stub.stdin.close()
        assert stub.wait(timeout=10) == 0, "the stub must end with its standard input"


@pytest.fixture(scope="module")
def stub() -> Iterator[str]:
    """A stub that verifies every signature."""
    with stub_gateway("--check") as url:
        yield url


def http(url: str, form: str | None = None) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = None if form is None else form.encode()
    with opener.open(url, body, timeout=10) as answer:
        return json.load(answer)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        env=UNMEASURED,
    )


# --- the stub -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrongly_signed", "form"),
    [
        (0, SIGNED),
        (1, SIGNED.replace("1125", "1126")),
        (1, f"{FORM}&time=1700000000&password={'0' * 32}"),
        (1, FORM),
    ],
)
def test_the_stub_accepts_everything_and_counts_wrong_signatures(
    wrongly_signed: int, form: str, stub: str
) -> None:
    before = http(stub)
    assert 2 == http(f"{stub}/webservice/voice.php?method=Submit", form)["code"]
    after = http(stub)
    assert (1, wrongly_signed) == (
        after["requests"] - before["requests"],
        after["wrongly_signed"] - before["wrongly_signed"],
    )


@pytest.mark.parametrize("piece", [1, 50, 10_000])
def test_the_stub_answers_each_request_in_any_pieces(piece: int, stub: str) -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\ncontent-length: 5\r\n\r\na=\r\n\r"
    before = http(stub)["requests"]
    host, _, port = stub.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for at in range(0, 3 * len(request), piece):
            connection.sendall((request * 3)[at : at + piece])
        answers = b""
        while answers.count(b'"code":2') < 3:
            received = connection.recv(65536)
            assert received, "the stub closed the connection"
            answers += received
    assert 3 == answers.count(b"HTTP/1.1 200 OK\r\n")
    assert 3 == http(stub)["requests"] - before


def test_the_stub_answers_after_its_latency() -> None:
    with stub_gateway("--latency", "0.2") as url:
        began = time.monotonic()
        assert 2 == http(url, FORM)["code"]
        assert time.monotonic() - began >= 0.19


# --- the candidates -------------------------------------------------------------


def sent_by(stub: str, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a candidate reports, and what the stub counted meanwhile."""
    before = http(stub)
    done = run("benchmarks.candidates", *arguments, f"--url={stub}", "--concurrency=8")
    assert (0, "") == (done.returncode, done.stderr)
    after = http(stub)
    return json.loads(done.stdout), {name: after[name] - before[name] for name in after}


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_sends_as_many_as_it_reports(name: str, stub: str) -> None:
    said, seen = sent_by(stub, name, "--count=15", "--repeat=2", "--warm-up=10")
    assert (40, 0) == (seen["requests"], seen["wrongly_signed"])
    assert (name, "asyncio", 30, 30) == (
        said["name"],
        said["loop"],
        said["sent"],
        said["accepted"],
    )
    assert min(said["wall"], said["cpu"], said["rss"]) > 0


@pytest.mark.parametrize("name", ["raw", "submit-many", "voice-client-submit-many"])
@unless_missing("uvloop")
def test_a_candidate_can_run_on_uvloop(name: str, stub: str) -> None:
    said, seen = sent_by(stub, name, "--count=30", "--warm-up=10", "--uvloop")
    assert (40, 0) == (seen["requests"], seen["wrongly_signed"])
    assert (name, "uvloop", 30, 30) == (
        said["name"],
        said["loop"],
        said["sent"],
        said["accepted"],
    )


# --- the figures ----------------------------------------------------------------


def test_the_figures_are_shown_and_written(tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    done = run(
        "benchmarks",
        "--quick",
        "--rounds=1",
        "--only=raw,submit-many",
        f"--json={figures}",
        f"--plot={plot}",
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert "submit_many / raw socket loop" in done.stdout

    document = json.loads(figures.read_text(encoding="utf-8"))
    assert {
        "python",
        "platform",
        "cpus",
        "load",
        "versions",
        "quick",
        "candidates",
        "imports",
        "marks",
    } == document.keys()
    assert ["raw", "submit-many"] == [cell["key"] for cell in document["candidates"]]
    for cell in document["candidates"]:
        assert {
            "key",
            "title",
            "loop",
            "rows",
            "ours",
            "cpu_us",
            "per_second",
            "rss_mb",
            "stub_busy",
            "rounds",
        } == cell.keys()
        (measured,) = cell["rounds"]
        assert {"sent", "wall", "cpu", "rss", "stub_cpu"} == measured.keys()
        assert cell["cpu_us"] == pytest.approx(measured["cpu"] / measured["sent"] * 1e6)
        assert cell["per_second"] == pytest.approx(measured["sent"] / measured["wall"])

    marks = document["marks"]
    assert 16 == len(marks)
    for mark in marks:
        assert {"what", "mark", "measured", "on_uvloop", "unit", "met"} == mark.keys()
    raw, many = document["candidates"]
    assert [pytest.approx(many["cpu_us"] / raw["cpu_us"])] == [
        mark["measured"] for mark in marks if mark["measured"] is not None
    ]

    chart = ET.parse(plot).getroot()  # noqa: S314 - our own
    assert "{http://www.w3.org/2000/svg}svg" == chart.tag
    bars = chart.findall("{*}rect")
    assert ["peer", "ours"] == [bar.get("class") for bar in bars]
    assert float(bars[0].get("width", "")) < float(bars[1].get("width", ""))


def test_a_candidate_that_does_not_exist_is_named() -> None:
    done = run("benchmarks", "--only=raw,carrier-pigeon")
    assert 1 == done.returncode
    assert "no such candidate: carrier-pigeon; there are vendor-demo, " in done.stderr


@unless_missing("sqlalchemy")
def test_a_verification_is_timed_beside_a_submit() -> None:
    done = run("benchmarks.verification", "--rounds=20")
    assert (0, "") == (done.returncode, done.stderr)
    took = json.loads(done.stdout)
    assert {"submit", "start", "check"} == took.keys()
    for figures in took.values():
        assert 0 < figures["min_ms"] <= figures["median_ms"]


def test_a_store_is_measured_with_one_process_and_with_four() -> None:
    done = run("benchmarks.stores", "--submits", "50")
    assert (0, "") == (done.returncode, done.stderr)
    rates = json.loads(done.stdout)
    assert {"1", "4"} == rates["sqlite"].keys()
    assert all(rate > 0 for rate in rates["sqlite"].values())


def test_the_start_of_the_command_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.start", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        # With a home of the tests' own.
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("start of the command")
    assert 7 == len(lines)
    assert "ihuyi-voice --help" in done.stdout


def test_the_latency_of_every_candidate_is_measured_over_tls(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = ("--rounds=1", "--count=20", "--in-flight", "1", "100")
    done = run("benchmarks.latency", *options, f"--json={figures}")
    assert (0, "") == (done.returncode, done.stderr)
    assert "p99 at 100 in flight, submit / aiohttp-best: " in done.stdout
    measured = json.loads(figures.read_text(encoding="utf-8"))
    # Peers that are not installed are left out.
    assert ["submit", "aiohttp-best", "aiohttp"] == list(measured)[:3]
    for by_number in measured.values():
        assert ["1", "100"] == list(by_number)
        for took in by_number.values():
            assert 0 < took["p50_ms"] <= took["p99_ms"]
        assert by_number["1"]["cold_ms"] > 0
