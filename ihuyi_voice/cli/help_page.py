"""The help of a command: panels of two columns in which nothing that must be typed is cut.

typer's own page has six columns, and in 80 columns it cuts names and values. This page
needs only names and attributes that all releases of typer have that we allow.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import render
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .language import gettext as _
from .language import mark
from .usage_errors import pieces_of_hints
from .wrapping import WrappedText

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

# How a value is called where the option names none, by its type.
_METAVARS = {str: mark("TEXT"), int: mark("INTEGER"), float: mark("NUMBER"), Path: mark("PATH")}


def print_help(command: Any, ctx: Any) -> None:  # noqa: ANN401 - typer's or click's
    """Print the page to standard output.

    Args:
        command: a command or a group, with translated texts.
        ctx: its context.
    """
    console = Console(highlight=False)
    console.print(Padding(Text(command.get_usage(ctx), style="bold"), 1))
    console.print(Padding(_wrapped(command.help or ""), (0, 1)))
    console.print()
    hints = pieces_of_hints(command.callback)
    arguments, options = [], []
    for param in command.get_params(ctx):
        types = hints.get(param.name, [])
        if param.param_type_name == "argument":
            arguments.append((_argument(param), _about(param, types)))
        else:
            options.append((_option(param, types), _about(param, types)))
    _print_panel(console, _("Arguments"), arguments)
    _print_panel(console, _("Options"), options)
    if hasattr(command, "list_commands"):
        _print_panel(console, _("Commands"), list(_commands(command, ctx)))
    if command.epilog:
        for line in command.epilog.split("\n\n"):
            console.print(Padding(_wrapped(line), (0, 1)))


def _print_panel(console: Console, title: str, rows: list[tuple[Text, Text]]) -> None:
    if not rows:
        return
    table = Table(box=None, show_header=False, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
    # Folded, where the terminal is too narrow for a name.
    table.add_column(overflow="fold", no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for row in rows:
        table.add_row(*row)
    console.print(Panel(table, title=title, title_align="left", border_style="dim"))


def _commands(group: Any, ctx: Any) -> Iterator[tuple[Text, Text]]:  # noqa: ANN401 - as above
    for name in group.list_commands(ctx):
        yield Text(name, style="bold cyan"), _wrapped(group.get_command(ctx, name).help)


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
    text = _wrapped(param.help or "")
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


def _wrapped(markup: str) -> Text:
    """Text of rich's markup, whose lines are full and never cut."""
    text = render(markup)
    return WrappedText(text.plain, spans=text.spans)
