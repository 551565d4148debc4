"""The table of exit statuses that ends the help of commands.

Apart from `statuses.py`, so that the help of all commands imports no part of the library.
"""

from __future__ import annotations

from .language import mark

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
