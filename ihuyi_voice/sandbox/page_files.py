"""The files of the inbox page, and the headers that go with them.

They are read once, on import, so that no request waits for a disk.
"""

from __future__ import annotations

from importlib.resources import files

import orjson

# What was submitted is not trusted: with the last two directives, no code of the
# page can parse it as HTML, even by mistake.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Sent with every answer of the page and of `/_sandbox/`: numbers and codes stay in the page."""

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json; charset=utf-8",
}

FILES: dict[str, tuple[str, bytes]] = {
    file.name: (_TYPES[file.name.rpartition(".")[2]], file.read_bytes())
    for file in (files(__package__) / "page").iterdir()
    if file.name.rpartition(".")[2] in _TYPES
}
"""By its name: a file's content type and its bytes. `index.html` is the page."""

TEXTS: dict[str, dict[str, str]] = orjson.loads(FILES["texts.json"][1])
"""The texts of the page, by language and key; `{name}` in a text takes a value."""

_PROBLEM = "problem_"
_PROBLEMS = {
    text: key.removeprefix(_PROBLEM)
    for key, text in TEXTS["en"].items()
    if key.startswith(_PROBLEM)
}


def problem(name: str) -> str:
    """What is wrong with a request, in English: the text of the key `problem_{name}`."""
    return TEXTS["en"][_PROBLEM + name]


def problem_in(language: str, english: str) -> str:
    """The same problem in a language; the English as it is when it is none of the table."""
    return TEXTS[language][_PROBLEM + _PROBLEMS[english]] if english in _PROBLEMS else english


def problem_name(english: str) -> str | None:
    """The name of a problem; None when it is none of the table."""
    return _PROBLEMS.get(english)
