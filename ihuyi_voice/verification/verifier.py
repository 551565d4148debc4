"""`AsyncVerifier`: verify that a person holds a number, for asyncio."""

from __future__ import annotations

import logging
import time
import warnings
from typing import TYPE_CHECKING

from ..client import AsyncVoiceClient
from ..errors import InvalidRequestError
from ..models import check_count
from ..store.limits import KEEP_SECONDS
from ..store.memory import MemoryVerifications
from ..store.store import Store
from ..store.verifications import Verifications
from .codes import new_id, read_id, read_keys, read_person, typed_code
from .flow import Flow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..store.verifications import VerificationStore
    from .codes import KeyInput, Person, SigningKey
    from .values import CheckResult, OnEvent, Verification, VerificationEvent

MAX_TTL = 600.0
"""NIST SP 800-63B-4 3.1.3.2 and OWASP ASVS 5.0 6.5.5: a code lives 10 minutes at most."""
MAX_ATTEMPTS = 10

_logger = logging.getLogger("ihuyi_voice")


def unix_time() -> float:
    """Unix time in seconds; looked up at each call, so that a test may replace `time.time`."""
    return time.time()


class AsyncVerifier:
    """Verifies that a person holds a number: a call reads out a code, the person types it in.

        verifier = AsyncVerifier(client, key=os.environ["VERIFY_KEY"])
        v = await verifier.start("13912345678", purpose="login")
        # keep v.id in the user's session; then, with what the user typed:
        result = await verifier.check(v.id, "042917", mobile="13912345678", purpose="login")
        if result.approved: ...

    The code has 6 digits (NIST SP 800-63B-4 3.1.3.2, OWASP ASVS 5.0 6.5.4). It is
    derived from id, purpose and number with the application's key, and is never
    stored, returned or logged. It is accepted once (ASVS 6.5.1), only for its
    number and purpose (ASVS 6.6.2), only within `ttl` (ASVS 6.5.5), and only
    among the first `attempts` guesses. Over all verifications, 10 guesses an
    hour are allowed for a number and purpose (NIST 3.2.2, ASVS 6.6.3).

    Args:
        client: places the calls. Its limits per number hold for them too.
        key: the application's secret for codes: 32 bytes or more, as bytes, as
            a str, or a list of them for a rotation. The first one signs; codes
            made with the others are still accepted.
        store: where verifications are kept: a `Store`, or a `VerificationStore`
            of your own. By default the client's store; where it has none, this
            process's memory, which serves one process and forgets at its end.
        ttl: seconds for which a code is accepted, at most 600.
        attempts: guesses for one verification, at most 10.
        cooldown: seconds between two calls to a number and purpose, as the
            vendor's advice against abuse asks for; 0 for none.
        length: digits of the code. 4 and 5 are easier to guess: a warning says
            so.
        on_event: called with each `VerificationEvent`, in order. What they
            raise is logged and ignored.
        clock: Unix time in seconds, for verifications in memory; for tests.

    Raises:
        ValueError: an argument is wrong; the text says which.
        TypeError: an argument is of the wrong type.
    """

    def __init__(  # noqa: PLR0913 - the settings of a verifier, each with a default
        self,
        client: AsyncVoiceClient,
        *,
        key: KeyInput,
        store: Store | VerificationStore | None = None,
        ttl: float = 300,
        attempts: int = 5,
        cooldown: float = 60,
        length: int = 6,
        on_event: Sequence[OnEvent] = (),
        clock: Callable[[], float] = unix_time,
    ) -> None:
        keys = read_keys(key)
        # What is raised from here on must not find the key in this frame.
        del key
        check_client(client, AsyncVoiceClient)
        self._client = client
        self._flow = make_flow(
            keys,
            store,
            client._store,  # noqa: SLF001 - ours
            clock,
            ttl=ttl,
            attempts=attempts,
            cooldown=cooldown,
            length=length,
        )
        self._on_event = tuple(on_event)

    @staticmethod
    def new_id() -> str:
        """An id for `start`, 128 random bits as 32 hex digits."""
        return new_id()

    async def start(
        self,
        mobile: str,
        *,
        purpose: str,
        decoy: bool = False,
        id: str | None = None,  # noqa: A002 - its name
    ) -> Verification:
        """Begin a verification and place its call.

        Where the call's outcome is unknown, no exception is raised: the phone
        may be ringing, and the code that it reads is accepted.

        Args:
            mobile: one mainland number, as for `submit`.
            purpose: what it is for, like "login": a code is accepted for the
                same purpose only.
            decoy: place no call, and let everything else look the same; for
                accounts that do not exist. No code is approved. It returns
                sooner, because it does not wait for the gateway, and it takes
                no place in the client's limits: where users may measure that,
                answer them before the start.
            id: from `new_id`, drawn and kept before: a job that is delivered
                again does not ring a second time, if the client's store keeps
                idempotency keys. Without such a store its call is not repeated.

        Raises:
            InvalidRequestError: number, purpose or id is wrong.
            QuotaExceededError: the cooldown is not over, or the number's limit
                is reached; `retry_after` says how long.
            NotSentError, GatewayError: as `submit`; the verification is canceled.
            StoreError: the store failed; no phone rang.
        """
        read = read_person(mobile, purpose)
        del mobile
        person, own_id = checked(read), check_own_id(id)
        events: list[VerificationEvent] = []
        try:
            return await self._flow.start(self._client, person, own_id, events, is_decoy=decoy)
        finally:
            self._report(events)

    async def resend(self, id: str, *, mobile: str, purpose: str) -> Verification:  # noqa: A002 - its name
        """Place another call with the same code. It changes neither expiry nor attempts.

        Whatever happens to the call, the code stays valid.

        Raises:
            InvalidRequestError: the verification has ended, or does not exist
                for this number and purpose.
            QuotaExceededError: the cooldown is not over, or the number's limit
                is reached; `retry_after` says how long.
            NotSentError, GatewayError: as `submit`.
            StoreError: the store failed; no phone rang.
        """
        read = read_person(mobile, purpose)
        del mobile
        person = checked(read)
        events: list[VerificationEvent] = []
        try:
            return await self._flow.resend(self._client, person, read_id(id), events)
        finally:
            self._report(events)

    async def check(self, id: str, code: str, *, mobile: str, purpose: str) -> CheckResult:  # noqa: A002 - its name
        """Check what the person typed. Spends one guess.

        Blanks, hyphens and full-width digits are accepted in `code`.

        Returns:
            `approved` is True once, for the right code. For a wrong code, an
            expired, used or canceled verification, and for an unknown id the
            answer is the same.

        Raises:
            InvalidRequestError: number or purpose is malformed.
            StoreError: the store failed; nothing is approved.
        """
        typed, read = typed_code(code), read_person(mobile, purpose)
        del code, mobile
        person = checked(read)
        events: list[VerificationEvent] = []
        try:
            return await self._flow.check(person, read_id(id), typed, events)
        finally:
            self._report(events)

    async def cancel(self, id: str) -> Verification:  # noqa: A002 - its name
        """End a verification that is pending: its code is not accepted any more.

        Raises:
            LookupError: there is no such verification.
            StoreError: the store failed.
        """
        events: list[VerificationEvent] = []
        try:
            return await self._flow.cancel(read_id(id), events)
        finally:
            self._report(events)

    async def get(self, id: str) -> Verification:  # noqa: A002 - its name
        """Read a verification; changes nothing.

        Raises:
            LookupError: there is no such verification.
            StoreError: the store failed.
        """
        return await self._flow.get(read_id(id))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {getattr(self, '_client', None)!r}>"

    def _report(self, events: list[VerificationEvent]) -> None:
        report(self._on_event, events)


def report(on_event: Sequence[OnEvent], events: list[VerificationEvent]) -> None:
    """Call each function with each event; what it raises is logged and ignored."""
    for event in events:
        for call in on_event:
            try:
                call(event)
            except Exception as error:  # noqa: BLE001, PERF203 - each may fail by itself
                _logger.warning(
                    "on_event raised %s for %s: ignored", type(error).__name__, event.name
                )


def check_client(client: object, needed: type) -> None:
    """Refuse the other class of client, which is easily mistaken for the right one."""
    if not isinstance(client, needed):
        msg = f"the client must be of class {needed.__name__}, not {type(client).__name__}"
        raise TypeError(msg)


def _check_settings(ttl: float, attempts: int, cooldown: float, length: int) -> None:
    for name, seconds in (("ttl", ttl), ("cooldown", cooldown)):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            msg = f"{name} is in seconds, an int or a float, not {type(seconds).__name__}"
            raise TypeError(msg)
    if not 0 < ttl <= MAX_TTL:
        msg = f"ttl must be above 0 and at most {MAX_TTL:g} seconds, not {ttl!r}"
        raise ValueError(msg)
    if not 0 <= cooldown <= KEEP_SECONDS:
        msg = f"cooldown must be 0 to {KEEP_SECONDS:g} seconds, not {cooldown!r}"
        raise ValueError(msg)
    check_count("attempts", attempts)
    if attempts > MAX_ATTEMPTS:
        msg = f"attempts must be at most {MAX_ATTEMPTS}, not {attempts}"
        raise ValueError(msg)
    if type(length) is not int or length not in (4, 5, 6):
        msg = f"length must be 4, 5 or 6 digits, not {length!r}"
        raise ValueError(msg)
    if length < 6:
        warnings.warn(
            f"a code of {length} digits is {10 ** (6 - length)} times easier to guess than one of"
            " 6, which NIST SP 800-63B-4 asks for",
            UserWarning,
            stacklevel=4,
        )


def _kept_in(
    store: Store | VerificationStore | None, of_client: Store | None, clock: Callable[[], float]
) -> VerificationStore:
    store = of_client if store is None else store
    if store is None:
        return Verifications(MemoryVerifications(clock))
    if isinstance(store, Store):
        return store.verifications
    if not hasattr(store, "spend"):
        msg = f"store must be a Store, not {type(store).__name__}: pass store=Store.open(...)"
        raise TypeError(msg)
    return store


def checked(read: Person | InvalidRequestError) -> Person:
    """Raise what was wrong with a number or purpose; this frame does not hold them."""
    if isinstance(read, InvalidRequestError):
        raise read
    return read


def check_own_id(id_: object) -> str | None:
    """An id that the caller passes to `start`; None where it passes none."""
    if id_ is None:
        return None
    own_id = read_id(id_)
    if own_id is None:
        msg = "id must come from new_id(): 32 hex digits, 128 random bits"
        raise InvalidRequestError(msg)
    return own_id


def make_flow(  # noqa: PLR0913 - the settings of a verifier
    keys: tuple[SigningKey, ...] | Exception,
    store: Store | VerificationStore | None,
    of_client: Store | None,
    clock: Callable[[], float],
    *,
    ttl: float,
    attempts: int,
    cooldown: float,
    length: int,
) -> Flow:
    """What a verifier does, with its settings checked."""
    if isinstance(keys, Exception):
        raise keys
    _check_settings(ttl, attempts, cooldown, length)
    return Flow(
        keys,
        _kept_in(store, of_client, clock),
        ttl=float(ttl),
        attempts=attempts,
        cooldown=float(cooldown),
        length=length,
    )
