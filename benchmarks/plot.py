"""A bar chart as SVG, written by hand. Pure: bars in, text out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH = 860
_LABELS = 330
_NUMBERS = 190
_ROW = 24
_TOP = 44

# Text and lines take the colour of the page's own text where it sets one.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 15px; }
.number { font-variant-numeric: tabular-nums; }
.peer { fill: #9aa4b2; }
.ours { fill: #2f6fde; }
@media (prefers-color-scheme: dark) { text { fill: #d7dde5; } .peer { fill: #5d6878; } }
"""


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its length, the text behind it, and whether it is ours."""

    label: str
    value: float
    text: str
    ours: bool


def bar_chart(title: str, bars: Sequence[Bar]) -> str:
    """An SVG document with one bar per line, in the order given."""
    height = _TOP + _ROW * len(bars) + 12
    most = max((bar.value for bar in bars), default=1.0)
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="10" y="24">{escape(title)}</text>',
    ]
    for number, bar in enumerate(bars):
        top = _TOP + _ROW * number
        base = top + 14
        colour = "ours" if bar.ours else "peer"
        length = (_WIDTH - _LABELS - _NUMBERS) * bar.value / most
        bar_size = f'width="{length:.1f}" height="{_ROW - 8}" rx="2"'
        end = _LABELS + length + 8
        lines += [
            f'<text x="{_LABELS - 8}" y="{base}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{colour}" x="{_LABELS}" y="{top + 2}" {bar_size}/>',
            f'<text class="number" x="{end:.1f}" y="{base}">{escape(bar.text)}</text>',
        ]
    lines.append("</svg>")
    return "\n".join(lines) + "\n"
