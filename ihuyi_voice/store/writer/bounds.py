"""The limits of the writer and of the stores in SQL. All times are in seconds."""

from __future__ import annotations

MAX_BATCH: int = 500
"""Operations in one transaction: few enough that the next batch does not wait long."""
MAX_RETRIES_PER_BATCH: int = 250
"""Retried settlements in one batch: new operations must not starve."""
MAX_KEPT: int = 50_000
"""Failed settlements kept for a retry, about 700 bytes each. Further ones stay unknown."""

FIRST_BACK_OFF: float = 0.1
"""From the first failure to its retry. Doubled after each further failure."""
MAX_BACK_OFF: float = 2.0

SETTLE_TIMEOUT: float = 2.0
"""How long a caller waits for its settlement. A commit takes milliseconds, and the caller
can return its result before the settlement is recorded."""
BATCH_ROW_TIMEOUT: float = 0.5
"""How long a batch waits for a row that another transaction locks: all its keys wait too."""
SINGLE_ROW_TIMEOUT: float = 0.02
"""The same for a transaction with a single key: the thread waits for it."""
CLAIM_ROW_TIMEOUT: float = 5.0
"""When a claim fails whose row stays locked."""
CLAIM_RETRY_PAUSE: float = 0.1
"""Between two tries to claim a locked row."""
MAX_SECONDS_ON_SINGLES: float = 1.0
"""How long transactions with a single key may run in a row while other operations wait."""

LAST_RETRIES: float = 5.0
"""How long after `close` failed settlements are still retried."""
FORK_TIMEOUT: float = 10.0
"""How long a fork waits for a running transaction."""

CLEANING_PAUSE: float = 60.0
"""How often expired rows are deleted."""
CLEANED_AT_ONCE: int = 500
"""Numbers whose expired starts one transaction deletes."""
DELETED_AT_ONCE: int = 50_000
"""Outcomes of a job that one statement deletes: it must end within a server's time limit."""

FIRST_PAUSE: float = 0.02
"""Before the first look-up for another request's settlement. It grows up to `MAX_PAUSE`."""
MAX_PAUSE: float = 0.1
"""Between two such look-ups."""
TURN_TIMEOUT: float = 30.0
"""How long a blocking call waits for another one to end."""
