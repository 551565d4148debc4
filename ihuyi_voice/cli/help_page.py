"""The help of a command: panels of two columns in which nothing that must be typed is cut.

typer's own page has six columns, and in 80 columns it cuts names and values. This page
needs only names and attributes that all releases of typer have that we allow.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import render
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .language import gettext as _
from .language import mark
from .usage_errors import pieces_of_hints

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_GAP = 2
_LEAST_WIDTH = 10

# Chinese characters and punctuation, and the punctuation that begins or ends no line.
_WIDE = "\u2e80-\u9fff\uff00-\uffef"
_OPENING, _CLOSING = r"\[（", "。，、：；？！）"  # noqa: RUF001 - Chinese punctuation
_PIECE = re.compile(
    rf"\n| +|[{_OPENING}]*(?:[^\s{_WIDE}]+|[{_WIDE}])[{_CLOSING}]*",
)

# How a value is called where the option names none, by its type.
_METAVARS = {str: mark("TEXT"), int: mark("INTEGER"), float: mark("NUMBER"), Path: mark("PATH")}


def print_help(command: Any, ctx: Any) -> None:  # noqa: ANN401 - typer's or click's
    """Print the page to standard output.

    Args:
        command: a command or a group, with translated texts.
        ctx: its context.
    """
    console = Console(highlight=False)
    width = console.width - 2
    console.print(Padding(Text(command.get_usage(ctx), style="bold"), 1))
    console.print(Padding(filled(render(command.help or ""), width), (0, 1)))
    console.print()
    types = pieces_of_hints(command.callback)
    params = [(one, types.get(one.name, [])) for one in command.get_params(ctx)]
    arguments = [pair for pair in params if pair[0].param_type_name == "argument"]
    options = [pair for pair in params if pair[0].param_type_name == "option"]
    _print_panel(console, _("Arguments"), [(_argument(one[0]), _about(*one)) for one in arguments])
    _print_panel(console, _("Options"), [(_option(*one), _about(*one)) for one in options])
    if hasattr(command, "list_commands"):
        _print_panel(console, _("Commands"), list(_commands(command, ctx)))
    if command.epilog:
        for line in command.epilog.split("\n\n"):
            console.print(Padding(filled(render(line), width), (0, 1)))


def filled(text: Text, width: int) -> Text:
    """Break a text into lines between its words, and between Chinese characters.

    rich breaks Chinese lines anywhere, also within a name that must be typed.
    """
    cuts = []
    column = 0
    for piece in _PIECE.finditer(text.plain):
        if piece[0] == "\n":
            column = 0
            continue
        size = cell_len(piece[0])
        if column and column + size > width and not piece[0].isspace():
            cuts.append(piece.start())
            column = 0
        column += size
    lines = text.divide(cuts)
    for line in lines:
        line.rstrip()
    # What is longer than a line is folded.
    whole = Text("\n", overflow="fold").join(lines)
    whole.overflow = "fold"
    return whole


def _print_panel(console: Console, title: str, rows: list[tuple[Text, Text]]) -> None:
    if not rows:
        return
    names = max(cell_len(line) for name, _text in rows for line in name.plain.splitlines())
    # Beside the panel's borders, and the gap between the columns.
    width = max(_LEAST_WIDTH, console.width - 4 - _GAP - names)
    table = Table(box=None, show_header=False, expand=True, pad_edge=False, padding=(0, _GAP, 0, 0))
    # Folded, where the terminal is too narrow for a name.
    table.add_column(overflow="fold", no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for name, text in rows:
        table.add_row(name, filled(text, width))
    console.print(Panel(table, title=title, title_align="left", border_style="dim"))


def _commands(group: Any, ctx: Any) -> Iterator[tuple[Text, Text]]:  # noqa: ANN401 - as above
    for name in group.list_commands(ctx):
        yield Text(name, style="bold cyan"), render(group.get_command(ctx, name).help)


def _argument(param: Any) -> Text:  # noqa: ANN401 - as above
    name = (param.metavar or param.name).lower()
    return Text(name + ("..." if param.nargs == -1 else ""), style="bold yellow")


def _option(param: Any, types: Collection[Any]) -> Text:  # noqa: ANN401 - as above
    """The names, each on a line where there are several, and what the value is called."""
    names = [*sorted(param.opts, key=len, reverse=True), *param.secondary_opts]
    text = Text("\n".join(names), style="bold cyan")
    values = [_METAVARS[one] for one in types if one in _METAVARS]
    if values:
        text.append(f" {param.metavar or _(values[0])}", style="yellow")
    return text


def _about(param: Any, types: Iterable[Any]) -> Text:  # noqa: ANN401 - as above
    text = render(param.help or "")
    for extra in _extras(param, types):
        text.append(f" {extra}", style="dim")
    return text


def _extras(param: Any, types: Iterable[Any]) -> Iterator[str]:  # noqa: ANN401 - as above
    """What the help's sentences do not say: range, variable, default."""
    bounds = next((one for one in types if getattr(one, "min", None) is not None), None)
    if bounds is not None:
        text = _("[at least {least}]") if bounds.max is None else _("[{least} to {most}]")
        yield text.format(least=bounds.min, most=bounds.max)
    if param.envvar:
        yield _("[env var: {}]").format(param.envvar)
    if param.required:
        yield _("[required]")
    elif (default := _default(param)) != "":
        yield _("[default: {}]").format(default)


def _default(param: Any) -> str:  # noqa: ANN401 - as above
    shown, default = param.show_default, param.default
    if isinstance(shown, str):
        return shown
    if not shown or default is None or callable(default) or isinstance(default, bool):
        return ""
    return str(default.value if isinstance(default, Enum) else default)
