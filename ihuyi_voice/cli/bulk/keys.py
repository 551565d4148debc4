"""Keys and codes for the rows of a file that have none.

With a store a bulk run can be repeated after a crash. So a row must get the
same key and the same code at every reading: both are derived from the row's
cells and the name of the job. Rows may be added, removed or moved between
readings.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...store.entry import Fingerprints

_CODE_LENGTH = 6


class RowKeys:
    """Derives the keys of one reading of a file; each reading needs a new object.

    Equal rows are separate calls, distinguished by their order. Counting them
    takes about 150 bytes per row.

    Args:
        fingerprints: of the account; keyed with its API key, so that neither
            number nor code can be guessed from a key.
        store_id: of the store, so that every store draws another code for
            the same number.
        job: the name of the job, in which the rows are known.
    """

    def __init__(self, fingerprints: Fingerprints, store_id: str, job: str) -> None:
        self._fingerprints = fingerprints
        self._store_id = store_id
        self._job = job
        self._seen: Counter[str] = Counter()

    def key(self, mobile: str, content: str) -> str:
        """The key of the next row with this number and content; "" for a row without content."""
        first = self._fingerprints.of_row(self._job, mobile, content, 0)
        self._seen[first] += 1
        return self._fingerprints.of_row(self._job, mobile, content, self._seen[first] - 1)

    def code(self, mobile: str, key: str) -> str:
        """The code of a row without one."""
        return derived_code(self._fingerprints, self._store_id, mobile, key)


def derived_code(fingerprints: Fingerprints, store_id: str, mobile: str, key: str) -> str:
    """The 6-digit code of a request without one: the same for the same key in the same store."""
    digest = fingerprints.of(mobile, f"{store_id} {key}").digest
    return f"{int(digest, 16) % 10**_CODE_LENGTH:0{_CODE_LENGTH}}"
