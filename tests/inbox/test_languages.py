"""English and Chinese: one table of texts, the browser's language, and a switch."""

from __future__ import annotations

import re
import string
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice import sandbox
from ihuyi_voice.sandbox import PushTry, ReceiptPush, SandboxGateway
from ihuyi_voice.sandbox.page_files import TEXTS
from tests.inbox.inbox import Inbox
from tests.inbox.needs import expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.inbox.needs import BrowserContext

SOURCES = [
    file.read_text("utf-8")
    for file in (files(sandbox) / "page").iterdir()
    if file.name.endswith((".js", ".html"))
]
CHINESE = re.compile("[\u4e00-\u9fff]")


def names_in(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_have_the_same_texts_with_the_same_values() -> None:
    assert {"en", "zh"} == TEXTS.keys()
    english, chinese = TEXTS["en"], TEXTS["zh"]
    assert english.keys() == chinese.keys()
    for key in english:
        assert names_in(english[key]) == names_in(chinese[key]), key
        assert all((english[key], chinese[key])), key


def test_every_text_is_used_and_every_key_that_is_used_has_a_text() -> None:
    source = "\n".join(SOURCES)
    used = set(re.findall(r'data-(?:text|label|placeholder|short)="(\w+)"', source))
    # Every name in quotes may be a key; a key that is put together has a known beginning.
    named = set(re.findall(r'"(\w+)"', source))
    begun = tuple(set(re.findall(r"\$?`(\w+_)\$\{", source)))
    counted = set(re.findall(r'counted\("(\w+)"', source))
    counted |= set(re.findall(r"t\(`(\w+)_\$\{", source)) & {"matches"}
    used |= {f"{key}_{many}" for key in counted for many in ("one", "many")}
    assert used <= TEXTS["en"].keys()
    left = TEXTS["en"].keys() - used - named
    assert set() == {key for key in left if not key.startswith(begun)}
    for key in re.findall(r'\bt\("(\w+)"', source):
        assert key in TEXTS["en"]


@pytest.fixture
def chinese(context: BrowserContext) -> Iterator[Inbox]:
    """The page in a browser that prefers Chinese."""
    assert context.browser is not None
    other = context.browser.new_context(locale="zh-CN", viewport={"width": 1280, "height": 900})
    other.set_default_timeout(5000)
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        inbox = Inbox(gateway, other.new_page(), url)
        inbox.open()
        yield inbox
        other.close()


def test_the_browser_decides_the_language(chinese: Inbox) -> None:
    page = chinese.page
    expect(page).to_have_title("沙箱网关")
    assert "zh-CN" == page.evaluate("document.documentElement.lang")
    chinese.call(account="stranger")
    chinese.call()
    expect(page.locator(".attempt").first).to_contain_text("已受理")
    page.locator(".attempt").last.click()
    expect(chinese.details).to_contain_text("账号“stranger”不存在")
    expect(chinese.details).to_contain_text("如何修改")


def test_nothing_of_the_page_stays_in_english(chinese: Inbox) -> None:
    chinese.call(content="1")
    chinese.page.locator(".attempt").wait_for()
    texts = chinese.page.evaluate(
        "[...document.querySelectorAll('label, button, h2, legend, summary, .switch p, .below p')]"
        ".map(one => one.getAttribute('aria-label') ?? one.textContent.trim()).filter(Boolean)"
    )
    programs = {"curl", "PHP", "Java", "Node", "Python"}
    without = [text for text in texts if not CHINESE.search(text) and text not in programs]
    assert ["English（英文）"] == [text for text in texts if "English" in text]
    assert ["✕"] == [*without, "✕"]


def test_pushes_and_unknown_paths_are_in_chinese(chinese: Inbox) -> None:
    chinese.gateway.receipt_delay = chinese.gateway.receipt_interval = 0
    chinese.gateway.receipt_url = f"{chinese.url}/nothing-here"
    chinese.call()
    row = chinese.page.locator(".attempt").filter(has_text="已受理")
    expect(row.locator(".receipt")).to_have_text("处理程序没有接收回执")
    row.click()
    expect(chinese.details.locator(".tries li").first).to_contain_text("应答 404 '<html>")
    expect(chinese.details.locator(".tries li").first).to_contain_text("，不是 'success'")
    chinese.page.keyboard.press("Escape")
    # The pushes themselves came to a path that the gateway does not have.
    expect(chinese.page.locator(".attempt").filter(has_text="未知请求").first).to_contain_text(
        "没有此路径：网关的路径是 /webservice/voice.php"
    )


def test_a_result_without_a_kind_is_shown_as_it_is(chinese: Inbox) -> None:
    chinese.call_unseen()
    push = ReceiptPush(1, "1", "13912345678", 2, "已接听", 0.0)
    tried = push.tried(PushTry(0.0, accepted=False, result="of another release"), ended=True)
    assert chinese.gateway.put_receipt(chinese.gateway.history, tried)
    chinese.page.locator(".attempt").click()
    expect(chinese.details.locator(".tries")).to_contain_text("of another release")


def test_the_switch_changes_the_language_and_is_remembered(chinese: Inbox) -> None:
    page = chinese.page
    page.get_by_role("button", name="English").click()
    expect(page.locator("#attempts-title")).to_have_text("Calls")
    chinese.open()
    expect(page.locator("#attempts-title")).to_have_text("Calls")
    page.get_by_role("button", name="中文").click()
    expect(page.locator("#attempts-title")).to_have_text("呼叫")


def test_a_browser_that_stores_nothing_keeps_its_own_language(inbox: Inbox) -> None:
    inbox.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
    )
    inbox.open()
    inbox.page.get_by_role("button", name="中文").click()
    inbox.page.locator("#connection.live").wait_for()
    expect(inbox.page.locator("#attempts-title")).to_have_text("Calls")


@pytest.mark.parametrize(
    ("expected", "languages"),
    [("呼叫", ["fr", "zh-TW", "en"]), ("Calls", ["fr", "en-GB", "zh"]), ("Calls", ["fr"])],
)
def test_the_first_language_of_the_two_counts(
    inbox: Inbox, expected: str, languages: list[str]
) -> None:
    inbox.page.add_init_script(
        f"Object.defineProperty(navigator, 'languages', {{value: {languages}}})"
    )
    inbox.open()
    expect(inbox.page.locator("#attempts-title")).to_have_text(expected)
