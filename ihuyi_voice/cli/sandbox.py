"""`ihuyi-voice sandbox`: a local gateway that answers like the real one; no phone rings."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from .account import fail, run_async
from .language import gettext as _
from .language import local, mark, ngettext
from .sandbox_output import Output, attempt_line, other_line
from .signals import Interruptions

if TYPE_CHECKING:
    from ..sandbox import SandboxGateway

_DEFAULT_ACCOUNT = "sandbox"
_DEFAULT_KEY = "sandbox-key"

HELP = mark(
    "Run a [bold]local gateway[/bold] that answers like the real one; no phone rings.\n\n"
    "It prints its URL and credentials, and then each request that it receives: submits, balance"
    " queries, and what it cannot read. Open the URL in a browser: the page shows the calls as they"
    " come, and there you set the balance, a freeze and the chaos. You can also set the chaos with"
    " PUT /_sandbox/chaos, for example"
    " [bold]curl -X PUT -d '{\"no_answer\": 0.1}' URL/_sandbox/chaos[/bold]. Ctrl-C stops it."
)


def sandbox(  # noqa: PLR0913 - one argument per option
    *,
    host: Annotated[str, typer.Option(help=mark("The address to listen on."))] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help=mark("The port; 0 takes a free one."))
    ] = 8765,
    account: Annotated[
        list[str] | None,
        typer.Option(
            help=mark(
                "The account's API ID. Give the option again for more accounts. Without it:"
                " IHUYI_VOICE_API_ID, or sandbox."
            ),
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help=mark(
                "The account's API key: one for all accounts, or one for each, in their order."
                " Other users of this machine can read it: give none that is real here. Without"
                " it: IHUYI_VOICE_API_KEY, or sandbox-key."
            ),
            show_default=False,
        ),
    ] = None,
    balance: Annotated[
        int, typer.Option(help=mark("How many calls all accounts have left."))
    ] = 1000,
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
    multiline_refusals: Annotated[
        bool,
        typer.Option(help=mark("Write refusals in XML with line breaks, as the gateway may do.")),
    ] = False,
    keep: Annotated[
        int, typer.Option(help=mark("How many submits, and how many calls, it remembers."))
    ] = 10_000,
    quiet: Annotated[bool, typer.Option(help=mark("Print no line for each request."))] = False,
) -> None:
    """Run the gateway until a signal comes; see `HELP`."""
    from ..sandbox import SandboxGateway  # noqa: PLC0415 - no other command needs it loaded

    # The command prints the server's warning itself, in one line.
    logging.getLogger("ihuyi_voice").addHandler(logging.NullHandler())
    accounts = _accounts(account, key)
    first, *more = accounts
    try:
        gateway = SandboxGateway(
            api_id=first,
            api_key=accounts[first],
            accounts={name: accounts[name] for name in more},
            balance=balance,
            blacklist=blacklist or (),
            abuse_limit=abuse_limit,
            frequency_limit=frequency_limit,
            receipt_url=receipt_url,
            receipt_delay=receipt_delay,
            receipt_interval=receipt_interval,
            keep=keep,
            multiline_refusals=multiline_refusals,
        )
    except ValueError as error:
        fail(local(error))
    output = Output()
    if not quiet:
        gateway.on_attempt = lambda attempt: output.print(attempt_line(attempt))
        gateway.on_other = lambda other: output.print(other_line(other))

    # A shell lets its background jobs ignore SIGINT, but `kill -INT` must stop this one.
    interruptions = Interruptions(even_ignored=(signal.SIGINT, signal.SIGTERM))
    with interruptions as signals, signals.collecting():
        try:
            run_async(_serve, gateway, host, port, output, signals)
        except OSError as error:
            fail(_cannot_listen(host, port, error), 1)
        text = ngettext(
            "{placed} placed of {count} submit", "{placed} placed of {count} submits", gateway.taken
        )
        output.print(text.format(placed=gateway.placed, count=gateway.taken))
        output.close()


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        text = _(
            "port {port} of {host} is in use: give another one with --port, or --port 0 for a free"
            " one"
        )
        return text.format(port=port, host=host)
    text = _("cannot listen on {host} port {port}: {reason}")
    return text.format(host=host, port=port, reason=error.strerror or error)


def _accounts(names: list[str] | None, keys: list[str] | None) -> dict[str, str]:
    """The API key of each account, in the order of the options."""
    names = names or [os.environ.get("IHUYI_VOICE_API_ID") or _DEFAULT_ACCOUNT]
    keys = keys or [os.environ.get("IHUYI_VOICE_API_KEY") or _DEFAULT_KEY]
    if len(keys) == 1:
        keys *= len(names)
    if len(keys) != len(names):
        fail(_("give one --key for all accounts, or one for each --account, in the same order"))
    if len(set(names)) != len(names):
        fail(_("give each --account once"))
    return dict(zip(names, keys, strict=True))


async def _serve(
    gateway: SandboxGateway, host: str, port: int, output: Output, signals: Interruptions
) -> None:
    """Serve until a signal comes.

    `loop.add_signal_handler` would be simpler, but the loops of Windows lack it.
    """
    async with gateway.serve(host, port) as url:
        output.print(
            _(
                "sandbox gateway on {url} (no phone will ring; open it in a browser; Ctrl-C stops"
                " it)"
            ).format(url=url)
            + "\n"
            f"  export IHUYI_VOICE_BASE_URL={url}\n"
            f"  export IHUYI_VOICE_API_ID={shlex.quote(gateway.api_id)}\n"
            f"  {_key_line(gateway.api_key)}"
        )
        if gateway.accounts:
            output.print(f"  # more accounts: {', '.join(gateway.accounts)}")
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


def _key_line(key: str) -> str:
    # The default key is no secret, and a newcomer needs it; any other may be a real one.
    if key == _DEFAULT_KEY:
        return f"export IHUYI_VOICE_API_KEY={key}"
    return _("# IHUYI_VOICE_API_KEY: the key that you gave; it is not shown")
