"""What a client asks of a store: small protocols, and no database.

To keep limits elsewhere, write a class with the two methods of `LimitStore` and
pass it as `RecipientQuota(store=...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..models import Unrecorded
    from .answer import StoredAnswer
    from .entry import Claim, Entry, EntryState, FailureScope, Fingerprint
    from .limits import Limited, Windows
    from .writer.operations import Committed, Work


class LimitStore(Protocol):
    """Where the starts of calls are kept. Both calls are atomic per number.

    A client waits for `reserve` until the request's deadline and for `release`
    for 2 seconds, and then cancels the call. A reservation that is returned
    after that is released. One that is made and not returned counts until its
    window has passed.
    """

    async def reserve(self, number: str, token: str, windows: Windows) -> float:
        """Reserve one start now, by the store's own clock, if every limit allows it.

        Args:
            number: names the number: a hash of it, or the number itself in a
                store of this process.
            token: names the reservation, 1-32 ASCII characters; never used twice.
            windows: (count, seconds) for each limit: at most that many starts
                within any window of that many seconds.

        Returns:
            0.0 when it is reserved, else the seconds until it would be
            allowed, and then nothing is reserved.
        """

    async def release(self, number: str, token: str) -> None:
        """Give back the reservation with this token, if there still is one."""


class SharedLimits(LimitStore, Protocol):
    """The limits of a `Store`, which end a call at its deadline by themselves.

    They raise `StoreError` where the store failed or did not answer in time,
    and RuntimeError once it is closed. A reservation that is not returned is
    given back.
    """

    async def reserve(
        self, number: str, token: str, windows: Windows, *, deadline: float = ...
    ) -> float:
        """As `LimitStore.reserve`, until the deadline (monotonic seconds)."""


class ClaimStore(Protocol):
    """Where idempotency keys are kept, together with the limits.

    Every method raises `StoreError` where the store failed or did not answer
    in time, and RuntimeError once it is closed.
    """

    async def find(
        self, key: str, fingerprint: Fingerprint, mobile: str, deadline: float
    ) -> Entry | None:
        """The entry of a key, without claiming it."""

    async def claim(  # noqa: PLR0913, PLR0917 - a request, its times and its limits
        self,
        key: str,
        fingerprint: Fingerprint,
        mobile: str,
        deadline: float,
        live_seconds: float,
        limited: Limited | None = None,
    ) -> Claim:
        """Claim a key and reserve a start of its number, durably: both or neither.

        Args:
            key: the idempotency key, checked.
            fingerprint: of mobile and content.
            mobile: masked.
            deadline: when to fail, in monotonic seconds.
            live_seconds: how long from now the request may be sent or settled.
            limited: the number and its limits; None without limits.
        """

    async def settle(  # noqa: PLR0913 - an outcome, and what depends on it
        self,
        key: str,
        token: str,
        state: EntryState,
        answer: StoredAnswer,
        *,
        reset: bool = False,
        unrecorded: Unrecorded | None = None,
        number: str | None = None,
    ) -> None:
        """Record the outcome of a claim durably.

        Where it is NOT_SENT, the start of `number` that was reserved with the
        claim is given back.
        """

    def is_under_way(self, entry: Entry) -> bool:
        """Whether the request of an entry may be being sent at the moment."""

    def clock(self) -> float:
        """Wall-clock seconds, by which a claim is alive."""


class KnownKeys(Protocol):
    """What a store knows of many keys, for the command line.

    Both methods block. They raise `StoreError` where the store failed, and
    RuntimeError once it is closed.
    """

    @property
    def id(self) -> str:
        """The random id of the store, drawn when it was created."""

    def entries(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """The entries of up to some thousands of keys, without those that were never claimed."""

    def hashed_with_another_key(self, job: str, hashed_with: str) -> bool:
        """Whether a row of this job was or may have been placed with another API key.

        With this API key the same rows get other keys, and every phone would
        ring again.

        Args:
            job: the name of the job.
            hashed_with: `Fingerprints.hashed_with` of the API key in use.
        """


class Connection(Protocol):
    """One connection to a database, which the writer's thread uses.

    Every method raises `StoreError`; then the connection should be closed.

    Attributes:
        failure_scope: what the last failure means for other batches.
        committing: whether the last batch reached its commit. If it failed
            then, it may be committed all the same.
    """

    failure_scope: FailureScope
    committing: bool

    def apply(self, work: Work) -> Committed:
        """Execute one batch, durably."""

    def wait_for_rows(self, seconds: float) -> None:
        """Wait at most so long for what another process locks."""

    def forget_expired(self) -> bool:
        """Delete some hundred rows that have expired; returns whether there may be more."""

    def close(self) -> None:
        """Close it; does no harm twice."""
