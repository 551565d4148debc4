"""The messages of a job: some of its rows, and how they are sent.

No frame here that can raise holds numbers or codes as plain values, because
tools that report an exception show the variables of its frames.
"""

from __future__ import annotations

import base64
import json
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..errors import InvalidRequestError
from ..models import SubmitRequest, exact_text, mask_mobile
from ..wire import read_mobile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..bulk.run import Row

NumberedRow: TypeAlias = "tuple[int, SubmitRequest | None]"
"""A row with its number in the job; None for what is not a request."""

_PLAIN = (str, int, float, bool, type(None))
# A chunk of a job with a rate holds at most the starts of so many seconds, so that a
# worker is done with it long before the broker takes it for lost.
_SECONDS_OF_ROWS = 60.0


class Plan(NamedTuple):
    """How the rows of one generation of a job are sent."""

    generation: int
    concurrency: int
    rate: float | None


class ChunkRows:
    """The rows of one chunk as JSON values; no repr shows them, and no log a message of them.

    Attributes:
        plain: [mobile, content] each; None for what is not a row.
    """

    __slots__ = ("plain",)

    def __init__(self, plain: list[Any] | None = None) -> None:
        self.plain: list[Any] = [] if plain is None else plain

    def __len__(self) -> int:
        return len(self.plain)

    @classmethod
    def unpacked(cls, text: str) -> ChunkRows:
        """The rows of a message."""
        return cls(json.loads(base64.b64decode(text)))

    def packed(self) -> str:
        """The rows as one text for a message.

        A worker that has no such task logs the message as it is, by Celery.
        """
        return base64.b64encode(json.dumps(self.plain).encode()).decode()

    def add(self, row: Row) -> str:
        """Add a row; returns why it cannot be in a job, or ""."""
        pair: tuple[object, ...] = ()
        if isinstance(row, SubmitRequest):
            if row.idempotency_key is not None:
                return "has an idempotency_key, and a job derives the keys of its rows"
            pair = (row.mobile, row.content)
        elif isinstance(row, tuple | list):
            pair = tuple(row)
        self.plain.append(_plain(pair))
        return ""

    def masked(self) -> list[str]:
        """The numbers as their outcomes show them."""
        return ["" if row is None else masked(row[0]) for row in self.plain]


class RowSource:
    """The rows of a job on their way into chunks; no repr shows them.

    Attributes:
        taken: how many were taken.
    """

    __slots__ = ("_rows", "taken")

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: Iterator[Row] = iter(rows)
        self.taken: int = 0

    def take(self, count: int) -> ChunkRows:
        """The next rows; fewer than `count` only at the end.

        Raises:
            InvalidRequestError: a row cannot be in a job.
            BaseException: what the caller's iterable raises.
        """
        chunk = ChunkRows()
        # No variable of this frame is a row: the caller's iterable may raise through it.
        for problem in map(chunk.add, islice(self._rows, count)):
            if problem:
                msg = (
                    f"row {self.taken + len(chunk)} {problem}; the rows before this chunk are"
                    " enqueued"
                )
                raise InvalidRequestError(msg)
        self.taken += len(chunk)
        return chunk


class Chunk:
    """One message: some rows of a job.

    Attributes:
        job: its name.
        plan: how they are sent.
        first: the number of the first row in the job.
        rows: the rows.
    """

    __slots__ = ("first", "job", "plan", "rows")

    def __init__(self, job: str, plan: Plan, first: int, rows: ChunkRows) -> None:
        self.job: str = job
        self.plan: Plan = plan
        self.first: int = first
        self.rows: ChunkRows = rows

    def __repr__(self) -> str:
        return f"job {self.job!r}, rows {self.first}-{self.end - 1}"

    @property
    def end(self) -> int:
        """The number after that of the last row."""
        return self.first + len(self.rows)

    def arguments(self) -> tuple[Any, ...]:
        """What the message holds."""
        return (self.job, self.plan.generation, self.first, self.rows.packed(), *self.plan[1:])

    def shown(self) -> str:
        """What Celery shows instead of the arguments."""
        return f"({self!r})"

    def requests(self, ended: frozenset[int]) -> list[NumberedRow]:
        """The rows that have not ended, with their numbers in the job."""
        return [
            (index, None if row is None else SubmitRequest(row[0], row[1], self.key(index)))
            for index, row in enumerate(self.rows.plain, self.first)
            if index not in ended
        ]

    def key(self, index: int) -> str:
        """The idempotency key of a row: the same in each delivery of its message."""
        return f"job:{self.job}:{index}"


def rows_of_chunk(most: int, rate: float | None) -> int:
    """How many rows a chunk gets."""
    return most if rate is None else min(most, max(1, int(rate * _SECONDS_OF_ROWS)))


def masked(mobile: object) -> str:
    """A number with its middle masked; `****` for what is no number."""
    number = read_mobile(mobile)
    return mask_mobile(number if isinstance(number, str) else "")


def _plain(pair: tuple[object, ...]) -> list[object] | None:
    """A row that JSON can hold. A value of a wrong type stays, so that its error can name it."""
    texts = [exact_text(value) if isinstance(value, str) else value for value in pair]
    if len(texts) == 2 and all(isinstance(value, _PLAIN) for value in texts):
        return texts
    return None
