"""Lines of Chinese text are full, and a number stays beside its unit."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from ihuyi_voice.cli.wrapping import WrappedText


def lines(text: str, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    return [str(line) for line in WrappedText(text).wrap(console, width)]


@pytest.mark.parametrize(
    ("expected", "width", "text"),
    [
        (["其中有一些", "字"], 10, "其中有一些字"),
        # Punctuation that closes does not begin a line, and one that opens does not end it.
        (["其中有一", "些，字"], 10, "其中有一些，字"),
        (["其中有一", "（些）"], 10, "其中有一（些）"),
        # A number stays with its unit; a word is not broken.
        (["其中有", "10 次未知"], 9, "其中有 10 次未知"),
        (["the phone", "rings"], 10, "the phone rings"),
        # The blank after a word needs no room.
        (["the phone", "rings"], 9, "the phone rings"),
        (["其中有", "1,000 次未"], 13, "其中有 1,000 次未"),
        (["用 --yes", "发送"], 9, "用 --yes 发送"),
        # What is longer than a line is cut.
        (["aaaa", "aaaa", "a b"], 4, "aaaaaaaaa b"),
        (["用", "--draw-co", "des"], 9, "用 --draw-codes"),
        (["没有表头", "--draw-codes"], 13, "没有表头--draw-codes"),
        (["列", "[行]"], 4, "列 [行]"),
        (["one", "", "two"], 10, "one\n\ntwo"),
        (["one", ""], 10, "one\n"),
        (["  字"], 4, "  字"),
    ],
)
def test_where_lines_break(expected: list[str], width: int, text: str) -> None:
    assert expected == lines(text, width)


def test_no_line_is_too_long() -> None:
    text = "其中 487 次已受理（上面两个表格中 3 次，登录 1 次，批量 483 次），10 次结果未知。" * 3
    for width in range(5, 90):
        shown = lines(text, width)
        assert max(map(cell_len, shown)) <= width
        assert text.replace(" ", "") == "".join(shown).replace(" ", "")
