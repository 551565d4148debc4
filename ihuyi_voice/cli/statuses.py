"""The exit statuses of the commands; `exit_help.py` has their table for people."""

from __future__ import annotations

from ..errors import OutcomeStatus

EXIT_STATUSES = {
    OutcomeStatus.ACCEPTED: 0,
    OutcomeStatus.INVALID: 2,
    OutcomeStatus.REFUSED: 3,
    OutcomeStatus.NOT_SENT: 4,
    OutcomeStatus.LIMITED: 5,
    OutcomeStatus.UNKNOWN: 6,
}
EXIT_USAGE = 2
EXIT_BELOW = 7
EXIT_CTRL_C = 130
