"""The language of the command: English, or Chinese where the locale says so.

The catalogue is in `ihuyi_voice/locale`; `.ci/catalogue.py` keeps it. Everything
that a program reads (`--json`, the `--out` file) stays English. The exceptions of the
library are English too; `local` translates the texts that `library_texts` knows.
"""

from __future__ import annotations

import gettext as _gettext
import os
import sys

DOMAIN = "ihuyi_voice"
FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "locale")  # noqa: PTH118, PTH120 - pathlib is slow to import
_CHINESE = "zh_CN"
_ENGLISH = _gettext.NullTranslations()


class _Language:
    """The language of this process."""

    catalogue: _gettext.NullTranslations = _ENGLISH


def use_locale() -> None:
    """Speak the language of the locale. The command does this once, at its start."""
    if not _is_chinese() or not all(map(_can_show_chinese, (sys.stdout, sys.stderr))):
        return
    _Language.catalogue = _gettext.translation(DOMAIN, FOLDER, [_CHINESE], fallback=True)
    # For typer, which reads its few words through the standard library's domain.
    _gettext.bindtextdomain(DOMAIN, FOLDER)
    _gettext.textdomain(DOMAIN)
    os.environ["LANGUAGE"] = _CHINESE


def is_english() -> bool:
    """Whether the command speaks English."""
    return _Language.catalogue is _ENGLISH


def gettext(message: str) -> str:
    """The message in the language of the command."""
    return _Language.catalogue.gettext(message)


def ngettext(one: str, several: str, count: int) -> str:
    """The form of the message for this count."""
    return _Language.catalogue.ngettext(one, several, count)


def mark(message: str) -> str:
    """The message itself: it is translated where it is shown."""
    return message


class Phrase:
    """A sentence in both languages: `str` gives the English, `local` the command's.

    Args:
        template: an English message, with `{name}` for each value.
        **values: may be phrases too.
    """

    __slots__ = ("_template", "_values")

    def __init__(self, template: str, /, **values: object) -> None:
        self._template = template
        self._values = values

    def __str__(self) -> str:
        return self._template.format(**self._values)

    def local(self) -> str:
        """The sentence in the language of the command."""
        values = {name: local(value) for name, value in self._values.items()}
        return gettext(self._template).format(**values)


def local(thing: object) -> str:
    """A phrase, an exception, or the text of one, in the language of the command."""
    if isinstance(thing, BaseException) and thing.args and isinstance(thing.args[0], Phrase):
        thing = thing.args[0]
    if isinstance(thing, Phrase):
        return thing.local()
    if is_english():
        return str(thing)
    from .library_texts import translated  # noqa: PLC0415 - only Chinese needs it

    return translated(str(thing))


def _is_chinese() -> bool:
    """Whether the environment asks for Chinese, as gettext reads it."""
    category = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or ""
    if category.partition(".")[0] in ("C", "POSIX"):
        # A program asks so for messages that never change.
        return False
    names = os.environ.get("LANGUAGE") or category or os.environ.get("LANG") or ""
    # LANGUAGE is a list; what comes before Chinese would be preferred.
    return names.partition(":")[0].lower().startswith("zh")


def _can_show_chinese(stream: object) -> bool:
    try:
        "中文".encode(getattr(stream, "encoding", None) or "ascii")
    except (LookupError, UnicodeError):
        return False
    return True
