"""By keyboard, by ear, on a narrow screen, in the dark."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import Chaos
from tests.inbox.needs import expect
from tests.sandbox.forms import MOBILE

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect

    from tests.inbox.inbox import Inbox
    from tests.inbox.needs import Locator

# A visible character.
NAMED = re.compile(r"\w")

FOCUSED = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"


def test_the_details_open_and_close_by_keyboard_and_give_the_focus_back(inbox: Inbox) -> None:
    inbox.call()
    details = inbox.page.get_by_role("button", name=f"Details of the call to {MOBILE}")
    details.focus()
    inbox.page.keyboard.press("Enter")
    expect(inbox.details).to_be_visible()
    # The page below cannot be reached while the dialog is open.
    for _ in range(6):
        inbox.page.keyboard.press("Tab")
        assert inbox.page.evaluate(
            "document.activeElement === document.body || details.contains(document.activeElement)"
        )
    inbox.page.keyboard.press("Escape")
    expect(inbox.details).to_be_hidden()
    expect(details).to_be_focused()


def test_the_focus_moves_to_the_heading_when_its_row_is_removed(inbox: Inbox) -> None:
    inbox.call()
    inbox.page.get_by_role("button", name=f"Details of the call to {MOBILE}").press("Enter")
    expect(inbox.details).to_be_visible()
    inbox.gateway.clear()
    expect(inbox.rows).to_have_count(0)
    inbox.page.get_by_role("button", name="Close").press("Enter")
    expect(inbox.page.locator("#attempts-title")).to_be_focused()


def test_a_row_keeps_the_focus_while_others_come_in(inbox: Inbox) -> None:
    inbox.call(content="1111")
    details = inbox.rows.filter(has_text="1111").get_by_role("button", name="Details")
    details.focus()
    inbox.call(content="2222")
    inbox.settle()
    expect(details).to_be_focused()


def test_tab_reaches_every_control_of_the_page(inbox: Inbox) -> None:
    inbox.call()
    inbox.settle()
    inbox.page.evaluate("document.activeElement.blur()")
    walked: list[str] = []
    while walked[-1:] != ["receipt-url"]:
        assert len(walked) < 60
        inbox.page.keyboard.press("Tab")
        walked.append(inbox.page.evaluate(FOCUSED))
    wanted = [
        "search", "pause", "clear", "Listen to the code 1125",
        f"Details of the call to {MOBILE}", "balance", "frozen", "blacklist", "allowed",
        "close_before_reading", "latency", "receipt-url",
    ]  # fmt: skip
    assert wanted == [one for one in walked if one in wanted]


def test_the_space_bar_toggles_a_switch(inbox: Inbox) -> None:
    inbox.page.get_by_role("switch", name="Frozen").focus()
    with inbox.page.expect_response("**/settings"):
        inbox.page.keyboard.press("Space")
    assert inbox.gateway.frozen


def test_the_focused_control_has_a_visible_outline(inbox: Inbox) -> None:
    for _ in range(3):
        inbox.page.keyboard.press("Tab")
    assert "search" == inbox.page.evaluate(FOCUSED)
    assert "solid" == inbox.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")


def test_every_control_has_a_name(inbox: Inbox) -> None:
    inbox.call()
    inbox.settle()
    for role in ("button", "switch", "searchbox", "spinbutton", "textbox"):
        every = inbox.page.get_by_role(role)
        assert every.count() > 0
        assert every.count() == inbox.page.get_by_role(role, name=NAMED).count()


WITHIN = """() => [...document.querySelectorAll("main *, aside *, dialog[open] *")]
  .filter(one => !one.closest("pre, .unseen") && one.getBoundingClientRect().right > 375)
  .map(one => one.outerHTML).concat(
    document.documentElement.scrollWidth > 375 ? ["the page"] : [])"""


OVERLAPPING = """
() => {
  const boxes = [...document.querySelectorAll(".bar > *, .brand h1")]
    .filter(one => !one.matches(".brand"))
    .map(one => {
      if (one.tagName !== "H1") return [one.className, one.getBoundingClientRect()];
      // Its text, which its box may be too narrow for.
      const range = document.createRange();
      range.selectNodeContents(one);
      return [one.tagName, range.getBoundingClientRect()];
    })
    .filter(([, box]) => box.width > 1);
  return boxes.flatMap(([name, a], n) => boxes.slice(n + 1)
    .filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1)
    .filter(([, b]) => a.top < b.bottom - 1 && b.top < a.bottom - 1)
    .map(([other]) => `${name} over ${other}`));
}
"""


# Where a test asks for several widths, one page takes them one after the other: to open a page
# takes longer than most tests.


def test_no_control_of_the_bar_overlaps_its_neighbour(inbox: Inbox) -> None:
    check_the_bar(inbox)
    inbox.page.evaluate(
        "document.getElementById('connection').className = 'connection lost';"
        "document.getElementById('connection').textContent = 'Connection lost, retrying'"
    )
    check_the_bar(inbox)


def check_the_bar(inbox: Inbox) -> None:
    cut = "(title => title.scrollWidth - title.clientWidth)(document.querySelector('h1'))"
    for balance in (1000, 1_000_000_000, 2**53 - 1):
        inbox.gateway.balance = balance
        expect(inbox.page.locator("#left")).to_have_text(f"{balance:,}")
        for width in (320, 390, 700, 1280):
            inbox.page.set_viewport_size({"width": width, "height": 812})
            context = (balance, width)
            assert [] == inbox.page.evaluate(OVERLAPPING), context
            assert 0 == inbox.page.evaluate(cut), context
            beyond = "document.documentElement.scrollWidth - innerWidth"
            assert 0 == inbox.page.evaluate(beyond), context


def box(of: Locator) -> FloatRect:
    found = of.bounding_box()
    assert found is not None
    return found


def bottom(of: Locator) -> float:
    return box(of)["y"] + box(of)["height"]


@pytest.mark.parametrize("width", [320, 390])
def test_a_code_and_a_number_stay_on_one_line(inbox: Inbox, width: int) -> None:
    inbox.page.set_viewport_size({"width": width, "height": 812})
    inbox.call(content="123456")
    inbox.settle()
    for part, most in ((".code", 45), (".number", 30)):
        assert box(inbox.rows.locator(part))["height"] < most
    # Even where there is no room for it.
    inbox.page.evaluate("document.getElementById('attempts').style.width = '6rem'")
    for part, most in ((".code", 45), (".number", 30)):
        assert box(inbox.rows.locator(part))["height"] < most


STICKING_OUT = """() => [...document.querySelectorAll("#attempts *")]
  .filter(one => one.getBoundingClientRect().right > attempts.getBoundingClientRect().right)
  .map(one => one.outerHTML)"""


def test_nothing_of_a_row_is_cut_at_any_width(inbox: Inbox) -> None:
    inbox.call(content="123456")
    inbox.call("1" * 200, "x" * 200)
    inbox.settle()
    for width in (320, 390, 600, 740, 800, 961, 1024, 1100, 1140, 1280):
        inbox.page.set_viewport_size({"width": width, "height": 812})
        assert [] == inbox.page.evaluate(STICKING_OUT), width


def test_the_buttons_of_a_row_move_to_a_separate_line_where_there_is_no_room(inbox: Inbox) -> None:
    inbox.page.set_viewport_size({"width": 320, "height": 812})
    inbox.call()
    inbox.settle()
    assert box(inbox.rows.locator(".actions"))["y"] >= bottom(inbox.rows.locator(".what"))


def test_the_outcome_keeps_its_distance_on_a_phone(inbox: Inbox) -> None:
    inbox.call()
    inbox.settle()
    who, what = inbox.rows.locator(".who"), inbox.rows.locator(".what")
    for width in (320, 390):
        inbox.page.set_viewport_size({"width": width, "height": 812})
        assert box(what)["y"] - bottom(who) > 6, width


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_an_invalid_number_takes_two_lines_at_most(inbox: Inbox, width: int) -> None:
    inbox.page.set_viewport_size({"width": width, "height": 812})
    inbox.call("<img src=x onerror=alert(1)> " * 3)
    inbox.settle()
    number = inbox.rows.locator(".number")
    assert box(number)["height"] < 45
    # The details have room for the whole text.
    inbox.rows.first.click()
    shown = inbox.details.locator("h2 .number")
    expect(shown).to_be_visible()
    assert 0 == shown.evaluate("it => it.scrollHeight - it.clientHeight")


@pytest.mark.parametrize("width", [320, 390])
def test_pausing_neither_narrows_the_search_nor_moves_the_button(inbox: Inbox, width: int) -> None:
    inbox.page.set_viewport_size({"width": width, "height": 812})
    search, pause = inbox.page.get_by_role("searchbox"), inbox.page.locator("#pause")
    before = box(search), box(pause)
    pause.click()
    for _ in range(3):
        inbox.call()
    expect(pause).to_have_text("Resume · 3 new")
    assert before == (box(search), box(pause))
    assert box(search)["width"] > width - 40


def test_a_phone_shows_the_lines_to_paste_completely(inbox: Inbox) -> None:
    for width in (320, 390):
        inbox.page.set_viewport_size({"width": width, "height": 812})
        for name in ("environment", "first-call"):
            lines = inbox.page.locator(f"#{name}")
            expect(lines).to_be_visible()
            assert 0 == lines.evaluate("it => it.scrollWidth - it.clientWidth"), width


def test_a_cut_url_ends_with_an_ellipsis(inbox: Inbox) -> None:
    shown = "getComputedStyle(document.getElementById('receipt-url')).textOverflow"
    assert "ellipsis" == inbox.page.evaluate(shown)


def test_nothing_overflows_at_the_width_of_a_phone(inbox: Inbox) -> None:
    page = inbox.page
    page.set_viewport_size({"width": 375, "height": 812})
    assert [] == page.evaluate(WITHIN)
    inbox.call()
    inbox.call("1" * 200, "x" * 200)
    inbox.settle()
    assert [] == page.evaluate(WITHIN)
    inbox.rows.first.click()
    expect(inbox.details).to_be_visible()
    assert [] == page.evaluate(WITHIN)
    page.keyboard.press("Escape")
    expect(page.get_by_label("Balance")).to_be_hidden()
    page.get_by_role("link", name="Settings").click()
    expect(page.get_by_label("Balance")).to_be_visible()
    assert [] == page.evaluate(WITHIN)


def test_the_page_is_dark_if_the_system_is(inbox: Inbox) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    inbox.page.emulate_media(color_scheme="light")
    assert "rgb(246, 247, 247)" == inbox.page.evaluate(ground)
    inbox.page.emulate_media(color_scheme="dark")
    assert "rgb(16, 21, 20)" == inbox.page.evaluate(ground)


SWITCHED = """name => {
  const box = document.getElementById(name);
  box.getAnimations({subtree: true}).forEach(one => one.finish());
  const thumb = getComputedStyle(box, "::before");
  return [getComputedStyle(box).backgroundColor, thumb.backgroundColor, thumb.translate];
}"""


def test_a_switch_shows_its_state_in_forced_colours(inbox: Inbox) -> None:
    inbox.gateway.frozen = True
    expect(inbox.page.locator("#frozen")).to_be_checked()
    for scheme in ("light", "dark"):
        inbox.page.emulate_media(forced_colors="active", color_scheme=scheme)
        on, off = (inbox.page.evaluate(SWITCHED, name) for name in ("frozen", "garbage"))
        for ground, thumb, _ in (on, off):
            assert ground != thumb
        assert on[0] != off[0]
        assert ("16px", "none") == (on[2], off[2])
    inbox.page.emulate_media(forced_colors="none")


RATIO = """
() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.04045
      ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = one => {
    for (; one; one = one.parentElement) {
      const [r, g, b, a = 1] = rgb(getComputedStyle(one).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  window.ratio = (one, colour) => {
    const [a, b] = [light(rgb(getComputedStyle(one)[colour])), light(ground(one))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
}
"""

CONTRAST = """() => [...document.querySelectorAll("body *")]
  .filter(one => [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .filter(one => !one.disabled && one.checkVisibility())
  .map(one => [one.textContent, ratio(one, "color")])
  .filter(([, found]) => found < 4.5)"""

EDGES = """() => [...document.querySelectorAll("button:enabled")]
  .filter(one => one.checkVisibility())
  .map(one => [one.textContent, ratio(one, "borderTopColor")])
  .filter(([, found]) => found < 1.8)"""


def test_every_text_and_every_button_contrasts_with_its_background(inbox: Inbox) -> None:
    inbox.call()
    inbox.call(content="1")
    inbox.gateway.chaos = Chaos(code=4085)
    inbox.call()
    inbox.settle()
    inbox.page.evaluate(RATIO)
    for scheme in ("light", "dark"):
        inbox.page.emulate_media(color_scheme=scheme)
        assert ([], []) == (inbox.page.evaluate(CONTRAST), inbox.page.evaluate(EDGES))
        inbox.rows.first.click()
        expect(inbox.details).to_be_visible()
        assert ([], []) == (inbox.page.evaluate(CONTRAST), inbox.page.evaluate(EDGES))
        inbox.page.keyboard.press("Escape")


LEFT_AND_RIGHT = """() => {
  const [first, last] = [".logo", "#language"].map(
    one => document.querySelector(one).getBoundingClientRect());
  const [main, aside] = ["main", "aside"].map(
    one => document.querySelector(one).getBoundingClientRect());
  return [first.left - main.left, last.right - aside.right];
}"""


def test_the_bar_is_aligned_with_the_content(inbox: Inbox) -> None:
    for width in (1024, 1280, 1440, 1920, 2560):
        inbox.page.set_viewport_size({"width": width, "height": 900})
        left, right = inbox.page.evaluate(LEFT_AND_RIGHT)
        assert (0, 0) == (round(left), round(right)), width


@pytest.mark.parametrize("width", [1280, 1920])
def test_every_row_has_the_same_height(inbox: Inbox, width: int) -> None:
    inbox.page.set_viewport_size({"width": width, "height": 900})
    inbox.gateway.receipt_delay = inbox.gateway.receipt_interval = 0
    inbox.gateway.receipt_url = f"{inbox.url}/nothing-here"
    inbox.call()
    inbox.call("1" * 200, "x" * 200)
    inbox.call(account="x" * 200)
    inbox.gateway.chaos = Chaos(code=408)
    inbox.call(content="123456")
    expect(inbox.page.get_by_text("receipt not accepted by your handler")).to_be_visible()
    expect(inbox.page.locator(".attempt")).to_have_count(7)
    heights = {box(row)["height"] for row in inbox.page.locator(".attempt").all()}
    assert {80} == heights


def test_the_search_bar_stays_while_the_list_is_scrolled(inbox: Inbox) -> None:
    for _ in range(30):
        inbox.call()
    inbox.settle()
    inbox.page.mouse.wheel(0, 1500)
    inbox.page.wait_for_function("() => scrollY > 500")
    expect(inbox.page.get_by_role("searchbox")).to_be_in_viewport()
    # What gets the focus below it is not hidden by it.
    rows = inbox.rows.get_by_role("button", name="Details")
    bar = inbox.page.locator(".toolbar")
    for n in range(29, 0, -1):
        rows.nth(n).focus()
        assert box(rows.nth(n))["y"] >= bottom(bar)
