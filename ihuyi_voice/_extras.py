"""How to install an extra: the end of a message about a library that is missing."""

from __future__ import annotations

INSTALL = "pip install 'ihuyi-voice[{extra}]', or '.[{extra}]' in a checkout"
"""For a format with `extra`; the catalogue of the command has it in Chinese."""


def needs_extra(what: str, needed: str, extra: str) -> str:
    """The message: what needs which library, and how to install it."""
    return f"{what} needs {needed}: {INSTALL.format(extra=extra)}"
