"""Voice-verification calls through iHuyi (互亿无线).

One request never rings a phone twice, every request ends in one stated
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
    from .balance import AsyncBalanceWatch, BalanceReading, BalanceWatch
    from .bulk.run import BulkRun, is_account_level
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
        NotSentError,
        OutcomeUnknownError,
        QuotaExceededError,
        StoreError,
        SubmitFailedError,
        UnrecognizedCodeError,
    )
    from .events import SubmitEvent
    from .models import (
        Balance,
        BulkReport,
        Outcome,
        OutcomeStatus,
        SubmitRequest,
        SubmitResult,
        VerificationStatus,
        generate_code,
        mask_mobile,
    )
    from .quota import RecipientQuota
    from .receipts import (
        RECEIPT_REPLY,
        InvalidReceiptError,
        Receipt,
        aiohttp_receipt_handler,
        asgi_receipt_app,
        parse_receipt,
    )
    from .store.base import LimitStore
    from .store.entry import UnknownClaim
    from .store.store import Store
    from .store.verifications import VerificationStore
    from .sync.bulk import BlockingBulkRun
    from .sync.client import VoiceClient
    from .verification.sync import Verifier
    from .verification.values import CheckResult, EventName, Verification, VerificationEvent
    from .verification.verifier import AsyncVerifier
    from .wire import normalize_mobile
else:
    # The module of each public name. A name is imported at its first use, so that a
    # program that needs one part, as pytest needs the plugin, loads only that part.
    _HOMES = {
        "AccessDeniedError": "errors",
        "AccountFrozenError": "errors",
        "AsyncBalanceWatch": "balance",
        "AsyncVerifier": "verification.verifier",
        "AsyncVoiceClient": "client",
        "AuthenticationError": "errors",
        "Balance": "models",
        "BalanceReading": "balance",
        "BalanceWatch": "balance",
        "BlockedMobileError": "errors",
        "BlockingBulkRun": "sync.bulk",
        "BulkReport": "models",
        "BulkRun": "bulk.run",
        "BulkStoppedError": "errors",
        "CheckResult": "verification.values",
        "EventName": "verification.values",
        "GatewayError": "errors",
        "IhuyiVoiceError": "errors",
        "InsufficientBalanceError": "errors",
        "InvalidContentError": "errors",
        "InvalidMobileError": "errors",
        "InvalidReceiptError": "receipts",
        "InvalidRequestError": "errors",
        "LimitStore": "store.base",
        "NotSentError": "errors",
        "Outcome": "models",
        "OutcomeStatus": "models",
        "OutcomeUnknownError": "errors",
        "QuotaExceededError": "errors",
        "RECEIPT_REPLY": "receipts",
        "Receipt": "receipts",
        "RecipientQuota": "quota",
        "Store": "store.store",
        "StoreError": "errors",
        "SubmitEvent": "events",
        "SubmitFailedError": "errors",
        "SubmitRequest": "models",
        "SubmitResult": "models",
        "UnknownClaim": "store.entry",
        "UnrecognizedCodeError": "errors",
        "Verification": "verification.values",
        "VerificationEvent": "verification.values",
        "VerificationStatus": "models",
        "VerificationStore": "store.verifications",
        "Verifier": "verification.sync",
        "VoiceClient": "sync.client",
        "aiohttp_receipt_handler": "receipts",
        "asgi_receipt_app": "receipts",
        "generate_code": "models",
        "is_account_level": "bulk.run",
        "mask_mobile": "models",
        "normalize_mobile": "wire",
        "parse_receipt": "receipts",
    }

    def __getattr__(name):  # noqa: ANN001, ANN202 - type checkers see the imports above
        if name not in _HOMES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        globals()[name] = value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        _name_publicly()
        return value

    def __dir__():  # noqa: ANN202 - as above
        return sorted({*globals(), *__all__})

    def _name_publicly() -> None:
        """Make reprs, tracebacks and pickles show the public module."""
        for name, home in _HOMES.items():
            # Another thread may still be importing the module.
            thing = getattr(sys.modules.get(f"{__name__}.{home}"), name, None)
            if hasattr(thing, "__module__"):
                thing.__module__ = __name__


__version__ = "0.1.0"

__all__ = [
    "RECEIPT_REPLY",
    "AccessDeniedError",
    "AccountFrozenError",
    "AsyncBalanceWatch",
    "AsyncVerifier",
    "AsyncVoiceClient",
    "AuthenticationError",
    "Balance",
    "BalanceReading",
    "BalanceWatch",
    "BlockedMobileError",
    "BlockingBulkRun",
    "BulkReport",
    "BulkRun",
    "BulkStoppedError",
    "CheckResult",
    "EventName",
    "GatewayError",
    "IhuyiVoiceError",
    "InsufficientBalanceError",
    "InvalidContentError",
    "InvalidMobileError",
    "InvalidReceiptError",
    "InvalidRequestError",
    "LimitStore",
    "NotSentError",
    "Outcome",
    "OutcomeStatus",
    "OutcomeUnknownError",
    "QuotaExceededError",
    "Receipt",
    "RecipientQuota",
    "Store",
    "StoreError",
    "SubmitEvent",
    "SubmitFailedError",
    "SubmitRequest",
    "SubmitResult",
    "UnknownClaim",
    "UnrecognizedCodeError",
    "Verification",
    "VerificationEvent",
    "VerificationStatus",
    "VerificationStore",
    "Verifier",
    "VoiceClient",
    "__version__",
    "aiohttp_receipt_handler",
    "asgi_receipt_app",
    "generate_code",
    "is_account_level",
    "mask_mobile",
    "normalize_mobile",
    "parse_receipt",
]
