"""From text to records: CSV, JSON lines and JSON arrays, one record after another.

A record is a line number with the three cells of the row, or with the reason why
the row cannot be read. `file.py` checks what the cells hold.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ..language import Phrase
from .columns import (
    ColumnError,
    ColumnOptions,
    Columns,
    known_names,
    match_names,
    table_columns,
    without_content,
    without_mobile,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from io import TextIOBase

# The last three are their full-width forms, as typed in Chinese.
_DELIMITERS = ",;\t|，；｜"  # noqa: RUF001 - full-width on purpose
_BLOCK = 1 << 16
# The most characters of one item of an array.
_LONGEST = 1 << 20
# For how many sets of names the columns of a JSON object are remembered.
_MOST_FORMS = 1000
_no_blank = re.compile(r"\S")


@dataclass(frozen=True, slots=True, repr=False)
class Cells:
    """The cells of one record; None or "" where there is none."""

    mobile: object
    content: object
    key: object


Record: TypeAlias = tuple[int, Cells | Phrase]

_EXAMPLE = '{"mobile": "13912345678", "content": "1125"}'


class RecordError(Exception):
    """The rest of the text cannot be read; the message says why."""


class Records:
    """The records of one reading of a text.

    Args:
        text: at its beginning, with its line ends unchanged.
        options: the columns that options give.
        draw_codes: whether the text may lack a column of codes.

    Attributes:
        ignored: names of unused columns, as far as the text was read.
        by_line: whether records are numbered by line; those of an array are counted.

    Raises:
        ColumnError: while iterating: the columns are ambiguous or missing.
        RecordError: while iterating: the text breaks off.
        csv.Error: while iterating: the text looks like CSV and is not.
    """

    def __init__(self, text: TextIOBase, options: ColumnOptions, *, draw_codes: bool) -> None:
        self._text = text
        self._options = options
        self._draw_codes = draw_codes
        self._columns: Columns | None = None
        self._forms: dict[tuple[str, ...], Columns] = {}
        # The names of the first JSON object, and whether any object so far had the column.
        self._first_names: tuple[str, ...] | None = None
        self._any_mobile = self._any_content = False
        self.by_line: bool = True
        self.ignored: dict[str, None] = {}

    def __iter__(self) -> Iterator[Record]:
        # The first characters that are not blank show the format.
        start = ""
        while len(start) < 2 and (c := self._text.read(1)):
            start += c.strip("\ufeff").strip()
        self._text.seek(0)
        if re.match(r"\[([\[{\]]|$)", start):
            self.by_line = False
            return self._array()
        return self._json_lines() if start[:1] in ("{", "[") else self._csv()

    def finish(self) -> None:
        """Raise ColumnError if all objects were read and none had a needed column."""
        if self._first_names is None or self._columns is not None:
            return
        if not self._any_mobile:
            raise ColumnError(without_mobile(self._first_names))
        if not (self._any_content or self._draw_codes):
            raise ColumnError(without_content(self._first_names))

    # --- CSV --------------------------------------------------------------------

    def _csv(self) -> Iterator[Record]:
        reader = csv.reader(self._text, delimiter=self._delimiter(), strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells) and (found := self._row(cells)):
                yield reader.line_num, found

    def _delimiter(self) -> str:
        """The delimiter that makes the first row a header or a call; else the best guess."""

        def worth(delimiter: str) -> tuple[bool, int, int]:
            cells = self._first_row(delimiter)
            try:
                columns = table_columns(cells, self._options, draw_codes=self._draw_codes)
            except ColumnError:
                return False, known_names(cells, self._options), len(cells)
            return True, sum(place is not None for place in columns.places), len(cells)

        best = max(_DELIMITERS, key=worth)
        self._text.seek(0)
        return best

    def _first_row(self, delimiter: str) -> list[str]:
        self._text.seek(0)
        try:
            for cells in csv.reader(self._text, delimiter=delimiter, strict=True):
                if any(cell.strip() for cell in cells):
                    return cells
        except csv.Error:
            # If this delimiter is chosen, reading the rows raises it again.
            pass
        return []

    def _row(self, cells: Sequence[object]) -> Cells | Phrase | None:
        """The cells of a row of a table; None for its header."""
        if self._columns is None:
            first = [cell if isinstance(cell, str) else "" for cell in cells]
            self._columns = table_columns(first, self._options, draw_codes=self._draw_codes)
            self._ignore(self._columns)
            if self._columns.from_header:
                return None
        columns = self._columns
        if any(cell not in (None, "") and str(cell).strip() for cell in cells[columns.width :]):
            return Phrase(
                "it has more cells than the {count} columns: a cell with the separator in it must"
                " be in quotes",
                count=columns.width,
            )
        return Cells(
            *(
                None if place is None or place >= len(cells) else cells[place]
                for place in columns.places
            )
        )

    # --- JSON -------------------------------------------------------------------

    def _json_lines(self) -> Iterator[Record]:
        for number, line in enumerate(self._text, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line, object_pairs_hook=_Object)
            except (ValueError, RecursionError):
                yield number, Phrase("it is not JSON")
                continue
            if found := self._value(value):
                yield number, found

    def _array(self) -> Iterator[Record]:
        for number, value in enumerate(_Items(self._text), 1):
            if found := self._value(value):
                yield number, found

    def _value(self, value: object) -> Cells | Phrase | None:
        if isinstance(value, _Object):
            return self._object(value)
        if isinstance(value, list):
            return self._row(value)
        return Phrase("it is not like {example}", example=_EXAMPLE)

    def _object(self, value: _Object) -> Cells:
        columns = self._forms.get(value.names)
        if columns is None:
            columns = match_names(value.names, self._options)
            if len(self._forms) < _MOST_FORMS:
                self._forms[value.names] = columns
            self._ignore(columns)
            self._first_names = self._first_names or value.names
            self._any_mobile |= columns.mobile is not None
            self._any_content |= columns.content is not None
        return Cells(*(None if place is None else value.values[place] for place in columns.places))

    def _ignore(self, columns: Columns) -> None:
        for name in columns.ignored:
            if len(self.ignored) < _MOST_FORMS:
                self.ignored[name] = None


class _Object:
    """A JSON object with all its names, even if one occurs twice."""

    __slots__ = ("names", "values")

    def __init__(self, pairs: Iterable[tuple[str, object]]) -> None:
        pairs = tuple(pairs)
        self.names: tuple[str, ...] = tuple(name for name, _ in pairs)
        self.values: tuple[object, ...] = tuple(value for _, value in pairs)


class _Items:
    """The items of a JSON array; it keeps only one in memory.

    Args:
        text: at the beginning of the array.
    """

    def __init__(self, text: TextIOBase) -> None:
        self._text = text
        self._decoder = json.JSONDecoder(object_pairs_hook=_Object)
        self._buffer = ""
        self._at = 0
        self._count = 0

    def __iter__(self) -> Iterator[object]:
        self._next_mark()
        self._at += 1
        mark = ","
        if self._next_mark() == "]":
            mark = "]"
            self._at += 1
        while mark == ",":
            self._next_mark()
            yield self._next_value()
            self._count += 1
            mark = self._next_mark()
            self._at += 1
        if self._next_mark():
            msg = Phrase("there is more text after the end of its JSON array")
            raise RecordError(msg)

    @property
    def _broken(self) -> RecordError:
        msg = Phrase(
            "its JSON array breaks off or is not valid JSON after item {count}", count=self._count
        )
        return RecordError(msg)

    def _next_mark(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            if mark := _no_blank.search(self._buffer, self._at):
                self._at = mark.start()
                return mark[0]
            self._buffer, self._at = self._text.read(_BLOCK), 0
            if not self._buffer:
                return ""

    def _next_value(self) -> object:
        """The next item; a comma or the end of the array follows it."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except (ValueError, RecursionError):
                end = len(self._buffer)
            # Without a mark after it, a number may continue in the next block.
            mark = _no_blank.search(self._buffer, end)
            if mark and mark[0] in ",]":
                self._at = end
                return value
            more = ""
            if len(self._buffer) - self._at < _LONGEST:
                more = self._text.read(_BLOCK)
            if not more:
                raise self._broken
            self._buffer, self._at = self._buffer[self._at :] + more, 0
