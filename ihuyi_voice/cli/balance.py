"""`ihuyi-voice balance`: how many calls the account has left. No phone rings."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .._pipeline import status_of
from ..errors import IhuyiVoiceError
from ..models import DEFAULT_BASE_URL
from ..sync.client import VoiceClient
from .account import (
    EXIT_BELOW,
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
from .signals import Interruptions

EXIT_HELP = (
    "Exit status: as for [bold]submit[/bold], and 7 if fewer calls are left than --fail-below."
)


def balance(  # noqa: PLR0913 - one argument per option
    fail_below: Annotated[
        int | None,
        typer.Option(
            help="Exit with status 7 if fewer calls than this are left.", show_default=False
        ),
    ] = None,
    *,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Print how many calls the account has [bold]left[/bold]. No phone rings."""
    try:
        with (
            Interruptions(),
            Account(api_id, api_key_file, base_url, timeout).client(VoiceClient) as client,
        ):
            remaining = client.query_balance().remaining
    except (KeyboardInterrupt, typer.Abort) as interruption:
        fail_interrupted(interruption)
    except IhuyiVoiceError as error:
        status = status_of(error)
        if as_json:
            typer.echo(json.dumps({"status": status.value, "error": str(error)}))
            raise typer.Exit(EXIT_STATUSES[status]) from None
        fail(str(error), EXIT_STATUSES[status])
    typer.echo(json.dumps({"remaining": remaining}) if as_json else str(remaining))
    if fail_below is not None and remaining < fail_below:
        raise typer.Exit(EXIT_BELOW)
