"""`ihuyi-voice submit`: one call. A real phone rings."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from ..models import DEFAULT_BASE_URL
from .account import (
    EXIT_STATUSES,
    Account,
    ApiId,
    ApiKeyFile,
    AsJson,
    BaseUrl,
    Timeout,
    fail,
    fail_interrupted,
)
from .chosen_store import NONE, Chosen
from .language import gettext as _
from .language import mark
from .signals import Interruptions

HELP = mark(
    "Place [bold]one call[/bold] that reads out a verification code. A real phone rings.\n\n"
    "A number is called at most twice a minute and ten times a day, counted in the store that"
    " --store names."
)


def submit(  # noqa: PLR0913 - one argument per option
    mobile: Annotated[
        str,
        typer.Argument(
            help=mark(
                "The mainland number to call. Blanks, hyphens and +86, 0086, 86 are stripped."
            )
        ),
    ],
    content: Annotated[
        str | None,
        typer.Option(
            help=mark(
                "The verification code, 4-6 digits. Without it the command draws a code of 6"
                " digits and prints it."
            ),
            show_default=False,
        ),
    ] = None,
    *,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help=mark(
                "Names this call: the same command with the same key never rings the phone a"
                " second time, and prints the outcome of the first call. 1-255 characters."
            ),
            show_default=False,
        ),
    ] = None,
    store: Chosen = None,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Place one call and print its outcome; see `HELP`."""
    if idempotency_key is not None and store == NONE:
        fail(_("--idempotency-key needs a store, and --store is none"))
    from .submit_call import Call  # noqa: PLC0415 - no help needs the client

    call = Call(mobile, content, idempotency_key)
    with Interruptions():
        try:
            call.place(Account(api_id, api_key_file, base_url, timeout), store)
        except (KeyboardInterrupt, typer.Abort) as interruption:
            if not call.sending:
                fail_interrupted(interruption)
        with suppress(KeyboardInterrupt):
            call.print(as_json=as_json)
    # What was accepted earlier, under the same key, is accepted.
    raise typer.Exit(EXIT_STATUSES.get(call.status, 0))
