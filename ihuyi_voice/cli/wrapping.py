"""Lines that break where Chinese may break: between two characters, not only at blanks.

rich breaks at blanks alone. In Chinese these are between a number and its unit, and
between Chinese and Latin: lines end far too early there. Print a `WrappedText` in a
`Padding` or a table: rich joins bare texts to a `Text` of its own, which wraps as before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.containers import Lines
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u2018-\u201d"
_OPENING, _CLOSING = r"（“‘《【\[", r"，。；：！？、）”’》】\]"  # noqa: RUF001 - Chinese
# What stays on one line: a Chinese character, a word, or a number with its unit, with the
# punctuation around it and the blanks after it.
_UNIT = re.compile(
    rf"[{_OPENING}]*(?:[0-9][0-9.,]* [{_WIDE}]|[{_WIDE}]|[^\s{_WIDE}]+)[{_CLOSING}]*\s*|\s+"
)


class WrappedText(Text):
    """Text whose lines are full: it breaks between Chinese characters too."""

    def wrap(self, console: Console, width: int, *_: Any, **__: Any) -> Lines:  # noqa: ANN401, ARG002 - rich gives them
        """Break the text into lines of at most this width, on the left."""
        lines = Lines()
        for line in self.split(allow_blank=True):
            lines.extend(line.divide(_breaks(line.plain, width)))
        for line in lines:
            line.rstrip()
        return lines


def _breaks(text: str, width: int) -> list[int]:
    """The offsets at which all lines but the last end, as `Text.divide` takes them."""
    offsets: list[int] = []
    used = 0
    for unit in _UNIT.finditer(text):
        cells = cell_len(unit[0].rstrip())
        if used and used + cells > width:
            offsets.append(unit.start())
            used = 0
        # A unit that is longer than a line is cut.
        for offset, character in enumerate(unit[0], unit.start()):
            size = cell_len(character)
            if used + size > width and not character.isspace():
                offsets.append(offset)
                used = 0
            used += size
    return offsets
