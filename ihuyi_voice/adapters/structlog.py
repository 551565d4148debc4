"""Events as lines of structlog; needs the extra `structlog`.

client = VoiceClient.from_env(on_event=[StructlogEvents()])
"""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..events import SubmitEvent
from . import missing

try:
    import structlog
except ModuleNotFoundError as _error:
    msg = "structlog"
    raise missing(msg, _error) from None

if TYPE_CHECKING:
    from ..verification.values import VerificationEvent


class StructlogEvents:
    """Logs each event with its fields as plain values.

    The text of a request's event is its operation, at the level warning where
    it failed and info otherwise. That of a verification's event is
    `verification`, at the level info, with the event's name as `name`.

    Args:
        logger: structlog's; by default `structlog.get_logger("ihuyi_voice")`.
    """

    def __init__(self, logger: Any = None) -> None:  # noqa: ANN401 - structlog's own type
        self._logger = structlog.get_logger("ihuyi_voice") if logger is None else logger

    def __call__(self, event: SubmitEvent | VerificationEvent) -> None:
        """Log an event."""
        fields = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in asdict(event).items()
        }
        if isinstance(event, SubmitEvent):
            log = self._logger.warning if event.failed else self._logger.info
            log(fields.pop("operation"), **fields)
        else:
            self._logger.info("verification", **fields)
