"""The file of a bulk run: whatever is in it comes out as rows, or as one clear error."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import sys
import threading
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ihuyi_voice.cli.bulk.file import BulkFile, BulkFileError, Check, FileRow

if TYPE_CHECKING:
    from collections.abc import Iterable

A, B, C = "13912345678", "13812345678", "13712345678"
BOM = b"\xef\xbb\xbf"
GBK = "姓名"


def read(path: Path, limit: int | None = None, **options: Any) -> list[FileRow]:
    with closing(BulkFile(str(path), limit, **options)) as file:
        return list(file)


def check(path: Path, limit: int | None = None, **options: Any) -> Check:
    with closing(BulkFile(str(path), limit, **options)) as file:
        return file.check()


def error_of(path: Path, **options: Any) -> str:
    """What is wrong with the file, without its name."""
    with closing(BulkFile(str(path), **options)) as file, pytest.raises(BulkFileError) as caught:
        file.check()
    return str(caught.value).removeprefix(f"{path}: ").removeprefix(f"{path} ")


def sent(rows: Iterable[FileRow]) -> list[tuple[int, str, str, str | None]]:
    """The rows that can be sent: line, number, code and key."""
    return [(row.line, row.mobile, row.content, row.key) for row in rows if not row.problem]


def problems(rows: Iterable[FileRow]) -> list[tuple[int, str]]:
    return [(row.line, str(row.problem)) for row in rows if row.problem]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows"


# --- CSV ---------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "，"])
def test_csv_with_a_header_in_any_order(path: Path, start: bytes, separator: str, end: str) -> None:
    lines = [["Content", " MOBILE ", "note"], ["1125", A, "x"], [" 482913 ", B, "y"]]
    text = end.join(separator.join(cells) for cells in lines)
    path.write_bytes(start + text.encode())
    assert [(2, A, "1125", None), (3, B, "482913", None)] == sent(read(path))


@pytest.mark.parametrize("start", [b"", BOM, BOM + b"\n \n"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "，"])
def test_csv_without_a_header_is_number_and_code(path: Path, start: bytes, separator: str) -> None:
    path.write_bytes(start + f"{A}{separator}1125\n{B}{separator}0042\n".encode())
    first = 1 + start.count(b"\n")
    assert [(first, A, "1125", None), (first + 1, B, "0042", None)] == sent(read(path))


def test_numbers_come_out_as_the_gateway_takes_them(path: Path) -> None:
    path.write_text("mobile,content\n+86 139-1234-5678,1125\n0086 13812345678,1125\n")
    assert [A, B] == [row.mobile for row in read(path)]


def test_quoted_fields_and_the_lines_that_rows_end_in(path: Path) -> None:
    text = f'mobile,note,content\n{A},"two\nlines",1125\n\n"{B}","a ""b"", c","0042"\n'
    path.write_text(text)
    assert [(3, A, "1125", None), (5, B, "0042", None)] == sent(read(path))


def test_empty_lines_are_no_rows(path: Path) -> None:
    path.write_text(f"\n  \nmobile,content\n\n{A},1125\n , \n\t\n{B},1125\n\n")
    assert [(5, A, "1125", None), (8, B, "1125", None)] == sent(read(path))
    assert (2, 0) == (check(path).rows, check(path).bad)


def test_bad_rows_stay_in_their_place_and_say_why(path: Path) -> None:
    path.write_text(f"mobile,content\n{A},1125\n1391234567,1125\n{B},12ab\n,1125\n{C},1125\n")
    rows = read(path)
    assert [2, 6] == [line for line, *_ in sent(rows)]
    (line_3, short), (line_4, letters), (line_5, empty) = problems(rows)
    assert (3, 4, 5) == (line_3, line_4, line_5)
    assert short.startswith("mobile must be")
    assert short.endswith("it has 10 digits")
    assert letters.startswith("content must be")
    assert empty.endswith("it is empty")
    assert "12ab" not in letters


def test_a_row_with_too_few_or_too_many_cells(path: Path) -> None:
    """Cells without a column may have moved the others out of theirs."""
    path.write_text(f"content,mobile\n1125\n1125,{A},more\n1125,{B},,\n")
    more = "it has more cells than the 2 columns: a cell with the separator in it must be in quotes"
    assert [(2, "it has no mobile number"), (3, more)] == problems(read(path))
    assert [(4, B, "1125", None)] == sent(read(path))


@pytest.mark.parametrize(
    "text", ["", "\n\n", " \t\n", "mobile,content\n", "\ufeff", "[]", " [ \n] "]
)
def test_a_file_without_rows_is_an_error(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    assert "has no rows: nothing to send" == error_of(path)


def test_broken_csv_is_one_clear_error(path: Path) -> None:
    path.write_text(f'mobile,content\n"{A}" x,1125\n')
    assert error_of(path).startswith("looks like CSV but is not valid CSV: ")
    path.write_text(f'mobile,content\n{A},"1125\n')
    assert error_of(path).startswith("looks like CSV but is not valid CSV: ")


# --- JSON lines --------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", BOM, b"\n \n"])
def test_json_lines(path: Path, start: bytes) -> None:
    lines = [
        json.dumps({"mobile": A, "content": "1125", "more": [1]}),
        "",
        json.dumps([B, "0042"]),
        json.dumps({"idempotency_key": "key 2", "otp": "1125", "手机号": C}),
    ]
    path.write_bytes(start + "\n".join(lines).encode())
    first = 1 + start.count(b"\n")
    assert [
        (first, A, "1125", None),
        (first + 2, B, "0042", None),
        (first + 3, C, "1125", "key 2"),
    ] == sent(read(path))


def test_lists_are_the_rows_of_a_table(path: Path) -> None:
    """As of CSV: number and code, or as the first one names the columns."""
    path.write_text(f'["{A}", "1125"]\n["{B}"]\n[]\n["{C}", "0042", null, ""]\n')
    assert [(1, A, "1125", None), (4, C, "0042", None)] == sent(read(path))
    assert [2, 3] == [line for line, _ in problems(read(path))]
    path.write_text(f'["code", "user", "tel"]\n["1125", 7, "{B}"]\n')
    assert [(2, B, "1125", None)] == sent(read(path))
    path.write_text(f'["{A}", "1125", "a key"]\n')
    assert "its rows are not a mobile number and its code" in error_of(path)
    path.write_text(f"[{A}, 1125]\n")
    assert "its first row is neither a header" in error_of(path)


# --- JSON arrays --------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", BOM, b"\n \n"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array(path: Path, start: bytes, indent: int | None) -> None:
    rows = [
        {"phone": A, "code": "1125", "note": {"a": ["]", "}"]}},
        {"mobile": "139", "content": "1125"},
        {"电话": B, "验证码": "0042", "idempotency_key": "k"},
    ]
    path.write_bytes(start + json.dumps(rows, indent=indent).encode() + b"\n")
    assert [(1, A, "1125", None), (3, B, "0042", "k")] == sent(read(path))
    found = check(path)
    assert ("item", 3, 1, ("note",)) == (
        found.numbered_by,
        found.rows,
        found.bad,
        found.ignored,
    )
    assert [(1, A, "1125", None)] == sent(read(path, 1))


def test_an_array_of_lists(path: Path) -> None:
    path.write_text(f'[["mobile", "code"], ["{A}", "1125"],\n["{B}", "0042"]]')
    assert [(2, A, "1125", None), (3, B, "0042", None)] == sent(read(path))


@pytest.mark.parametrize(
    ("text", "problem_text"),
    [
        ("[", "its JSON array breaks off or is not valid JSON after item 0"),
        ('[{"mobile"', "its JSON array breaks off or is not valid JSON after item 0"),
        ('[{"mobile": "' + "1" * (1 << 21), "breaks off or is not valid JSON after item 0"),
        (f'[["{A}", "1125"]', "breaks off or is not valid JSON after item 0"),
        (f'[["{A}", "1125"],]', "breaks off or is not valid JSON after item 1"),
        (f'[["{A}", "1125"] ["{B}", "1125"]]', "breaks off or is not valid JSON after item 0"),
        (f'[["{A}", "1125"], 13', "breaks off or is not valid JSON after item 1"),
        (f'[["{A}", "1125"]]\n[["{B}", "1125"]]', "more text after the end of its JSON array"),
        ("[{" + '"a":[' * 10_000, "breaks off or is not valid JSON after item 0"),
    ],
)
def test_an_array_that_breaks_off_is_one_clear_error(
    path: Path, text: str, problem_text: str
) -> None:
    path.write_text(text)
    assert problem_text in error_of(path)


def test_an_array_is_read_item_by_item(path: Path) -> None:
    """Wherever a block of the file ends, and with no more of it in memory than a few blocks."""
    rows = [{"mobile": A, "code": f"{n:06}", "note": "x" * (n % 290)} for n in range(8_000)]
    path.write_text(json.dumps(rows))
    size = path.stat().st_size
    assert size > 20 * (1 << 16)
    with closing(BulkFile(str(path))) as file:
        tracemalloc.start()
        try:
            count = sum(row.content == f"{n:06}" for n, row in enumerate(file))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert 8_000 == count
    assert peak < size / 2
    path.write_text(f'[["{A}", "1125"]' + ", 1.5" * 30_000 + "]")
    assert 30_001 == len(read(path))


@pytest.mark.parametrize(
    ("line", "problem_text"),
    [
        ("{", "it is not JSON"),
        ("nothing", "it is not JSON"),
        ("[" * 10_000, "it is not JSON"),
        ('{"a":' * 10_000, "it is not JSON"),
        ("1" * 5_000, "it is not"),
        (f'"{A}"', 'it is not like {"mobile": "13912345678", "content": "1125"}'),
        ("null", 'it is not like {"mobile": "13912345678", "content": "1125"}'),
        (f'{{"mobile": {A}, "content": "1125"}}', "mobile must be a str"),
        (f'{{"mobile": "{A}", "content": 1125}}', "content must be a str"),
        (f'{{"mobile": "{A}", "content": false}}', "content must be a str"),
        (f'{{"mobile": "{A}", "content": ["1125"]}}', "content must be a str"),
        (f'{{"mobile": "{A}", "content": 1125.0}}', "content must be a str"),
        ('{"content": "1125"}', "it has no mobile number"),
        ('{"mobile": null, "content": "1125"}', "it has no mobile number"),
        (f'{{"mobile": "{A}"}}', "it has no content"),
        (f'{{"mobile": "{A}", "code": "1125", "idempotency_key": 7}}', "idempotency_key must be"),
    ],
)
def test_a_bad_line_is_one_bad_row_that_names_the_column(
    path: Path, line: str, problem_text: str
) -> None:
    path.write_text(f'["{B}", "1125"]\n{line}\n["{C}", "1125"]\n')
    rows = read(path)
    ((number, problem),) = problems(rows)
    assert (2, [1, 3]) == (number, [row[0] for row in sent(rows)])
    assert problem.startswith(problem_text)
    assert A not in problem.replace(problem_text, "")


# --- codes, keys, duplicates -------------------------------------------------


def test_a_row_without_content_gets_a_code_when_asked_to(path: Path) -> None:
    path.write_text("mobile\n" + f"{A}\n" * 200)
    rows = read(path, draw_codes=True)
    assert {True} == {row.drawn for row in rows}
    assert {6} == {len(row.content) for row in rows}
    assert all(row.content.isascii() and row.content.isdigit() for row in rows)
    # Of a million codes, 200 draws meet a handful of twins at the very most.
    assert 190 < len({row.content for row in rows})
    assert [row.content for row in rows] != [row.content for row in read(path, draw_codes=True)]
    assert 200 == check(path, draw_codes=True).drawn


@pytest.mark.parametrize(
    "text",
    [
        f"mobile,content\n{A},\n{A},  \n{A}\n{B},1125\n",
        f"{A},\n{A},  \n{A}\n{B},1125\n",
        f'["{A}", ""]\n{{"tel": "{A}", "otp": null}}\n{{"tel": "{A}"}}\n["{B}", "1125"]\n',
    ],
)
def test_empty_content_is_a_bad_row_unless_codes_are_drawn(path: Path, text: str) -> None:
    path.write_text(text)
    problem_text = "it has no content (the code to read out); --draw-codes draws one for such rows"
    assert [problem_text] * 3 == [problem for _, problem in problems(read(path))]
    assert (0, 1) == (check(path).drawn, check(path).good)
    assert [True, True, True, False] == [row.drawn for row in read(path, draw_codes=True)]
    assert [] == problems(read(path, draw_codes=True))
    assert (3, 4) == (check(path, draw_codes=True).drawn, check(path, draw_codes=True).good)


def test_no_code_is_drawn_for_a_bad_row(path: Path) -> None:
    path.write_text("mobile\n1391234567\n")
    found = check(path, draw_codes=True)
    assert (0, 1, 0) == (found.drawn, found.bad, found.good)


def test_keys_that_contain_number_or_code_are_counted(path: Path) -> None:
    path.write_text(
        f"mobile,content,idempotency_key\n{A},1125,login {A}\n{B},1125,1125\n{C},1125,x-1125-y\n"
        f"{A},1125,order 21125\n{A},1125,\n139,1125,a 1125\n"
    )
    assert (3, 5) == (check(path).revealing_keys, check(path).keys)


def test_lengths_of_codes_are_counted(path: Path) -> None:
    path.write_text(f"mobile,content\n{A},1125\n{B},112500\n{B},0042\n{C},\n{C},12345678\n")
    assert ({4: 2, 6: 1}, True) == (check(path).lengths, check(path).mixed_lengths)
    # A code that is drawn is not the file's own.
    path.write_text(f"mobile,content\n{A},1125\n{C},\n")
    found = check(path, draw_codes=True)
    assert ({4: 1}, False) == (found.lengths, found.mixed_lengths)


def test_a_repeated_key_names_the_earlier_line(path: Path) -> None:
    path.write_text(
        f"mobile,content,idempotency_key\n{A},1125,one\n{B},1125,\n{C},1125,\n{A},1125,one\n"
        f"{B},1125,two\n{C},1125,one\n"
    )
    assert [
        (5, "its idempotency_key is that of line 2"),
        (7, "its idempotency_key is that of line 2"),
    ] == problems(read(path))
    assert ["one", None, None, "two"] == [key for *_, key in sent(read(path))]
    assert (4, 2) == (check(path).keys, check(path).bad)


def test_duplicate_numbers_are_counted_however_they_are_written(path: Path) -> None:
    numbers = (A, f"+86{A}", B, "139 1234 5678", "1391234567", "1391234567")
    path.write_text("mobile,content\n" + "".join(f"{number},1125\n" for number in numbers))
    assert (6, 2, 2) == (check(path).rows, check(path).duplicates, check(path).bad)


def test_the_first_few_problems_are_kept(path: Path) -> None:
    path.write_text("mobile,content\n" + "none,1125\n" * 7)
    found = check(path)
    assert (7, 7, 0) == (found.rows, found.bad, found.good)
    assert [2, 3, 4, 5, 6] == [line for line, _ in found.problems]


# --- the file as a whole -----------------------------------------------------


def test_limit(path: Path) -> None:
    path.write_text(f"mobile,content\n{A},1125\nnone,\n\n{B},1125\n{C},1125\n")
    assert [2, 3] == [row.line for row in read(path, 2)]
    assert (3, 1) == (check(path, 3).rows, check(path, 3).bad)
    assert 4 == check(path, 100).rows
    # What lies beyond the limit is not looked at.
    path.write_bytes(path.read_bytes() + b"x" * 100_000 + b"\n" + GBK.encode("gbk"))
    assert 2 == check(path, 2).rows


def test_reading_twice_gives_the_same_rows(path: Path) -> None:
    path.write_bytes(BOM + f"mobile,idempotency_key,content\n{A},k,1125\n{B},,x\n".encode())
    with closing(BulkFile(str(path))) as file:
        first = list(file)
        assert [(2, A, "1125", "k")] == sent(first)
        assert first == list(file)
        assert file.check() == file.check()


def test_gbk_is_recognised_and_read_when_asked_to(path: Path) -> None:
    path.write_bytes(f"手机号,验证码,{GBK}\n{A},1125,{GBK}\n".encode("gbk"))
    assert error_of(path) == (
        "is not UTF-8; it looks like GBK, as Excel saves plain CSV in China: give --encoding gbk,"
        " or save it as CSV UTF-8 (in Excel: File, Save As, CSV UTF-8)"
    )
    for encoding in ("gbk", "GBK", "gb2312", "gb18030", "cp936"):
        assert [(2, A, "1125", None)] == sent(read(path, encoding=encoding))
        assert (GBK,) == check(path, encoding=encoding).ignored
    # A mark at the beginning leaves no doubt.
    path.write_bytes(BOM + f"手机号,验证码\n{A},1125\n".encode())
    assert [(2, A, "1125", None)] == sent(read(path, encoding="gbk"))
    path.write_bytes(f"mobile,content\n{A},1125\n".encode() + b"\xff\n")
    assert error_of(path, encoding="gbk").startswith("is not text in the given --encoding: save")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_text_as_excel_saves_it(path: Path, encoding: str) -> None:
    text = f"手机号\t验证码\r\n{A}\t0042\r\n"
    mark = "" if encoding == "utf-16" else "\ufeff"
    path.write_bytes((mark + text).encode(encoding))
    assert [(2, A, "0042", None)] == sent(read(path))
    if mark:
        path.write_bytes(text.encode(encoding))
        assert "or give --encoding utf-16-le if it is UTF-16" in error_of(path)
        assert [(2, A, "0042", None)] == sent(read(path, encoding=encoding))


@pytest.mark.parametrize("encoding", ["nonsense", "hex", "", "a\0b"])
def test_an_encoding_that_is_none(path: Path, encoding: str) -> None:
    path.write_text(f"{A},1125\n")
    with pytest.raises(BulkFileError, match=r"--encoding .* is not known: give utf-8, gbk"):
        BulkFile(str(path), encoding=encoding)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1"])
def test_a_workbook_is_no_text(path: Path, start: bytes) -> None:
    path.write_bytes(start + b"\0" * 2000)
    assert error_of(path).startswith("is a workbook, not text: save it as CSV UTF-8")


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_gbk_far_into_the_file(path: Path, shift: int) -> None:
    """Wherever it begins, and wherever a block of the file cuts a character in two."""
    far = f"\n{A},1125," + "x" * shift + f"\n{A},1125,{'x' * 1000}" * 1100
    assert len(far) > 1 << 20
    path.write_bytes((f"mobile,content,note{far}\n" + f"{GBK}\n" * 300_000).encode("gbk"))
    assert "it looks like GBK" in error_of(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\xff\xff",
        # A character of GBK cut off by the end of the file.
        f"mobile,content\n{A},1125\n".encode() + GBK.encode("gbk")[:-1],
        ("mobile,content,note" + f"\n{A},1125,{'x' * 1000}" * 1500).encode() + b"\xff\xff",
    ],
)
def test_what_is_no_text_at_all(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert error_of(path) == (
        "is not UTF-8 text: save it as CSV UTF-8 (in Excel: File, Save As, CSV UTF-8)"
    )


def test_a_file_that_cannot_be_opened(path: Path) -> None:
    with pytest.raises(BulkFileError, match=r"^cannot read .*rows: No such file or directory$"):
        BulkFile(str(path))
    with pytest.raises(BulkFileError, match=r"^cannot read .*: Is a directory$"):
        BulkFile(str(path.parent))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has it")
def test_a_file_that_opens_and_cannot_be_read() -> None:
    assert error_of(Path("/proc/self/mem")) == (
        "cannot read /proc/self/mem to its end: Input/output error"
    )


class BadDisk(io.RawIOBase):
    """A file whose second block cannot be read."""

    def __init__(self) -> None:
        self._blocks = [f"mobile,content\n{A},1125\n".encode() * 300, b""]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        assert (0, 0) == (offset, whence)
        self.__init__()  # type: ignore[misc]  # at the beginning again
        return 0

    def readinto(self, buffer: Any) -> int:
        block = self._blocks.pop(0)
        if not block:
            raise OSError(errno.EIO, "Input/output error")
        data = block[: len(buffer)]
        self._blocks.insert(0, block[len(data) :])
        buffer[: len(data)] = data
        return len(data)


def test_a_file_that_cannot_be_read_to_its_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda *_: io.BufferedReader(BadDisk()))
    with (
        closing(BulkFile(str(path))) as file,
        pytest.raises(BulkFileError, match=r"to its end: Input/output error$"),
    ):
        list(file)


def test_objects_of_many_forms_are_read_too(path: Path) -> None:
    """Of which not all are remembered."""
    rows = [{"mobile": A, "content": "1125", f"x{n}": n} for n in range(1005)]
    path.write_text(json.dumps(rows))
    found = check(path)
    names = tuple(f"x{n}" for n in range(1000))
    assert (1005, 0, names) == (found.rows, found.bad, found.ignored)


def test_a_pipe_is_read_twice_too(path: Path) -> None:
    """As in `ihuyi-voice bulk <(a program that makes the rows)`."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(f"mobile,content\n{A},1125\n",))
    writer.start()
    with closing(BulkFile(str(path))) as file:
        writer.join()
        assert [(2, A, "1125", None)] == sent(file)
        assert [(2, A, "1125", None)] == sent(file)


def test_standard_input_is_read_twice_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(f"{A},1125\n{B},12ab\n".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    with closing(BulkFile("-")) as file:
        assert "standard input" == file.name
        assert [(1, A, "1125", None)] == sent(file)
        assert (2, 1) == (file.check().rows, file.check().bad)
    assert not stdin.closed


def test_reprs_show_neither_number_nor_code(path: Path) -> None:
    path.write_text(f"mobile,content\n{A},482913\n{B},48x913\n1371234567,482913\n")
    shown = repr(read(path)) + repr(check(path))
    assert "line=2" in shown
    for secret in (A, B, "1371234567", "482913", "48x913"):
        assert secret not in shown


# --- any bytes ---------------------------------------------------------------

_pieces = st.sampled_from(
    [
        *("mobile", "content", "idempotency_key", A, f"+86 {B}", "1125", "12ab", "k", "", " "),
        *(",", ";", "\t", "\n", "\r", "\r\n", '"', "\0", "{", "}", "[", "]", ":", "\ufeff"),
        *("手机号", "code", f"{A},1125", f"{B}\t0042\t"),
        *(
            f'{{"mobile":"{A}","code":"1125"}}',
            f'["{B}","1125","k"]',
            '"\\ud800"',
            "null",
            "1e999",
            GBK,
        ),
    ]
)
_bytes = st.binary() | st.builds(
    lambda pieces, encoding, tail: "".join(pieces).encode(encoding) + tail,
    st.lists(_pieces),
    st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16"]),
    st.binary(max_size=2),
)


@settings(max_examples=300, deadline=None)
@example(b"[" * 100_000)
@example(b"," * 200_000)
@example(b'"' + b"x" * 200_000)
@example(f'["{A}","1125","\\ud800"]'.encode())
@given(content=_bytes)
def test_any_bytes_are_rows_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    with closing(BulkFile(str(path))) as file:
        try:
            first = list(file)
            found = file.check()
        except BulkFileError:
            with pytest.raises(BulkFileError, match=f"^(?:(?!{A}).)*$"):
                file.check()
            return
        second = list(file)
    assert len(first) == found.rows > 0
    assert sum(bool(row.problem) for row in first) == found.bad
    for before, after in itertools.zip_longest(first, second):
        assert (before.line, before.mobile, before.key, before.drawn) == (
            (after.line, after.mobile, after.key, after.drawn)
        )
        assert str(before.problem) == str(after.problem)
        assert before.content == after.content or before.drawn
        assert bool(before.mobile) == bool(before.content) == (not before.problem)


def test_rows_can_be_collected_after_their_file_is_closed(tmp_path: Path) -> None:
    """As those of a run that was stopped, whenever the collector comes to them."""
    path = tmp_path / "rows.csv"
    path.write_text("13912345678,1125\n13912345679,1126\n", encoding="ascii")
    file = BulkFile(str(path))
    left = iter(file)
    assert "13912345678" == next(left).mobile
    file.close()
    left.close()  # type: ignore[attr-defined]
    # With the file still open, what reads it is put away and the file stays open.
    with closing(BulkFile(str(path))) as file:
        left = iter(file)
        next(left)
        left.close()  # type: ignore[attr-defined]
        assert 2 == len(list(file))
