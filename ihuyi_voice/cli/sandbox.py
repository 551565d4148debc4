"""`ihuyi-voice sandbox`: a local gateway that answers like the real one; no phone rings."""

from __future__ import annotations

import errno
import logging
import signal
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from .account import fail, run_async
from .language import gettext as _
from .language import mark, ngettext
from .signals import Interruptions

if TYPE_CHECKING:
    from ..sandbox import Attempt, SandboxGateway

HELP = mark(
    "Run a [bold]local gateway[/bold] that answers like the real one; no phone rings.\n\n"
    "It prints its URL and credentials, and then each submit that it receives. Open the URL in a"
    " browser: the page shows the calls as they come, and there you set the balance, a freeze and"
    " the chaos. You can also set the chaos with PUT /_sandbox/chaos, for example"
    " [bold]curl -X PUT -d '{\"no_answer\": 0.1}' URL/_sandbox/chaos[/bold]. Ctrl-C stops it."
)


def sandbox(  # noqa: PLR0913 - one argument per option
    *,
    host: Annotated[str, typer.Option(help=mark("The address to listen on."))] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help=mark("The port; 0 takes a free one."))
    ] = 8765,
    balance: Annotated[int, typer.Option(help=mark("How many calls the account has left."))] = 1000,
    blacklist: Annotated[
        list[str] | None,
        typer.Option(
            help=mark("A number to refuse with 4030. Give the option again for more numbers."),
            show_default=False,
        ),
    ] = None,
    abuse_limit: Annotated[
        int | None,
        typer.Option(
            help=mark("Freeze the account after this many refusals in a row."), show_default=False
        ),
    ] = None,
    frequency_limit: Annotated[
        bool, typer.Option(help=mark("Refuse a third call to a number within a minute."))
    ] = False,
    receipt_url: Annotated[
        str | None,
        typer.Option(
            help=mark("Send each call's receipt to this http or https URL."), show_default=False
        ),
    ] = None,
    receipt_delay: Annotated[
        float, typer.Option(help=mark("Seconds from a call to its receipt."))
    ] = 1.0,
    receipt_interval: Annotated[
        float,
        typer.Option(
            help=mark("Seconds by which the wait grows after each of up to three attempts.")
        ),
    ] = 60.0,
    keep: Annotated[
        int, typer.Option(help=mark("How many submits, and how many calls, it remembers."))
    ] = 10_000,
) -> None:
    """Run the gateway until a signal comes; see `HELP`."""
    from ..sandbox import SandboxGateway  # noqa: PLC0415 - no other command needs it loaded

    # The command prints the server's warning itself, in one line.
    logging.getLogger("ihuyi_voice").addHandler(logging.NullHandler())
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
            fail(_cannot_listen(host, port, error), 1)
    text = ngettext(
        "{placed} placed of {count} submit", "{placed} placed of {count} submits", gateway.taken
    )
    typer.echo(text.format(placed=gateway.placed, count=gateway.taken))


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        text = _(
            "port {port} of {host} is in use: give another one with --port, or --port 0 for a free"
            " one"
        )
        return text.format(port=port, host=host)
    text = _("cannot listen on {host} port {port}: {reason}")
    return text.format(host=host, port=port, reason=error.strerror or error)


async def _serve(gateway: SandboxGateway, host: str, port: int, signals: Interruptions) -> None:
    """Serve until a signal comes.

    `loop.add_signal_handler` would be simpler, but the loops of Windows lack it.
    """
    async with gateway.serve(host, port) as url:
        typer.echo(
            _(
                "sandbox gateway on {url} (no phone will ring; open it in a browser; Ctrl-C stops"
                " it)"
            ).format(url=url)
            + "\n"
            f"  export IHUYI_VOICE_BASE_URL={url}\n"
            f"  export IHUYI_VOICE_API_ID={gateway.api_id}\n"
            f"  export IHUYI_VOICE_API_KEY={gateway.api_key}"
        )
        _warn_unless_loopback(url)
        await signals.next()


def _warn_unless_loopback(url: str) -> None:
    if not ip_address(urlsplit(url).hostname or "").is_loopback:
        typer.echo(
            _(
                "warning: other machines can reach {url}: they can read all numbers and codes sent"
                " to it, submit, and change its settings; leave out --host unless you want that"
            ).format(url=url),
            err=True,
        )


def _print_attempt(attempt: Attempt) -> None:
    moment = time.strftime("%H:%M:%S", time.localtime(attempt.time))
    what = _("placed {id}").format(id=attempt.voice_id)
    if not attempt.placed:
        what = _("refused {code}").format(code=attempt.code)
    # Anyone may have sent the form: as a literal its text cannot control the terminal.
    text = _("{moment}  {what}  mobile {mobile!a}  content {content!a}")
    line = text.format(moment=moment, what=what, mobile=attempt.mobile, content=attempt.content)
    typer.echo(line)
