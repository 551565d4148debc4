"""`ihuyi-voice demo`: try it out. No account is needed, and no phone rings."""

from __future__ import annotations

from .language import mark

HELP = mark(
    "[bold]Try it out[/bold]: calls of every outcome against a local gateway. No phone rings."
)


def demo() -> None:
    """Place the calls; see `HELP`."""
    from .demo_calls import run_demo  # noqa: PLC0415 - no help needs the sandbox

    run_demo()
