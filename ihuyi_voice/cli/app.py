"""The table of commands. Each command is a module of its own, imported when it is run.

Every way a request can end has an exit status of its own, and every error is
one line on stderr.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import typer

from .. import __version__
from .commands import Entry, Group
from .exit_help import EXIT_HELP
from .language import mark


class _Commands(Group):
    table: ClassVar[dict[str, Entry]] = {
        "submit": Entry(
            "ihuyi_voice.cli.submit",
            mark(
                "Place [bold]one call[/bold] that reads out a verification code. A real phone"
                " rings."
            ),
            EXIT_HELP,
        ),
        "bulk": Entry(
            "ihuyi_voice.cli.bulk.command",
            mark("Place [bold]a call for each row[/bold] of a file. Real phones ring."),
            EXIT_HELP,
        ),
        "job": Entry(
            "ihuyi_voice.cli.job",
            mark("Look at a [bold]job[/bold] that workers send, cancel it, or resume it."),
            EXIT_HELP,
        ),
        "store": Entry(
            "ihuyi_voice.cli.store",
            mark("Inspect a [bold]store[/bold], and resolve its unknown calls. No phone rings."),
            EXIT_HELP,
        ),
        "balance": Entry(
            "ihuyi_voice.cli.balance",
            mark("Print how many calls the account has [bold]left[/bold]. No phone rings."),
            EXIT_HELP,
        ),
        "sandbox": Entry(
            "ihuyi_voice.cli.sandbox",
            mark(
                "Run a [bold]local gateway[/bold] that answers like the real one; no phone rings."
            ),
        ),
        "demo": Entry(
            "ihuyi_voice.cli.demo",
            mark(
                "[bold]Try it out[/bold]: calls of every outcome against a local gateway. No phone"
                " rings."
            ),
        ),
    }


app: typer.Typer = typer.Typer(
    name="ihuyi-voice",
    cls=_Commands,
    help=mark(
        "Voice-verification calls through iHuyi (互亿无线): no phone rings twice for one request,"
        " every request ends in one stated outcome, no secret leaks.\n\n"
        "Credentials: the API ID and API key of your account (the vendor's APIID and APIKEY) in"
        " IHUYI_VOICE_API_ID and IHUYI_VOICE_API_KEY, or by --api-id and --api-key-file, or at a"
        " prompt. To try it without an account:"
        " [bold]ihuyi-voice demo[/bold]."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer's callback
    if asked:
        typer.echo(f"ihuyi-voice {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help=mark("Print the version and exit."),
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """The options before a command."""
