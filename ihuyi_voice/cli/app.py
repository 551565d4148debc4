"""The table of commands. Each command is a module of its own.

Every way a request can end has an exit status of its own, and every error is
one line on stderr.
"""

from __future__ import annotations

import typer

from . import balance, job, sandbox, store, submit
from .bulk import options as bulk_options
from .bulk.command import bulk

app: typer.Typer = typer.Typer(
    name="ihuyi-voice",
    help="Voice-verification calls through iHuyi (互亿无线): no phone rings twice for one request,"
    " every request ends in one stated outcome, no secret leaks.\n\n"
    "Credentials: IHUYI_VOICE_API_ID and IHUYI_VOICE_API_KEY in the environment, or --api-id and"
    " --api-key-file, or a prompt. To try it without an account: [bold]ihuyi-voice demo[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog=submit.EXIT_HELP)(submit.submit)
app.command(epilog=bulk_options.EXIT_HELP)(bulk)
app.command(epilog=job.EXIT_HELP)(job.job)
app.command(epilog=store.EXIT_HELP)(store.store)
app.command(epilog=balance.EXIT_HELP)(balance.balance)
app.command()(sandbox.sandbox)


@app.command()
def demo() -> None:
    """[bold]Try it out[/bold]: calls of every outcome against a local gateway. No phone rings."""
    from .demo import run_demo  # noqa: PLC0415 - no other command needs the sandbox loaded

    run_demo()
