"""The chaos settings and their dice; test_server shows what a fault does to a socket."""

from __future__ import annotations

import json
import re
from typing import get_args

import pytest

from ihuyi_voice.sandbox import Chaos
from ihuyi_voice.sandbox.faults import NOTHING_HAPPENS, Dice, Fault, Roll
from ihuyi_voice.sandbox.page_files import FILES, TEXTS

FAULTS = [fault for fault in get_args(Fault) if fault != "code"]


def rolls(chaos: Chaos, times: int = 1000) -> list[Roll]:
    dice = Dice(chaos)
    return [dice.roll() for _ in range(times)]


def test_the_page_has_words_for_every_fault_in_the_order_of_the_table() -> None:
    _, script = FILES["faults.js"]
    assert [*get_args(Fault)] == re.findall(r'^  "(\w+)",$', script.decode(), re.MULTILINE)
    for texts in TEXTS.values():
        for fault in (*get_args(Fault), "receipt_undelivered"):
            assert {f"fault_{fault}{part}" for part in ("", "_help", "_instead")} <= texts.keys()


def test_without_chaos_nothing_happens() -> None:
    assert {NOTHING_HAPPENS} == set(rolls(Chaos()))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_with_probability_1_always_strikes(fault: str) -> None:
    certain = Chaos.from_json(json.dumps({fault: 1}).encode())
    assert {fault} == {roll.fault for roll in rolls(certain, 50)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_strikes_as_often_as_it_should(fault: str) -> None:
    chaos = Chaos.from_json(json.dumps({fault: 0.25, "seed": 7}).encode())
    assert 200 < sum(roll.fault == fault for roll in rolls(chaos)) < 300


def test_a_code_is_answered_always_unless_it_has_a_probability() -> None:
    assert {("code", 4085)} == {(roll.fault, roll.code) for roll in rolls(Chaos(code=4085))}
    some = rolls(Chaos(code=0, code_probability=0.5, seed=1))
    assert 400 < sum(roll.fault == "code" and roll.code == 0 for roll in some) < 600
    assert {NOTHING_HAPPENS} == set(rolls(Chaos(code_probability=1)))


def test_at_most_one_fault_strikes_and_the_first_of_the_table_is_it() -> None:
    assert {"no_answer"} == {roll.fault for roll in rolls(Chaos(garbage=1, no_answer=1))}


def test_the_same_seed_draws_the_same() -> None:
    def chaos(seed: int) -> Chaos:
        return Chaos(latency_jitter=1, garbage=0.5, truncate=0.5, seed=seed)

    assert rolls(chaos(1)) == rolls(chaos(1))
    assert rolls(chaos(1)) != rolls(chaos(2))


def test_without_a_seed_each_draws_its_own() -> None:
    assert rolls(Chaos(garbage=0.5)) != rolls(Chaos(garbage=0.5))


def test_latency_is_fixed_and_jitter_comes_on_top() -> None:
    assert {Roll(delay=2.0)} == set(rolls(Chaos(latency=2)))
    delays = [roll.delay for roll in rolls(Chaos(latency=2, latency_jitter=1))]
    assert 2 <= min(delays) < 2.1
    assert 2.9 < max(delays) <= 3


def test_garbage_is_html_or_bytes_that_no_reader_takes_for_an_answer() -> None:
    garbage = {roll.garbage for roll in rolls(Chaos(garbage=1), 50)}
    assert {b"<html>", b"\xff"} == {g[:6] if g.startswith(b"<") else g[:1] for g in garbage}
    assert 2 < len(garbage)


@pytest.mark.parametrize("name", [*FAULTS, "code_probability", "receipt_undelivered"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), True, "0.5", None])
def test_a_probability_is_between_0_and_1(name: str, value: object) -> None:
    settings: dict[str, float] = {name: value}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=f"^{name} must be a probability between 0 and 1, not "):
        Chaos(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["latency", "latency_jitter"])
@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), True, "1"])
def test_latency_is_in_seconds(name: str, value: object) -> None:
    settings: dict[str, float] = {name: value}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=f"^{name} must be a finite number of seconds"):
        Chaos(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [True, "405", 405.0, 10**9, -(10**9)])
def test_a_code_is_an_int(code: int) -> None:
    with pytest.raises(ValueError, match=r"^code must be an int of up to nine digits or None"):
        Chaos(code=code)


def test_a_code_of_2_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^code must not be 2"):
        Chaos(code=2)


@pytest.mark.parametrize("seed", [True, "1", 1.5])
def test_a_seed_is_an_int(seed: int) -> None:
    with pytest.raises(ValueError, match=r"^seed must be an int or None"):
        Chaos(seed=seed)


def test_json_and_back() -> None:
    chaos = Chaos(latency=0.5, code=4085, code_probability=0.1, garbage=0.2, seed=3)
    assert chaos == Chaos.from_json(chaos.to_json())
    assert Chaos() == Chaos.from_json(b"{}")


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("the body is not JSON: ", b"{"),
        ("the body must be a JSON object", b"[]"),
        ("unknown: lag, speed; there are latency, latency_jitter, ", b'{"speed":1,"lag":2}'),
        ("garbage must be a probability", b'{"garbage":"often"}'),
    ],
)
def test_wrong_json_is_refused_with_the_reason(text: str, body: bytes) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        Chaos.from_json(body)
