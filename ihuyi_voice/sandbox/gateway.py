"""`SandboxGateway`: a local gateway that rings no phone, and everything it was sent.

It holds the state, the chaos and the clock, and guards them with a lock, so
that a test may read and change them from any thread while the gateway
answers. What it answers is decided in `rules.py`, HTTP is spoken in `server.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from functools import partial
from secrets import token_hex
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from . import settings as check
from .faults import NO_CHAOS, Chaos, Dice, Roll
from .history import DEFAULT_KEEP, Record
from .rules import GatewayState
from .server import serving
from .setting import Setting
from .settings import Account

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from .history import Attempt, Call, Changes, Position, ReceiptPush
    from .rules import Method, Reply

logger: logging.Logger = logging.getLogger("ihuyi_voice.sandbox")


class SandboxGateway:
    """A gateway with one account that answers like the real one and rings no phone.

        gateway = SandboxGateway(balance=3)
        async with gateway.serve() as url:               # or: with gateway.serve_in_thread() as url
            async with AsyncVoiceClient("sandbox", "sandbox-key", base_url=url) as client:
                await client.submit("13912345678", "1125")
        assert [call.content for call in gateway.calls] == ["1125"]

    Every argument is also an attribute that can be read and set at any time,
    from any thread; sets are replaced, not changed in place
    (`gateway.blacklist |= {"13912345678"}`).

    Args:
        api_id: the account's APIID.
        api_key: the account's APIKEY, also taken as the static password.
        balance: calls left; used up, a submit is refused with 4051.
        time_window: seconds by which the `time` of a dynamic password may
            differ from the clock; past it, 40501. None: any time will do.
        allowed_ips: the addresses that may call; any other gets 400. None: all.
        registered_ips: the addresses that may submit; any other gets 4052. None: all.
        blacklist: numbers refused with 4030.
        banned_contents: contents refused with 407.
        failing_mobiles: numbers whose submit fails with 0.
        frozen: whether the account is frozen: 4050. Setting it to False also
            ends a freeze for abuse.
        abuse_limit: after so many refused submits in a row the account is
            frozen: 408 for a submit, 4050 for a balance query. Refusals that
            chaos made up do not count. None: never.
        frequency_limit: whether the calls placed to one number are limited,
            counted from when it is switched on.
        calls_per_minute: with `frequency_limit`, one more within 60 s gets 4081.
        calls_per_day: with `frequency_limit`, one more within 24 hours gets 4082.
        chaos: what goes wrong between the gateway and its callers.
        receipt_url: where the receipt of each call that is placed over HTTP is
            pushed to, an http or https URL. None: nowhere.
        receipt_delay: seconds after which a call has ended and is reported.
        receipt_interval: seconds by which the wait grows after a push that was
            not answered with `success`; there are three pushes at most.
        receipt_timeout: seconds that the receiver has for an answer, more than 0.
        receipt_id: the name of the receipt's field that holds the voice id.
        keep: how many attempts are remembered, and how many calls; the oldest
            beyond it are forgotten.
        on_attempt: called with each `Attempt` once it is recorded, in the
            thread that serves; it must not block. What it raises is logged
            and changes nothing: the submit was taken and is answered as it is.
        clock: seconds since 1970; also what the `Date` of an answer shows.

    Raises:
        ValueError: naming the setting that is wrong and what it takes; also
            when an attribute is set.
    """

    api_id: Setting[str, str] = Setting(check.credential)
    api_key: Setting[str, str] = Setting(check.credential)
    balance: Setting[int, int] = Setting(check.whole_number)
    time_window: Setting[float | None, float | None] = Setting(check.seconds_or_none)
    allowed_ips: Setting[frozenset[str] | None, Iterable[str] | None] = Setting(check.ips_or_none)
    registered_ips: Setting[frozenset[str] | None, Iterable[str] | None] = Setting(
        check.ips_or_none
    )
    blacklist: Setting[frozenset[str], Iterable[str]] = Setting(check.mobiles)
    banned_contents: Setting[frozenset[str], Iterable[str]] = Setting(check.contents)
    failing_mobiles: Setting[frozenset[str], Iterable[str]] = Setting(check.mobiles)
    abuse_limit: Setting[int | None, int | None] = Setting(check.count_or_none)
    frequency_limit: Setting[bool, bool] = Setting(check.flag)
    calls_per_minute: Setting[int, int] = Setting(check.count)
    calls_per_day: Setting[int, int] = Setting(check.count)
    receipt_url: Setting[str | None, str | None] = Setting(check.url_or_none)
    receipt_delay: Setting[float, float] = Setting(check.seconds)
    receipt_interval: Setting[float, float] = Setting(check.seconds)
    receipt_timeout: Setting[float, float] = Setting(check.some_seconds)
    receipt_id: Setting[str, str] = Setting(check.credential)

    def __init__(  # noqa: PLR0913 - one argument per setting, all of them named
        self,
        *,
        api_id: str = "sandbox",
        api_key: str = "sandbox-key",
        balance: int = 1000,
        time_window: float | None = 600.0,
        allowed_ips: Iterable[str] | None = None,
        registered_ips: Iterable[str] | None = None,
        blacklist: Iterable[str] = (),
        banned_contents: Iterable[str] = (),
        failing_mobiles: Iterable[str] = (),
        frozen: bool = False,
        abuse_limit: int | None = None,
        frequency_limit: bool = False,
        calls_per_minute: int = 2,
        calls_per_day: int = 10,
        chaos: Chaos = NO_CHAOS,
        receipt_url: str | None = None,
        receipt_delay: float = 1.0,
        receipt_interval: float = 60.0,
        receipt_timeout: float = 5.0,
        receipt_id: str = "voiceid",
        keep: int = DEFAULT_KEEP,
        on_attempt: Callable[[Attempt], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lock = Lock()
        self._state = GatewayState(Account(), Record(_new_epoch()))
        self.api_id = api_id
        self.api_key = api_key
        self.balance = balance
        self.time_window = time_window
        self.allowed_ips = allowed_ips
        self.registered_ips = registered_ips
        self.blacklist = blacklist
        self.banned_contents = banned_contents
        self.failing_mobiles = failing_mobiles
        self.frozen = frozen
        self.abuse_limit = abuse_limit
        self.frequency_limit = frequency_limit
        self.calls_per_minute = calls_per_minute
        self.calls_per_day = calls_per_day
        self.chaos = chaos
        self.receipt_url = receipt_url
        self.receipt_delay = receipt_delay
        self.receipt_interval = receipt_interval
        self.receipt_timeout = receipt_timeout
        self.receipt_id = receipt_id
        self.keep = keep
        self.on_attempt = on_attempt
        self.clock = clock
        self._initially = copy(self._state.account), frozen, chaos, keep

    def __repr__(self) -> str:
        return (
            f"SandboxGateway(api_id={self.api_id!r}, balance={self.balance},"
            f" calls={self.placed}, attempts={self.taken})"
        )

    @property
    def frozen(self) -> bool:
        """Whether the account is frozen, by this setting or for abuse."""
        return self._state.frozen_with is not None

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        check.flag("frozen", frozen)
        with self._lock:
            if frozen:
                self._state.freeze()
            else:
                self._state.thaw()

    @property
    def frozen_with(self) -> int | None:
        """What a frozen account's submits are refused with: 408 for abuse, or 4050; else None."""
        return self._state.frozen_with

    @property
    def chaos(self) -> Chaos:
        """What goes wrong; setting it starts the sequence of its seed anew."""
        return self._dice.chaos

    @chaos.setter
    def chaos(self, chaos: Chaos) -> None:
        dice = Dice(_checked_chaos(chaos))
        with self._lock:
            self._dice = dice

    @property
    def keep(self) -> int:
        """How many attempts are remembered, and how many calls."""
        return self._state.record.keep

    @keep.setter
    def keep(self, keep: int) -> None:
        check.count("keep", keep)
        with self._lock:
            self._state.record.resize(keep)

    @property
    def calls(self) -> list[Call]:
        """The last `keep` calls that were placed, oldest first; a list of its own."""
        with self._lock:
            return list(self._state.record.calls)

    @property
    def attempts(self) -> list[Attempt]:
        """The last `keep` submits, placed or refused, oldest first; a list of its own."""
        with self._lock:
            return list(self._state.record.attempts)

    @property
    def receipts(self) -> list[ReceiptPush]:
        """The receipts of the attempts remembered; the one that changed last comes last."""
        with self._lock:
            return self._state.record.pushes

    @property
    def taken(self) -> int:
        """How many submits there were since the start or the last reset, remembered or not."""
        return self._state.record.taken

    @property
    def placed(self) -> int:
        """How many calls there were since the start or the last reset, remembered or not."""
        return self._state.record.placed

    def settings(self) -> dict[str, object]:
        """Every setting that `change` takes, by its name."""
        return {name: getattr(self, name) for name in _CHECKS}

    def change(self, settings: Mapping[str, object]) -> None:
        """Set several settings, or none when one of them is wrong.

        Raises:
            ValueError: naming the setting that is wrong and what it takes.
        """
        if unknown := sorted(settings.keys() - _CHECKS.keys()):
            msg = f"unknown: {', '.join(unknown)}; there are {', '.join(_CHECKS)}"
            raise ValueError(msg)
        checked = {name: _CHECKS[name](name, value) for name, value in settings.items()}
        for name, value in checked.items():
            setattr(self, name, value)

    def clear(self) -> None:
        """Forget all calls and attempts, and the receipts still to be pushed; no more."""
        with self._lock:
            self._state.record.clear(_new_epoch())

    def reset(self) -> None:
        """Clear, and settings and chaos become what they were at first."""
        account, frozen, chaos, keep = self._initially
        state = GatewayState(copy(account), Record(_new_epoch(), keep))
        if frozen:
            state.freeze()
        with self._lock:
            self._state = state
            self._dice = Dice(chaos)

    def roll(self) -> Roll:
        """Draw what is to happen to the next answer."""
        with self._lock:
            return self._dice.roll()

    def answer(self, method: Method, form: Mapping[str, str], ip: str, roll: Roll) -> Reply:
        """Judge a form and record it, without any HTTP.

        Args:
            method: "Submit" or "GetNum".
            form: the fields.
            ip: where the request came from.
            roll: what is to happen to the answer, from `roll()`.
        """
        now = self.clock()
        with self._lock:
            reply = self._state.answer(method, form, ip, now, roll=roll)
        if reply.attempt is not None and self.on_attempt is not None:
            try:
                self.on_attempt(reply.attempt)
            except Exception:
                logger.exception("on_attempt failed; the submit was taken and is answered")
        return reply

    def roll_receipt(self) -> bool:
        """Draw whether the next call is delivered."""
        with self._lock:
            return self._dice.roll_receipt()

    def changes(self, since: Position, limit: int) -> Changes:
        """What was recorded after a position; at most `limit` attempts of it."""
        with self._lock:
            return self._state.record.since(since, limit)

    def find(self, number: int) -> tuple[Attempt, ReceiptPush | None] | None:
        """The attempt with that number and its receipt; None when it is not remembered."""
        with self._lock:
            return self._state.record.find(number)

    @property
    def epoch(self) -> str:
        """Names the record; another after each `clear` or `reset`."""
        return self._state.record.epoch

    def put_receipt(self, epoch: str, push: ReceiptPush) -> bool:
        """Remember how a receipt stands; False when that record is no more."""
        with self._lock:
            if epoch != self._state.record.epoch:
                return False
            self._state.record.put(push)
        return True

    @asynccontextmanager
    async def serve(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve over HTTP in the running loop while the block runs.

        Args:
            host: the address to listen on. Anything but loopback is warned
                about: whoever reaches it can read every number and code.
            port: 0 for any free one.

        Yields:
            The base URL, such as `http://127.0.0.1:41234`.

        Raises:
            OSError: the address cannot be listened on.
        """
        async with serving(self, host, port) as url:
            yield url

    @contextmanager
    def serve_in_thread(self, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
        """Serve from a daemon thread with a loop of its own while the block runs.

        Arguments, what is yielded and what is raised as in `serve`. When the
        block is left, the thread has ended and its sockets are closed.
        """
        started: Future[tuple[str, Callable[[], object]]] = Future()
        thread = Thread(
            target=self._serve_until_stopped,
            args=(host, port, started),
            name="ihuyi-voice-sandbox",
            daemon=True,
        )
        thread.start()
        url, stop = started.result()
        try:
            yield url
        finally:
            stop()
            thread.join()

    def _serve_until_stopped(
        self, host: str, port: int, started: Future[tuple[str, Callable[[], object]]]
    ) -> None:
        async def serve() -> None:
            loop = asyncio.get_running_loop()
            stopped = asyncio.Event()
            async with self.serve(host, port) as url:
                started.set_result((url, partial(loop.call_soon_threadsafe, stopped.set)))
                await stopped.wait()

        try:
            asyncio.run(serve())
        except Exception as error:  # noqa: BLE001 - raised where serve_in_thread was entered
            started.set_exception(error)


def _new_epoch() -> str:
    return token_hex(4)


# What may be changed from outside while it runs: all but the credentials, and
# the chaos, which has a place of its own.
_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "frozen": check.flag,
    **{
        name: setting.checked
        for name, setting in vars(SandboxGateway).items()
        if isinstance(setting, Setting) and name not in ("api_id", "api_key")
    },
    "keep": check.count,
}


def _checked_chaos(chaos: object) -> Chaos:
    if not isinstance(chaos, Chaos):
        msg = f"chaos must be a Chaos, not {chaos!r}; Chaos() is none"
        raise ValueError(msg)  # noqa: TRY004 - every wrong setting is a ValueError
    return chaos
