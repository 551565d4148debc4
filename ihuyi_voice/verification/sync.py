"""`Verifier`: the blocking twin of `AsyncVerifier`.

It runs the same steps in the loop thread of a `VoiceClient`. Events are
reported in the thread that calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ..sync.client import VoiceClient
from .codes import new_id, read_id, read_keys, read_person, typed_code
from .verifier import check_client, check_own_id, checked, make_flow, report, unix_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..client import AsyncVoiceClient
    from ..store.store import Store
    from ..store.verifications import VerificationStore
    from .codes import KeyInput
    from .values import CheckResult, OnEvent, Verification, VerificationEvent

T = TypeVar("T")

# How much longer than a submit a step may take: it asks the store three times.
_STORE_SECONDS = 15.0


class Verifier:
    """Verifies that a person holds a number: a call reads out a code, the person types it in.

        verifier = Verifier(client, key=os.environ["VERIFY_KEY"])
        v = verifier.start("13912345678", purpose="login")
        # keep v.id in the user's session; then, with what the user typed:
        result = verifier.check(v.id, "042917", mobile="13912345678", purpose="login")
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
        client: VoiceClient,
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
        check_client(client, VoiceClient)
        self._client = client
        self._flow = make_flow(
            keys,
            store,
            client._client._store,  # noqa: SLF001 - ours
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

    def start(
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
            return self._run(
                "start",
                lambda client: self._flow.start(client, person, own_id, events, is_decoy=decoy),
            )
        finally:
            self._report(events)

    def resend(self, id: str, *, mobile: str, purpose: str) -> Verification:  # noqa: A002 - its name
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
            return self._run(
                "resend", lambda client: self._flow.resend(client, person, read_id(id), events)
            )
        finally:
            self._report(events)

    def check(self, id: str, code: str, *, mobile: str, purpose: str) -> CheckResult:  # noqa: A002 - its name
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
            return self._run(
                "check", lambda _: self._flow.check(person, read_id(id), typed, events)
            )
        finally:
            self._report(events)

    def cancel(self, id: str) -> Verification:  # noqa: A002 - its name
        """End a verification that is pending: its code is not accepted any more.

        Raises:
            LookupError: there is no such verification.
            StoreError: the store failed.
        """
        events: list[VerificationEvent] = []
        try:
            return self._run("cancel", lambda _: self._flow.cancel(read_id(id), events))
        finally:
            self._report(events)

    def get(self, id: str) -> Verification:  # noqa: A002 - its name
        """Read a verification; changes nothing.

        Raises:
            LookupError: there is no such verification.
            StoreError: the store failed.
        """
        return self._run("get", lambda _: self._flow.get(read_id(id)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {getattr(self, '_client', None)!r}>"

    def _run(self, method: str, start: Callable[[AsyncVoiceClient], Awaitable[T]]) -> T:
        """Run the steps of a method in the client's loop thread, and wait for their end."""
        name = f"Verifier.{method}"
        return self._client._call(name, start, extra_seconds=_STORE_SECONDS)  # noqa: SLF001 - ours

    def _report(self, events: list[VerificationEvent]) -> None:
        report(self._on_event, events)
