"""`ihuyi-voice sandbox`: a local gateway that answers like the real one; no phone rings."""

from __future__ import annotations

import signal
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import anyio
import typer

from .._loops import fast_loop_factory
from .account import fail
from .signals import Interruptions

if TYPE_CHECKING:
    from ..sandbox import Attempt, SandboxGateway


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

    # A shell that starts a job in the background ignores its Ctrl-C: `kill -INT` still stops it.
    interruptions = Interruptions(even_ignored=(signal.SIGINT, signal.SIGTERM))
    with interruptions as signals, signals.collecting():
        try:
            anyio.run(
                _serve,
                gateway,
                host,
                port,
                signals,
                backend_options={"loop_factory": fast_loop_factory()},
            )
        except OSError as error:
            fail(f"cannot listen on {host} port {port}: {error.strerror or error}", 1)
    typer.echo(f"{gateway.placed} placed of {gateway.taken} submits")


async def _serve(gateway: SandboxGateway, host: str, port: int, signals: Interruptions) -> None:
    """Serve until a signal comes.

    Not by `loop.add_signal_handler`, which the loops of Windows do not have.
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
            f"warning: {url} is NOT only this machine: everyone who reaches it can read every"
            " number and code sent to it, submit, and change its settings; leave out --host unless"
            " you want that",
            err=True,
        )


def _print_attempt(attempt: Attempt) -> None:
    moment = time.strftime("%H:%M:%S", time.localtime(attempt.time))
    what = f"placed {attempt.voice_id}" if attempt.placed else f"refused {attempt.code}"
    # The form may come from anywhere: as a literal it cannot control the terminal.
    line = f"{moment}  {what}  mobile {attempt.mobile!a}  content {attempt.content!a}"
    typer.echo(line)
