"""One bulk run of the command: its progress, its tally and its --out file.

`file.py` reads the rows, and the client sends them. This module shows the
progress and writes the outcome of each row as it finishes.
"""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

import anyio
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from ...errors import (
    CODES,
    BulkStoppedError,
    GatewayError,
    NotSentError,
    OutcomeUnknownError,
    StoreError,
)
from ...models import OutcomeStatus, SubmitRequest, mask_mobile
from ..language import Phrase, mark
from ..language import gettext as _
from .file import BulkFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from rich.console import Console
    from rich.progress import TaskID

    from ...bulk.run import BulkRun
    from ...client import AsyncVoiceClient
    from ...models import Outcome
    from ..signals import Interruptions
    from .file import FileRow

COLOURS = {
    OutcomeStatus.ACCEPTED: "green",
    OutcomeStatus.REFUSED: "yellow",
    OutcomeStatus.UNKNOWN: "bold red",
}
_MEANINGS = {
    OutcomeStatus.ACCEPTED: mark("the phone rings"),
    OutcomeStatus.REFUSED: mark("the voice product documents no such code"),
    OutcomeStatus.UNKNOWN: mark("the phone may have rung: do not repeat blindly"),
    OutcomeStatus.NOT_SENT: mark("nothing was sent: no phone rang"),
    OutcomeStatus.LIMITED: mark("over the limit for this number: nothing was sent"),
    OutcomeStatus.INVALID: mark("a bad row: nothing was sent"),
    OutcomeStatus.REPLAYED: mark("accepted earlier: nothing was sent now"),
}
_COLUMNS = ("line", "mobile", "status", "code", "voice_id", "detail", "idempotency_key")
# Seconds between two updates of the progress: of the bar, and of the plain lines.
_REFRESH, _REFRESH_PLAIN = 0.1, 5.0
# When a terminal closes, its shell and the kernel each send SIGHUP: the second one
# within this many seconds is not a second request to stop.
_SAME_HANGUP = 0.25
_SIGHUP: int | None = getattr(signal, "SIGHUP", None)


@dataclass(frozen=True)
class SendOptions:
    """Arguments of `submit_many`, and whether the client has a store for keys."""

    concurrency: int | None = None
    rate: float | None = None
    wait_for_quota: bool = False
    with_keys: bool = False


@dataclass
class Tally:
    """The outcomes of the rows so far.

    Attributes:
        counts: rows by status and, for refusals, the gateway's code.
        stopped: why the run stopped before its last row; "" if it did not.
        stopped_by_row: whether the outcome of a row stopped it.
        interrupted: whether a signal stopped it.
        run: the run; None before it begins: until then no row was sent.
    """

    counts: Counter[tuple[OutcomeStatus, int | None]] = field(default_factory=Counter)
    stopped: Phrase | str = ""
    stopped_by_row: bool = False
    interrupted: bool = False
    run: BulkRun | None = None

    @property
    def cut_short(self) -> bool:
        """Whether the run ended before its last row."""
        return bool(self.stopped) or self.interrupted

    @property
    def unrecorded(self) -> int:
        """How many outcomes the store has not recorded so far."""
        return 0 if self.run is None else self.run.report.unrecorded

    def of(self, status: OutcomeStatus) -> int:
        """How many rows have this status."""
        return sum(count for (its, _), count in self.counts.items() if its is status)

    @property
    def total(self) -> int:
        """How many rows have an outcome."""
        return sum(self.counts.values())


class OutFile:
    """Writes one line for each row when it finishes, and flushes it.

    Raises:
        OSError: the file exists already, or cannot be created.
    """

    def __init__(self, path: Path, *, show_codes: bool) -> None:
        self._show_codes = show_codes
        self._file: TextIO = path.open("x", encoding="utf-8", newline="")
        columns = (*_COLUMNS, "content") if show_codes else _COLUMNS
        self._csv: csv.DictWriter[str] | None = None
        if path.suffix.lower() not in (".jsonl", ".ndjson", ".json"):
            self._csv = csv.DictWriter(self._file, columns)
            self._csv.writeheader()
            self._file.flush()

    def write(self, row: FileRow, outcome: Outcome | None) -> None:
        """Write the outcome of a row; None for a bad row, which was not sent."""
        line = {
            "line": row.line,
            "mobile": mask_mobile(row.mobile),
            "status": (outcome.status if outcome else OutcomeStatus.INVALID).value,
            "code": getattr(outcome and outcome.error, "code", None),
            "voice_id": outcome.result.voice_id if outcome and outcome.result else None,
            "detail": str((outcome.error or "") if outcome else row.problem),
            "idempotency_key": row.key,
        }
        if self._show_codes:
            line["content"] = row.content or None
        if self._csv is not None:
            self._csv.writerow(line)
        else:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file. An error does no harm: every line is flushed already."""
        with contextlib.suppress(OSError):
            self._file.close()


def say(console: Console, text: str) -> None:
    """Print plain text: brackets in a path or an error are not markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Shown:
    """The progress: a bar on a terminal, elsewhere a plain line every few seconds."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._began = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if console.is_terminal:
            self._bar = Progress(
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=console,
                auto_refresh=False,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def update(self, tally: Tally, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._last < (_REFRESH if self._bar else _REFRESH_PLAIN):
            return
        self._last = now
        rate = tally.total / max(now - self._began, 1e-3)
        counts = _(
            "accepted {accepted}  refused {refused}  unknown {unknown}  {rate:.0f}/s"
        ).format(
            accepted=tally.of(OutcomeStatus.ACCEPTED),
            refused=tally.of(OutcomeStatus.REFUSED),
            unknown=tally.of(OutcomeStatus.UNKNOWN),
            rate=rate,
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=tally.total, description=counts, refresh=True)
        else:
            left = (self._total - tally.total) / rate if rate else 0.0
            text = _("{done}/{total}  {counts}  {seconds:.0f} s left")
            self.say(text.format(done=tally.total, total=self._total, counts=counts, seconds=left))

    def say(self, text: str) -> None:
        say(self._console, text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


async def send(  # noqa: PLR0913, PLR0917 - what to send, how, and where to show it
    client: AsyncVoiceClient,
    rows: Iterable[FileRow],
    total: int,
    options: SendOptions,
    console: Console,
    tally: Tally,
    out: OutFile | None = None,
    signals: Interruptions | None = None,
) -> None:
    """Send the good rows; write, show and count the outcome of every row.

    After the first signal it starts no more requests and finishes those in flight.
    The second signal stops it at once, and requests in flight are reported as unknown.
    A file that becomes unreadable stops the run too.
    """
    sending = _Sending(_Shown(console, total), tally, out, with_keys=options.with_keys)
    run = client.submit_many(
        sending.good(rows),
        concurrency=options.concurrency,
        rate=options.rate,
        wait_for_quota=options.wait_for_quota,
    )
    with contextlib.nullcontext() if signals is None else signals.collecting():
        tally.run = run
        async with anyio.create_task_group() as group:
            if signals is not None:
                group.start_soon(sending.stop_on_signals, run, signals)
            await sending.follow(run)
            group.cancel_scope.cancel()
        sending.finish()


class _Sending:
    """The state of one bulk run."""

    def __init__(
        self, shown: _Shown, tally: Tally, out: OutFile | None, *, with_keys: bool
    ) -> None:
        self._tally = tally
        self._with_keys = with_keys
        self._shown = shown
        self._out = out
        # Rows in the run without an outcome yet, by index; and the bad rows, which are
        # skipped. The thread that reads the file fills both.
        self._under_way: dict[int, FileRow] = {}
        self._bad: deque[FileRow] = deque()

    def good(self, rows: Iterable[FileRow]) -> Iterator[SubmitRequest]:
        """Yield the rows to send; keep the bad ones for the tally."""
        index = 0
        for row in rows:
            if row.problem:
                self._bad.append(row)
                continue
            self._under_way[index] = row
            index += 1
            yield SubmitRequest(row.mobile, row.content, row.key if self._with_keys else None)

    async def follow(self, run: BulkRun) -> None:
        """Record each outcome until the run ends."""
        try:
            async with run:
                async for outcome in run:
                    self._note(run, self._under_way.pop(outcome.index), outcome)
                    self._note_bad(run)
                    self._shown.update(self._tally)
        except BulkStoppedError as error:
            self._tally.stopped = _without_advice(error)
            self._tally.stopped_by_row = True
        except BulkFileError as error:
            # The check could read it to its end, so it has changed since.
            self._tally.stopped = error.args[0]
        self._note_bad(run)

    async def stop_on_signals(self, run: BulkRun, signals: Interruptions) -> None:
        """Stop the run at the first signal, abort it at the second."""
        number = await signals.next()
        self._tally.interrupted = True
        run.stop()
        if number == _SIGHUP:
            await anyio.sleep(_SAME_HANGUP)
            signals.forget(number)
        self._shown.say(_("Stopping: requests in flight finish first. Ctrl-C again stops at once."))
        await signals.next()
        self._shown.say(_("Stopping at once: phones of requests in flight may have rung."))
        run.abort()

    def finish(self) -> None:
        """Show the last of the progress."""
        self._shown.update(self._tally, last=True)
        self._shown.close()

    def _note_bad(self, run: BulkRun) -> None:
        while self._bad:
            self._note(run, self._bad.popleft(), None)

    def _note(self, run: BulkRun, row: FileRow, outcome: Outcome | None) -> None:
        status = OutcomeStatus.INVALID if outcome is None else outcome.status
        code = outcome.error.code if outcome and isinstance(outcome.error, GatewayError) else None
        self._tally.counts[status, code] += 1
        if self._out is None:
            return
        try:
            self._out.write(row, outcome)
        except OSError as error:
            # Send no more rows whose outcomes cannot be written.
            self._out = None
            self._tally.stopped = Phrase(
                "cannot write the outcomes: {reason}", reason=error.strerror or error
            )
            run.stop()


def _without_advice(error: BulkStoppedError) -> str:
    """Why the run stopped, without the advice in an error's text, which is for one row."""
    cause = error.cause
    if isinstance(cause, NotSentError) and not isinstance(cause, StoreError):
        return f"not sent: {cause.reason}"
    if isinstance(cause, OutcomeUnknownError):
        return f"outcome unknown: {cause.reason}"
    return str(cause)


def outcome_table(tally: Tally) -> Table:
    """The rows by status and code."""
    table = Table(_("outcome"), _("code"), _("meaning"), _("rows"))
    table.columns[-1].justify = "right"
    # Only the meaning may take several lines.
    for column in (*table.columns[:2], table.columns[3]):
        column.no_wrap = True
    for (status, code), count in sorted(
        tally.counts.items(), key=lambda item: (-item[1], item[0][0].value)
    ):
        row = CODES.get(code) if code is not None else None
        table.add_row(
            _(status.value),
            "" if code is None else str(code),
            _(row.meaning if row else _MEANINGS[status]),
            str(count),
            style=COLOURS.get(status, "cyan"),
        )
    return table
