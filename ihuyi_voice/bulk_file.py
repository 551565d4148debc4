"""The file of a bulk run: CSV or JSON lines in, one checked row after another out.

A row that cannot be sent is not dropped: it comes with what is wrong with it
and the line it stands in. Nothing is sent here.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .errors import InvalidRequestError
from .ledger_entry import check_key
from .models import generate_code
from .wire import check_content, check_mobile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .bulk_keys import RowKeys

_COLUMNS = ("mobile", "content", "idempotency_key")


class BulkFileError(Exception):
    """The file as a whole cannot be read; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of the file.

    Attributes:
        line: the line it ends in, from 1.
        mobile: the number as the gateway takes it; "" where it is none.
        content: the code, drawn where the file has none; "" where it is none.
        key: the row's idempotency key, if it has one or was given one.
        problem: what is wrong with it; "" when it can be sent.
        drawn: whether the code was drawn.
    """

    line: int
    mobile: str = field(default="", repr=False)
    content: str = field(default="", repr=False)
    key: str | None = None
    problem: str = ""
    drawn: bool = False


@dataclass
class Check:
    """What a look through the whole file found.

    Attributes:
        rows: how many rows there are, bad ones included.
        problems: of the bad rows, line and text; the first few of them.
        bad: how many rows are bad.
        duplicates: how many rows call a number that an earlier row calls.
        drawn: how many rows have no code of their own.
        keys: how many rows have an idempotency key.
        keyless: how many good rows have none.
    """

    rows: int = 0
    bad: int = 0
    duplicates: int = 0
    drawn: int = 0
    keys: int = 0
    keyless: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)

    @property
    def good(self) -> int:
        """How many rows can be sent."""
        return self.rows - self.bad


class BulkFile:
    """The rows of a file, or of standard input for "-".

    Whatever can be read only once, such as a pipe, is kept aside to be read twice.

    Attributes:
        row_keys: names the rows that have no key, anew at each reading; None
            where they need none.

    Raises:
        BulkFileError: it cannot be opened.
    """

    def __init__(self, name: str, limit: int | None = None) -> None:
        self.name: str = "standard input" if name == "-" else name
        self.row_keys: Callable[[], RowKeys] | None = None
        self._limit = limit
        try:
            self._bytes = _kept_aside(sys.stdin.buffer) if name == "-" else _readable_twice(name)
        except OSError as error:
            msg = f"cannot read {self.name}: {error.strerror or error}"
            raise BulkFileError(msg) from None

    def close(self) -> None:
        """Close the file."""
        self._bytes.close()

    def check(self) -> Check:
        """Look through all rows; the memory it takes grows with the numbers in them.

        Raises:
            BulkFileError: the file cannot be read to its end.
        """
        found = Check()
        mobiles: set[int] = set()
        for row in self:
            found.rows += 1
            found.drawn += row.drawn
            found.keys += row.key is not None
            if row.problem:
                found.bad += 1
                if len(found.problems) < 5:
                    found.problems.append((row.line, row.problem))
                continue
            found.keyless += row.key is None
            mobile = int(row.mobile)
            found.duplicates += mobile in mobiles
            mobiles.add(mobile)
        return found

    def __iter__(self) -> Iterator[FileRow]:
        self._bytes.seek(0)
        text = io.TextIOWrapper(self._bytes, encoding="utf-8-sig", newline="")
        keys: dict[str, int] = {}
        row_keys = self.row_keys and self.row_keys()
        try:
            for count, (line, fields) in enumerate(_records(text)):
                if count == self._limit:
                    break
                yield _row(line, fields, keys, row_keys)
        except UnicodeDecodeError:
            raise BulkFileError(self._not_utf8()) from None
        except csv.Error as error:
            msg = f"{self.name} is not the CSV it looks like: {error}"
            raise BulkFileError(msg) from None
        except OSError as error:
            msg = f"cannot read {self.name} to its end: {error.strerror or error}"
            raise BulkFileError(msg) from None
        finally:
            # A run that was stopped leaves this behind, and the file may be closed first.
            if not self._bytes.closed:
                text.detach()

    def _not_utf8(self) -> str:
        self._bytes.seek(0)
        decoder = codecs.getincrementaldecoder("gb18030")()
        try:
            for chunk in iter(partial(self._bytes.read, 1 << 20), b""):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return f"{self.name} is not UTF-8 text: save it as UTF-8, CSV or JSON lines"
        return (
            f"{self.name} is not UTF-8; it looks like GBK. Save it as UTF-8, or convert it:"
            " iconv -f GB18030 -t UTF-8 OLD > NEW"
        )


def _readable_twice(name: str) -> BinaryIO:
    stream = Path(name).open("rb")  # noqa: SIM115 - closed by BulkFile.close
    if stream.seekable():
        return stream
    with stream:
        return _kept_aside(stream)


def _kept_aside(stream: BinaryIO) -> BinaryIO:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed by BulkFile.close
    shutil.copyfileobj(stream, copy)
    return copy


def _records(text: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, object] | str]]:
    """Each row's line and fields by name, or what is wrong with it."""
    start = text.read(1)
    while start.isspace():
        start = text.read(1)
    text.seek(0)
    return _json_records(text) if start in ("{", "[") else _csv_records(text)


def _json_records(text: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, object] | str]]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            yield number, "it is not JSON"
            continue
        if isinstance(fields, list):
            fields = dict(zip(_COLUMNS, fields, strict=False))
        if isinstance(fields, dict):
            yield number, fields
        else:
            yield number, 'it is not like {"mobile": "13912345678", "content": "1125"}'


def _csv_records(text: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, object] | str]]:
    first = text.readline()
    while first and not first.strip():
        first = text.readline()
    text.seek(0)
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    columns: tuple[str, ...] | None = None
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            names = tuple(cell.strip().lower() for cell in cells)
            columns = names if "mobile" in names else _COLUMNS
            if columns is names:
                continue
        yield reader.line_num, dict(zip(columns, cells, strict=False))


def _row(
    line: int, fields: dict[str, object] | str, keys: dict[str, int], row_keys: RowKeys | None
) -> FileRow:
    if isinstance(fields, str):
        return FileRow(line, problem=fields)
    mobile, content, key = (fields.get(name) for name in _COLUMNS)
    content, key = (cell.strip() if isinstance(cell, str) else cell for cell in (content, key))
    drawn = content in (None, "")
    own_key: str | None = None
    try:
        if key not in (None, ""):
            own_key = check_key(key)
            earlier = keys.setdefault(own_key, line)
            if earlier != line:
                return FileRow(
                    line, key=own_key, problem=f"its idempotency_key is that of line {earlier}"
                )
        number = check_mobile(mobile)
        code = "" if drawn else check_content(content)
    except InvalidRequestError as error:
        return FileRow(line, key=own_key, problem=str(error))
    if row_keys is not None:
        own_key = own_key or row_keys.key(number, code)
        code = code or row_keys.code(number, own_key)
    return FileRow(line, number, code or generate_code(), own_key, drawn=drawn)
