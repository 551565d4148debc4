"""The language of the command: the catalogue, the locale, and what never changes with it."""

from __future__ import annotations

import gettext
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from rich.cells import cell_len
from typer.main import get_command

import ihuyi_voice
from ihuyi_voice.cli import language
from ihuyi_voice.cli.app import app
from ihuyi_voice.cli.chosen_store import own_path
from ihuyi_voice.cli.commands import load
from ihuyi_voice.cli.exit_help import EXIT_HELP
from ihuyi_voice.cli.language import Phrase, local, mark, ngettext, use_locale
from ihuyi_voice.cli.statuses import EXIT_BELOW, EXIT_CTRL_C, EXIT_STATUSES
from ihuyi_voice.cli.typer_words import WORDS
from ihuyi_voice.sandbox import SandboxGateway
from tests.inside import command_table, keep_language

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

COMMANDS = list(command_table())
HELPS = [["--help"], *([name, "--help"] for name in COMMANDS)]
TOOL = Path(__file__).parents[2] / ".ci" / "catalogue.py"
MO = Path(ihuyi_voice.__file__).parent / "locale/zh_CN/LC_MESSAGES/ihuyi_voice.mo"
CHINESE = re.compile("[\u4e00-\u9fff]")


def command(*arguments: str, locale: str = "C.UTF-8", **variables: str) -> tuple[int, str, str]:
    """Status and output of the command, in a terminal of 80 columns."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "ihuyi_voice", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "COLUMNS": "80", "PYTHONUTF8": "1", "LC_ALL": locale, **variables},
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process speak Chinese."""
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    monkeypatch.setenv("LANGUAGE", "")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    keep_language(monkeypatch)
    domain = gettext.textdomain()
    use_locale()
    yield
    gettext.textdomain(domain)


# --- the catalogue ------------------------------------------------------------


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    if not TOOL.exists():  # pragma: no cover - the wheel is tested without its repository
        pytest.skip("the wheel is tested without its repository")
    spec = importlib.util.spec_from_file_location("catalogue", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forms(message: Any) -> tuple[str, ...]:
    return (message,) if isinstance(message, str) else tuple(message)


def test_every_message_of_the_source_is_translated(tool: ModuleType) -> None:
    source = {forms(message.id) for message in tool.extracted() if message.id}
    assert len(source) > 200
    read = {forms(message.id): message for message in tool.read() if message.id}
    assert source == set(read)
    for ids, message in read.items():
        assert all(forms(message.string)), ids
        assert not message.fuzzy, ids


def test_placeholders_and_markup_are_those_of_the_message(tool: ModuleType) -> None:
    def fields(text: str) -> list[tuple[str, str | None, str | None]]:
        # An example in a help text has braces of its own.
        text = text.replace('{"no_answer": 0.1}', "")
        return sorted(
            (name, spec, conversion)
            for _, name, spec, conversion in Formatter().parse(text)
            if name is not None
        )

    for message in tool.read():
        for string in forms(message.string) if message.id else ():
            first = forms(message.id)[-1]
            assert set(fields(first)) == set(fields(string)), first
            assert first.count("[bold]") == string.count("[bold]") == string.count("[/bold]"), first


def test_the_compiled_catalogue_is_that_of_the_text(tool: ModuleType) -> None:
    assert tool.compiled(tool.read()) == MO.read_bytes()


def test_typers_words_are_in_the_catalogue() -> None:
    catalogue = gettext.GNUTranslations(io.BytesIO(MO.read_bytes()))
    assert set() == {word for word in WORDS if catalogue.gettext(word) == word}


# --- the locale ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "variables"),
    [
        (False, {}),
        (True, {"LANG": "zh_CN.UTF-8"}),
        (True, {"LANG": "zh_CN"}),
        (True, {"LANG": "zh_TW.UTF-8"}),
        (False, {"LANG": "en_US.UTF-8"}),
        (True, {"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}),
        (False, {"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_GB.UTF-8"}),
        (True, {"LC_ALL": "zh_CN.UTF-8", "LC_MESSAGES": "en_GB.UTF-8"}),
        (False, {"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}),
        (False, {"LC_ALL": "C.UTF-8", "LANGUAGE": "zh_CN"}),
        (False, {"LC_MESSAGES": "POSIX", "LANGUAGE": "zh_CN"}),
        (True, {"LANG": "en_US.UTF-8", "LANGUAGE": "zh_CN:en"}),
        (True, {"LANGUAGE": "zh"}),
        (False, {"LANG": "zh_CN.UTF-8", "LANGUAGE": "en:zh_CN"}),
    ],
)
def test_the_locale_decides(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], *, expected: bool
) -> None:
    keep_language(monkeypatch)
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE"):
        monkeypatch.setenv(name, variables.get(name, ""))
    domain = gettext.textdomain()
    use_locale()
    gettext.textdomain(domain)
    assert expected is not language.is_english()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "nothing"])
def test_a_stream_that_cannot_show_chinese_gets_english(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding=encoding))
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    use_locale()
    assert "outcome" == language.gettext("outcome")


@pytest.mark.usefixtures("chinese")
def test_a_phrase_in_both_languages() -> None:
    phrase = Phrase("{problem}; {advice}", problem="x", advice=Phrase("it is not JSON"))
    assert "x; it is not JSON" == str(phrase)
    assert "x；不是 JSON" == phrase.local() == local(ValueError(phrase))
    assert ("plain", "None") == (local(ValueError("plain")), local(None))
    assert "it is not JSON" == mark("it is not JSON")


@pytest.mark.usefixtures("chinese")
def test_one_and_several_in_chinese() -> None:
    rows = [ngettext("{count} row", "{count} rows", n).format(count=n) for n in (0, 1, 2)]
    assert ["0 行", "1 行", "2 行"] == rows


def test_one_and_several_in_english() -> None:
    rows = [ngettext("{count} row", "{count} rows", n).format(count=n) for n in (0, 1, 2)]
    assert ["0 rows", "1 row", "2 rows"] == rows


def test_the_library_reads_no_catalogue() -> None:
    script = "import ihuyi_voice, sys; ihuyi_voice.VoiceClient; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "ihuyi_voice.sync.client" in done.stdout.split()
    assert [] == [name for name in done.stdout.split() if name.startswith("ihuyi_voice.cli.")]


# --- what the command prints --------------------------------------------------


def names_of(command: str) -> set[str]:
    """The long names of all options of a command, or of the group for `--help`."""
    if command == "--help":
        params = get_command(app).params
    else:
        params = load(command, command_table()[command]).params
    names = {name for one in params for name in (*one.opts, *one.secondary_opts)}
    return {name for name in names if name.startswith("--")}


@pytest.mark.parametrize("columns", ["30", "60"])
def test_the_help_of_a_narrow_terminal_is_folded_and_not_cut(columns: str) -> None:
    status, out, err = command("sandbox", "--help", COLUMNS=columns)
    assert (0, "") == (status, err)
    assert "…" not in out
    assert "--no-multiline-refusals" in re.sub(r"[\s│]", "", out)


@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
@pytest.mark.parametrize("locale", ["C.UTF-8", "zh_CN.UTF-8"])
def test_help_fits_80_columns_in_both_languages(locale: str, arguments: list[str]) -> None:
    status, out, err = command(*arguments, locale=locale)
    assert (0, "") == (status, err)
    assert 80 >= max(map(cell_len, out.splitlines()))
    # Nothing is cut: names are whole, and a long default is broken over lines.
    assert "…" not in out
    shown = set(re.findall(r"(?<![\w-])--[\w-]+", out, re.ASCII))
    assert names_of(arguments[0]) <= shown
    # No part of one: the texts name the options of other commands, too.
    assert shown <= set.union({"--help"}, *map(names_of, ["--help", *COMMANDS]))
    assert re.sub(r"[\s│]", "", str(own_path())) in re.sub(r"[\s│]", "", out) or (
        arguments[0] not in {"submit", "bulk"}
    )
    is_chinese = locale.startswith("zh")
    assert is_chinese is ("用法：" in out)
    # A narrow column breaks it over two lines.
    assert is_chinese is ("显示此帮助并退出" in "".join(CHINESE.findall(out)))
    assert is_chinese is ("─ 选项 ─" in out)
    assert is_chinese is not ("Usage: " in out)
    if arguments[0] in {"submit", "bulk", "store", "balance"}:
        check_the_table_of_exit_statuses(out)


def check_the_table_of_exit_statuses(out: str) -> None:
    table = out[out.rindex("─╯") :]
    numbers = {int(number) for number in re.findall(r"^ +(\d+)  \S", table, re.MULTILINE)}
    assert {1, EXIT_BELOW, EXIT_CTRL_C, *EXIT_STATUSES.values()} == numbers
    # No row takes two lines.
    assert EXIT_HELP.count("\n") + 1 == len(
        [line for line in table.splitlines()[1:] if line.strip()]
    )


def test_an_error_of_the_command_and_of_typer_in_chinese() -> None:
    locale = "zh_CN.UTF-8"
    status, _, err = command("balance", locale=locale, IHUYI_VOICE_API_ID="")
    assert (2, "ihuyi-voice: 没有 API ID：请设置 IHUYI_VOICE_API_ID，或使用 --api-id\n") == (
        status,
        err,
    )
    status, _, err = command("nothing", locale=locale)
    assert 2 == status
    assert "─ 错误 ─" in err
    assert "没有命令 'nothing'。" in err


def test_what_programs_read_does_not_change_with_the_locale(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("mobile,content\n13912345678,1125\n13912345679,\n1391,42\n,1125\n")
    seen = []
    for locale in ("C.UTF-8", "zh_CN.UTF-8"):
        gateway = SandboxGateway(blacklist=["13800000000"])
        out = tmp_path / f"{locale}.csv"
        with gateway.serve_in_thread() as url:
            variables = {
                "IHUYI_VOICE_BASE_URL": url,
                "IHUYI_VOICE_API_ID": "sandbox",
                "IHUYI_VOICE_API_KEY": "sandbox-key",
                "IHUYI_VOICE_STORE": "none",
            }
            texts = [
                command(*arguments, locale=locale, **variables)
                for arguments in (
                    ("submit", "13800000000", "--content", "1125", "--json"),
                    ("balance", "--json"),
                    ("bulk", str(rows), "--yes", "--json", "--out", str(out)),
                )
            ]
        assert (locale != "C.UTF-8") is bool(CHINESE.search(texts[-1][2]))
        outputs = [(status, json.loads(text)) for status, text, _ in texts]
        seen.append((outputs, out.read_bytes()))
    assert seen[0] == seen[1]
    assert b"it has no content" in seen[0][1]
    assert not CHINESE.search(seen[0][1].decode())
