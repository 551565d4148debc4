"""Usage errors: whole sentences in the language of the command, whatever typer is installed."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from ihuyi_voice.cli.app import app
from ihuyi_voice.cli.usage_errors import UsageError, explained, unknown_command
from tests.cli.test_language import CHINESE, chinese, command

__all__ = ["chinese"]

# typer's, or those of click where typer is built on it.
exceptions = import_module(UsageError.__module__)

ERRORS = [
    ("缺少参数 mobile。", "submit"),
    ("没有选项 '--nope'。", "--nope"),
    ("没有命令 'sandbx'。是否想输入 sandbox？", "sandbx"),
    ("没有命令 'xyz'。", "xyz"),
    ("没有选项 '--fail-belov'。是否想输入 --fail-below？", "balance --fail-belov 3"),
    ("没有选项 '--key'。", "submit 13900000000 --key"),
    ("选项 --content 需要一个值。", "submit 13900000000 --content"),
    ("选项 --json 不带值。", "balance --json=1"),
    ("--rate 的值无效：必须是不小于 0.001 的数字。", "bulk x --rate=abc"),
    ("--rate 的值无效：必须是不小于 0.001 的数字。", "bulk x --rate=0"),
    ("--timeout 的值无效：必须是数字。", "balance --timeout soon"),
    ("--port 的值无效：必须是 0 到 65535 的整数。", "sandbox --port 70000"),
    ("--fail-below 的值无效：必须是整数。", "balance --fail-below 1.5"),
    ("action 的值无效：必须是 status、cancel 或 resume。", "job spring foo"),
    ("多余的参数：foo bar。", "balance foo bar"),
]


def said(arguments: str) -> str:
    """The sentence in the box on standard error."""
    result = CliRunner().invoke(app, arguments.split())
    assert (2, "") == (result.exit_code, result.stdout)
    box = result.stderr[result.stderr.index("╭") :]
    return " ".join(line.strip("│ ") for line in box.splitlines()[1:-1])


@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize(("expected", "arguments"), ERRORS)
def test_every_usage_error_is_a_chinese_sentence(expected: str, arguments: str) -> None:
    # Some releases of typer write the names of arguments in capitals.
    assert expected == said(arguments).replace("MOBILE", "mobile").replace("ACTION", "action")


def test_the_whole_of_an_error_is_chinese() -> None:
    status, out, err = command("submit", "139", "--content", locale="zh_CN.UTF-8")
    assert (2, "") == (status, out)
    usage, hint, *box = err.splitlines()
    assert usage.lower().startswith("用法：ihuyi-voice submit [选项] ")
    assert hint == "请运行 ihuyi-voice submit --help 查看帮助。"
    assert "─ 错误 ─" in box[0]
    assert "│ 选项 --content 需要一个值。" in box[1]
    _, _, err = command("--nope", locale="zh_CN.UTF-8")
    assert err.startswith("用法：ihuyi-voice [选项] 命令 [参数]...\n")


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ("missing argument 'mobile'.", "submit"),
        ("no such option: --nope", "--nope"),
        ("no such command 'sandbx'.", "sandbx"),
        ("option '--content' requires an argument.", "submit 13900000000 --content"),
        ("got unexpected extra argument", "balance foo bar"),
        # Not typer's: it says what a validator says, in each release otherwise.
        (": it must be a number of at least 0.001", "bulk x --rate=abc"),
        (": it must be a number", "balance --timeout soon"),
        (": it must be a whole number from 0 to 65535", "sandbox --port 70000"),
        (": it must be status, cancel or resume", "job spring foo"),
    ],
)
def test_in_english_only_a_wrong_value_is_said_otherwise(expected: str, arguments: str) -> None:
    text = said(arguments)
    assert expected in text.lower()
    assert not CHINESE.search(text)
    assert text.startswith("Invalid value for '") == expected.startswith(":")


# --- what no command of ours does, but another release of typer may

RANGE = typer.Option(min=-5, max=0)


def context(*params: Any, callback: Any = None) -> Any:
    command = SimpleNamespace(get_params=lambda _: params, callback=callback)
    return SimpleNamespace(command=command, color=None)


def option(**attributes: Any) -> Any:
    defaults = {"name": "key", "opts": ["--key", "-k"], "secondary_opts": []}
    return SimpleNamespace(**(defaults | {"param_type_name": "option"} | attributes))


def takes_text(key: str = "") -> None:
    """Its annotation says nothing of what a value must be."""


def takes_zero_or_less(key: Annotated[int, RANGE] = 0) -> None:
    """Its annotation has a limit of 0."""


class OfAnotherReleaseError(UsageError):  # type: ignore[misc] # which typer decides
    """A kind of error that is not known here."""


@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize(
    "error",
    [
        OfAnotherReleaseError("its text"),
        UsageError("its text"),
        exceptions.BadParameter("its text"),
        exceptions.MissingParameter("its text"),
        exceptions.BadOptionUsage("--other", "its text"),
    ],
)
def test_what_is_not_known_keeps_its_own_text(error: Any) -> None:
    assert error is explained(error, context(option()))


@pytest.mark.usefixtures("chinese")
def test_a_command_that_is_not_known_keeps_the_text_of_another_error() -> None:
    error = OfAnotherReleaseError("its text")
    assert error is unknown_command(error, context(), "x", ["submit"])


@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize(
    ("expected", "error"),
    [
        ("缺少选项 --key / -k。", exceptions.MissingParameter(param=option())),
        ("缺少参数 KEY。", exceptions.MissingParameter(param_hint="KEY")),
        ("--a / --b 的值无效：no。", exceptions.BadParameter("no", param_hint=["--a", "--b"])),
        ("--key / -k 的值无效：no。", exceptions.BadParameter("no", param=option())),
        ("选项 -k 需要一个值。", exceptions.BadOptionUsage("-k", "no")),
        ("选项 --no-key 需要一个值。", exceptions.BadOptionUsage("--no-key", "no")),
        ("没有选项 '--kye'。", exceptions.NoSuchOption("--kye")),
        # An argument may be of several lines.
        (
            "多余的参数：a\nb。",
            UsageError("Got unexpected extra argument (a\nb)"),
        ),
    ],
)
def test_what_is_known_of_an_error_is_said(expected: str, error: Any) -> None:
    known = option(secondary_opts=["--no-key"] if "--no-key" in expected else [])
    for callback in (takes_text, None):
        shown: Any = explained(error, context(known, callback=callback))
        assert (expected, 2) == (shown.format_message(), shown.exit_code)


@pytest.mark.usefixtures("chinese")
def test_a_limit_of_0_is_said() -> None:
    error = exceptions.BadParameter("no", param=option(secondary_opts=["--no-key"]))
    shown: Any = explained(error, context(callback=takes_zero_or_less))
    assert "--key / -k / --no-key 的值无效：必须是 -5 到 0 的整数。" == shown.format_message()
