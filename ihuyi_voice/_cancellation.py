"""Distinguishes a real cancellation from a CancelledError that the user's code raised."""

from __future__ import annotations

import asyncio
import math

import anyio


def is_cancelled() -> bool:
    """Whether the current task is being cancelled, by a scope around it or by `Task.cancel`.

    A source, a predicate or a clock may raise CancelledError itself. That is
    an exception of the user's code, not a cancellation. Python 3.10 does not
    record whether `Task.cancel` was called: there only scopes count.
    """
    if anyio.current_effective_deadline() == -math.inf:
        return True
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0
