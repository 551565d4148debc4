"""The page follows: through lost connections, restarts, bulk runs and a full history."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ihuyi_voice.sandbox import SandboxGateway
from tests.inbox.inbox import Inbox
from tests.inbox.needs import expect

if TYPE_CHECKING:
    from tests.inbox.needs import Page

FULL = 10_000

# The most rows that the page had at any time: what keeps a long history usable.
WATCH = """
() => {
  window.most = 0;
  const list = document.querySelector("#attempts");
  new MutationObserver(() => { window.most = Math.max(window.most, list.children.length); })
    .observe(list, {childList: true});
}
"""


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def codes(inbox: Inbox) -> list[str]:
    return inbox.rows.locator(".code").all_inner_texts()


def test_after_a_lost_connection_nothing_is_missing_or_shown_twice(page: Page) -> None:
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        inbox = Inbox(gateway, page, url)
        inbox.open()
        inbox.call_unseen(content="1111")
        inbox.settle()
    expect(page.locator("#connection")).to_have_text("Connection lost, retrying")
    inbox.call_unseen(content="2222")
    inbox.call_unseen(content="3333")
    with gateway.serve_in_thread(port=port_of(url)):
        expect(page.locator("#connection")).to_have_text("Live")
        inbox.call_unseen(content="4444")
        expect(inbox.rows.first.locator(".code")).to_have_text("4444")
        assert ["4444", "3333", "2222", "1111"] == codes(inbox)
        page.close()


def test_a_lost_connection_neither_resumes_a_paused_list_nor_hides_what_it_shows(
    page: Page,
) -> None:
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        inbox = Inbox(gateway, page, url)
        inbox.open()
        inbox.call_unseen(content="1111")
        inbox.settle()
        page.get_by_role("button", name="Pause").click()
    expect(page.locator("#connection")).to_have_text("Connection lost, retrying")
    inbox.call_unseen(content="2222")
    with gateway.serve_in_thread(port=port_of(url)):
        expect(page.locator("#pause")).to_have_text("Resume · 1 new")
        assert ["1111"] == codes(inbox)
        page.locator("#pause").click()
        expect(inbox.rows.locator(".code")).to_have_text(["2222", "1111"])
        page.close()


def test_details_stay_open_through_a_lost_connection_unless_the_call_is_forgotten(
    page: Page,
) -> None:
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        inbox = Inbox(gateway, page, url)
        inbox.open()
        inbox.call_unseen(content="1111")
        inbox.settle()
        page.get_by_role("button", name="Details of the call").click()
        expect(inbox.details).to_be_visible()
    inbox.call_unseen(content="2222")
    with gateway.serve_in_thread(port=port_of(url)):
        expect(page.locator("#attempts li")).to_have_count(2)
        expect(page.locator("#details-gone")).to_have_text("")
        gateway.clear()
        expect(page.locator("#details-gone")).to_contain_text("no longer remembers")
        page.close()


def test_the_calls_of_another_gateway_replace_the_earlier_ones(page: Page) -> None:
    first = SandboxGateway()
    with first.serve_in_thread() as url:
        inbox = Inbox(first, page, url)
        inbox.open()
        for content in ("1111", "2222"):
            inbox.call_unseen(content=content)
        inbox.settle()
    inbox.gateway = SandboxGateway(balance=7)
    inbox.call_unseen(content="9999")
    with inbox.gateway.serve_in_thread(port=port_of(url)):
        expect(inbox.rows.locator(".code")).to_have_text(["9999"])
        expect(page.locator("#left")).to_have_text("6")
        page.close()


def look(page: Page, *, away: bool) -> None:
    """Turn to another tab, or back, as far as the page can see."""
    page.evaluate(
        "away => { Object.defineProperty(document, 'hidden', {value: away, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        away,
    )


def test_a_hidden_tab_closes_its_connection_and_misses_nothing(inbox: Inbox) -> None:
    page = inbox.page
    inbox.call_unseen(content="1111")
    inbox.settle()
    with page.expect_event("requestfailed", lambda request: "/events" in request.url):
        look(page, away=True)
    inbox.call_unseen(content="2222")
    inbox.gateway.balance = 77
    with page.expect_request(lambda request: "/events" in request.url):
        look(page, away=False)
    inbox.call_unseen(content="3333")
    expect(inbox.rows.locator(".code")).to_have_text(["3333", "2222", "1111"])
    expect(page.locator("#left")).to_have_text("76")


def test_a_short_visit_to_another_tab_keeps_the_connection(inbox: Inbox) -> None:
    asked: list[str] = []
    inbox.page.on("request", lambda request: asked.append(request.url))
    look(inbox.page, away=True)
    look(inbox.page, away=False)
    inbox.call_unseen(content="1111")
    inbox.settle()
    assert [] == asked


def test_the_seventh_tab_loads(inbox: Inbox) -> None:
    context = inbox.page.context
    tabs = [context.new_page() for _ in range(7)]
    for tab in tabs[:-1]:
        tab.add_init_script("Object.defineProperty(document, 'hidden', {value: true})")
        tab.goto(inbox.url, wait_until="commit")
    tabs[-1].goto(inbox.url)
    expect(tabs[-1].locator("#connection")).to_have_text("Live")
    for tab in tabs:
        tab.close()


def test_an_answer_that_is_not_a_stream_does_not_end_the_page(page: Page) -> None:
    gateway = SandboxGateway()
    page.route("**/_sandbox/events", lambda route: route.fulfill(status=503), times=1)
    with gateway.serve_in_thread() as url:
        inbox = Inbox(gateway, page, url)
        inbox.open()
        inbox.call_unseen(content="1111")
        expect(inbox.rows.locator(".code")).to_have_text(["1111"])
        page.close()


def test_a_reset_from_outside_empties_the_page(inbox: Inbox) -> None:
    inbox.call()
    inbox.settle()
    inbox.gateway.reset()
    expect(inbox.page.get_by_text("No calls yet")).to_be_visible()


def test_the_page_shows_at_most_the_kept_attempts(inbox: Inbox) -> None:
    inbox.gateway.keep = 3
    for n in range(7):
        inbox.call_unseen(content=f"{n}" * 4)
    inbox.settle()
    expect(inbox.rows.locator(".code")).to_have_text(["6666", "5555", "4444"])


def test_ten_thousand_attempts_stay_usable(inbox: Inbox) -> None:
    page = inbox.page
    inbox.gateway.balance = 10**6
    for n in range(FULL):
        inbox.call_unseen(f"139{n:08d}", f"{n:05d}")
    inbox.settle()
    expect(page.locator("#count")).to_have_text("the newest 100 of 10,000")
    expect(inbox.rows).to_have_count(100)
    page.evaluate(WATCH)
    page.get_by_role("searchbox").fill("13900000042")
    expect(inbox.rows.locator(".code")).to_have_text(["00042"])
    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="Show 100 more").click()
    expect(inbox.rows).to_have_count(200)
    # A bulk run: the page follows.
    for n in range(3000):
        inbox.call_unseen(f"138{n:08d}", f"{n:05d}")
    inbox.settle()
    expect(page.locator("#count")).to_have_text("the newest 200 of 10,000")
    assert 200 == page.evaluate("most")


def test_the_focus_moves_to_the_first_of_the_last_hundred_rows(inbox: Inbox) -> None:
    inbox.gateway.balance = 1_000
    for n in range(250):
        inbox.call_unseen(f"139{n:08d}", "1125")
    inbox.settle()
    more = inbox.page.get_by_role("button", name="Show 100 more")
    more.press("Enter")
    expect(inbox.rows).to_have_count(200)
    expect(more).to_be_focused()
    more.press("Enter")
    expect(inbox.rows).to_have_count(250)
    expect(more).to_be_hidden()
    # The 201st from the newest, which is number 249.
    first = inbox.page.get_by_role("button", name="Details of the call to 13900000049")
    expect(first).to_be_focused()


def test_many_calls_are_announced_in_one_sentence(inbox: Inbox) -> None:
    inbox.page.evaluate(
        "() => { window.sentences = []; new MutationObserver(() =>"
        " sentences.push(announcer.textContent)).observe(announcer, {childList: true}); }"
    )
    for content in ("1111", "2222", "3333", "4444", "1"):
        inbox.call_unseen(content=content)
        # Each in a separate event.
        inbox.settle()
    inbox.page.wait_for_function("() => sentences.length > 0")
    assert ["5 new calls, 1 refused"] == inbox.page.evaluate("sentences")
    assert "polite" == inbox.page.locator("#announcer").get_attribute("aria-live")


def test_the_calls_before_the_page_was_opened_are_not_announced(inbox: Inbox) -> None:
    inbox.call_unseen()
    inbox.open()
    inbox.settle()
    inbox.call_unseen("13800000000", "7777")
    expect(inbox.page.locator("#announcer")).to_have_text("New call to 13800000000, code 7777")


def test_a_long_history_is_not_announced(inbox: Inbox) -> None:
    inbox.gateway.balance = 3000
    for n in range(2500):
        inbox.call_unseen(f"139{n:08d}")
    inbox.open()
    inbox.settle()
    inbox.call_unseen("13800000000", "7777")
    expect(inbox.page.locator("#announcer")).to_have_text("New call to 13800000000, code 7777")
