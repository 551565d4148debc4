"""`ihuyi-voice balance`: how many calls the account has left. No phone rings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import IhuyiVoiceError, NotSentError, OutcomeUnknownError
from ..models import DEFAULT_BASE_URL
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
from .language import gettext as _
from .language import local, mark
from .signals import Interruptions

if TYPE_CHECKING:
    from typing import NoReturn

HELP = mark("Print how many calls the account has [bold]left[/bold]. No phone rings.")


def balance(  # noqa: PLR0913 - one argument per option
    fail_below: Annotated[
        int | None,
        typer.Option(
            help=mark("Exit with status 7 if fewer calls than this are left."), show_default=False
        ),
    ] = None,
    *,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Print the balance; see `HELP`."""
    from ..sync.client import VoiceClient  # noqa: PLC0415 - no help needs the client

    try:
        with (
            Interruptions(),
            Account(api_id, api_key_file, base_url, timeout).client(VoiceClient) as client,
        ):
            remaining = client.query_balance().remaining
    except (KeyboardInterrupt, typer.Abort) as interruption:
        fail_interrupted(interruption)
    except IhuyiVoiceError as error:
        _fail(error, as_json=as_json)
    typer.echo(json.dumps({"remaining": remaining}) if as_json else str(remaining))
    if fail_below is not None and remaining < fail_below:
        raise typer.Exit(EXIT_BELOW)


def _fail(error: IhuyiVoiceError, *, as_json: bool) -> NoReturn:
    """End the program because the balance is not known."""
    from .._pipeline import status_of  # noqa: PLC0415 - no help needs it

    status = status_of(error)
    if as_json:
        typer.echo(json.dumps({"status": status.value, "error": str(error)}))
        raise typer.Exit(EXIT_STATUSES[status])
    if isinstance(error, NotSentError | OutcomeUnknownError):
        # Its advice says that the balance is not known.
        fail(local(error), EXIT_STATUSES[status])
    fail(_("the balance is not known: {error}").format(error=local(error)), EXIT_STATUSES[status])
