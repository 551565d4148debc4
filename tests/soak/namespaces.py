"""Runs a block in a network namespace: its sockets, its threads and its processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let this thread be in the namespace; threads and processes that it starts stay there."""
    with Path("/proc/thread-self/ns/net").open("rb") as own:
        with Path("/run/netns", namespace).open("rb") as other:
            _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def _enter(number: int) -> None:
    # `os.setns` exists from Python 3.12 on.
    if _libc.setns(number, _CLONE_NEWNET):  # pragma: no cover - as root never
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
