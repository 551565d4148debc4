"""The plugin in separate runs of pytest, beside the plugins that many projects use."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., pytest.RunResult]

pytest_plugins = ["pytester"]

PLAIN = """
    from ihuyi_voice import VoiceClient

    def test_plain(voice_gateway):
        with VoiceClient.from_env() as client:
            client.submit("13912345678", "1125")
        assert "1125" == voice_gateway.last_code("13912345678")
        assert "1125" == voice_gateway.wait_for_call("13912345678").content

    def test_client(voice_gateway, voice_client):
        voice_client.submit("13912345678", "0042")
        assert ["0042"] == [call.content for call in voice_gateway.calls]
"""

ASYNCHRONOUS = """
    import asyncio
    import pytest
    from ihuyi_voice import AsyncVoiceClient

    {mark}
    async def test_asynchronous(voice_gateway):
        async with AsyncVoiceClient.from_env() as client:
            waited = asyncio.create_task(voice_gateway.wait_for_call_async("13912345678"))
            await client.submit("13912345678", "1125")
            assert "1125" == (await waited).content
            assert "1125" == voice_gateway.last_code("13912345678")
"""


ALL = "all plugins that are installed"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs pytest on a file, with warnings as errors and one other plugin or all."""
    for name in ("ID", "KEY"):
        monkeypatch.setenv(f"IHUYI_VOICE_API_{name}", "of the developer")
    monkeypatch.delenv("IHUYI_VOICE_BASE_URL", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(source: str, *options: str, beside: str = "") -> pytest.RunResult:
        pytester.makepyfile(source)
        if beside in (ALL, "pytest_asyncio.plugin"):
            pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
        if beside != ALL:
            # Every installed plugin takes seven times as long to start.
            monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
            plugins = filter(None, ["ihuyi_voice.pytest_plugin", beside])
            options = (*(f"-p{plugin}" for plugin in plugins), *options)
        return pytester.runpytest_subprocess("-W", "error", *options, timeout=60)

    return run


def test_plain_tests_beside_all_plugins(run: Run) -> None:
    run(PLAIN, beside=ALL).assert_outcomes(passed=2)


@pytest.mark.parametrize("fixtures", ["monkeypatch, voice_gateway", "voice_gateway, monkeypatch"])
def test_the_environment_is_restored_after_a_test(run: Run, fixtures: str) -> None:
    source = """
    import os

    def of_the_environment():
        return {name: value for name, value in os.environ.items() if "IHUYI" in name}

    BEFORE = of_the_environment()

    def test_that_sets_more(FIXTURES):
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", "http://elsewhere.test")
        monkeypatch.delenv("IHUYI_VOICE_API_KEY")

    def test_afterwards():
        assert BEFORE == of_the_environment()
    """
    run(source.replace("FIXTURES", fixtures)).assert_outcomes(passed=2)


@pytest.mark.parametrize(("mode", "mark"), [("strict", "@pytest.mark.asyncio"), ("auto", "")])
def test_pytest_asyncio(run: Run, mode: str, mark: str) -> None:
    result = run(
        ASYNCHRONOUS.format(mark=mark), f"--asyncio-mode={mode}", beside="pytest_asyncio.plugin"
    )
    result.assert_outcomes(passed=1)


def test_the_plugin_of_anyio(run: Run) -> None:
    source = ASYNCHRONOUS.format(mark="@pytest.mark.anyio")
    backend = """
    @pytest.fixture
    def anyio_backend():
        return "asyncio"
    """
    run(source + backend, beside="anyio.pytest_plugin").assert_outcomes(passed=1)


def test_pytest_xdist(run: Run) -> None:
    many = """
    import pytest
    @pytest.mark.parametrize("n", range(8))
    def test_one_of_many(voice_gateway, voice_client, n):
        voice_client.submit("13912345678", f"000{n}")
        assert [f"000{n}"] == [call.content for call in voice_gateway.calls]
    """
    run(many, "-n", "2", beside="xdist.plugin").assert_outcomes(passed=8)


def test_nothing_is_left_after_a_test(run: Run, pytester: pytest.Pytester) -> None:
    source = """
    import os, pathlib, threading

    def test_first(voice_gateway, voice_client):
        voice_client.submit("13912345678", "1125")
        pathlib.Path("url").write_text(voice_gateway.url)

    def test_second():
        assert 2 == [*os.environ.values()].count("of the developer")
        assert "IHUYI_VOICE_BASE_URL" not in os.environ
        assert 1 == threading.active_count()

    def test_third(voice_gateway):
        assert [] == voice_gateway.calls
        assert "sandbox" == os.environ["IHUYI_VOICE_API_ID"]
    """
    run(source).assert_outcomes(passed=3)
    address = urlsplit((pytester.path / "url").read_text())
    with socket.socket() as connecting:
        assert 0 != connecting.connect_ex((address.hostname, address.port))


@pytest.mark.measures_processes
def test_a_failing_assertion_lists_the_calls_and_refusals(run: Run) -> None:
    source = """
    def test_fails(voice_gateway, voice_client):
        voice_client.submit("13800000000", "1125")
        voice_gateway.last_code("13912345678")
    """
    result = run(source)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E *no call was placed to 13912345678; calls placed: 13800000000 (1); refused: none"]
    )
    # It points at the line of the test, not into the library.
    result.stdout.fnmatch_lines(["test_a_failing_*.py:*: AssertionError"])
    assert "testing.py" not in result.stdout.str()


def test_it_can_be_disabled(run: Run) -> None:
    result = run(PLAIN, "-p", "no:ihuyi_voice", beside=ALL)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["E *fixture 'voice_gateway' not found"])


def test_pytest_lists_the_fixtures_with_their_docstrings(run: Run) -> None:
    result = run(PLAIN, "--fixtures")
    result.stdout.fnmatch_lines(
        [
            "*voice_gateway*",
            "    A new sandbox gateway for this test, to which `from_env()` connects.",
            "*voice_client*",
            "    A blocking client of `voice_gateway`, closed after the test.",
        ],
        consecutive=False,
    )
