"""Voice-verification calls through iHuyi (互亿无线).

No phone is rung twice for one request, every request ends in one stated
outcome, and no secret leaks.

    from ihuyi_voice import AsyncVoiceClient, VoiceClient

`AsyncVoiceClient` is for asyncio, `VoiceClient` for blocking code; both place
calls with `submit` and read what is left with `query_balance`.
`ihuyi_voice.sandbox` holds a local gateway to try it against.
"""

from .bulk import BulkRun, is_account_level
from .client import AsyncVoiceClient
from .errors import (
    AccessDeniedError,
    AccountFrozenError,
    AuthenticationError,
    BlockedMobileError,
    BulkStoppedError,
    GatewayError,
    IhuyiVoiceError,
    InsufficientBalanceError,
    InvalidContentError,
    InvalidMobileError,
    InvalidRequestError,
    LedgerError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
    SubmitFailedError,
    UnrecognizedCodeError,
)
from .ledger import Ledger
from .ledger_entry import UnknownClaim
from .models import (
    Balance,
    BulkReport,
    Outcome,
    OutcomeStatus,
    SubmitRequest,
    SubmitResult,
    generate_code,
)
from .quota import MemoryQuotaStore, QuotaStore, RecipientQuota
from .sync import BlockingBulkRun, VoiceClient

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "AccountFrozenError",
    "AsyncVoiceClient",
    "AuthenticationError",
    "Balance",
    "BlockedMobileError",
    "BlockingBulkRun",
    "BulkReport",
    "BulkRun",
    "BulkStoppedError",
    "GatewayError",
    "IhuyiVoiceError",
    "InsufficientBalanceError",
    "InvalidContentError",
    "InvalidMobileError",
    "InvalidRequestError",
    "Ledger",
    "LedgerError",
    "MemoryQuotaStore",
    "NotSentError",
    "Outcome",
    "OutcomeStatus",
    "OutcomeUnknownError",
    "QuotaExceededError",
    "QuotaStore",
    "RecipientQuota",
    "SubmitFailedError",
    "SubmitRequest",
    "SubmitResult",
    "UnknownClaim",
    "UnrecognizedCodeError",
    "VoiceClient",
    "__version__",
    "generate_code",
    "is_account_level",
]

for _name in __all__:
    # So that reprs, tracebacks and pickles name the public place, not a room of it.
    if hasattr(globals()[_name], "__module__"):
        globals()[_name].__module__ = __name__
del _name
