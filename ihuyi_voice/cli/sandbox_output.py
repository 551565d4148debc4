"""What `ihuyi-voice sandbox` prints: lines about requests, from a thread of their own.

A terminal or a pipe may be slow, or never read. The gateway answers all the same:
it hands a line over and goes on. Lines beyond a bound are left out and counted.
"""

from __future__ import annotations

import sys
import time
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

import typer

from ..errors import ACCEPTED
from .language import gettext as _
from .language import is_english, mark, ngettext
from .output import LossyFile
from .sandbox_reasons import short_reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..sandbox import Attempt, OtherRequest

MOST_HELD = 10_000
"""Lines that wait to be printed; later ones are left out."""

_KINDS = {"unknown": mark("unknown"), "unreadable": mark("unreadable"), "closed": mark("closed")}


class Output:
    """Prints lines in the order they are given, and never blocks who gives them.

    Args:
        write: prints one line; by default to standard output.
        patience: at the end, so many seconds without a line printed mean that
            none ever will be.
    """

    def __init__(
        self, write: Callable[[str], object] | None = None, *, patience: float = 1.0
    ) -> None:
        self._patience = patience
        self._write = write or _to_stdout()
        self._lines = SimpleQueue[str | None]()
        self._written = 0
        self._left_out = 0
        # A daemon: a write that never ends must not keep the process from ending.
        self._thread = Thread(target=self._run, name="ihuyi-voice-output", daemon=True)
        self._thread.start()

    def print(self, line: str) -> None:
        """Print a line soon, or leave it out when too many wait."""
        if self._lines.qsize() < MOST_HELD:
            self._lines.put(line)
        else:
            self._left_out += 1

    def close(self) -> None:
        """Wait until all is printed, as long as anything is."""
        self._lines.put(None)
        before = -1
        while self._thread.is_alive() and self._written != before:
            before = self._written
            self._thread.join(self._patience)

    def _run(self) -> None:
        said = 0
        while (line := self._lines.get()) is not None:
            self._write(line)
            self._written += 1
            if (left_out := self._left_out) != said:
                count = left_out - said
                text = ngettext(
                    "... {count} line was left out: nothing read the output",
                    "... {count} lines were left out: nothing read the output",
                    count,
                )
                self._write(text.format(count=count))
                said = left_out


def _to_stdout() -> Callable[[str], object]:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, LossyFile):
        return typer.echo
    encoding = sys.stdout.encoding

    # Past the buffer: at its end Python waits for the lock of a buffer that is written.
    def write(line: str) -> None:
        data = f"{line}\n".encode(encoding, "backslashreplace")
        while data:
            data = data[raw.write(data) :]

    return write


def attempt_line(attempt: Attempt) -> str:
    """A submit as a line."""
    what = _("placed {id}").format(id=attempt.voice_id)
    if not attempt.placed:
        what = _with_reason(_("refused {code}").format(code=attempt.code), attempt)
    # Anyone may have sent the form: as a literal its text cannot control the terminal.
    text = _("{moment}  {what}  mobile {mobile!a}  content {content!a}")
    moment = _moment(attempt.time)
    return text.format(moment=moment, what=what, mobile=attempt.mobile, content=attempt.content)


def other_line(other: OtherRequest) -> str:
    """A request that was no submit as a line."""
    moment = _moment(other.time)
    if other.kind == "balance":
        what = _("balance query answered {code}").format(code=other.code)
        return f"{moment}  {what if other.code == ACCEPTED else _with_reason(what, other)}"
    from ..sandbox.page_files import problem_in  # noqa: PLC0415 - no help needs the sandbox

    reason = problem_in("en" if is_english() else "zh", other.reason)
    if other.kind == "closed":
        reason = _("chaos closed it before it was read")
    text = _("{moment}  {kind} {line!a}  {status}: {reason}")
    kind = _(_KINDS[other.kind])
    return text.format(
        moment=moment, kind=kind, line=other.line, status=other.status, reason=reason
    )


def _with_reason(what: str, refused: Attempt | OtherRequest) -> str:
    reason = short_reason(refused)
    return _("{what}: {reason}").format(what=what, reason=reason) if reason else what


def _moment(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
