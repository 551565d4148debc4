"""`ihuyi-voice sandbox`: a local gateway that answers like the real one; no phone rings."""

from __future__ import annotations

import signal
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from .account import fail, run_async
from .signals import Interruptions

if TYPE_CHECKING:
    from ..sandbox import Attempt, SandboxGateway


def sandbox(  # noqa: PLR0913 - one argument per option
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port; 0 takes a free one.")
    ] = 8765,
    balance: Annotated[int, typer.Option(help="How many calls the account has left.")] = 1000,
    blacklist: Annotated[
        list[str] | None,
        typer.Option(
            help="A number to refuse with 4030. Give the option again for more numbers.",
            show_default=False,
        ),
    ] = None,
    abuse_limit: Annotated[
        int | None,
        typer.Option(
            help="Freeze the account after this many refusals in a row.", show_default=False
        ),
    ] = None,
    frequency_limit: Annotated[
        bool, typer.Option(help="Refuse a third call to a number within a minute.")
    ] = False,
    receipt_url: Annotated[
        str | None,
        typer.Option(
            help="Send each call's receipt to this http or https URL.", show_default=False
        ),
    ] = None,
    receipt_delay: Annotated[float, typer.Option(help="Seconds from a call to its receipt.")] = 1.0,
    receipt_interval: Annotated[
        float,
        typer.Option(help="Seconds by which the wait grows after each of up to three attempts."),
    ] = 60.0,
    keep: Annotated[
        int, typer.Option(help="How many submits, and how many calls, it remembers.")
    ] = 10_000,
) -> None:
    """Run a [bold]local gateway[/bold] that answers like the real one; no phone rings.

    It prints its URL and credentials, and then each submit that it receives. Open the
    URL in a browser: the page shows the calls as they come, and there you set the balance,
    a freeze and the chaos. You can also set the chaos with PUT /_sandbox/chaos, for example
    [bold]curl -X PUT -d '{"no_answer": 0.1}' URL/_sandbox/chaos[/bold]. Ctrl-C stops it.
    """
    from ..sandbox import SandboxGateway  # noqa: PLC0415 - no other command needs it loaded

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

    # A shell lets its background jobs ignore SIGINT, but `kill -INT` must stop this one.
    interruptions = Interruptions(even_ignored=(signal.SIGINT, signal.SIGTERM))
    with interruptions as signals, signals.collecting():
        try:
            run_async(_serve, gateway, host, port, signals)
        except OSError as error:
            fail(f"cannot listen on {host} port {port}: {error.strerror or error}", 1)
    typer.echo(f"{gateway.placed} placed of {gateway.taken} submits")


async def _serve(gateway: SandboxGateway, host: str, port: int, signals: Interruptions) -> None:
    """Serve until a signal comes.

    `loop.add_signal_handler` would be simpler, but the loops of Windows lack it.
    """
    async with gateway.serve(host, port) as url:
        typer.echo(
            f"sandbox gateway on {url} (no phone will ring; open it in a browser;"
            " Ctrl-C stops it)\n"
            f"  export IHUYI_VOICE_BASE_URL={url}\n"
            f"  export IHUYI_VOICE_API_ID={gateway.api_id}\n"
            f"  export IHUYI_VOICE_API_KEY={gateway.api_key}"
        )
        _warn_unless_loopback(url)
        await signals.next()


def _warn_unless_loopback(url: str) -> None:
    # The server logs the same warning, but the command sets up no logging.
    if not ip_address(urlsplit(url).hostname or "").is_loopback:
        typer.echo(
            f"warning: other machines can reach {url}: they can read all numbers and codes sent"
            " to it, submit, and change its settings; leave out --host unless you want that",
            err=True,
        )


def _print_attempt(attempt: Attempt) -> None:
    moment = time.strftime("%H:%M:%S", time.localtime(attempt.time))
    what = f"placed {attempt.voice_id}" if attempt.placed else f"refused {attempt.code}"
    # Anyone may have sent the form: as a literal its text cannot control the terminal.
    line = f"{moment}  {what}  mobile {attempt.mobile!a}  content {attempt.content!a}"
    typer.echo(line)
