"""axe-core finds nothing, in both languages, light and dark, wide and narrow."""

from __future__ import annotations

import os
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from tests.inbox.needs import expect

if TYPE_CHECKING:
    from tests.inbox.inbox import Inbox

try:
    AXE = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
except ModuleNotFoundError:  # pragma: no cover - installed where coverage is measured
    if os.environ.get("CI"):
        raise
    pytest.skip("not installed: pip install axe-playwright-python", allow_module_level=True)

RUN = """async () => (await axe.run()).violations.map(
  one => [one.id, ...one.nodes.map(node => node.html)])"""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1920), ("dark", 1280), ("light", 390)])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_axe_finds_no_violation(inbox: Inbox, language: str, scheme: str, width: int) -> None:
    page = inbox.page
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 900})
    page.add_init_script(f"localStorage.setItem('language', '{language}')")
    inbox.open()
    page.evaluate(AXE)
    assert [] == page.evaluate(RUN)
    inbox.call()
    inbox.call(content="1")
    inbox.call(password="0" * 32)
    expect(page.locator(".attempt")).to_have_count(3)
    assert [] == page.evaluate(RUN)
    page.locator(".attempt").first.click()
    expect(inbox.details.locator(".why")).to_be_visible()
    assert [] == page.evaluate(RUN)
