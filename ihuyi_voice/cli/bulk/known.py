"""Which rows of a file the store knows from earlier runs, so that they are not sent again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING

from ...store.entry import REPEATABLE
from ..account import fail
from ..language import gettext as _
from ..language import ngettext
from .keys import RowKeys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from ...store.base import KnownKeys
    from ...store.entry import Entry, Fingerprints
    from .file import BulkFile, Check

# Rows that are looked up at once.
_AT_ONCE = 1000


@dataclass
class Accepted:
    """Calls that were accepted earlier: how many, and the Unix time of the last; 0.0 for none."""

    count: int = 0
    last: float = 0.0

    @property
    def day(self) -> date:
        """The day of the last call, here."""
        return datetime.fromtimestamp(self.last).astimezone().date()


@dataclass
class Known:
    """The rows that were or may have been called earlier.

    Attributes:
        job: the name of the job.
        in_job: the rows without a key of their own that were called in the job.
        by_key: the rows that were called under their own key.
        unknown: how many rows may have been called.
    """

    job: str = ""
    in_job: Accepted = field(default_factory=Accepted)
    by_key: Accepted = field(default_factory=Accepted)
    unknown: int = 0

    @property
    def rows(self) -> int:
        """How many rows are not sent again."""
        return self.in_job.count + self.by_key.count + self.unknown

    def add(self, entry: Entry, *, derived: bool) -> None:
        """Count a row with this entry, whose key was derived or is its own."""
        if entry.state in REPEATABLE:
            return
        if entry.unsettled:
            self.unknown += 1
            return
        accepted = self.in_job if derived else self.by_key
        accepted.count += 1
        accepted.last = max(accepted.last, entry.claimed_at)

    def lines(self, rows: int) -> Iterator[str]:
        """For a person: which of so many rows are not sent again, and how to send them."""
        if called := self.in_job.count:
            yield ngettext(
                "{called} of {count} row was called in job {job} on {day}; --job NAME calls it"
                " again",
                "{called} of {count} rows were called in job {job} on {day}; --job NAME calls them"
                " again",
                rows,
            ).format(called=called, count=rows, job=self.job, day=self.in_job.day)
        if called := self.by_key.count:
            yield ngettext(
                "{called} of {count} row was called under its idempotency_key on {day}; only a new"
                " key calls it again",
                "{called} of {count} rows were called under their idempotency_key on {day}; only a"
                " new key calls them again",
                rows,
            ).format(called=called, count=rows, day=self.by_key.day)
        if self.unknown:
            yield ngettext(
                "{called} of {count} row may have been called, its outcome is unknown; it is not"
                " called again",
                "{called} of {count} rows may have been called, their outcome is unknown; they are"
                " not called again",
                rows,
            ).format(called=self.unknown, count=rows)

    def report(self) -> dict[str, object]:
        """As JSON."""
        last = max(self.in_job.last, self.by_key.last)
        moment = datetime.fromtimestamp(last, timezone.utc) if last else None
        return {
            "job": self.job,
            "accepted": self.in_job.count + self.by_key.count,
            "unknown": self.unknown,
            "last_accepted_at": moment and moment.isoformat(timespec="seconds"),
        }


def look_up(
    rows: BulkFile, check: Check, store: KnownKeys, fingerprints: Fingerprints, job: str
) -> Known:
    """Give each row without a key the key of its job, and ask the store for all keys."""
    if check.keyless and store.hashed_with_another_key(job, fingerprints.hashed_with):
        text = _(
            "nothing was sent: rows of job {job} were sent with another API key, by which they"
            " cannot be recognised: finish the job with the old key, or give --job NAME to call"
            " every row"
        )
        fail(text.format(job=job))
    rows.row_keys = lambda: RowKeys(fingerprints, store.id, job)
    known = Known(job)
    to_ask = (row for row in rows if row.key is not None and not row.problem)
    while some := {row.key or "": row for row in islice(to_ask, _AT_ONCE)}:
        for key, entry in store.entries(list(some)).items():
            known.add(entry, derived=some[key].derived)
    return known
