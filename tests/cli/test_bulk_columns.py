"""Which column is which: what is read to a phone is its code, or nothing is sent."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ihuyi_voice.cli.bulk.columns import ColumnOptions, damage, shown
from ihuyi_voice.cli.bulk.file import BulkFile, BulkFileError

if TYPE_CHECKING:
    from pathlib import Path

A, B = "13912345678", "13812345678"
CODE, OTHER = "1125", "4829"

MOBILE_NAMES = (
    *("mobile", "Phone", "TEL", "mobile_number", "Phone Number", "phone-number", "phone_number"),
    *("CellPhone", "telephone", "Mobile No.", "手机", "手机号", "手机号码", "电话", "电话号码"),
    *("ＭＯＢＩＬＥ", "手机号*", "\ufeff手机号", '"phone"', "“手机号”", " tel \u3000", "手機號碼"),
)
CONTENT_NAMES = (
    *("content", "CODE", "otp", "PIN", "verification code", "Verification_Code", "验证码"),
    *("ＣＯＤＥ", "'code'", "code:", " Otp ", "語音驗證碼"[2:]),
)
OTHER_NAMES = (
    *("user_id", "id", "key", "number", "name", "country code", "code name", "zip_code", "codes"),
    *("mobile2", "姓名", "备注", "amount", "content_id", "", " ", "验证码状态", "phone type"),
)


def rows(path: Path, text: str, **options: Any) -> list[tuple[str, str, str | None]]:
    path.write_text(text, encoding="utf-8")
    with closing(BulkFile(str(path), **options)) as file:
        file.check()
        return [(row.mobile, row.content, row.key) for row in file if not row.problem]


def error(path: Path, text: str, **options: Any) -> str:
    with pytest.raises(BulkFileError) as caught:
        rows(path, text, **options)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows"


# --- by name -----------------------------------------------------------------


@pytest.mark.parametrize("name", MOBILE_NAMES)
def test_names_of_the_column_of_numbers(path: Path, name: str) -> None:
    assert [(A, CODE, None)] == rows(path, f"note\tcode\t{name}\n7654\t{CODE}\t{A}\n")


@pytest.mark.parametrize("name", CONTENT_NAMES)
def test_names_of_the_column_of_codes(path: Path, name: str) -> None:
    assert [(A, CODE, None)] == rows(path, f"手机号\tuser id\t{name}\n{A}\t7654\t{CODE}\n")


@pytest.mark.parametrize("name", ["idempotency_key", "Idempotency Key", "幂等键"])
def test_names_of_the_column_of_keys(path: Path, name: str) -> None:
    assert [(A, CODE, "k1")] == rows(path, f"{name},phone,code\nk1,{A},{CODE}\n")


@given(
    names=st.tuples(
        st.sampled_from(MOBILE_NAMES),
        st.sampled_from(CONTENT_NAMES),
        st.sampled_from(OTHER_NAMES),
        st.sampled_from(OTHER_NAMES),
    ),
    places=st.permutations(range(4)),
    delimiter=st.sampled_from(",;\t|"),
    tail=st.sampled_from(["", "\t", " ", ",", ";\t"]),
)
def test_a_code_is_read_from_the_column_of_codes_or_none_is(
    tmp_path_factory: pytest.TempPathFactory,
    names: tuple[str, str, str, str],
    places: list[int],
    delimiter: str,
    tail: str,
) -> None:
    """Whatever the order, the separator and what ends the lines."""
    cells = (A, CODE, "765432", "987654")
    text = "".join(
        delimiter.join(
            f'"{row[place]}"' if '"' not in row[place] else row[place] for place in places
        )
        + tail
        + "\n"
        for row in (names, cells)
    )
    path = tmp_path_factory.getbasetemp() / "columns"
    try:
        assert rows(path, text) in ([(A, CODE, None)], [])
    except BulkFileError:
        return


@pytest.mark.parametrize("tail", ["\t", "\t\t", ";", " ,", "|"])
def test_what_ends_the_header_does_not_choose_the_separator(path: Path, tail: str) -> None:
    text = f"mobile,content{tail}\n{A},{CODE}{tail}\n"
    if tail in {";", "|"}:
        # Is it a part of the name? Then nothing is sent.
        assert "no column of codes; columns found: mobile, content" in error(path, text)
    else:
        assert [(A, CODE, None)] == rows(path, text)


def test_an_unnamed_or_unknown_column_is_ignored_and_named(path: Path) -> None:
    path.write_text(f",phone,user_id,code,year 2024\n0,{A},424242,{CODE},x\n")
    with closing(BulkFile(str(path))) as file:
        assert ("(no name)", "user_id", "year ****") == file.check().ignored


# --- doubts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "twins"),
    [
        ("mobile,content,mobile", "2 columns for the mobile, mobile, mobile"),
        ("phone,手机号,code", "2 columns for the mobile, phone, 手机号"),
        ("mobile,code,otp", "2 columns for the content, code, otp"),
        ("tel,验证码,Code,pin", "3 columns for the content, 验证码, Code, pin"),
        (
            "tel,code,idempotency_key,Idempotency-Key",
            "2 columns for the idempotency_key, idempotency_key, Idempotency-Key",
        ),
    ],
)
def test_two_columns_for_one_thing_are_an_error(path: Path, header: str, twins: str) -> None:
    cells = ",".join([A, CODE, OTHER, B][: header.count(",") + 1])
    text = error(path, f"{header}\n{cells}\n")
    assert f"it has {twins}: say which one with --" in text
    assert f"columns found: {header.replace(',', ', ')}" in text
    as_json = "{" + ",".join(f'"{name}":"1125"' for name in header.split(",")) + "}"
    for form in (as_json, f"[{as_json}]"):
        assert f"it has {twins}: say which one with --" in error(path, form)


@pytest.mark.parametrize("header", ["mobile,kod", "phone,user_id", "手机号,密码", "tel"])
def test_a_file_without_codes_is_an_error_unless_codes_are_drawn(path: Path, header: str) -> None:
    cells = ",".join([A, CODE][: header.count(",") + 1])
    text = error(path, f"{header}\n{cells}\n")
    assert f"it has no column of codes; columns found: {header.replace(',', ', ')}." in text
    assert all(option in text for option in ("--content-column", "--draw-codes", "--out"))
    ((mobile, drawn, _),) = rows(path, f"{header}\n{cells}\n", draw_codes=True)
    assert (A, 6) == (mobile, len(drawn))
    as_json = "{" + ",".join(f'"{name}":"{A}"' for name in header.split(",")) + "}"
    assert "it has no column of codes; columns found: " in error(path, f"{as_json}\n" * 2)
    assert 2 == len(rows(path, f"{as_json}\n" * 2, draw_codes=True))


@pytest.mark.parametrize(
    "text",
    [
        f"name,id\nx,{A}\n",
        "name\n",
        "客户名单\n手机号,验证码\n",
        f"sep=,\nmobile,content\n{A},{CODE}\n",
        f"139,{CODE}\n{A},{CODE}\n",
    ],
)
def test_a_first_row_that_is_neither_header_nor_call_is_an_error(path: Path, text: str) -> None:
    for draw_codes in (False, True):
        said = error(path, text, draw_codes=draw_codes)
        assert "its first row is neither a header with a column of mobile numbers nor a" in said
        assert "columns found: " in said
        assert "--mobile-column" in said
        assert A not in said


def test_objects_without_numbers_are_an_error(path: Path) -> None:
    text = error(path, f'{{"nummer": "{A}", "code": "{CODE}"}}\n')
    assert "it has no column of mobile numbers; columns found: nummer, code." in text
    assert A not in text


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (f"{A},{CODE},order-1", "***********, ****, order-1"),
        (f"{A},user,{CODE}", "***********, user, ****"),
        (f"alice,{A},{CODE}", "alice, ***********, ****"),
        (f"{CODE},{A}", "****, ***********"),
        (f"{A}", "***********"),
        (f"{A},phone,code", "***********, phone, code"),
    ],
)
def test_without_a_header_it_is_number_and_code_and_nothing_else(
    path: Path, row: str, found: str
) -> None:
    text = error(path, f"{row}\n")
    assert "it has no header, and its rows are not a mobile number and its code" in text
    assert f"columns found: {found}." in text
    assert A not in text
    assert CODE not in text


def test_a_first_row_that_excel_damaged_says_so(path: Path) -> None:
    text = error(path, f"1.39E+10,{CODE}\n")
    assert "(a cell is in scientific notation, as Excel writes long numbers" in text


def test_what_is_shown_of_a_name() -> None:
    assert "user id" == shown(' "user\n id" ')
    assert "(no name)" == shown("  ")
    assert "id *-*-**" == shown("id 1-2-34")
    assert "id 1-2" == shown("id 1-2")
    assert "x" * 39 + "…" == shown("x" * 41)
    assert "a ?" != shown("a \x1b[31m")
    assert "\x1b" not in shown("a \x1b[31m")


def test_many_columns_are_not_all_listed(path: Path) -> None:
    text = error(path, ",".join(f"c{n}" for n in range(50)) + "\n")
    assert "c18, c19 and 30 more." in text


# --- by option ---------------------------------------------------------------


@pytest.mark.parametrize("mobile", ["nummer", " NUMMER", "2"])
@pytest.mark.parametrize("content", ["kod", "Kod ", "4"])
@pytest.mark.parametrize("key", [None, "ref", "1"])
def test_columns_that_are_given(path: Path, mobile: str, content: str, key: str | None) -> None:
    options = ColumnOptions(mobile, content, key)
    text = f"ref;nummer;code;kod\nr1;{A};9999;{CODE}\n"
    assert [(A, CODE, key and "r1")] == rows(path, text, options=options)


def test_a_given_column_wins_over_names(path: Path) -> None:
    text = f"mobile,content,otp,mobile\n{A},{CODE},{OTHER},{B}\n"
    options = ColumnOptions("4", "otp")
    assert [(B, OTHER, None)] == rows(path, text, options=options)
    # A column that is given for one thing is not taken for another by its name.
    text = f"tel,phone,pin\n{A},{CODE},{B}\n"
    options = ColumnOptions("pin", "phone")
    assert [(B, CODE, None)] == rows(path, text, options=options)
    # Names that differ in a separator alone are different ones where they are given exactly.
    text = f"mobile,user_code,user code\n{A},{CODE},{OTHER}\n"
    assert [(A, OTHER, None)] == rows(path, text, options=ColumnOptions(content="user code"))
    assert "2 columns for the content" in error(
        path, text, options=ColumnOptions(content="UserCode")
    )


def test_columns_of_objects_are_given_by_name(path: Path) -> None:
    text = f'{{"nummer": "{A}", "kod": "{CODE}", "code": "{OTHER}"}}'
    assert [(A, CODE, None)] == rows(path, text, options=ColumnOptions("nummer", "kod"))
    assert "no column of codes" in error(path, text, options=ColumnOptions("nummer", "2"))


def test_columns_given_by_number_need_no_header(path: Path) -> None:
    text = f"x,{A},{CODE},y\n"
    assert [(A, CODE, None)] == rows(path, text, options=ColumnOptions("2", "3"))
    assert [(A, CODE, "x")] == rows(path, text, options=ColumnOptions("2", "3", "1"))
    with closing(BulkFile(str(path), options=ColumnOptions("2", "3"))) as file:
        assert ("column 1", "column 4") == file.check().ignored
    assert [(A, CODE, None)] == rows(path, f"{CODE},{A}\n", options=ColumnOptions("2"))
    assert "columns found" in error(path, text, options=ColumnOptions("1", "3"))
    assert "columns found" in error(path, text, options=ColumnOptions("2"))
    for options in (ColumnOptions("2", "code"), ColumnOptions("2", "3", "5")):
        assert "it has no header, so --" in error(path, text, options=options)


@pytest.mark.parametrize("given", ["none", "0", "4", "-1", "1.0"])
def test_a_column_that_is_not_there(path: Path, given: str) -> None:
    text = error(path, f"tel,code,x\n{A},{CODE},1\n", options=ColumnOptions(key=given))
    assert f"--key-column {given} names no column; columns found: tel, code, x" in text


@pytest.mark.parametrize(
    "options",
    [
        ColumnOptions(content="code", key="code"),
        ColumnOptions(mobile="tel", key="1"),
        ColumnOptions(mobile="code", content="2"),
    ],
)
def test_one_column_for_two_things_is_an_error(path: Path, options: ColumnOptions) -> None:
    """A key is stored in clear, so it must be neither number nor code."""
    text = error(path, f"tel,code\n{A},{CODE}\n", options=options)
    assert "must name different columns" in text


# --- Excel -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("1.39E+10", "is in scientific notation"),
        ("1.39123E+10", "is in scientific notation"),
        ("1,39e10", "is in scientific notation"),
        ("13912345678.0", "is a decimal number that ends in .0"),
        ("13912345678.", "is a decimal number that ends in .0"),
        ("'13912345678", "begins with an apostrophe"),
        ("’13912345678", "begins with an apostrophe"),
        ('="13912345678"', 'is a formula such as ="..."'),
        ("=13912345678", 'is a formula such as ="..."'),
        ("13,912,345,678", "has thousands separators"),
        ("###########", "is ####"),
    ],
)
def test_words_for_what_excel_does_to_numbers(path: Path, cell: str, words: str) -> None:
    """And the same to codes, where it is as bad."""
    quoted = cell.replace('"', '""')
    path.write_text(f'mobile,content\n"{quoted}",1125\n{A},"{quoted}"\n', encoding="utf-8")
    with closing(BulkFile(str(path))) as file:
        first, second = (str(problem) for _, problem in file.check().problems)
    assert first.startswith(f"mobile {words}")
    assert second.startswith(f"content {words}")
    assert "1391" not in first + second


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("1.13E+05", "content is in scientific notation"),
        ("1125.0", "content is a decimal number"),
        ("'0042", "content begins with an apostrophe"),
        ('="0042"', "content is a formula"),
        ("1,125", "content has thousands separators"),
        ("42", "it has 2; if it began with zeros, a spreadsheet dropped them"),
        ("７", "it has digits that are not ASCII"),
    ],
)
def test_words_for_what_excel_does_to_codes(path: Path, cell: str, words: str) -> None:
    quoted = cell.replace('"', '""')
    path.write_text(f'mobile,content\n{A},"{quoted}"\n{A},1125\n', encoding="utf-8")
    with closing(BulkFile(str(path))) as file:
        found = file.check()
    ((line, problem),) = found.problems
    assert (2, True) == (line, words in str(problem))


@pytest.mark.parametrize(
    ("value", "words"),
    [("13912345678", "write it in quotes"), ("1.3912345678e10", "a decimal number loses digits")],
)
def test_words_for_numbers_of_json(path: Path, value: str, words: str) -> None:
    path.write_text(f'[{{"mobile": {value}, "code": "1125"}}]')
    with closing(BulkFile(str(path))) as file:
        ((_, found),) = file.check().problems
    problem = str(found)
    assert problem.startswith("mobile must be a str with one number")
    assert words in problem
    assert "1391" not in problem


@pytest.mark.parametrize(
    "cell", [A, "+86 139-1234-5678", "1125", "0042", "", "12ab", "-", "1125.5"]
)
def test_cells_that_excel_left_alone(cell: str) -> None:
    assert damage(cell) is None
