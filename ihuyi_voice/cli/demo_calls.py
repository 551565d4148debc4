"""`ihuyi-voice demo`: every outcome once, a login, then a bulk run, against a local sandbox.

Both clients send real HTTP on loopback. It needs no account, and no phone rings.
"""

from __future__ import annotations

import secrets
import socket
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
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
from .bulk.progress import COLOURS, SendOptions, Tally, outcome_table, send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import SubmitResult

_BULK_ROWS = 500
_BLACKLISTED = "13800000001"
_PERSON = "18612345678"


@dataclass(frozen=True)
class Shown:
    """One call and its outcome: a row of the table."""

    client: str
    what: str
    mobile: str
    result: SubmitResult | IhuyiVoiceError


def run_demo() -> None:
    """Place the calls and print the outcome of each."""
    console = Console()
    gateway = SandboxGateway(balance=1000, blacklist=(_BLACKLISTED,))
    with gateway.serve_in_thread() as url:
        console.print(f"A sandbox gateway answers on {url}: real HTTP, and no phone rings.\n")
        with VoiceClient(gateway.api_id, gateway.api_key, base_url=url) as client:
            before = client.query_balance().remaining
            rows = _blocking(client)
            rows += run_async(_async, gateway, url)
            console.print(_table(rows))
            console.print(f"\nA login of {mask_mobile(_PERSON)}:")
            console.print(_login(client, gateway))
            console.print(f"\nA bulk run of {_BULK_ROWS} rows, some of them bad:")
            gateway.chaos = Chaos(latency=0.02, close_after_placing=0.01, seed=1)
            tally = run_async(_bulk, gateway, url, console)
            gateway.chaos = Chaos()
            console.print(outcome_table(tally))
            after = client.query_balance().remaining
    placed = len(gateway.calls)
    console.print(f"\nBalance before {before}, after {after}: {placed} calls placed.")
    seen = Counter((attempt.mobile, attempt.content) for attempt in gateway.attempts)
    console.print(
        f"The gateway saw {len(seen)} requests, none more than {max(seen.values())} time."
    )


def _blocking(client: VoiceClient) -> list[Shown]:
    rows = []
    for what, mobile, content in (
        ("a plain call", "139 1234 5678", "1125"),
        ("a second one within the minute", "+86 139-1234-5678", "482913"),
        ("a third one within the minute", "13912345678", "0042"),
        ("an invalid code", "13812345678", "12ab"),
        ("a blacklisted number", _BLACKLISTED, "7710"),
    ):
        try:
            result: SubmitResult | IhuyiVoiceError = client.submit(mobile, content)
        except IhuyiVoiceError as error:
            result = error
        rows.append(Shown("VoiceClient", what, mobile, result))
    return rows


def _login(client: VoiceClient, gateway: SandboxGateway) -> Table:
    """A verification from its start to a replay of its code."""
    # Without a store, the verifications are in this process's memory.
    verifier = Verifier(client, key=secrets.token_bytes(32))
    table = Table("what", "typed", "result")
    verification = verifier.start(_PERSON, purpose="login")
    table.add_row("start", "", verification.status.value, style="cyan")
    heard = next(call.content for call in reversed(gateway.calls) if call.mobile == _PERSON)
    table.add_row("the phone reads out", "", " ".join(heard), style="cyan")
    wrong = f"{(int(heard) + 1) % 10**6:06d}"
    for what, typed in (
        ("check a wrong code", wrong),
        ("check the code", " ".join(heard)),
        ("check the code again", heard),
    ):
        result = verifier.check(verification.id, typed, mobile=_PERSON, purpose="login")
        answer, colour = ("approved", "green") if result.approved else ("not approved", "red")
        table.add_row(what, typed, answer, style=colour)
    return table


async def _bulk(gateway: SandboxGateway, url: str, console: Console) -> Tally:
    def rows() -> Iterator[FileRow]:
        for n in range(_BULK_ROWS):
            line = n + 2
            if n % 100 == 50:
                yield FileRow(line, problem="it has no number")
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
        rows.append(Shown("AsyncVoiceClient", what, mobile, result))

    await show("a plain call", "13712345678", url)
    for what, chaos in (
        ("closed after the call was placed", Chaos(close_after_placing=1.0)),
        ("a proxy's 502 page as the answer", Chaos(html_502=1.0)),
        ("no answer within half a second", Chaos(no_answer=1.0)),
    ):
        gateway.chaos = chaos
        await show(what, "13612345678", url, patience=0.5)
    gateway.chaos = Chaos()
    with socket.socket() as unused:
        # Bound, so that no other program gets the port; it does not listen, so nothing answers.
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        await show("no server on the port", "13512345678", f"http://127.0.0.1:{port}")
    return rows


def _table(rows: list[Shown]) -> Table:
    table = Table("client", "what", "number", "outcome", "may have rung", "detail")
    for row in rows:
        if isinstance(row.result, IhuyiVoiceError):
            status, rung = status_of(row.result), row.result.may_have_rung
            detail = str(row.result)
        else:
            status, rung = OutcomeStatus.ACCEPTED, True
            detail = f"voice id {row.result.voice_id}"
        table.add_row(
            row.client,
            row.what,
            mask_mobile(normalize_mobile(row.mobile)),
            status.value,
            "yes" if rung else "no",
            detail,
            style=COLOURS.get(status, "cyan"),
        )
    return table
