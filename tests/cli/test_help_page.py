"""What the help of a command says of its parameters, for kinds that few commands have."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer

from ihuyi_voice.cli.help_page import print_help

AT_LEAST = typer.Option(min=0.5)
RANGE = typer.Option(min=0, max=9)


class Way(Enum):
    FAST = "fast"


def sends(
    *,
    rows: str,
    rate: Annotated[float, AT_LEAST],
    port: Annotated[int, RANGE],
    way: Way,
    key: str,
    dry: bool,
) -> None:
    """Has the types that the page reads."""


def param(name: str, **attributes: object) -> Any:
    defaults = {
        "name": name,
        "param_type_name": "option",
        "opts": [f"--{name}"],
        "secondary_opts": [],
        "metavar": None,
        "nargs": 1,
        "help": f"About {name}.",
        "envvar": None,
        "required": False,
        "show_default": True,
        "default": None,
    }
    return SimpleNamespace(**(defaults | attributes))


def lines(capsys: pytest.CaptureFixture[str], *params: object) -> list[str]:
    """The lines of the page, each with single blanks and without its frame."""
    command = SimpleNamespace(
        callback=sends,
        help="It sends.",
        epilog="one\n\ntwo",
        get_usage=lambda _: "Usage: sends",
        get_params=lambda _: params,
    )
    print_help(command, None)
    out = capsys.readouterr().out
    assert "…" not in out
    return [" ".join(line.strip("│").split()) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("expected", "shown"),
    [
        ("rows... About rows.", param("rows", param_type_name="argument", nargs=-1)),
        ("file About rows.", param("rows", param_type_name="argument", metavar="FILE")),
        ("--rate NUMBER About rate. [at least 0.5]", param("rate")),
        ("--port INTEGER About port. [0 to 9] [default: 0]", param("port", default=0)),
        ("--way About way. [default: fast]", param("way", default=Way.FAST)),
        ("--key NAME About key. [required]", param("key", metavar="NAME", required=True)),
        ("--key TEXT About key. [env var: KEY]", param("key", envvar="KEY")),
        ("--key TEXT About key. [default: none]", param("key", show_default="none")),
        ("--key TEXT About key.", param("key", default="x", show_default=False)),
        ("--key TEXT About key.", param("key", default=lambda: "x")),
        ("--dry About dry.", param("dry", default=True)),
    ],
)
def test_the_row_of_a_parameter(
    expected: str,
    shown: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = lines(capsys, shown)
    is_argument = shown.param_type_name == "argument"
    panels = [line for line in page if line.startswith("╭")]
    assert ["Arguments" if is_argument else "Options"] == [line.split()[1] for line in panels]
    assert [expected, "one", "two"] == [page[page.index(panels[0]) + 1], *page[-2:]]


def test_each_name_of_an_option_has_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = lines(capsys, param("dry", opts=["-d", "--dry"], secondary_opts=["--no-dry"]))
    first = page.index("--dry About dry.")
    assert ["-d", "--no-dry"] == page[first + 1 : first + 3]
