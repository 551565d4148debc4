"""Voice-verification calls through iHuyi (互亿无线).

No phone is rung twice for one request, every request ends in one stated
outcome, and no secret leaks.

    from ihuyi_voice import AsyncVoiceClient, VoiceClient

`AsyncVoiceClient` is for asyncio, `VoiceClient` for blocking code; both place
calls with `submit` and read what is left with `query_balance`.
`ihuyi_voice.sandbox` holds a local gateway to try it against.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .blocking_bulk import BlockingBulkRun
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
    from .receipts import (
        RECEIPT_REPLY,
        InvalidReceiptError,
        Receipt,
        aiohttp_receipt_handler,
        asgi_receipt_app,
        parse_receipt,
    )
    from .sync import VoiceClient
else:
    # Which room each name lives in. A name is imported when it is first asked for:
    # whoever wants a part, as pytest wants the plugin, does not pay for the rest.
    _ROOMS = {
        "blocking_bulk": ("BlockingBulkRun",),
        "bulk": ("BulkRun", "is_account_level"),
        "client": ("AsyncVoiceClient",),
        "errors": (
            "AccessDeniedError",
            "AccountFrozenError",
            "AuthenticationError",
            "BlockedMobileError",
            "BulkStoppedError",
            "GatewayError",
            "IhuyiVoiceError",
            "InsufficientBalanceError",
            "InvalidContentError",
            "InvalidMobileError",
            "InvalidRequestError",
            "LedgerError",
            "NotSentError",
            "OutcomeUnknownError",
            "QuotaExceededError",
            "SubmitFailedError",
            "UnrecognizedCodeError",
        ),
        "ledger": ("Ledger",),
        "ledger_entry": ("UnknownClaim",),
        "models": (
            "Balance",
            "BulkReport",
            "Outcome",
            "OutcomeStatus",
            "SubmitRequest",
            "SubmitResult",
            "generate_code",
        ),
        "receipts": (
            "RECEIPT_REPLY",
            "InvalidReceiptError",
            "Receipt",
            "aiohttp_receipt_handler",
            "asgi_receipt_app",
            "parse_receipt",
        ),
        "quota": ("MemoryQuotaStore", "QuotaStore", "RecipientQuota"),
        "sync": ("VoiceClient",),
    }

    def __getattr__(name):  # noqa: ANN001, ANN202 - type checkers see the imports above
        for room, names in _ROOMS.items():
            if name in names:
                globals()[name] = value = getattr(import_module(f"{__name__}.{room}"), name)
                _name_publicly()
                return value
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)

    def __dir__():  # noqa: ANN202 - likewise
        return sorted({*globals(), *__all__})

    def _name_publicly() -> None:
        """Let reprs, tracebacks and pickles name the public place of a thing, not its room."""
        for room, names in _ROOMS.items():
            if module := sys.modules.get(f"{__name__}.{room}"):
                # Another thread may be half through importing it.
                for thing in (vars(module).get(name) for name in names):
                    if hasattr(thing, "__module__"):
                        thing.__module__ = __name__


__version__ = "0.1.0"

__all__ = [
    "RECEIPT_REPLY",
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
    "InvalidReceiptError",
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
    "Receipt",
    "RecipientQuota",
    "SubmitFailedError",
    "SubmitRequest",
    "SubmitResult",
    "UnknownClaim",
    "UnrecognizedCodeError",
    "VoiceClient",
    "__version__",
    "aiohttp_receipt_handler",
    "asgi_receipt_app",
    "generate_code",
    "is_account_level",
    "parse_receipt",
]
