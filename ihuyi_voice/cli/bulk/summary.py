"""How a bulk run ended: its report, its exit status, and the next steps."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...models import OutcomeStatus
from ..account import EXIT_STATUSES
from .known import Known

if TYPE_CHECKING:
    from pathlib import Path

    from .progress import Tally

EXIT_ALL_ACCEPTED = 0


@dataclass(frozen=True)
class Summary:
    """The end of one run.

    Attributes:
        tally: the outcomes.
        rows: how many rows the file has, or `--limit` reads of it.
        file, out: as they were given on the command line.
        place: where the store is, None without one.
        known: the rows that were called earlier.
    """

    tally: Tally
    rows: int
    file: str
    out: Path | None
    place: str | None
    known: Known = field(default_factory=Known)

    def exit_status(self) -> int:
        """The exit status; an unknown outcome decides it before all others."""
        tally = self.tally
        if tally.of(OutcomeStatus.UNKNOWN):
            return EXIT_STATUSES[OutcomeStatus.UNKNOWN]
        if tally.unrecorded:
            return EXIT_STATUSES[OutcomeStatus.NOT_SENT]
        done = tally.of(OutcomeStatus.ACCEPTED) + tally.of(OutcomeStatus.REPLAYED)
        if done == tally.total and not tally.cut_short:
            return EXIT_ALL_ACCEPTED
        return EXIT_STATUSES[OutcomeStatus.REFUSED]

    def report(self) -> dict[str, object]:
        """The outcomes as JSON."""
        tally = self.tally
        report: dict[str, object] = {
            "rows": tally.total,
            **{status.value: tally.of(status) for status in OutcomeStatus},
            "codes": {str(code): n for (_, code), n in tally.counts.items() if code is not None},
            "stopped": tally.stopped,
            "interrupted": tally.interrupted,
            "unrecorded": tally.unrecorded,
        }
        if self.known.rows:
            report["earlier"] = self.known.report()
        return report | {"left": self._left()} if tally.cut_short else report

    def next_steps(self) -> list[str]:
        """Why the run ended, and how to continue; the outcomes say the rest."""
        tally = self.tally
        lines = []
        if tally.stopped_by_row:
            lines.append(
                "Stopped before the end, because further rows would end the same way:"
                f" {tally.stopped}"
            )
        elif tally.stopped:
            lines.append(f"Stopped before the end: {tally.stopped}")
        if tally.interrupted:
            lines.append("Interrupted before the end.")
        if tally.unrecorded:
            lines.append(
                f"The store did not record {tally.unrecorded} outcomes. Run this again only with"
                " the same store: it does not send these rows again. Without it their phones"
                " would ring a second time."
            )
        if unknown := tally.of(OutcomeStatus.UNKNOWN):
            lines.append(f"Unknown rows: {unknown}, {self._where_listed()}.")
        if tally.cut_short:
            lines.append(f"Rows left: {self._left()} of {self.rows}. {self._how_to_go_on()}")
        return lines

    def _left(self) -> int:
        """Rows that the run did not reach, and rows that it took and did not send."""
        return self.rows - self.tally.total + self.tally.of(OutcomeStatus.NOT_SENT)

    def _where_listed(self) -> str:
        if self.place is not None:
            return f"listed by: ihuyi-voice store {shlex.quote(self.place)}"
        if self.out is not None:
            return f"listed in {self.out} with the status unknown"
        return "not listed, because there was no --out and --store was none"

    def _how_to_go_on(self) -> str:
        if self.place is not None:
            new_out = " with a new --out file" if self.out is not None else ""
            return (
                f"To continue, run the same command again{new_out}: no phone that rang, or may have"
                " rung, is called again."
            )
        called = self.tally.of(OutcomeStatus.ACCEPTED) + self.tally.of(OutcomeStatus.UNKNOWN)
        if not called:
            return "No phone was called: run the same command again."
        if self.out is not None:
            return (
                f"To continue, remove from {self.file} the rows that {self.out} shows as accepted"
                f" or unknown, and run the rest. The whole of {self.file} would call {called}"
                " phones a second time. Without --store none you only repeat the same command."
            )
        return (
            f"Do not run {self.file} again unchanged: it would call {called} phones a second"
            " time. Only the account's page shows which. Without --store none you only repeat"
            " the same command."
        )
