"""`ihuyi-voice demo`: every outcome once, a login, then a bulk run, against a local sandbox.

Both clients send real HTTP on loopback. It needs no account, and no phone rings.
"""

from __future__ import annotations

import secrets
import socket
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from .._pipeline import status_of
from ..client import AsyncVoiceClient
from ..errors import IhuyiVoiceError
from ..models import OutcomeStatus, mask_mobile
from ..sandbox import Chaos, SandboxGateway
from ..sync.client import VoiceClient
from ..verification.sync import Verifier
from ..wire import normalize_mobile
from .account import run_async
from .bulk.file import FileRow
from .bulk.progress import COLOURS, SendOptions, Tally, outcome_table, say, send
from .language import Phrase, local, mark
from .language import gettext as _
from .wrapping import WrappedText

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import SubmitResult

_BULK_ROWS = 500
_BLACKLISTED = "13800000001"
_PERSON = "18612345678"


@dataclass(frozen=True)
class Shown:
    """One call and its outcome: a row of the tables."""

    what: str
    mobile: str
    result: SubmitResult | IhuyiVoiceError


def run_demo() -> None:
    """Place the calls and print the outcome of each."""
    console = Console()
    gateway = SandboxGateway(balance=1000, blacklist=(_BLACKLISTED,))
    with gateway.serve_in_thread() as url:
        text = _("A sandbox gateway on {url}: real HTTP, and no phone rings.")
        say(console, text.format(url=url) + "\n")
        with VoiceClient(gateway.api_id, gateway.api_key, base_url=url) as client:
            before = client.query_balance().remaining
            shown = _blocking(client)
            _print_calls(console, "VoiceClient", shown)
            rows = run_async(_async, gateway, url)
            _print_calls(console, "AsyncVoiceClient", rows, first=len(shown) + 1)
            shown += rows
            _print_errors(console, shown)
            text = _("A login of {mobile}:").format(mobile=mask_mobile(_PERSON))
            say(console, f"\n{text}")
            console.print(_login(client, gateway))
            text = _("A bulk run of {count} rows, some of them bad:").format(count=_BULK_ROWS)
            say(console, f"\n{text}")
            gateway.chaos = Chaos(latency=0.02, close_after_placing=0.01, seed=1)
            tally = run_async(_bulk, gateway, url, console)
            gateway.chaos = Chaos()
            console.print(outcome_table(tally))
            after = client.query_balance().remaining
    _print_sums(console, gateway, shown, tally, (before, after))


def _print_sums(
    console: Console,
    gateway: SandboxGateway,
    shown: list[Shown],
    tally: Tally,
    balances: tuple[int, int],
) -> None:
    """Compare the outcomes with what the gateway placed."""
    single = sum(not isinstance(row.result, IhuyiVoiceError) for row in shown)
    bulk = tally.of(OutcomeStatus.ACCEPTED)
    placed, before, after = len(gateway.calls), *balances
    seen = Counter((attempt.mobile, attempt.content) for attempt in gateway.attempts)
    for line in (
        _("The balance was {before} and is {after}: {placed} calls were placed.").format(
            before=before, after=after, placed=placed
        ),
        _(
            "They are {accepted} accepted calls ({single} of the tables, 1 of the login, {bulk} of"
            " the bulk run) and {unknown} calls with an unknown outcome: their phones rang, but no"
            " readable answer came."
        ).format(
            accepted=single + 1 + bulk, single=single, bulk=bulk, unknown=placed - single - 1 - bulk
        ),
        _(
            "{requests} requests reached the gateway: {placed} were placed, {refused} refused."
            " Each came once, so no phone rang twice for one request."
        ).format(requests=sum(seen.values()), placed=placed, refused=sum(seen.values()) - placed)
        if max(seen.values()) == 1
        else _("A request reached the gateway twice: please report this."),
    ):
        console.print(Padding(WrappedText(line), (1, 0, 0, 0), expand=False))


def _blocking(client: VoiceClient) -> list[Shown]:
    rows = []
    for what, mobile, content in (
        (mark("a plain call"), "139 1234 5678", "1125"),
        (mark("a second one within the minute"), "+86 139-1234-5678", "482913"),
        (mark("a third one within the minute"), "13912345678", "0042"),
        (mark("an invalid code"), "13812345678", "12ab"),
        (mark("a blacklisted number"), _BLACKLISTED, "7710"),
    ):
        try:
            result: SubmitResult | IhuyiVoiceError = client.submit(mobile, content)
        except IhuyiVoiceError as error:
            result = error
        rows.append(Shown(what, mobile, result))
    return rows


def _login(client: VoiceClient, gateway: SandboxGateway) -> Table:
    """A verification from its start to a replay of its code."""
    # Without a store, the verifications are in this process's memory.
    verifier = Verifier(client, key=secrets.token_bytes(32))
    table = Table(_("step"), _("typed"), _("result"))
    verification = verifier.start(_PERSON, purpose="login")
    table.add_row(_("start"), "", _("pending"), style="cyan")
    heard = next(call.content for call in reversed(gateway.calls) if call.mobile == _PERSON)
    table.add_row(_("the phone reads out"), "", " ".join(heard), style="cyan")
    wrong = f"{(int(heard) + 1) % 10**6:06d}"
    for what, typed in (
        (_("check a wrong code"), wrong),
        (_("check the code"), " ".join(heard)),
        (_("check the code again"), heard),
    ):
        result = verifier.check(verification.id, typed, mobile=_PERSON, purpose="login")
        answer, colour = _("not approved"), "red"
        if result.approved:
            answer, colour = _("approved"), "green"
        table.add_row(what, typed, answer, style=colour)
    return table


async def _bulk(gateway: SandboxGateway, url: str, console: Console) -> Tally:
    def rows() -> Iterator[FileRow]:
        for n in range(_BULK_ROWS):
            line = n + 2
            if n % 100 == 50:
                yield FileRow(line, problem=Phrase("it has no mobile number"))
            elif n % 100 == 60:
                yield FileRow(line, _BLACKLISTED, f"{n:06d}")
            else:
                yield FileRow(line, f"151{n:08d}", f"{n:06d}")

    tally = Tally()
    async with AsyncVoiceClient(gateway.api_id, gateway.api_key, base_url=url) as client:
        await send(client, rows(), _BULK_ROWS, SendOptions(concurrency=20), console, tally)
    return tally


async def _async(gateway: SandboxGateway, url: str) -> list[Shown]:
    rows: list[Shown] = []

    async def show(what: str, mobile: str, base_url: str, patience: float = 15.0) -> None:
        async with AsyncVoiceClient(
            gateway.api_id, gateway.api_key, base_url=base_url, timeout=patience
        ) as client:
            try:
                result: SubmitResult | IhuyiVoiceError = await client.submit(
                    mobile, f"{len(rows):04d}"
                )
            except IhuyiVoiceError as error:
                result = error
        rows.append(Shown(what, mobile, result))

    await show(mark("a plain call"), "13712345678", url)
    # Numbers that differ when they are masked: this is one call to each of three phones.
    for mobile, what, chaos in (
        ("13612340007", mark("closed after the call was placed"), Chaos(close_after_placing=1.0)),
        ("13612340008", mark("a proxy's 502 page as the answer"), Chaos(html_502=1.0)),
        ("13612340009", mark("no answer within half a second"), Chaos(no_answer=1.0)),
    ):
        gateway.chaos = chaos
        await show(what, mobile, url, patience=0.5)
    gateway.chaos = Chaos()
    with socket.socket() as unused:
        # Bound, so that no other program gets the port; it does not listen, so nothing answers.
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        await show(mark("no server on the port"), "13512345678", f"http://127.0.0.1:{port}")
    return rows


def _print_calls(console: Console, client: str, rows: list[Shown], first: int = 1) -> None:
    """Print a table that fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=client, title_justify="left")
    for header in ("", _("call"), _("number"), _("outcome"), _("rang")):
        table.add_column(header, no_wrap=True)
    for number, row in enumerate(rows, first):
        status, rang = OutcomeStatus.ACCEPTED, _("yes")
        if isinstance(row.result, IhuyiVoiceError):
            status = status_of(row.result)
            rang = _("perhaps") if row.result.may_have_rung else _("no")
        mobile = mask_mobile(normalize_mobile(row.mobile))
        cells = (str(number), _(row.what), mobile, _(status.value), rang)
        table.add_row(*cells, style=COLOURS.get(status, "cyan"))
    console.print(table)


def _print_errors(console: Console, rows: list[Shown]) -> None:
    say(console, _("What the exceptions say:"))
    # A column of its own, so that a long text never runs below the numbers.
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", min_width=2)
    table.add_column(overflow="fold")
    for number, row in enumerate(rows, 1):
        if isinstance(row.result, IhuyiVoiceError):
            text = f"{type(row.result).__name__}: {local(row.result)}"
            table.add_row(str(number), WrappedText(text))
    console.print(Padding(table, (0, 0, 0, 1)))
