"""The commands as typer's classes: loaded when they are used, and translated when they are shown.

`--help` of the whole needs only the name of each command and one line about it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from .language import gettext as _
from .usage_errors import UsageError, explained, unknown_command

if TYPE_CHECKING:
    from collections.abc import Sequence


class Entry(NamedTuple):
    """One row of the table of commands.

    Attributes:
        module: where the command's function is, which has the command's name; its
            `HELP` says what the command does.
        summary: the first line of that.
        epilog: what ends the command's help.
    """

    module: str
    summary: str
    epilog: str = ""


class _Translated:
    """Shows help and usage errors in the language of the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's or click's
        """Read the arguments."""
        try:
            rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc] # of typer's class
        except UsageError as error:
            raise explained(error, ctx) from None
        return rest

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - typer's or click's
        """The parameters, `--help` included."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc] # of typer's class
        for param in params:
            # Not every parameter has one.
            param.help = (text := getattr(param, "help", None)) and _(text)
            if isinstance(getattr(param, "show_default", None), str):
                param.show_default = _(param.show_default)
        return params

    def format_usage(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's or click's
        """Write the line about the usage."""
        pieces = map(_, self.collect_usage_pieces(ctx))  # type: ignore[attr-defined] # as above
        formatter.write_usage(ctx.command_path, " ".join(pieces), prefix=_("Usage: "))

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002 - typer's or click's
        """Print the help; `formatter` gets nothing."""
        from .help_page import print_help  # noqa: PLC0415 - no other use needs it

        print_help(self, ctx)


class Command(_Translated, TyperCommand):
    """One command."""


class Group(_Translated, TyperGroup):
    """All commands; each is loaded when it is run.

    Attributes:
        table: the commands by name, in the order of the help.
    """

    table: ClassVar[dict[str, Entry]]

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - typer's
        stubs = {
            name: Command(name, help=_(entry.summary), rich_markup_mode="rich")
            for name, entry in self.table.items()
        }
        super().__init__(**{**options, "commands": stubs, "help": _(options["help"])})

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - typer's or click's
        """The names of the commands."""
        return list(self.table)

    def resolve_command(
        self,
        ctx: Any,  # noqa: ANN401 - typer's or click's
        args: Sequence[str],
    ) -> tuple[str | None, Any, list[str]]:
        """The command that the arguments name, loaded, and the rest of the arguments."""
        try:
            name, command, rest = super().resolve_command(ctx, list(args))
        except UsageError as error:
            raise unknown_command(error, ctx, args[0], self.table) from None
        return name, command and load(str(name), self.table[str(name)]), rest


def load(name: str, entry: Entry) -> TyperCommand:
    """Import a command."""
    module = import_module(entry.module)
    one = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    # Some releases of typer join lines that no blank line separates.
    epilog = _(entry.epilog).replace("\n", "\n\n") if entry.epilog else None
    one.command(name, cls=Command, help=_(module.HELP), epilog=epilog)(getattr(module, name))
    return get_command(one)  # type: ignore[return-value] # one command is no group
