"""Settings changed on the page apply to the next answer; those changed elsewhere are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.error import HTTPError

import pytest

from ihuyi_voice.sandbox import Chaos
from tests.inbox.needs import expect

if TYPE_CHECKING:
    from tests.inbox.inbox import Inbox


def saved(inbox: Inbox) -> None:
    expect(inbox.page.locator("#toast")).to_be_visible()


def test_chaos_that_is_switched_on_changes_the_next_answer(inbox: Inbox) -> None:
    switch = inbox.page.get_by_role("switch", name="502 page")
    with inbox.page.expect_response("**/chaos"):
        switch.check()
    with pytest.raises(HTTPError) as caught:
        inbox.call()
    caught.value.close()
    assert 502 == caught.value.code
    expect(inbox.rows.first).to_contain_text("chaos: a 502 page")
    with inbox.page.expect_response("**/chaos"):
        switch.uncheck()
    assert b"<code>2</code>" in inbox.call()


def test_chaos_can_have_a_probability(inbox: Inbox) -> None:
    inbox.page.get_by_label("Garbage: how often, in percent").fill("12.5")
    with inbox.page.expect_response("**/chaos"):
        inbox.page.get_by_role("switch", name="Garbage").check()
    assert Chaos(garbage=0.125) == inbox.gateway.chaos
    with inbox.page.expect_response("**/chaos"):
        inbox.page.get_by_label("Garbage: how often, in percent").fill("50")
        inbox.page.keyboard.press("Enter")
    assert Chaos(garbage=0.5) == inbox.gateway.chaos


def test_a_code_and_late_answers_are_set_and_switched_off_together(inbox: Inbox) -> None:
    inbox.page.get_by_label("The code that is answered").fill("4085")
    with inbox.page.expect_response("**/chaos"):
        inbox.page.get_by_role("switch", name="Refuse with").check()
    with inbox.page.expect_response("**/chaos"):
        inbox.page.get_by_role("switch", name="Late answers").check()
    assert Chaos(code=4085, latency=1) == inbox.gateway.chaos
    with inbox.page.expect_response("**/chaos"):
        inbox.page.get_by_role("button", name="All off").click()
    assert Chaos() == inbox.gateway.chaos
    expect(inbox.page.get_by_role("switch", checked=True)).to_have_count(0)
    expect(inbox.page.get_by_role("button", name="All off")).to_be_disabled()


def test_the_focus_moves_to_the_heading_when_its_button_is_disabled(inbox: Inbox) -> None:
    inbox.call()
    inbox.gateway.chaos = Chaos(garbage=1)
    calm = inbox.page.get_by_role("button", name="All off")
    expect(calm).to_be_enabled()
    calm.press("Enter")
    expect(calm).to_be_disabled()
    expect(inbox.page.locator("#chaos-title")).to_be_focused()
    clear = inbox.page.get_by_role("button", name="Clear")
    clear.focus()
    inbox.gateway.clear()
    expect(clear).to_be_disabled()
    expect(inbox.page.locator("#attempts-title")).to_be_focused()


def test_jitter_alone_is_shown_and_set(inbox: Inbox) -> None:
    inbox.gateway.chaos = Chaos(latency_jitter=2)
    late = inbox.page.get_by_role("switch", name="Late answers")
    least = inbox.page.get_by_label("Late answers: by how many seconds")
    more = inbox.page.get_by_label("Late answers: by up to how many seconds more")
    expect(late).to_be_checked()
    expect(least).to_have_value("0")
    expect(more).to_have_value("2")
    with inbox.page.expect_response("**/chaos"):
        more.fill("3")
        more.press("Enter")
    assert Chaos(latency_jitter=3) == inbox.gateway.chaos
    with inbox.page.expect_response("**/chaos"):
        late.uncheck()
    assert Chaos() == inbox.gateway.chaos
    # With both at zero there is nothing to switch on.
    more.fill("0")
    late.click()
    expect(least).to_be_focused()
    expect(late).not_to_be_checked()
    least.fill("0.5")
    with inbox.page.expect_response("**/chaos"):
        late.check()
    assert Chaos(latency=0.5) == inbox.gateway.chaos


def test_a_value_below_the_fields_step_can_be_switched_off(inbox: Inbox) -> None:
    inbox.gateway.chaos = Chaos(garbage=0.00004, latency=0.001)
    expect(inbox.page.get_by_label("Garbage: how often")).to_have_value("0.004")
    for name in ("Garbage", "Late answers"):
        with inbox.page.expect_response("**/chaos"):
            inbox.page.get_by_role("switch", name=name).uncheck()
    assert Chaos() == inbox.gateway.chaos


def test_no_fault_is_switched_on_without_its_number(inbox: Inbox) -> None:
    asked: list[str] = []
    inbox.page.on("request", lambda request: asked.append(request.url))
    for name, label in (
        ("Refuse with", "The code that is answered"),
        ("Garbage", "Garbage: how often"),
        ("Late answers", "Late answers: by up to how many"),
        ("Late answers", "Late answers: by how many"),
    ):
        inbox.page.get_by_label(label).fill("")
        inbox.page.get_by_role("switch", name=name).click()
        # The browser shows at the field what is missing.
        expect(inbox.page.get_by_label(label)).to_be_focused()
        expect(inbox.page.get_by_role("switch", name=name)).not_to_be_checked()
    assert [] == asked


def test_a_refused_setting_is_explained_and_the_switch_returns(inbox: Inbox) -> None:
    inbox.page.get_by_label("The code that is answered").fill("2")
    inbox.page.get_by_role("switch", name="Refuse with").click()
    expect(inbox.page.locator("#toast")).to_contain_text("code must not be 2")
    expect(inbox.page.get_by_role("switch", name="Refuse with")).not_to_be_checked()
    inbox.page.get_by_label("Blacklist").fill("not a number")
    inbox.page.locator("#blacklist-form").get_by_role("button").click()
    expect(inbox.page.locator("#toast")).to_contain_text("blacklist must hold mobile numbers")
    assert all("400" in said for said in inbox.said)
    inbox.said.clear()


def test_the_account_is_frozen_and_unfrozen(inbox: Inbox) -> None:
    with inbox.page.expect_response("**/settings"):
        inbox.page.get_by_role("switch", name="Frozen").check()
    assert b"<code>4050</code>" in inbox.call()
    with inbox.page.expect_response("**/settings"):
        inbox.page.get_by_role("switch", name="Frozen").uncheck()
    assert b"<code>2</code>" in inbox.call()


def test_a_freeze_for_abuse_says_what_it_answers(inbox: Inbox) -> None:
    said = inbox.page.locator("#frozen-help")
    expect(said).to_have_text(
        "All is refused with 4050, the account is frozen: 账号被冻结", use_inner_text=True
    )
    inbox.gateway.abuse_limit = 1
    inbox.call(content="1")
    expect(said).to_have_text(
        "For abuse: a submit gets 408, a balance query 4050", use_inner_text=True
    )
    assert b"<code>408</code>" in inbox.call()
    with inbox.page.expect_response("**/settings"):
        inbox.page.get_by_role("switch", name="Frozen").uncheck()
    expect(said).to_have_text(
        "All is refused with 4050, the account is frozen: 账号被冻结", use_inner_text=True
    )


def test_an_answer_that_is_not_json_is_explained(inbox: Inbox) -> None:
    page = inbox.page
    page.route("**/settings", lambda route: route.fulfill(status=413, body="<h1>Too much</h1>"))
    page.get_by_role("switch", name="Frozen").click()
    expect(page.locator("#toast")).to_have_text(
        "the sandbox gave no answer that can be read: HTTP status 413"
    )
    expect(page.get_by_role("switch", name="Frozen")).not_to_be_checked()
    # The browser logs the status itself.
    inbox.said.clear()


def test_the_balance_is_shown_and_set(inbox: Inbox) -> None:
    balance = inbox.page.get_by_label("Balance")
    expect(balance).to_have_value("1000")
    balance.fill("1")
    with inbox.page.expect_response("**/settings"):
        inbox.page.keyboard.press("Enter")
    assert 1 == inbox.gateway.balance
    # It falls with each call and is shown, but not in the field that is being edited.
    assert b"<code>2</code>" in inbox.call()
    expect(inbox.page.locator("#left")).to_have_text("0")
    expect(balance).to_have_value("1")
    assert b"<code>4051</code>" in inbox.call()


def test_a_balance_that_would_be_rounded_is_refused_at_the_field(inbox: Inbox) -> None:
    asked: list[str] = []
    inbox.page.on("request", lambda request: asked.append(request.url))
    balance = inbox.page.get_by_label("Balance")
    for number in (2**53, 2**53 + 1, 10**30):
        balance.fill(str(number))
        balance.press("Enter")
        assert str(2**53 - 1) in balance.evaluate("field => field.validationMessage")
    assert [] == asked
    balance.fill(str(2**53 - 1))
    with inbox.page.expect_response("**/settings"):
        balance.press("Enter")
    assert 2**53 - 1 == inbox.gateway.balance


def test_the_blacklist_and_the_allowed_ips_are_set(inbox: Inbox) -> None:
    inbox.page.get_by_label("Blacklist").fill("+86 139-1234-5678\n13800000000, ")
    with inbox.page.expect_response("**/settings"):
        inbox.page.locator("#blacklist-form").get_by_role("button").click()
    assert {"13912345678", "13800000000"} == inbox.gateway.blacklist
    assert b"<code>4030</code>" in inbox.call()
    inbox.page.get_by_label("Allowed IPs").fill("10.0.0.1")
    with inbox.page.expect_response("**/settings"):
        inbox.page.locator("#allowed-form").get_by_role("button").click()
    assert b"<code>400</code>" in inbox.call()
    inbox.page.get_by_label("Allowed IPs").fill("")
    with inbox.page.expect_response("**/settings"):
        inbox.page.locator("#allowed-form").get_by_role("button").click()
    assert None is inbox.gateway.allowed_ips


def test_typed_text_stays_until_it_is_set(inbox: Inbox) -> None:
    blacklist = inbox.page.get_by_label("Blacklist")
    blacklist.fill("13800000000")
    inbox.page.keyboard.press("Tab")
    inbox.call()
    expect(inbox.page.locator("#left")).to_have_text("999")
    expect(blacklist).to_have_value("13800000000")
    with inbox.page.expect_response("**/settings"):
        inbox.page.keyboard.press("Enter")
    saved(inbox)
    inbox.gateway.blacklist = ["13900000000"]
    expect(blacklist).to_have_value("13900000000")


def test_an_edit_that_was_undone_does_not_block_updates(inbox: Inbox) -> None:
    balance = inbox.page.get_by_label("Balance")
    balance.press_sequentially("7")
    balance.press("Backspace")
    inbox.call()
    expect(inbox.page.locator("#left")).to_have_text("999")
    expect(balance).to_have_value("1000")
    # Moving on to the button beside it does not end the edit.
    balance.press("Tab")
    expect(balance).to_have_value("1000")
    inbox.page.keyboard.press("Tab")
    expect(balance).to_have_value("999")
    balance.fill("5")
    balance.press("Tab")
    inbox.page.keyboard.press("Tab")
    inbox.call()
    expect(inbox.page.locator("#left")).to_have_text("998")
    expect(balance).to_have_value("5")
    # Focusing the field again does not end the edit.
    balance.focus()
    balance.blur()
    expect(balance).to_have_value("5")
    balance.press("Escape")
    expect(balance).to_have_value("998")
    balance.blur()
    inbox.call()
    expect(balance).to_have_value("997")


def test_a_setting_that_another_program_changes_is_shown(inbox: Inbox) -> None:
    inbox.gateway.frozen = True
    inbox.gateway.balance = 12345
    inbox.gateway.blacklist = ["13800000000"]
    inbox.gateway.chaos = Chaos(truncate=0.25, latency=2)
    expect(inbox.page.get_by_role("switch", name="Frozen")).to_be_checked()
    expect(inbox.page.locator("#left")).to_have_text("12,345")
    expect(inbox.page.get_by_label("Balance")).to_have_value("12345")
    expect(inbox.page.get_by_label("Blacklist")).to_have_value("13800000000")
    expect(inbox.page.get_by_role("switch", name="Half an answer")).to_be_checked()
    expect(inbox.page.get_by_label("Half an answer: how often")).to_have_value("25")
    expect(inbox.page.get_by_label("Late answers: by how many seconds")).to_have_value("2")


def test_receipts_and_each_try_are_shown(inbox: Inbox) -> None:
    inbox.gateway.receipt_delay = inbox.gateway.receipt_interval = 0
    # The sandbox itself is no receiver: it answers 404 there.
    inbox.page.get_by_label("Push to").fill(f"{inbox.url}/nothing-here")
    with inbox.page.expect_response("**/settings"):
        inbox.page.keyboard.press("Enter")
    inbox.call()
    placed = inbox.rows.filter(has_text="Placed")
    expect(placed).to_contain_text("receipt not accepted by your handler")
    placed.click()
    expect(inbox.details.locator(".tries li")).to_have_count(3)
    expect(inbox.details.locator(".tries li").first).to_contain_text("answered 404")
