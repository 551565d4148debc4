"""Runs the steps of verifications and of jobs in a database transaction."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, insert, select, update

from ...models import VerificationStatus
from ..limits import KEEP_SECONDS
from ..verifications import Record
from .jobs import SqlJobTransaction
from .tables import decode, encode, verifications

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import sqlalchemy

    from ..limits import Start
    from .backend import Backend

_v = verifications.c
_FIND = select(verifications).where(_v.id == bindparam("its_id")).with_for_update()
_CHANGE = update(verifications).where(_v.id == bindparam("its_id"))
_ADD = insert(verifications)


class SqlTransaction(SqlJobTransaction):
    """See `store.verifications.Transaction` and `store.jobs.values.JobTransaction`.

    Args:
        connection: in a transaction, which ends after the step.
        backend: of its database.
        clock: the store's clock.
    """

    def __init__(
        self, connection: sqlalchemy.Connection, backend: Backend, clock: Callable[[], float]
    ) -> None:
        super().__init__(connection)
        self._backend = backend
        self._clock = clock
        # What is locked already is not read again.
        self._starts: dict[str, Sequence[Start]] = {}

    def now(self) -> float:
        """See `Transaction`."""
        return self._clock()

    def find(self, id: str) -> Record | None:  # noqa: A002 - its name
        """See `Transaction`."""
        row = self._connection.execute(_FIND, {"its_id": id}).mappings().one_or_none()
        if row is None:
            return None
        fields = dict(row)
        fields["status"] = VerificationStatus(fields["status"])
        fields["is_decoy"] = bool(fields["is_decoy"])
        return Record(**fields)

    def save(self, record: Record, *, is_new: bool = False) -> None:
        """See `Transaction`."""
        fields = asdict(record)
        fields["status"] = record.status.value
        fields["is_decoy"] = int(record.is_decoy)
        if is_new:
            self._connection.execute(_ADD, fields)
        else:
            self._connection.execute(_CHANGE, {"its_id": record.id, **fields})

    def starts(self, number: str) -> Sequence[Start]:
        """See `Transaction`."""
        if number not in self._starts:
            found = self._backend.lock_starts(self._connection, [number])
            self._starts[number] = decode(found.get(number, ""))
        return self._starts[number]

    def save_starts(self, number: str, starts: Sequence[Start]) -> None:
        """See `Transaction`."""
        self._starts[number] = starts
        row = {
            "number": number,
            "starts": encode(starts),
            "expires_at": starts[-1].at + KEEP_SECONDS if starts else 0.0,
        }
        self._backend.save_starts(self._connection, [row])

    def purge(self, before: float) -> int:
        """See `Transaction`."""
        return self._connection.execute(
            delete(verifications).where(_v.expires_at < before)
        ).rowcount
