"""`ihuyi-voice bulk --store`: the same command again, and no phone rings twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ihuyi_voice import Store, StoreError
from ihuyi_voice.bulk.run import BulkRun
from ihuyi_voice.cli.bulk.keys import RowKeys
from ihuyi_voice.sandbox import Chaos
from ihuyi_voice.store.entry import Fingerprints
from ihuyi_voice.store.sql.database import Database
from ihuyi_voice.store.sql.store import SqlStore
from tests.cli.test_bulk_command import (
    A,
    B,
    C,
    Gateway,
    bulk,
    flat,
    many,
    placed,
    read_csv,
    read_json_lines,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

    from ihuyi_voice import BulkReport
    from tests.cli.test_bulk_command import Rows

KEYED = "mobile,content,idempotency_key\n"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    gateway = Gateway()
    with gateway.serve_in_thread() as url:
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", url)
        monkeypatch.setenv("IHUYI_VOICE_API_ID", "sandbox")
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
        yield gateway


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Of a store that is not there yet."""
    return tmp_path / "calls.db"


def again(path: Path, book: Path, *options: str) -> Result:
    return bulk(path, "--store", book, *options)


def sent(gateway: Gateway) -> Counter[tuple[str, str]]:
    """What was placed since it was last asked."""
    calls = Counter(placed(gateway))
    gateway.clear()
    return calls


def known(accepted: int, rows: int, job: str = "rows.csv") -> str:
    today = f"{datetime.now().astimezone():%Y-%m-%d}"
    return (
        f"{accepted} of {rows} rows were called in job {job} on {today}; --job NAME calls them"
        " again\n"
    )


def maybe(unknown: int, rows: int) -> str:
    return (
        f"{unknown} of {rows} rows may have been called, their outcome is unknown; they are not"
        " called again\n"
    )


# --- again -------------------------------------------------------------------


def test_a_second_run_sends_nothing_and_asks_nothing(
    gateway: Gateway, path: Path, book: Path
) -> None:
    write(path, many(30))
    first = again(path, book, "--yes")
    assert (0, Counter(many(30))) == (first.exit_code, sent(gateway))
    assert "this store is new: it knows of no earlier call\n" in first.stderr
    assert "were called" not in first.stderr
    assert "accepted the phone rings 30" in flat(first.stdout)
    # There is no terminal to ask on.
    second = again(path, book)
    assert (0, Counter()) == (second.exit_code, sent(gateway))
    assert known(30, 30) in second.stderr
    assert "is new" not in second.stderr
    assert "to send 0\n" in second.stderr
    assert "replayed accepted earlier: nothing was sent now 30" in flat(second.stdout)


def test_for_machines(gateway: Gateway, path: Path, book: Path) -> None:
    write(path, many(3))
    again(path, book, "--yes")
    write(path, many(5))
    result = again(path, book, "--yes", "--json")
    report = json.loads(result.stdout)
    assert (0, 5, 2, 3) == (
        result.exit_code,
        report["rows"],
        report["accepted"],
        report["replayed"],
    )


def test_rows_added_removed_and_moved(gateway: Gateway, path: Path, book: Path) -> None:
    rows = many(10)
    write(path, rows)
    again(path, book, "--yes")
    sent(gateway)
    new = [(A, "112500"), (B, "112500")]
    write(path, [new[0], *rows[7:2:-1], new[1]])
    result = again(path, book, "--yes")
    assert (0, Counter(new)) == (result.exit_code, sent(gateway))
    assert known(5, 7) in result.stderr
    assert "to send 2, balance 990\n" in result.stderr


def test_a_file_of_another_form_is_the_same_rows(
    gateway: Gateway, path: Path, book: Path, tmp_path: Path
) -> None:
    write(path, [(A, "1125"), (B, "0042")])
    again(path, book, "--yes")
    sent(gateway)
    other = tmp_path / "sent" / "rows.csv"
    other.parent.mkdir()
    other.write_text(
        f'{{"mobile": "+86 {B[:3]}-{B[3:]}", "content": "0042"}}\n["{A}", " 1125 "]\n'
        f'{{"phone": "{C}", "otp": "0042"}}\n'
    )
    result = again(other, book, "--yes")
    assert (0, {C}) == (result.exit_code, {mobile for mobile, _ in sent(gateway)})


def test_equal_rows_are_as_many_calls(gateway: Gateway, path: Path, book: Path) -> None:
    write(path, [(A, "1125"), (A, "1125")])
    again(path, book, "--yes")
    assert Counter({(A, "1125"): 2}) == sent(gateway)
    write(path, [(A, "1125"), (B, "1125"), (A, "1125"), (A, "1125")])
    # Within a minute the number is called no third time, also not by the second run.
    result = again(path, book, "--yes")
    assert (3, Counter({(B, "1125"): 1})) == (result.exit_code, sent(gateway))
    assert "limited over the limit for this number: nothing was sent 1" in flat(result.stdout)
    assert known(2, 4) in result.stderr


def test_a_limit_is_kept_across_runs_and_the_rest_is_sent_later(
    gateway: Gateway, path: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, [(A, "1125")] * 3)
    assert 3 == again(path, book, "--yes").exit_code
    assert Counter({(A, "1125"): 2}) == sent(gateway)
    assert 3 == again(path, book, "--yes").exit_code
    assert Counter() == sent(gateway)
    now = Database.clock
    monkeypatch.setattr(Database, "clock", lambda self: now(self) + 61)
    assert 0 == again(path, book, "--yes").exit_code
    assert Counter({(A, "1125"): 1}) == sent(gateway)


def test_the_first_rows_alone(gateway: Gateway, path: Path, book: Path) -> None:
    write(path, many(10))
    again(path, book, "--yes", "--limit", "4")
    result = again(path, book, "--yes")
    assert (0, Counter(many(10))) == (result.exit_code, sent(gateway))
    assert known(4, 10) in result.stderr


def test_refused_rows_are_sent_again(gateway: Gateway, path: Path, book: Path) -> None:
    rows = many(5)
    gateway.failing_mobiles = {rows[0][0], rows[1][0]}
    write(path, rows)
    assert 3 == again(path, book, "--yes").exit_code
    sent(gateway)
    gateway.failing_mobiles = ()
    result = again(path, book, "--yes")
    assert (0, Counter(rows[:2])) == (result.exit_code, sent(gateway))
    assert known(3, 5) in result.stderr
    assert "to send 2, " in result.stderr


def test_what_was_not_sent_is_sent_again(gateway: Gateway, path: Path, book: Path) -> None:
    """Its balance used up in mid-run; then it is paid for."""
    write(path, many(20))
    gateway.balance = 7
    result = again(path, book, "--yes", "--partial", "--concurrency", "3")
    assert 3 == result.exit_code
    assert "the balance is 13 short: the run will stop when it is used up" in result.stderr
    first = sent(gateway)
    gateway.balance = 100
    assert 0 == again(path, book, "--yes").exit_code
    assert Counter(many(20)) == first + sent(gateway)


def test_unknown_rows_are_not_sent_again(gateway: Gateway, path: Path, book: Path) -> None:
    write(path, many(30))
    gateway.after_the_balance_query(close_after_placing=1.0)
    first = again(path, book, "--yes", "--concurrency", "3")
    assert 6 == first.exit_code
    # More than a run bears of its own.
    assert 20 <= len(sent(gateway)) < 30
    gateway.chaos = Chaos()
    second = again(path, book, "--yes")
    assert 6 == second.exit_code
    total = int(re.findall(r"(\d+) of 30 rows may have been called", second.stderr)[0])
    assert 30 - total == len(sent(gateway))
    third = again(path, book)
    assert (6, Counter()) == (third.exit_code, sent(gateway))
    assert known(30 - total, 30) + maybe(total, 30) in third.stderr
    assert "unknown the phone may have rung: do not repeat blindly" in flat(third.stdout)


def test_the_outcomes_say_which_key_and_which_id(
    gateway: Gateway, path: Path, book: Path, tmp_path: Path
) -> None:
    write(path, many(3))
    again(path, book, "--yes", "--out", str(tmp_path / "1.csv"))
    again(path, book, "--yes", "--out", str(tmp_path / "2.csv"))
    first, second = (read_csv(tmp_path / f"{n}.csv") for n in (1, 2))
    assert {"accepted"} == {line["status"] for line in first}
    assert {"replayed"} == {line["status"] for line in second}
    assert {(line["idempotency_key"], line["voice_id"]) for line in first} == {
        (line["idempotency_key"], line["voice_id"]) for line in second
    }
    assert all(re.fullmatch("row:[0-9a-f]{32}", line["idempotency_key"]) for line in first)


def test_a_terminal_is_not_asked_when_there_is_nothing_to_send(
    gateway: Gateway, path: Path, book: Path
) -> None:
    write(path, many(2))
    again(path, book, "--yes")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ihuyi_voice", "bulk", path, "--store", book],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert 0 == process.returncode
    assert "Place" not in err


# --- rows without content ----------------------------------------------------


def test_a_drawn_code_is_the_same_with_the_same_store(
    gateway: Gateway, path: Path, book: Path, tmp_path: Path
) -> None:
    path.write_text("mobile\n" + "".join(f"{mobile}\n" for mobile, _ in many(20)))
    codes: list[dict[str, str]] = []
    for n, store in enumerate((book, book, tmp_path / "other.db")):
        # So that a second run has them to send.
        gateway.failing_mobiles = [mobile for mobile, _ in many(20)]
        out = tmp_path / f"{n}.jsonl"
        result = again(path, store, "--yes", "--out", str(out), "--draw-codes")
        assert 3 == result.exit_code
        codes.append({str(line["mobile"]): str(line["content"]) for line in read_json_lines(out)})
    first, second, other = codes
    assert first == second
    assert 20 == len(first) == sum(first[mobile] != other[mobile] for mobile in first)
    assert 19 <= len(set(first.values()))
    assert {6} == {len(code) for code in first.values()}
    # Those are what was sent.
    assert Counter([*first.values(), *second.values(), *other.values()]) == Counter(
        attempt.content for attempt in gateway.attempts
    )


def test_drawn_codes_are_sent_once(
    gateway: Gateway, path: Path, book: Path, tmp_path: Path
) -> None:
    path.write_text(f"mobile,content\n{A},\n{B},112500\n{A},\n")
    draw = ("--yes", "--draw-codes", "--out")
    assert 0 == again(path, book, *draw, str(tmp_path / "1.csv")).exit_code
    first = sent(gateway)
    assert (3, Counter({A: 2, B: 1})) == (len(first), Counter(mobile for mobile, _ in first))
    assert 0 == again(path, book, *draw, str(tmp_path / "2.csv")).exit_code
    assert Counter() == sent(gateway)


# --- keys of one's own -------------------------------------------------------


def test_keys_of_ones_own(gateway: Gateway, path: Path, book: Path) -> None:
    path.write_text(f"{KEYED}{A},1125,order 1\n{B},1125,order 2\n{A},1125,\n")
    first = again(path, book, "--yes")
    assert (0, 3) == (first.exit_code, sum(sent(gateway).values()))
    with closing(sqlite3.connect(book)) as other:
        keys = {key for (key,) in other.execute("SELECT key FROM ihuyi_voice_calls")}
    assert {"order 1", "order 2"} < keys
    path.write_text(f"{KEYED}{C},1125,order 3\n{B},1125,order 2\n{C},4321,order 1\n")
    second = again(path, book, "--yes")
    # The key of another row, and the only one that is new.
    assert (3, Counter({(C, "1125"): 1})) == (second.exit_code, sent(gateway))
    assert "invalid a bad row: nothing was sent 1" in flat(second.stdout)


def test_without_a_store_keys_are_ignored_and_it_says_so(gateway: Gateway, path: Path) -> None:
    path.write_text(f"{KEYED}{A},1125,order 1\n")
    for _ in range(2):
        result = bulk(path, "--yes", "--store", "none")
        assert "across runs nothing remembers it with --store none" in result.stderr
    assert Counter({(A, "1125"): 2}) == sent(gateway)


# --- another API key ---------------------------------------------------------


def test_another_api_key_cannot_recognise_rows_without_keys(
    gateway: Gateway, path: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, many(3))
    again(path, book, "--yes")
    sent(gateway)
    gateway.api_key = "new-key"
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "new-key")
    result = again(path, book, "--yes")
    assert (2, Counter()) == (result.exit_code, sent(gateway))
    assert "rows of job rows.csv were sent with another API key" in result.stderr
    # In another job nothing was sent with the old one.
    result = again(path, book, "--yes", "--job", "new")
    assert (0, Counter(many(3))) == (result.exit_code, sent(gateway))


def test_another_api_key_after_the_wrong_one(
    gateway: Gateway, path: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the wrong one nothing was placed, so nothing can be placed twice."""
    write(path, many(3))
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "mistyped")
    assert 2 == again(path, book, "--yes").exit_code
    # As when the balance query lets it in, and the key is changed just then.
    gateway.api_key = "mistyped"
    gateway.after_the_balance_query(code=405)
    assert 3 == again(path, book, "--yes").exit_code
    gateway.chaos = Chaos()
    gateway.api_key = "sandbox-key"
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
    assert 0 == again(path, book, "--yes").exit_code
    assert Counter(many(3)) == sent(gateway)


def test_another_api_key_with_keys_of_ones_own(
    gateway: Gateway, path: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, many(1))
    again(path, book, "--yes")
    path.write_text(f"{KEYED}{A},1125,order 1\n")
    again(path, book, "--yes")
    sent(gateway)
    gateway.api_key = "new-key"
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "new-key")
    # A bad row needs no key: it is not sent at all.
    path.write_text(f"{KEYED}{A},1125,order 1\n{B},1125,order 2\n139,1125,\n")
    result = again(path, book, "--yes")
    assert (3, Counter({(B, "1125"): 1})) == (result.exit_code, sent(gateway)), result.stderr
    today = f"{datetime.now().astimezone():%Y-%m-%d}"
    assert (
        f"1 of 3 rows were called under their idempotency_key on {today}; only a new key calls"
        " them again\n"
    ) in result.stderr


# --- what is refused ---------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:hunter2@host/database",
        "postgresql://user@host/database?password=hunter2",
    ],
)
def test_a_password_in_a_url_is_refused(gateway: Gateway, path: Path, url: str) -> None:
    write(path, many(1))
    result = bulk(path, "--store", url, "--yes")
    assert (2, Counter()) == (result.exit_code, sent(gateway))
    assert "no password on the command line" in result.stderr
    assert "hunter2" not in result.stderr


def test_a_file_that_is_no_store_is_refused(gateway: Gateway, path: Path, book: Path) -> None:
    write(path, many(1))
    data = b"not a database at all" * 100
    book.write_bytes(data)
    result = again(path, book, "--yes")
    assert (4, Counter()) == (result.exit_code, sent(gateway))
    assert f"the store could not be used: {book}: it is not an SQLite database" in result.stderr
    assert data == book.read_bytes()


def test_the_rows_themselves_are_no_store(gateway: Gateway, path: Path) -> None:
    write(path, many(40))
    before = path.read_bytes()
    assert (4, Counter()) == (again(path, path, "--yes").exit_code, sent(gateway))
    assert before == path.read_bytes()


def test_a_bad_url_is_refused(gateway: Gateway, path: Path) -> None:
    write(path, many(1))
    result = bulk(path, "--store", "oracle://user@host/database", "--yes")
    assert (2, Counter()) == (result.exit_code, sent(gateway))
    assert "a store is the path of an SQLite file, or a URL" in result.stderr


def test_a_look_touches_no_store(gateway: Gateway, path: Path, book: Path) -> None:
    write(path, many(3))
    result = again(path, book, "--dry-run")
    assert (0, False) == (result.exit_code, book.exists())
    assert "--store none" not in result.stderr


def test_an_out_file_that_is_there_already_touches_no_store(
    gateway: Gateway, path: Path, book: Path
) -> None:
    write(path, many(3))
    assert 2 == again(path, book, "--yes", "--out", str(path)).exit_code
    assert not book.exists()


# --- the store's own command ------------------------------------------------


def test_list_resolve_and_run_again(
    gateway: Gateway, path: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(A, "1125"), (B, "1125"), (C, "1125")]
    write(path, rows)
    gateway.after_the_balance_query(close_after_placing=1.0)
    assert 6 == again(path, book, "--yes").exit_code
    gateway.chaos = Chaos()
    sent(gateway)
    listed = store(book, "list", "--json")
    assert 6 == listed.returncode
    keys = {claim["mobile"]: claim["key"] for claim in map(json.loads, listed.stdout.splitlines())}
    assert 3 == len(keys)
    a, b, c = (keys[f"{mobile[:3]}****{mobile[-4:]}"] for mobile in (A, B, C))
    # Their connections were reset, so the network delivers nothing later.
    for key, how in ((a, "--placed"), (b, "--placed"), (c, "--not-placed")):
        assert 0 == store(book, "resolve", key, how).returncode
    assert 0 == store(book, "list").returncode
    result = again(path, book, "--yes")
    assert (0, Counter({(C, "1125"): 1})) == (result.exit_code, sent(gateway))
    assert known(2, 3) in result.stderr
    summary = store(book, "summary", "--json")
    assert {"accepted": 3, "refused": 0, "not_sent": 0, "unknown": 0} == json.loads(summary.stdout)
    assert "3 entries deleted\n" == store(book, "purge", "--older-than", "0s").stdout
    assert {"accepted": 0} | json.loads(store(book, "summary", "--json").stdout) == dict.fromkeys(
        ("accepted", "refused", "not_sent", "unknown"), 0
    )


def store(book: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ihuyi-voice store` as it is installed."""
    return subprocess.run(
        [sys.executable, "-m", "ihuyi_voice", "store", book, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- derived keys ------------------------------------------------------------

FINGERPRINTS = Fingerprints("the account's key")
ROWS = st.lists(
    st.tuples(st.sampled_from([A, B, C]), st.sampled_from(["", "1125", "0042"])), max_size=12
)


def row_keys(rows: Rows, fingerprints: Fingerprints = FINGERPRINTS) -> list[str]:
    names = RowKeys(fingerprints, "a store's id", "job")
    return [names.key(mobile, content) for mobile, content in rows]


@given(rows=ROWS, dice=st.randoms(use_true_random=False))
def test_the_same_rows_in_any_order_have_the_same_keys(rows: Rows, dice: object) -> None:
    shuffled = list(rows)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert set(row_keys(rows)) == set(row_keys(shuffled))


@given(rows=ROWS)
def test_every_row_has_a_key_of_its_own(rows: Rows) -> None:
    assert len(rows) == len(set(row_keys(rows)))


@given(rows=ROWS, more=ROWS)
def test_rows_that_are_added_leave_the_others_their_keys(rows: Rows, more: Rows) -> None:
    assert set(row_keys(rows)) <= set(row_keys([*more, *rows]))


@given(rows=ROWS)
def test_equal_rows_change_places_without_anybody_noticing(rows: Rows) -> None:
    by_row: dict[tuple[str, str], list[str]] = {}
    for row, key in zip(rows, row_keys(rows), strict=True):
        by_row.setdefault(row, []).append(key)
    for row, key in zip(rows[::-1], row_keys(rows[::-1]), strict=True):
        assert by_row[row].pop(0) == key


def test_a_key_and_a_code_can_only_be_computed_with_the_api_key() -> None:
    (key,) = row_keys([(A, "1125")])
    master = hashlib.blake2b(b"the account's key", person=b"ihuyi-voice").digest()

    def keyed(text: str, person: bytes, size: int) -> str:
        hashed = hashlib.blake2b(text.encode(), key=master, digest_size=size, person=person)
        return hashed.hexdigest()

    job = hashlib.blake2b(b"job", digest_size=4, person=b"job").hexdigest()
    assert f"row:{job}" + keyed(f"{A}\x001125\x000\0job", b"row", 12) == key
    digest = keyed(f"{A}\0a store's id {key}", b"request", 16)
    code = RowKeys(FINGERPRINTS, "a store's id", "job").code(A, key)
    assert f"{int(digest, 16) % 10**6:06}" == code
    other = Fingerprints("another account's key")
    assert [key] != row_keys([(A, "1125")], other)
    assert code != RowKeys(other, "a store's id", "job").code(A, key)
    # A row's key and the stored fingerprint of its request differ.
    assert key[12:] not in FINGERPRINTS.of(A, "1125").digest


def test_codes_are_digits_that_differ_by_row_and_store() -> None:
    names = RowKeys(FINGERPRINTS, "one", "job")
    codes = [names.code(mobile, names.key(mobile, "")) for mobile, _ in many(1000)]
    assert 995 <= len(set(codes))
    assert {6} == {len(code) for code in codes}
    assert any(code.startswith("0") for code in codes)
    again = RowKeys(FINGERPRINTS, "one", "job")
    assert codes == [again.code(mobile, again.key(mobile, "")) for mobile, _ in many(1000)]
    other = RowKeys(FINGERPRINTS, "two", "job")
    others = [other.code(mobile, other.key(mobile, "")) for mobile, _ in many(1000)]
    assert 5 >= sum(code == another for code, another in zip(codes, others, strict=True))


def test_nothing_secret_is_in_the_file(gateway: Gateway, path: Path, book: Path) -> None:
    rows = [(A, "907351"), (B, "118822")]
    write(path, rows)
    gateway.failing_mobiles = {B}
    with Store.open(book):
        # Held open, so that its log is there to be read too.
        result = again(path, book, "--yes")
        data = b"".join(file.read_bytes() for file in book.parent.glob("calls.db*"))
    assert 3 == result.exit_code
    assert b"139****5678" in data
    for secret in (A, B, "907351", "118822", "sandbox-key"):
        assert secret.encode() not in data
        assert secret not in result.output


@pytest.mark.parametrize("level", [logging.DEBUG, logging.CRITICAL])
def test_what_the_store_could_not_record_is_said(
    gateway: Gateway, path: Path, book: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    """By the run's report after the store is closed, and by no log record."""
    closed: list[bool] = []
    report: property = vars(BulkRun)["report"]
    close = SqlStore.close

    def see(self: SqlStore) -> None:
        close(self)
        closed.append(True)

    def unrecorded(self: BulkRun) -> BulkReport:
        known: BulkReport = report.__get__(self)
        return replace(known, unrecorded=7 * len(closed))

    monkeypatch.setattr(SqlStore, "close", see)
    monkeypatch.setattr(BulkRun, "report", property(unrecorded))
    monkeypatch.setattr(logging.getLogger("ihuyi_voice"), "level", level)
    write(path, many(7))
    result = again(path, book, "--yes", "--json")
    assert (4, 7) == (result.exit_code, json.loads(result.stdout)["unrecorded"])
    assert "The store did not record 7 outcomes." in flat(result.stderr)
    assert "only with the same store" in flat(result.stderr)
    closed.clear()
    monkeypatch.setattr(BulkRun, "report", report)
    assert 0 == again(path, book, "--yes").exit_code
    assert 7 == len(placed(gateway))


def test_a_store_that_fails_while_it_is_asked_sends_nothing(
    gateway: Gateway, path: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        msg = "the disk is gone"
        raise StoreError(msg)

    monkeypatch.setattr(SqlStore, "entries", fail)
    write(path, many(2))
    result = again(path, book, "--yes")
    assert (4, []) == (result.exit_code, placed(gateway))
    assert "the store could not be used: the disk is gone" in result.stderr


def test_a_finished_file_needs_no_gateway(
    gateway: Gateway, path: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, many(3))
    assert 0 == again(path, book, "--yes").exit_code
    monkeypatch.setenv("IHUYI_VOICE_BASE_URL", "http://127.0.0.1:9")
    result = again(path, book)
    assert (0, 3) == (result.exit_code, len(placed(gateway)))
    assert "replayed accepted earlier: nothing was sent now 3" in flat(result.stdout)


def test_a_store_that_is_lost_in_mid_run_is_named_whatever_its_name(
    gateway: Gateway, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brackets would be a terminal's markup."""
    folder = tmp_path / "[" / "x]"
    folder.mkdir(parents=True)
    book = folder / "calls.db"
    settle = SqlStore.settle

    async def lose(self: SqlStore, *arguments: Any, **options: Any) -> None:
        book.unlink(missing_ok=True)
        await settle(self, *arguments, **options)

    monkeypatch.setattr(SqlStore, "settle", lose)
    write(path, many(40))
    result = again(path, book, "--yes", "--json", "--concurrency", "1")
    report = json.loads(result.stdout)
    assert 1 == report["accepted"]
    assert report["not_sent"] == report["rows"] - 1 >= 20
    lost = f"{book} was deleted, emptied or replaced while it was in use: without it every call"
    assert lost in flat(result.stderr)
    assert lost in report["stopped"]
    assert 1 == len(placed(gateway))


def test_blanks_around_a_key_make_no_other_key(gateway: Gateway, path: Path, book: Path) -> None:
    path.write_text(f"{KEYED}{A},1125, k1\n{B},1125,k1\n{C},1125,  \n")
    result = again(path, book, "--yes")
    assert 3 == result.exit_code
    assert {A, C} == {mobile for mobile, _ in sent(gateway)}
    assert "line 3: its idempotency_key is that of line 2" in flat(result.stderr)
