"""The variables that error-reporting tools show: those of every frame that an exception passed.

The frames of the tests are left out, because they are the caller's.
"""

from __future__ import annotations

import dataclasses
import io
import json
import traceback
import warnings
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING

import loguru
from rich.console import Console
from rich.traceback import Traceback

with warnings.catch_warnings():
    # If eventlet is installed, sentry_sdk imports it, which warns that it is deprecated.
    warnings.simplefilter("ignore")
    import sentry_sdk
    from sentry_sdk.transport import Transport
    from sentry_sdk.utils import event_from_exception

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

    from sentry_sdk.envelope import Envelope

# Its default sink would write to stderr.
loguru.logger.remove()

TESTS = str(Path(__file__).parents[1])


def is_callers(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(TESTS)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, its causes and contexts, suppressed ones included, and those of a group."""
    found: list[BaseException | None] = [error]
    seen: set[int] = set()
    while found:
        link = found.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        found += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]


def frames(error: BaseException) -> Iterator[FrameType]:
    """Each frame of the package and of the libraries below it, once."""
    seen: set[int] = set()
    for link in chain(error):
        for frame, _ in traceback.walk_tb(link.__traceback__):
            if id(frame) not in seen and not is_callers(frame):
                seen.add(id(frame))
                yield frame


def walked(value: object, depth: int = 6) -> Iterator[str]:
    """What tools show of a value: its repr, its items, and its fields if the repr is generated."""
    try:
        yield repr(value)
    except Exception:  # noqa: BLE001 # pragma: no cover - unfinished objects of libraries
        return
    if not depth or isinstance(value, str | bytes | bytearray):
        return
    inner: list[object] = []
    if isinstance(value, Mapping):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, Sequence | AbstractSet):
        inner = [*value]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        written = type(value).__repr__
        if (
            "__create_fn__" in written.__qualname__ or "<locals>" in written.__qualname__
        ):  # pragma: no cover - a leak
            inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    for item in inner:
        yield from walked(item, depth - 1)


def in_variables(error: BaseException) -> dict[str, list[str]]:
    """What each variable of each frame shows, by file, line, function and variable."""
    return {
        f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}.{name}": [
            *walked(value)
        ]
        for frame in frames(error)
        for name, value in dict(frame.f_locals).items()
    }


def without_callers_frames(error: BaseException) -> None:
    """Remove the frames of the tests from the outer end of each traceback of the chain."""
    for link in chain(error):
        tb = link.__traceback__
        while tb is not None and is_callers(tb.tb_frame):
            tb = tb.tb_next
        link.__traceback__ = tb


def by_traceback(error: BaseException) -> str:
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(report.format(chain=True))


class _WithoutColours(Traceback):
    """Shows the source lines as plain text: to highlight them takes most of the time."""

    @classmethod
    def _guess_lexer(cls, filename: str, code: str) -> str:
        return "text"


def by_rich(error: BaseException) -> str:
    out = io.StringIO()
    Console(file=out, width=2_000, color_system=None).print(
        _WithoutColours.from_exception(
            type(error),
            error,
            error.__traceback__,
            show_locals=True,
            locals_max_length=10_000,
            locals_max_string=100_000,
            max_frames=0,
            extra_lines=0,
            code_width=500,
            suppress=[TESTS],
        )
    )
    return out.getvalue()


def by_loguru(error: BaseException) -> str:
    out = io.StringIO()
    logger = loguru.logger
    # `diagnose`, which shows variables, is on by default. `backtrace` would add the frames
    # of the tests.
    sink = logger.add(out, format="{message}", colorize=False, backtrace=False)
    try:
        logger.opt(exception=error).error("what happened")
    finally:
        logger.remove(sink)
    return out.getvalue()


class _Kept(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.texts += [json.dumps(item.payload.json, default=str) for item in envelope.items]


def by_sentry(error: BaseException) -> str:
    kept = _Kept()
    # Its defaults, without the integrations, which patch other modules permanently.
    client = sentry_sdk.Client(
        dsn="http://key@127.0.0.1:1/1", transport=kept, default_integrations=False
    )
    event, hint = event_from_exception(error, client_options=client.options)
    client.capture_event(event, hint)
    client.close()
    assert kept.texts
    return "\n".join(kept.texts)


TOOLS: dict[str, Callable[[BaseException], str]] = {
    "traceback": by_traceback,
    "rich": by_rich,
    "loguru": by_loguru,
    "sentry": by_sentry,
}


def leaks_of(error: BaseException, leaks: Callable[..., set[str]]) -> dict[str, set[str]]:
    """Where secrets are found: by frame and variable, and by tool. Empty if nowhere."""
    found = {place: some for place, texts in in_variables(error).items() if (some := leaks(*texts))}
    tracebacks: list[tuple[BaseException, TracebackType | None]] = [
        (link, link.__traceback__) for link in chain(error)
    ]
    without_callers_frames(error)
    try:
        for name, tool in TOOLS.items():
            if some := leaks(tool(error)):
                found[name] = some
    finally:
        for link, tb in tracebacks:
            link.__traceback__ = tb
    return found
