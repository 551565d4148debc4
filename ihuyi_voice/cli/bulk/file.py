"""The file of a bulk run: CSV or JSON in, one checked row after another out.

A row that cannot be sent is not dropped: it comes with its problem and its line.
`records.py` splits the text into records, and `columns.py` finds the columns.
This module sends nothing.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ...errors import InvalidRequestError
from ...models import generate_code
from ...store.entry import check_key
from ...wire import read_content, read_mobile
from ..language import Phrase
from .columns import CONTENT, MOBILE, ColumnError, ColumnOptions, damage
from .records import RecordError, Records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .keys import RowKeys
    from .records import Cells

# Bad rows, and rows with a number that came before, of which the line is kept.
_MOST_SHOWN = 5
_SAVE_AS = Phrase("save it as CSV UTF-8 (in Excel: File, Save As, CSV UTF-8)")
_NO_CONTENT = Phrase(
    "it has no content (the code to read out); --draw-codes draws one for such rows"
)
_LOST_ZEROS = Phrase(
    "if it began with zeros, a spreadsheet dropped them: make the column text there, enter the"
    " codes again, and save as CSV UTF-8"
)
# How workbooks begin (.xlsx and .xls), and text in UTF-16.
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# GB 18030 contains its predecessors.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "utf-8": "utf-8-sig"}


class BulkFileError(Exception):
    """The file cannot be read; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of the file.

    Attributes:
        line: the line it ends in, from 1; in a JSON array its place, from 1.
        mobile: the number as the gateway takes it; "" where it is none.
        content: the code, drawn where the file has none; "" where it is none.
        key: the row's idempotency key, if it has one or was given one.
        problem: what is wrong with it; "" when it can be sent.
        drawn: whether the code was drawn.
        derived: whether the key was made from the row and its job.
    """

    line: int
    mobile: str = field(default="", repr=False)
    content: str = field(default="", repr=False)
    key: str | None = None
    problem: Phrase | str = ""
    drawn: bool = False
    derived: bool = False


@dataclass
class Check:
    """What a check of the whole file found.

    Attributes:
        rows: how many rows there are, bad ones included.
        problems: line and problem of the first few bad rows.
        bad: how many rows cannot be sent.
        duplicates: how many rows call a number that an earlier row calls.
        repeats: the lines of the first few of them, and of the earlier row of each.
        drawn: how many rows have no code of their own.
        keys: how many rows have an idempotency key.
        keyless: how many good rows have none.
        revealing_keys: how many good rows have a key that contains their number or code.
        lengths: for each number of digits, how many codes of the file have it.
        ignored: the names of the unused columns.
        numbered_by: what `FileRow.line` counts: "line" or "item".
    """

    rows: int = 0
    bad: int = 0
    duplicates: int = 0
    drawn: int = 0
    keys: int = 0
    keyless: int = 0
    revealing_keys: int = 0
    problems: list[tuple[int, Phrase | str]] = field(default_factory=list)
    repeats: list[tuple[int, int]] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    ignored: tuple[str, ...] = ()
    numbered_by: str = "line"

    @property
    def good(self) -> int:
        """How many rows can be sent."""
        return self.rows - self.bad

    @property
    def mixed_lengths(self) -> bool:
        """Whether the codes differ in length: a spreadsheet may have dropped leading zeros."""
        return len(self.lengths) > 1


class BulkFile:
    """The rows of a file, or of standard input for "-".

    It is read twice. So a file that can be read only once, such as a pipe, is copied.

    Args:
        name: the file's path, or "-".
        limit: how many rows to read at most.
        options: the columns that options give; the others are matched by name.
        draw_codes: draw a code for each row without one; otherwise such a row is bad.
        encoding: of the text; None for UTF-8. A byte order mark overrides it.

    Attributes:
        row_keys: makes an object that derives keys for the rows without one, for each
            reading; None if they need none.

    Raises:
        BulkFileError: the file cannot be opened, or the encoding is not known.
    """

    def __init__(
        self,
        name: str,
        limit: int | None = None,
        options: ColumnOptions | None = None,
        *,
        draw_codes: bool = False,
        encoding: str | None = None,
    ) -> None:
        self.name: str = "standard input" if name == "-" else name
        self.row_keys: Callable[[], RowKeys] | None = None
        self._limit = limit
        self._options = options or ColumnOptions()
        self._draw_codes = draw_codes
        self._encoding = None if encoding is None else _known_encoding(encoding)
        try:
            self._bytes = _copied_aside(sys.stdin.buffer) if name == "-" else _readable_twice(name)
        except OSError as error:
            msg = Phrase("cannot read {name}: {reason}", name=self.name, reason=_reason(error))
            raise BulkFileError(msg) from None

    def close(self) -> None:
        """Close the file."""
        self._bytes.close()

    def check(self) -> Check:
        """Check all rows. It keeps every number in memory.

        Raises:
            BulkFileError: the file cannot be read to its end, or has no rows.
        """
        found = Check()
        # The line in which each number comes first.
        lines: dict[int, int] = {}
        for row in self._read(found):
            found.rows += 1
            found.drawn += row.drawn
            found.keys += row.key is not None
            if row.problem:
                found.bad += 1
                if len(found.problems) < _MOST_SHOWN:
                    found.problems.append((row.line, row.problem))
                continue
            found.keyless += row.key is None
            found.revealing_keys += _reveals(row)
            if not row.drawn:
                found.lengths[len(row.content)] += 1
            earlier = lines.setdefault(int(row.mobile), row.line)
            if earlier != row.line:
                found.duplicates += 1
                if len(found.repeats) < _MOST_SHOWN:
                    found.repeats.append((row.line, earlier))
        if not found.rows:
            msg = Phrase("{name} has no rows: nothing to send", name=self.name)
            raise BulkFileError(msg)
        return found

    def __iter__(self) -> Iterator[FileRow]:
        return self._read(Check())

    def _read(self, found: Check) -> Iterator[FileRow]:
        """The rows; at the end it writes what is known of the columns to `found`."""
        text = self._text()
        records = Records(text, self._options, draw_codes=self._draw_codes)
        keys: dict[str, int] = {}
        row_keys = self.row_keys and self.row_keys()
        try:
            for line, cells in islice(records, self._limit):
                yield self._row(line, cells, keys, row_keys)
            records.finish()
            found.ignored = tuple(records.ignored)
            found.numbered_by = "line" if records.by_line else "item"
        except UnicodeError:
            raise BulkFileError(self._not_this_encoding()) from None
        except csv.Error as error:
            msg = Phrase(
                "{name} looks like CSV but is not valid CSV: {reason}", name=self.name, reason=error
            )
            raise BulkFileError(msg) from None
        except (ColumnError, RecordError) as error:
            msg = Phrase("{name}: {problem}", name=self.name, problem=error.args[0])
            raise BulkFileError(msg) from None
        except OSError as error:
            raise BulkFileError(self._unreadable(error)) from None
        finally:
            # After a run was stopped, this may run later than `close`.
            if not self._bytes.closed:
                text.detach()

    def _text(self) -> io.TextIOWrapper:
        self._bytes.seek(0)
        try:
            start = self._bytes.read(1024)
        except OSError as error:
            raise BulkFileError(self._unreadable(error)) from None
        self._bytes.seek(0)
        if start.startswith(_WORKBOOKS):
            msg = Phrase(
                "{name} is a workbook, not text: {advice}", name=self.name, advice=_SAVE_AS
            )
            raise BulkFileError(msg)
        encoding = self._encoding or "utf-8-sig"
        if start.startswith(codecs.BOM_UTF8):
            encoding = "utf-8-sig"
        elif start.startswith(_UTF_16):
            encoding = "utf-16"
        elif self._encoding is None and b"\0" in start:
            msg = Phrase(
                "{name} is not UTF-8 text: {advice}, or give --encoding utf-16-le if it is UTF-16",
                name=self.name,
                advice=_SAVE_AS,
            )
            raise BulkFileError(msg)
        return io.TextIOWrapper(self._bytes, encoding=encoding, newline="")

    def _unreadable(self, error: OSError) -> Phrase:
        return Phrase(
            "cannot read {name} to its end: {reason}", name=self.name, reason=_reason(error)
        )

    def _not_this_encoding(self) -> Phrase:
        if self._encoding is not None:
            return Phrase(
                "{name} is not text in the given --encoding: {advice}",
                name=self.name,
                advice=_SAVE_AS,
            )
        self._bytes.seek(0)
        decoder = codecs.getincrementaldecoder("gb18030")()
        try:
            for chunk in iter(partial(self._bytes.read, 1 << 20), b""):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return Phrase("{name} is not UTF-8 text: {advice}", name=self.name, advice=_SAVE_AS)
        return Phrase(
            "{name} is not UTF-8; it looks like GBK, as Excel saves plain CSV in China: give"
            " --encoding gbk, or {advice}",
            name=self.name,
            advice=_SAVE_AS,
        )

    def _row(
        self, line: int, cells: Cells | Phrase, keys: dict[str, int], row_keys: RowKeys | None
    ) -> FileRow:
        problem: Phrase | str
        if isinstance(cells, Phrase):
            return FileRow(line, problem=cells)
        content, key = (
            cell.strip() if isinstance(cell, str) else cell for cell in (cells.content, cells.key)
        )
        own_key: str | None = None
        if key not in (None, ""):
            try:
                own_key = check_key(key)
            except InvalidRequestError as error:
                return FileRow(line, problem=str(error))
            earlier = keys.setdefault(own_key, line)
            if earlier != line:
                problem = Phrase("its idempotency_key is that of line {line}", line=earlier)
                return FileRow(line, key=own_key, problem=problem)
        drawn = content in (None, "")
        number, code = read_mobile(cells.mobile), "" if drawn else read_content(content)
        if cells.mobile is None:
            problem = Phrase("it has no mobile number")
        elif isinstance(number, InvalidRequestError):
            problem = _explained(MOBILE, cells.mobile, str(number))
        elif drawn and not self._draw_codes:
            problem = _NO_CONTENT
        elif isinstance(code, InvalidRequestError):
            problem = _explained(CONTENT, content, str(code))
        else:
            derived = row_keys is not None and own_key is None
            if row_keys is not None:
                own_key = own_key or row_keys.key(number, code)
                code = code or row_keys.code(number, own_key)
            code = code or generate_code()
            return FileRow(line, number, code, own_key, drawn=drawn, derived=derived)
        return FileRow(line, key=own_key, problem=problem)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _explained(column: str, cell: object, problem: str) -> Phrase | str:
    """The problem, with its likely cause, such as what Excel did to the cell."""
    if isinstance(cell, str) and column == CONTENT and re.fullmatch("[0-9]{1,3}", cell):
        return Phrase("{problem}; {advice}", problem=problem, advice=_LOST_ZEROS)
    if isinstance(cell, str) and (words := damage(cell)):
        return Phrase("{column} {damage}", column=Phrase(column), damage=words)
    if isinstance(cell, float):
        return Phrase(
            "{problem}: a decimal number loses digits and zeros, write it in quotes",
            problem=problem,
        )
    if isinstance(cell, int) and column == MOBILE:
        return Phrase("{problem}; write it in quotes", problem=problem)
    return problem


def _reveals(row: FileRow) -> bool:
    """Whether the row's key contains its number, or its code as a separate number."""
    key = row.key or ""
    return row.mobile in key or (not row.drawn and row.content in re.findall(r"\d+", key))


def _known_encoding(name: str) -> str:
    try:
        known = codecs.lookup(name).name
        # Some codecs are not for text.
        io.TextIOWrapper(io.BytesIO(), encoding=known)
    except (LookupError, ValueError):
        msg = Phrase(
            "--encoding {name!r} is not known: give utf-8, gbk, gb18030, big5 or utf-16", name=name
        )
        raise BulkFileError(msg) from None
    return _SUPERSETS.get(known, known)


def _readable_twice(name: str) -> IO[bytes]:
    stream = Path(name).open("rb")  # noqa: SIM115 - closed by BulkFile.close
    if stream.seekable():
        return stream
    with stream:
        return _copied_aside(stream)


def _copied_aside(stream: IO[bytes]) -> IO[bytes]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed by BulkFile.close
    shutil.copyfileobj(stream, copy)
    return copy
