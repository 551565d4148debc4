"""Which column of a file is which, and what Excel did to its cells.

Columns are matched by name, with the names that people and programs use, or
given by options. A doubt is an error: a number that is not the code must never
be read out on a phone. This module is pure: it reads no file.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...wire import read_mobile
from ..language import Phrase, mark

if TYPE_CHECKING:
    from collections.abc import Sequence

MOBILE, CONTENT, KEY = mark("mobile"), mark("content"), "idempotency_key"
ROLES = (MOBILE, CONTENT, KEY)

# Compared without case, blanks, underscores, hyphens and dots. Only names that
# can mean nothing else: "key", "number" and "id" could be any column.
_KNOWN_NAMES = {
    MOBILE: (
        "mobile mobileno mobilenumber mobilephone mobilephonenumber phone phoneno phonenumber tel"
        " telno telephone telephonenumber cell cellphone cellphonenumber msisdn"
        " 手机 手机号 手机号码 手机电话 电话 电话号码 联系电话 移动电话"
        " 手機 手機號 手機號碼 電話 電話號碼 行動電話"
    ),
    CONTENT: (
        "content code otp otpcode pin verificationcode verifycode authcode passcode"
        " 内容 验证码 校验码 动态码 语音验证码 短信验证码 手机验证码 验证码内容"
        " 內容 驗證碼 校驗碼"
    ),
    KEY: "idempotencykey 幂等键 冪等鍵",
}
_NAMES = {role: frozenset(words.split()) for role, words in _KNOWN_NAMES.items()}
_OPTIONS = {MOBILE: "--mobile-column", CONTENT: "--content-column", KEY: "--key-column"}
_separators = re.compile(r"[\s_\-.]+")
# Characters to drop around a name: byte order marks, quotes, marks for a required field.
_AROUND = "\ufeff\u200b\"'`“”‘’*:"  # noqa: RUF001 - quotes as they are typed
_MOST_SHOWN = 20


class ColumnError(Exception):
    """The columns of a file are ambiguous or missing; the text says which, and what to do."""


@dataclass(frozen=True, slots=True)
class ColumnOptions:
    """The columns that options give, by name in the header or by number, from 1."""

    mobile: str | None = None
    content: str | None = None
    key: str | None = None

    def of(self, role: str) -> str | None:
        """What the option for this role gives."""
        return {MOBILE: self.mobile, CONTENT: self.content, KEY: self.key}[role]


@dataclass(frozen=True, slots=True)
class Columns:
    """The places of the columns, from 0; None for a column that is missing.

    Attributes:
        ignored: the names of the unused columns, safe to show.
        width: how many columns there are.
        from_header: whether the first row is a header; otherwise it is a call already.
    """

    mobile: int | None
    content: int | None
    key: int | None
    ignored: tuple[str, ...]
    width: int
    from_header: bool = True

    @property
    def places(self) -> tuple[int | None, int | None, int | None]:
        """The places of number, code and key."""
        return self.mobile, self.content, self.key


def match_names(names: Sequence[str], options: ColumnOptions) -> Columns:
    """The columns with these names, such as those of a JSON object.

    Raises:
        ColumnError: a role has two columns, or a column two roles.
    """
    return _columns(names, {role: _by_name(names, options.of(role)) for role in ROLES})


def table_columns(first: Sequence[str], options: ColumnOptions, *, draw_codes: bool) -> Columns:
    """The columns of a table by its first row: a header, or already a call.

    Raises:
        ColumnError: the first row is neither, a column is missing, or a role has two.
    """
    cells = _without_empty_end(first)
    if any(is_mobile(cell) for cell in cells):
        return _without_header(cells, options)
    given = {
        role: _by_name(cells, options.of(role)) or _by_number(cells, options.of(role))
        for role in ROLES
    }
    for role, places in given.items():
        if places == [] and options.of(role) is not None:
            msg = Phrase(
                "{option} {name} names no column; {found}",
                option=_OPTIONS[role],
                name=shown(options.of(role)),
                found=_found(cells),
            )
            raise ColumnError(msg)
    columns = _columns(cells, given)
    if columns.mobile is None:
        damaged = next(filter(None, map(damage, cells)), None)
        msg = Phrase(
            "its first row is neither a header with a column of mobile numbers nor a number and"
            " its code{damage}; {found}. Name the columns mobile and content in a first line, or"
            " give --mobile-column and --content-column",
            damage=Phrase(" (a cell {damage})", damage=damaged) if damaged else "",
            found=_found(cells),
        )
        raise ColumnError(msg)
    if columns.content is None and not draw_codes:
        raise ColumnError(without_content(cells))
    return columns


def without_content(names: Sequence[str]) -> Phrase:
    """The message for a file without a column of codes."""
    return Phrase(
        "it has no column of codes; {found}. Name it content or code, or give --content-column; or"
        " have a code drawn for each row with --draw-codes and --out",
        found=_found(names),
    )


def without_mobile(names: Sequence[str]) -> Phrase:
    """The message for a file without a column of numbers."""
    return Phrase(
        "it has no column of mobile numbers; {found}. Name it mobile or phone, or give"
        " --mobile-column",
        found=_found(names),
    )


def known_names(first: Sequence[str], options: ColumnOptions) -> int:
    """How many cells are known or given names of columns."""
    given = {_plain(option) for role in ROLES if (option := options.of(role)) is not None}
    every = given.union(*_NAMES.values())
    return sum(_plain(cell) in every for cell in first)


def is_mobile(cell: str) -> bool:
    """Whether a cell holds a mobile number."""
    return isinstance(read_mobile(cell), str)


def shown(name: object) -> str:
    """A column's name, safe to show: on one line, without the digits of a number or code."""
    text = "".join(c if c.isprintable() else " " for c in str(name))
    text = " ".join(text.strip(f" {_AROUND}").split()) or "(no name)"
    if len(re.findall(r"\d", text)) >= 4:
        text = re.sub(r"\d", "*", text)
    return text if len(text) <= 40 else f"{text[:39]}…"


# --- names ------------------------------------------------------------------


def _plain(name: str) -> str:
    return _separators.sub("", unicodedata.normalize("NFKC", name)).strip(_AROUND).casefold()


def _by_name(names: Sequence[str], given: str | None) -> list[int] | None:
    """The places of the given name; None if no name is given."""
    if given is None:
        return None
    exactly = [place for place, name in enumerate(names) if name.strip() == given.strip()]
    if len(exactly) == 1:
        return exactly
    return [place for place, name in enumerate(names) if _plain(name) == _plain(given)]


def _by_number(cells: Sequence[str], given: str | None) -> list[int] | None:
    """The place of the given number; None if nothing is given, empty if it is no number."""
    if given is None:
        return None
    if re.fullmatch(r"[1-9][0-9]{0,3}", given.strip()) and int(given) <= len(cells):
        return [int(given) - 1]
    return []


def _columns(
    names: Sequence[str], given: dict[str, list[int] | None], *, from_header: bool = True
) -> Columns:
    taken = [place for places in given.values() for place in places or ()]
    found: dict[str, int | None] = {}
    for role in ROLES:
        places = given[role]
        if places is None and from_header:
            places = [
                place
                for place, name in enumerate(names)
                if _plain(name) in _NAMES[role] and place not in taken
            ]
        if places and len(places) > 1:
            msg = Phrase(
                "it has {count} columns for the {role}, {names}: say which one with {option}, by"
                " its number in the file where the names are the same; {found}",
                count=len(places),
                role=Phrase(role),
                names=", ".join(shown(names[place]) for place in places),
                option=_OPTIONS[role],
                found=_found(names),
            )
            raise ColumnError(msg)
        found[role] = places[0] if places else None
    used = [place for place in found.values() if place is not None]
    if len(used) > len(set(used)):
        msg = Phrase(
            "--mobile-column, --content-column and --key-column must name different columns: a key"
            " is stored as it is, and must not be a number or a code"
        )
        raise ColumnError(msg)
    ignored = tuple(
        shown(name) if from_header else f"column {place + 1}"
        for place, name in enumerate(names)
        if place not in used
    )
    return Columns(
        found[MOBILE], found[CONTENT], found[KEY], ignored, len(names), from_header=from_header
    )


def _without_header(cells: Sequence[str], options: ColumnOptions) -> Columns:
    """The columns of a table whose first row is a call: number and code, or as given by number."""
    given = {role: _by_number(cells, options.of(role)) for role in ROLES}
    for role, places in given.items():
        if places == []:
            msg = Phrase(
                "it has no header, so {option} must be a number from 1 to {count}: its first row"
                " has a mobile number in it",
                option=_OPTIONS[role],
                count=len(cells),
            )
            raise ColumnError(msg)
    mobile = given[MOBILE] = given[MOBILE] or [0]
    if given[CONTENT] is None and len(cells) == 2:
        given[CONTENT] = [1 - mobile[0]]
    columns = _columns(cells, given, from_header=False)
    if columns.content is None or not is_mobile(cells[mobile[0]]):
        msg = Phrase(
            "it has no header, and its rows are not a mobile number and its code, in this order;"
            " {found}. Add a first line that names the columns, such as mobile,content, or give"
            " --mobile-column and --content-column as numbers",
            found=_found(cells),
        )
        raise ColumnError(msg)
    return columns


def _without_empty_end(cells: Sequence[str]) -> list[str]:
    """The cells without the empty ones that delimiters at the end of a line make.

    A number with an empty code stays two cells.
    """
    kept = list(cells)
    while len(kept) > 1 and not kept[-1].strip(f" \t\r\n{_AROUND}"):
        kept.pop()
    if len(kept) == 1 and len(cells) > 1 and is_mobile(kept[0]):
        kept.append("")
    return kept


def _found(names: Sequence[str]) -> Phrase:
    if not names:
        return Phrase("columns found: none")
    shown_names = ", ".join(map(shown, names[:_MOST_SHOWN]))
    if (more := len(names) - _MOST_SHOWN) > 0:
        return Phrase("columns found: {names} and {count} more", names=shown_names, count=more)
    return Phrase("columns found: {names}", names=shown_names)


# --- what Excel does to cells -----------------------------------------------

_AS_TEXT = Phrase("make the column text in the spreadsheet, enter it again, and save as CSV UTF-8")
_DAMAGE = {
    r"(?i)[+-]?[0-9]+([.,][0-9]*)?e[+-]?[0-9]+": mark(
        "is in scientific notation, as Excel writes long numbers: its last digits are lost;"
        " {advice}"
    ),
    r"[0-9]+[.,]0*": mark(
        "is a decimal number that ends in .0, as Excel and pandas write numbers: leading zeros may"
        " be lost; {advice}"
    ),
    r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?": mark(
        "has thousands separators, as Excel shows numbers: {advice}"
    ),
    r"(?s)['`‘’].*": mark(  # noqa: RUF001 - as Excel's are copied
        "begins with an apostrophe, Excel's mark for text: remove the apostrophe and save again"
    ),
    r"(?s)=.*": mark(
        'is a formula such as ="...", which keeps Excel from changing a cell: write the digits'
        " alone"
    ),
    r"#+": mark("is ####, which Excel shows in a narrow column: widen it, and save again"),
}
_damages = [
    (re.compile(pattern).fullmatch, Phrase(words, advice=_AS_TEXT))
    for pattern, words in _DAMAGE.items()
]


def damage(cell: str) -> Phrase | None:
    """What Excel did to the cell, as the end of a sentence; None if nothing is known."""
    text = unicodedata.normalize("NFKC", cell).strip()
    return next((words for matches, words in _damages if matches(text)), None)
