"""What these tests need, or the reason why they are skipped. With CI set they must not be."""

from __future__ import annotations

import os
from shutil import which

import pytest

CHROMIUM = which("chromium")

try:
    from playwright.sync_api import BrowserContext, Error, Locator, Page, expect, sync_playwright
except ModuleNotFoundError:  # pragma: no cover - installed where coverage is measured
    if os.environ.get("CI"):
        raise
    pytest.skip("not installed: pip install playwright", allow_module_level=True)

if CHROMIUM is None:  # pragma: no cover - installed where coverage is measured
    if os.environ.get("CI"):
        pytest.fail("not installed: apt-get install chromium", pytrace=False)
    pytest.skip("not installed: apt-get install chromium", allow_module_level=True)

__all__ = ["CHROMIUM", "BrowserContext", "Error", "Locator", "Page", "expect", "sync_playwright"]
