"""What the plugin costs a run of pytest that does not use it."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

SHOW = """
    import sys

    def pytest_sessionfinish():
        ours = [name for name in sys.modules if name.startswith("ihuyi_voice")]
        print("imported:", *sorted(ours), "aiohttp" in sys.modules, "anyio" in sys.modules)
"""


@pytest.mark.parametrize(
    ("imported", "options"),
    [
        ("ihuyi_voice ihuyi_voice.pytest_plugin False False", ["-p", "ihuyi_voice.pytest_plugin"]),
        ("False False", ["-p", "no:ihuyi_voice"]),
    ],
)
def test_a_run_that_does_not_use_it_imports_nothing_for_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, imported: str, options: list[str]
) -> None:
    # Only the plugins that are named: anyio's would import anyio.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(SHOW)
    pytester.makepyfile("def test_something_else(): pass")
    result = pytester.runpytest_subprocess(*options, timeout=60)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"*imported: {imported}"])


def test_an_installed_plugin_is_found_and_costs_as_little(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makeconftest(SHOW)
    pytester.makepyfile("def test_something_else(): pass")
    result = pytester.runpytest_subprocess("-W", "error", timeout=60)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*imported: ihuyi_voice ihuyi_voice.pytest_plugin False *"])
