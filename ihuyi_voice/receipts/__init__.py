"""Receipts: what the gateway reports after a call, and handlers that receive them."""

from .handlers import RECEIPT_REPLY, aiohttp_receipt_handler, asgi_receipt_app
from .parsing import InvalidReceiptError, Receipt, parse_receipt

__all__ = [
    "RECEIPT_REPLY",
    "InvalidReceiptError",
    "Receipt",
    "aiohttp_receipt_handler",
    "asgi_receipt_app",
    "parse_receipt",
]
