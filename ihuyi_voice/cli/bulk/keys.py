"""The keys of a file's rows that have none, and codes for the rows without one.

With a ledger a bulk run can be repeated after any crash. So a row must get the
same key, and the same code, whenever the file is read: both are made from what
is in the row. Rows may be added, removed or moved in between.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...store.entry import Fingerprints

_CODE_LENGTH = 6


class RowKeys:
    """Names the rows of one reading of a file; each reading takes a new one.

    Equal rows are as many calls: what tells them apart is which of them comes
    first. Counting them takes about 150 bytes a row.

    Args:
        fingerprints: of the account; keyed with its API key, so that neither
            number nor code can be guessed from a key.
        ledger_id: of the ledger, so that a number's drawn code is another one
            in every ledger.
    """

    def __init__(self, fingerprints: Fingerprints, ledger_id: str) -> None:
        self._fingerprints = fingerprints
        self._ledger_id = ledger_id
        self._seen: Counter[str] = Counter()

    def key(self, mobile: str, content: str) -> str:
        """The key of the next row with this number and content, "" where it has none."""
        first = self._fingerprints.of_row(mobile, content, 0)
        self._seen[first] += 1
        return self._fingerprints.of_row(mobile, content, self._seen[first] - 1)

    def code(self, mobile: str, key: str) -> str:
        """The code of a row that has none, drawn by hashing: 6 digits."""
        digest = self._fingerprints.of(mobile, f"{self._ledger_id} {key}").digest
        return f"{int(digest, 16) % 10**_CODE_LENGTH:0{_CODE_LENGTH}}"
