"""Imports what a loop thread needs, before there is one.

A fork while a thread imports leaves the import lock held in the child for
ever, and gevent's import locks are not safe between threads. So everything is
imported when a client is created, long before most programs fork or start a
thread.
"""

from __future__ import annotations

import contextlib
import importlib
import sys

# What the loop thread and the libraries in it import at their first use.
_AT_FIRST_USE = (
    "anyio._backends._asyncio",
    "concurrent.futures.thread",
    "email.utils",
    "encodings.idna",
    "linecache",
    "sniffio",
    "tracemalloc",
    "uvloop",
    "xml.parsers.expat",
    "xmltodict",
)


def import_ahead() -> None:
    """Import what the loop thread needs."""
    for name in _AT_FIRST_USE:
        # Some are extras, and some exist only in other releases.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "ihuyi_voice.store.store" in sys.modules:
        importlib.import_module("ihuyi_voice.store.guard")
    # Python imports codecs at their first use as well.
    "localhost".encode("idna")
