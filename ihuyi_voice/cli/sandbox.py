"""`ihuyi-voice sandbox`: a local gateway that answers like the real one; no phone rings."""

from __future__ import annotations

import errno
import os
import shlex
import signal
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from .account import fail, run_async
from .sandbox_output import Output, attempt_line, other_line
from .signals import Interruptions

if TYPE_CHECKING:
    from ..sandbox import SandboxGateway

_DEFAULT_ACCOUNT = "sandbox"
_DEFAULT_KEY = "sandbox-key"


def sandbox(  # noqa: PLR0913 - one argument per option
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port; 0 takes a free one.")
    ] = 8765,
    account: Annotated[
        list[str] | None,
        typer.Option(
            help="The account's APIID. Give the option again for more accounts. Without it:"
            f" IHUYI_VOICE_API_ID, or {_DEFAULT_ACCOUNT}.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="The account's APIKEY: one for all accounts, or one for each, in their order."
            " Other users of this machine can read it: give none that is real here. Without it:"
            f" IHUYI_VOICE_API_KEY, or {_DEFAULT_KEY}.",
            show_default=False,
        ),
    ] = None,
    balance: Annotated[int, typer.Option(help="How many calls all accounts have left.")] = 1000,
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
    multiline_refusals: Annotated[
        bool, typer.Option(help="Write refusals in XML with line breaks, as the gateway may do.")
    ] = False,
    keep: Annotated[
        int, typer.Option(help="How many submits, and how many calls, it remembers.")
    ] = 10_000,
    quiet: Annotated[bool, typer.Option(help="Print no line for each request.")] = False,
) -> None:
    """Run a [bold]local gateway[/bold] that answers like the real one; no phone rings.

    It prints its URL and credentials, and then each request that it receives: submits,
    balance queries, and what it cannot read. Open the URL in a browser: the page shows the
    calls as they come, and there you set the balance, a freeze and the chaos. You can also
    set the chaos with PUT /_sandbox/chaos, for example
    [bold]curl -X PUT -d '{"no_answer": 0.1}' URL/_sandbox/chaos[/bold]. Ctrl-C stops it.
    """
    from ..sandbox import SandboxGateway  # noqa: PLC0415 - no other command needs it loaded

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
        fail(str(error))
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
            fail(f"cannot listen on {host} port {port}: {_why(error)}", 1)
        submits = "submit" if gateway.taken == 1 else "submits"
        output.print(f"{gateway.placed} placed of {gateway.taken} {submits}")
        output.close()


def _accounts(names: list[str] | None, keys: list[str] | None) -> dict[str, str]:
    """The APIKEY of each account, in the order of the options."""
    names = names or [os.environ.get("IHUYI_VOICE_API_ID") or _DEFAULT_ACCOUNT]
    keys = keys or [os.environ.get("IHUYI_VOICE_API_KEY") or _DEFAULT_KEY]
    if len(keys) == 1:
        keys *= len(names)
    if len(keys) != len(names):
        fail("give one --key for all accounts, or one for each --account, in the same order")
    if len(set(names)) != len(names):
        fail("give each --account once")
    return dict(zip(names, keys, strict=True))


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "it is in use; give another with --port, or --port 0 for any free one"
    return error.strerror or str(error)


async def _serve(
    gateway: SandboxGateway, host: str, port: int, output: Output, signals: Interruptions
) -> None:
    """Serve until a signal comes.

    `loop.add_signal_handler` would be simpler, but the loops of Windows lack it.
    """
    async with gateway.serve(host, port) as url:
        output.print(
            f"sandbox gateway on {url} (no phone will ring; open it in a browser;"
            " Ctrl-C stops it)\n"
            f"  export IHUYI_VOICE_BASE_URL={url}\n"
            f"  export IHUYI_VOICE_API_ID={shlex.quote(gateway.api_id)}\n"
            f"  {_key_line(gateway.api_key)}"
        )
        if gateway.accounts:
            output.print(f"  # more accounts: {', '.join(gateway.accounts)}")
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


def _key_line(key: str) -> str:
    # The default key is no secret, and a newcomer needs it; any other may be a real one.
    if key == _DEFAULT_KEY:
        return f"export IHUYI_VOICE_API_KEY={key}"
    return "# IHUYI_VOICE_API_KEY: the key that you gave; it is not shown"
