"""The command line: parse, call, print.

Every way a request can end has an exit status of its own, and every error is
one line on stderr. The API key is read from the environment, a file or a
prompt; there is no option for it, because other users can read a process's
arguments.
"""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import anyio
import typer

from .._loops import fast_loop_factory
from .._pipeline import status_of
from ..errors import (
    ACCEPTED,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    OutcomeUnknownError,
    QuotaExceededError,
)
from ..models import DEFAULT_BASE_URL, OutcomeStatus, generate_code, mask_mobile
from ..sync.client import VoiceClient
from ..wire import check_content, check_mobile
from . import ledger as ledger_command
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
from .bulk import command as bulk_command
from .signals import Interruptions

if TYPE_CHECKING:
    from ..models import SubmitResult
    from ..sandbox import Attempt

_STATUS_HELP = """

Exit status: 0 accepted · 2 invalid number, content, option or credentials, nothing sent ·
3 refused by the gateway · 4 not sent, repeating is safe · 5 over the limit for this number ·
6 [bold]unknown: the phone may have rung[/bold], do not repeat blindly ·
128 and the signal's number (130 after Ctrl-C) when interrupted before anything was sent.
"""
_ACCEPTED = OutcomeStatus.ACCEPTED

app: typer.Typer = typer.Typer(
    name="ihuyi-voice",
    help="Voice-verification calls through iHuyi (互亿无线): no phone rung twice,"
    " every outcome stated, no secret leaked.\n\n"
    "Credentials: IHUYI_VOICE_API_ID and IHUYI_VOICE_API_KEY in the environment, or --api-id and"
    " --api-key-file, or a prompt. To try it without an account: [bold]ihuyi-voice demo[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog=bulk_command.EXIT_HELP)(bulk_command.bulk)
app.command(epilog=ledger_command.EXIT_HELP)(ledger_command.ledger)


@app.command(epilog=_STATUS_HELP)
def submit(  # noqa: PLR0913 - one argument per option
    mobile: Annotated[
        str,
        typer.Argument(
            help="The mainland number to call. Blanks, hyphens and +86, 0086, 86 are stripped."
        ),
    ],
    content: Annotated[
        str | None,
        typer.Option(
            help="The verification code, 4-6 digits. Without it one of six digits is drawn and"
            " printed.",
            show_default=False,
        ),
    ] = None,
    *,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Place [bold]one call[/bold] that reads out a verification code. A real phone rings."""
    drawn = None if content is not None else generate_code()
    code = content if content is not None else drawn or ""
    account = Account(api_id, api_key_file, base_url, timeout)
    number = ""
    sending = False
    result: SubmitResult | IhuyiVoiceError | None = None
    with Interruptions():
        try:
            # Checked here too, so that a bad number does not ask for a key first.
            number = check_mobile(mobile)
            code = check_content(code)
            with account.client(VoiceClient) as client:
                sending = True
                # Kept as it comes: closing the client may be interrupted too.
                try:
                    result = client.submit(number, code)
                except IhuyiVoiceError as error:
                    result = error
        except InvalidRequestError as error:
            number, drawn, result = "", None, error
        except (KeyboardInterrupt, typer.Abort) as interruption:
            if not sending:
                fail_interrupted(interruption)
            result = result or OutcomeUnknownError("interrupted while the request was on its way")
        status = status_of(result) if isinstance(result, IhuyiVoiceError) else _ACCEPTED
        with suppress(KeyboardInterrupt):
            report = _submit_report(number, status, result, drawn)
            if as_json:
                typer.echo(json.dumps(report))
            else:
                _print_submit(report)
    raise typer.Exit(EXIT_STATUSES[status])


def _submit_report(
    number: str, status: OutcomeStatus, result: SubmitResult | IhuyiVoiceError, drawn: str | None
) -> dict[str, object]:
    """The outcome of a submit, for machines; with a drawn code that a phone may be read."""
    report: dict[str, object] = {
        "status": status.value,
        "may_have_rung": True,
        "mobile": mask_mobile(number),
    }
    if drawn is not None and getattr(result, "may_have_rung", True):
        report["content"] = drawn
    if not isinstance(result, IhuyiVoiceError):
        return report | {"code": ACCEPTED, "msg": result.msg, "voice_id": result.voice_id}
    report |= {"may_have_rung": result.may_have_rung, "error": str(result)}
    if isinstance(result, GatewayError):
        report |= {"code": result.code, "msg": result.msg}
    if isinstance(result, QuotaExceededError):
        report["retry_after"] = result.retry_after
    return report


def _print_submit(report: dict[str, object]) -> None:
    code = f"  code {report['content']}" if "content" in report else ""
    if "error" in report:
        typer.echo(f"ihuyi-voice: {report['error']}{code}", err=True)
    else:
        typer.echo(f"accepted  {report['mobile']}{code}  voice id {report['voice_id'] or '-'}")


@app.command(
    epilog="Exit status: as of [bold]submit[/bold], and 7 when less is left than --fail-below."
)
def balance(  # noqa: PLR0913 - one argument per option
    fail_below: Annotated[
        int | None,
        typer.Option(
            help="Exit with status 7 when fewer calls than this are left.", show_default=False
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


@app.command()
def sandbox(  # noqa: PLR0913 - one argument per option
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port; 0 takes a free one.")
    ] = 8765,
    balance: Annotated[int, typer.Option(help="Calls the account has left.")] = 1000,
    blacklist: Annotated[
        list[str] | None,
        typer.Option(help="A number refused with 4030; may be given again.", show_default=False),
    ] = None,
    abuse_limit: Annotated[
        int | None,
        typer.Option(
            help="Freeze the account after so many refusals in a row.", show_default=False
        ),
    ] = None,
    frequency_limit: Annotated[
        bool, typer.Option(help="Refuse a third call to a number within a minute.")
    ] = False,
    receipt_url: Annotated[
        str | None,
        typer.Option(
            help="Push each call's receipt to this http or https URL.", show_default=False
        ),
    ] = None,
    receipt_delay: Annotated[float, typer.Option(help="Seconds from a call to its receipt.")] = 1.0,
    receipt_interval: Annotated[
        float,
        typer.Option(help="Seconds by which the wait for the next of three pushes grows."),
    ] = 60.0,
    keep: Annotated[int, typer.Option(help="How many calls it remembers.")] = 10_000,
) -> None:
    """Run a [bold]local gateway[/bold] that answers like the real one; no phone rings.

    It prints its URL and credentials, then each call it is sent. Open the URL in
    a browser: the calls appear there as they come, and the balance, a freeze and
    the chaos are set there, or with PUT /_sandbox/chaos, for example
    [bold]curl -X PUT -d '{"no_answer": 0.1}' URL/_sandbox/chaos[/bold]. Ctrl-C stops it.
    """
    from ..sandbox import SandboxGateway  # noqa: PLC0415 - the other commands do without

    try:
        gateway = SandboxGateway(
            balance=balance,
            blacklist=blacklist or (),
            abuse_limit=abuse_limit,
            frequency_limit=frequency_limit,
            receipt_url=receipt_url,
            receipt_delay=receipt_delay,
            receipt_interval=receipt_interval,
            keep=keep,
            on_attempt=_print_attempt,
        )
    except ValueError as error:
        fail(str(error))

    async def serve() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with gateway.serve(host, port) as url:
                typer.echo(
                    f"sandbox gateway on {url} (no phone will ring; open it in a browser;"
                    " Ctrl-C stops it)\n"
                    f"  export IHUYI_VOICE_BASE_URL={url}\n"
                    f"  export IHUYI_VOICE_API_ID={gateway.api_id}\n"
                    f"  export IHUYI_VOICE_API_KEY={gateway.api_key}"
                )
                _warn_unless_loopback(url)
                await anext(signals)

    try:
        anyio.run(serve, backend_options={"loop_factory": fast_loop_factory()})
    except OSError as error:
        fail(f"cannot listen on {host} port {port}: {error.strerror or error}", 1)
    typer.echo(f"{gateway.placed} placed of {gateway.taken} submits")


def _warn_unless_loopback(url: str) -> None:
    # The server logs the same, but the command sets up no logging.
    if not ip_address(urlsplit(url).hostname or "").is_loopback:
        typer.echo(
            f"warning: {url} is NOT only this machine: everyone who reaches it can read every"
            " number and code sent to it, submit, and steer it; leave out --host unless that is"
            " what you want",
            err=True,
        )


def _print_attempt(attempt: Attempt) -> None:
    moment = time.strftime("%H:%M:%S", time.localtime(attempt.time))
    what = f"placed {attempt.voice_id}" if attempt.placed else f"refused {attempt.code}"
    # The form may come from anywhere: as a literal, it cannot steer the terminal.
    line = f"{moment}  {what}  mobile {attempt.mobile!a}  content {attempt.content!a}"
    typer.echo(line)


@app.command()
def demo() -> None:
    """[bold]Try it out[/bold]: calls of every outcome against a local gateway. No phone rings."""
    from .demo import run_demo  # noqa: PLC0415 - the other commands do without

    run_demo()
