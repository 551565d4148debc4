"""A worker whose tasks raise the errors of this library; the settings are Celery's own."""

from __future__ import annotations

import os
from typing import NoReturn

from celery import Celery

from ihuyi_voice import (
    BulkReport,
    BulkStoppedError,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeStatus,
    OutcomeUnknownError,
    QuotaExceededError,
    StoreError,
)
from ihuyi_voice.errors import CODES, gateway_error

app = Celery("errors", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])

ERRORS: tuple[IhuyiVoiceError, ...] = (
    IhuyiVoiceError("anything"),
    InvalidRequestError("content must be a str of 4-6 digits; it is empty"),
    QuotaExceededError("139****5678", 42.25),
    NotSentError("the name could not be resolved"),
    StoreError("calls.db: the disk is full"),
    OutcomeUnknownError("the connection was reset"),
    OutcomeUnknownError("the connection was reset", may_have_rung=False),
    OutcomeUnknownError("an earlier request", earlier=True),
    GatewayError(4711, "?"),
    *(gateway_error(code, f"words of {code}") for code in (*CODES, 40501, 40502, 4085, 10**30)),
    gateway_error(405, "用户名或密码不正确", "the local clock is 61 s ahead of the gateway's"),
    BulkStoppedError(None, BulkReport({OutcomeStatus.REFUSED: 1}, 0.1)),
    BulkStoppedError(
        gateway_error(4050, "账号被冻结"),
        BulkReport(
            {OutcomeStatus.ACCEPTED: 3, OutcomeStatus.REFUSED: 1},
            12.345678901234567,
            gateway_error(4050, "账号被冻结"),
            stopped_at=3,
            unrecorded=2,
        ),
    ),
)


@app.task
def fail(index: int) -> NoReturn:
    raise ERRORS[index]
