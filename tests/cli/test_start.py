"""What the command imports before it does something: its start is what a user waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ihuyi_voice import __version__
from ihuyi_voice.__main__ import main
from ihuyi_voice.cli.commands import load
from tests.inside import command_table

SCRIPT = """
import sys
from ihuyi_voice.__main__ import main
sys.argv[0] = "ihuyi-voice"
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
print(*sys.modules, file=sys.__stderr__)
"""
SLOW = {
    "aiohttp",
    "anyio",
    "asyncio",
    "ihuyi_voice.client",
    "ihuyi_voice.sandbox",
    "ihuyi_voice.sync.client",
    "orjson",
    "redis",
    "sqlalchemy",
    "ssl",
    "uvloop",
    "xmltodict",
}


def imported(*arguments: str) -> tuple[str, set[str]]:
    """What the command prints, and the modules that it has imported then."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in command_table())], ids=" ".join
)
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    out, modules = imported(*arguments)
    assert arguments[0].removeprefix("--") in out
    assert "typer" in modules
    assert set() == modules & SLOW


def test_the_help_of_all_commands_imports_no_part_of_the_library() -> None:
    ours = {name for name in imported("--help")[1] if name.startswith("ihuyi_voice.")}
    assert {"ihuyi_voice._extras"} == {
        name for name in ours if not name.startswith("ihuyi_voice.cli")
    } - {"ihuyi_voice.__main__"}


@pytest.mark.measures_processes
def test_the_version_imports_no_command() -> None:
    out, modules = imported("--version")
    assert f"ihuyi-voice {__version__}\n" == out
    assert set() == modules & (SLOW | {entry.module for entry in command_table().values()})


@pytest.mark.parametrize("name", command_table())
def test_the_table_agrees_with_each_command(name: str) -> None:
    """The table states the first line of the help, so that the table needs no import."""
    entry = command_table()[name]
    command = load(name, entry)
    assert name == command.name
    assert entry.summary == str(command.help).partition("\n\n")[0]


def test_a_module_of_no_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ihuyi_voice.__main__.guard_streams", lambda: None)
    monkeypatch.setattr("ihuyi_voice.__main__.use_locale", lambda: None)
    monkeypatch.setitem(sys.modules, "ihuyi_voice.cli.signals", None)
    with pytest.raises(ModuleNotFoundError, match=r"ihuyi_voice\.cli\.signals"):
        main()
