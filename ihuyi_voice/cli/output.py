"""Standard streams that never change how a command ends.

A call may have been placed before its outcome is printed. So an output that is
full, closed or broken, or whose encoding lacks a character, must not raise and
must not change the exit status. The streams are replaced once, at the start;
typer and rich print to the replacements.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TextIO

from .language import gettext as _


class LossyFile(io.FileIO):
    """A file that accepts all data and drops what it cannot write.

    Attributes:
        lost: the first error after which data was dropped, or None.
    """

    lost: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]  # BufferedWriter's alone
        """Write what can be written; report the rest as written too."""
        if self.lost is None:
            try:
                # None: a non-blocking pipe is full.
                while (count := super().write(data)) is None:
                    select.select([], [self], [])  # pragma: no cover - if its reader is slow
            except OSError as error:
                self.lost = error
            else:
                return count
        return len(data)


def guard_streams() -> None:
    """Replace the standard streams. Call this once, before any file is opened."""
    _open_closed_descriptors()
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BytesIO())
    sys.stdout = _guarded(sys.stdout, 1)
    sys.stderr = _guarded(sys.stderr, 2)


def report_loss() -> None:
    """Report on standard error that output was lost, unless its reader closed the pipe."""
    sys.stdout.flush()
    lost = getattr(getattr(sys.stdout.buffer, "raw", None), "lost", None)
    if lost is not None and lost.errno != errno.EPIPE:
        sys.stderr.write(
            _(
                "ihuyi-voice: standard output could not be written ({reason}), so part of it is"
                " lost; the exit status is that of the outcome\n"
            ).format(reason=lost.strerror)
        )


def _open_closed_descriptors() -> None:
    """Open closed standard descriptors: libuv aborts if a socket takes one of them."""
    opened = os.open(os.devnull, os.O_RDWR)
    # The system returns the lowest free descriptor, which may be a standard one.
    while opened <= 2:
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)


def _is_windows_console(stream: TextIO) -> bool:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    # The class exists only on Windows.
    return type(raw).__name__ == "_WindowsConsoleIO"


def _guarded(stream: TextIO | None, descriptor: int) -> TextIO:
    if isinstance(stream, io.TextIOWrapper) and _is_windows_console(stream):
        # Only its own raw file writes Unicode: bytes would be read in the console's code page.
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
        return stream
    raw = LossyFile(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),  # type: ignore[type-var]  # its write takes what is given here
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )
