"""What a candidate is given to do, and the watch that times it.

The rows are the same for all, distinct numbers one after another; so are the
two ways to write the signed form: as people do, and with all that never
changes done once.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote_plus

from benchmarks import ACCOUNT, API_KEY, TARGET

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from cProfile import Profile
    from types import TracebackType

    from typing_extensions import Self

Row: TypeAlias = tuple[str, str]


class Stopwatch:
    """Seconds between entering and leaving: of the wall clock, and of all our threads' CPU.

    Args:
        profile: collects what runs in between; the seconds then mean little.
    """

    def __init__(self, profile: Profile | None = None) -> None:
        self.wall = 0.0
        self.cpu = 0.0
        self._profile = profile

    def __enter__(self) -> Self:
        gc.collect()
        if self._profile is not None:
            self._profile.enable()
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cpu += time.process_time()
        self.wall += time.perf_counter()
        if self._profile is not None:
            self._profile.disable()


@dataclass
class Job:
    """So many sends to one gateway.

    Attributes:
        base_url: scheme, host and port.
        count: rows in one go.
        repeat: how often that many are sent.
        warm_up: rows sent before, unmeasured, which also opens the connections.
        concurrency: connections, where a candidate has more than one.
        watch: runs while rows are sent.
    """

    base_url: str
    count: int
    repeat: int
    warm_up: int
    concurrency: int
    watch: Stopwatch
    _serials: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        """Where to POST."""
        return self.base_url + TARGET

    def measure(
        self,
        send_all: Callable[[Iterable[Row]], int],
        prepared: Callable[[Iterable[Row]], Iterable[Row]] = list,
    ) -> int:
        """Send everything, by a function that returns how many were accepted.

        Args:
            send_all: sends all of some rows.
            prepared: what is done to the rows before the watch runs: `list`
                or, to make them on the way, `iter`.
        """
        send_all(prepared(self._rows(self.warm_up)))
        accepted = 0
        for _ in range(self.repeat):
            rows = prepared(self._rows(self.count))
            with self.watch:
                accepted += send_all(rows)
        return accepted

    async def measure_async(
        self,
        send_all: Callable[[Iterable[Row]], Awaitable[int]],
        prepared: Callable[[Iterable[Row]], Iterable[Row]] = list,
    ) -> int:
        """The same with a coroutine function."""
        await send_all(prepared(self._rows(self.warm_up)))
        accepted = 0
        for _ in range(self.repeat):
            rows = prepared(self._rows(self.count))
            with self.watch:
                accepted += await send_all(rows)
        return accepted

    def _rows(self, how_many: int) -> Iterable[Row]:
        for _ in range(how_many):
            serial = next(self._serials)
            yield f"139{serial:08d}", f"{serial % 1_000_000:06d}"


def signed_form(mobile: str, content: str) -> dict[str, str]:
    """The fields of a submit, as people write it."""
    now = str(int(time.time()))
    text = ACCOUNT + API_KEY + mobile + content + now
    return {
        "account": ACCOUNT,
        "password": hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
        "mobile": mobile,
        "content": content,
        "time": now,
        "format": "json",
    }


_HEAD = f"account={quote_plus(ACCOUNT)}&format=json&password="
_signed_head = hashlib.md5((ACCOUNT + API_KEY).encode(), usedforsecurity=False)


def signed_body(mobile: str, content: str) -> bytes:
    """The encoded form of a submit, with what never changes hashed and quoted once."""
    now = int(time.time())
    digest = _signed_head.copy()
    digest.update(f"{mobile}{content}{now}".encode())
    password = digest.hexdigest()
    return f"{_HEAD}{password}&mobile={mobile}&content={content}&time={now}".encode()
