"""The exit statuses of the commands, and their table for people."""

from __future__ import annotations

from ..errors import OutcomeStatus
from .language import mark

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

# Lines of at most 78 columns: the help is indented by one.
EXIT_HELP = mark(
    """Exit status
  0  done: accepted, now or earlier; with --dry-run: the file can be sent
  1  sandbox: it cannot listen on its port
  2  a bad number, code, key, option, file or account: nothing was sent
  3  refused by the gateway; bulk: some rows failed, none of them is unknown
  4  not sent, or the store failed; repeating is safe
  5  over the limit of calls to this number: nothing was sent
  6  [bold]unknown: a phone may have rung[/bold], do not repeat blindly
  7  balance: fewer calls are left than --fail-below
130  Ctrl-C before anything was sent (other signals: 128 plus their number)"""
)
