"""A local gateway for tests and first steps: it answers like the real one and rings no phone.

It speaks HTTP and knows the gateway's codes and signing, never the clients.
"""

from __future__ import annotations

from .faults import Chaos
from .gateway import SandboxGateway
from .history import Attempt, Call, OtherRequest, PushTry, ReceiptPush

__all__ = [
    "Attempt",
    "Call",
    "Chaos",
    "OtherRequest",
    "PushTry",
    "ReceiptPush",
    "SandboxGateway",
]
