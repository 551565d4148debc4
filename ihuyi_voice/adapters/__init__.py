"""Functions for `on_event` that pass events on to monitoring libraries.

Each module needs the extra of its name, and nothing imports it but its users.
Each gives one object, for `on_event` of clients and of verifiers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._extras import needs_extra
from ..errors import is_listed

if TYPE_CHECKING:
    from ..events import SubmitEvent


def missing(extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error for a library that is not installed."""
    msg = needs_extra(f"ihuyi_voice.adapters.{extra}", str(error.name), extra)
    return ModuleNotFoundError(msg, name=error.name)


def code_label(event: SubmitEvent) -> str:
    """The gateway's code as one of few values: a code of its table, "other", or "" for none."""
    if event.code is None:
        return ""
    return str(event.code) if is_listed(event.code) else "other"
