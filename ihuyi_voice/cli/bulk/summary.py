"""How a bulk run ended: its report, its exit status, and the next steps."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...models import OutcomeStatus
from ..account import EXIT_STATUSES
from ..language import gettext as _
from ..language import local, ngettext
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
            "stopped": str(tally.stopped),
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
            text = _(
                "Stopped before the end, because further rows would end the same way: {reason}"
            )
            lines.append(text.format(reason=local(tally.stopped)))
        elif tally.stopped:
            text = _("Stopped before the end: {reason}")
            lines.append(text.format(reason=local(tally.stopped)))
        if tally.interrupted:
            lines.append(_("Interrupted before the end."))
        if count := tally.unrecorded:
            text = ngettext(
                "The store did not record {count} outcome. Run this again only with the same"
                " store: it does not send this row again. Without it its phone would ring a second"
                " time.",
                "The store did not record {count} outcomes. Run this again only with the same"
                " store: it does not send these rows again. Without it their phones would ring a"
                " second time.",
                count,
            )
            lines.append(text.format(count=count))
        if unknown := tally.of(OutcomeStatus.UNKNOWN):
            text = _("Unknown rows: {count}, {where}.")
            lines.append(text.format(count=unknown, where=self._where_listed()))
        if tally.cut_short:
            text = _("Rows left: {left} of {rows}. {advice}")
            advice = self._how_to_go_on()
            lines.append(text.format(left=self._left(), rows=self.rows, advice=advice))
        return lines

    def _left(self) -> int:
        """Rows that the run did not reach, and rows that it took and did not send."""
        return self.rows - self.tally.total + self.tally.of(OutcomeStatus.NOT_SENT)

    def _where_listed(self) -> str:
        if self.place is not None:
            text = _("listed by: ihuyi-voice store {place}")
            return text.format(place=shlex.quote(self.place))
        if self.out is not None:
            return _("listed in {file} with the status unknown").format(file=self.out)
        return _("not listed, because there was no --out and --store was none")

    def _how_to_go_on(self) -> str:
        if self.place is not None:
            return self._with_the_store()
        called = self.tally.of(OutcomeStatus.ACCEPTED) + self.tally.of(OutcomeStatus.UNKNOWN)
        if not called:
            return _("No phone was called: run the same command again.")
        if self.out is not None:
            return ngettext(
                "To continue, remove from {file} the row that {out} shows as accepted or unknown,"
                " and run the rest. The whole of {file} would call {count} phone a second time."
                " Without --store none you only repeat the same command.",
                "To continue, remove from {file} the rows that {out} shows as accepted or unknown,"
                " and run the rest. The whole of {file} would call {count} phones a second time."
                " Without --store none you only repeat the same command.",
                called,
            ).format(file=self.file, out=self.out, count=called)
        return ngettext(
            "Do not run {file} again unchanged: it would call {count} phone a second time. Only"
            " the account's page shows which. Without --store none you only repeat the same"
            " command.",
            "Do not run {file} again unchanged: it would call {count} phones a second time. Only"
            " the account's page shows which. Without --store none you only repeat the same"
            " command.",
            called,
        ).format(file=self.file, count=called)

    def _with_the_store(self) -> str:
        if self.out is not None:
            return _(
                "To continue, run the same command again with a new --out file: no phone that"
                " rang, or may have rung, is called again."
            )
        return _(
            "To continue, run the same command again: no phone that rang, or may have rung, is"
            " called again."
        )
