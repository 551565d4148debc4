"""Reading a receipt: any form in, a receipt or the one error out."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import subprocess
import sys
import traceback
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict
from starlette.datastructures import FormData, UploadFile

from ihuyi_voice.receipts.handlers import (
    RECEIPT_REPLY,
    InvalidReceiptError,
    Receipt,
    ReceiptFields,
    parse_receipt,
)
from ihuyi_voice.receipts.parsing import read_receipt
from tests.pure import BOUNDED, MOBILE

FORM = {
    "code": "2",
    "msg": "已送达",
    "mobilephone": MOBILE,
    "voiceid": "197362477",
    "report_time": "2017-08-02 14:31:51",
}
BEIJING = timezone(timedelta(hours=8))
AT = datetime(2017, 8, 2, 14, 31, 51, tzinfo=BEIJING)


def form(**fields: str | None) -> dict[str, str]:
    """A receipt's form with some fields changed, or left out where None."""
    changed = {**FORM, **fields}
    return {name: value for name, value in changed.items() if value is not None}


def form_with(name: str, value: str, instead_of: str) -> dict[str, str]:
    """A receipt's form in which a field has another name and value."""
    return {**form(**{instead_of: None}), name: value}


def why(given: dict[str, str]) -> str:
    with pytest.raises(InvalidReceiptError) as caught:
        parse_receipt(given)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value)


def test_the_reply_is_the_bare_text() -> None:
    assert "success" == RECEIPT_REPLY


def test_every_field_is_read() -> None:
    receipt = parse_receipt(FORM)
    assert Receipt("197362477", MOBILE, True, "2", "已送达", AT, ReceiptFields(FORM)) == receipt
    assert FORM == dict(receipt.raw)


def test_the_time_is_in_beijing_time() -> None:
    at = parse_receipt(FORM).reported_at
    assert at is not None
    assert datetime(2017, 8, 2, 6, 31, 51, tzinfo=timezone.utc) == at
    assert timedelta(hours=8) == at.utcoffset()


@pytest.mark.parametrize("name", ["voiceid", "smsid", "task_id", "taskid", "SmsId", " voiceid "])
@pytest.mark.parametrize("voice_id", ["60495654", "18446744073709551616", "00123456789012345678"])
def test_the_id_is_read_digit_for_digit_under_any_of_its_names(name: str, voice_id: str) -> None:
    assert voice_id == parse_receipt(form_with(name, f" {voice_id}\r\n", "voiceid")).voice_id


def test_the_first_name_that_has_an_id_counts() -> None:
    ids = {"taskid": "4", "task_id": "3", "smsid": "2", "voiceid": "1"}
    for name, voice_id in reversed(ids.items()):
        assert voice_id == parse_receipt({**FORM, **ids}).voice_id
        ids[name] = "0"
    assert parse_receipt({**FORM, **ids}).voice_id is None


@pytest.mark.parametrize("none", ["", " ", "0", "00", "1 2", "１", "x" * 65, "\x00", None])
def test_a_missing_or_unreadable_id_is_none(none: str | None) -> None:
    assert parse_receipt(form(voiceid=none)).voice_id is None


@pytest.mark.parametrize("name", ["mobilephone", "mobile", "MobilePhone"])
@pytest.mark.parametrize(
    "spelt", [MOBILE, f"+86{MOBILE}", f"86{MOBILE}", f"0086{MOBILE}", " 139 1234-5678 "]
)
def test_a_mainland_number_is_eleven_digits_in_any_spelling(name: str, spelt: str) -> None:
    assert MOBILE == parse_receipt(form_with(name, spelt, "mobilephone")).mobile


ODD_NUMBERS = [
    "010-12345678",
    "+852 1234 5678",
    "１３９１２３４５６７８",
    f"{MOBILE},13800138000",
    f"+8613800138000 / {MOBILE}",
    f"+86 (139) 1234.5678;{MOBILE}",
    f"tel:{MOBILE}\r\nERROR forged",
    f"{MOBILE}\u202e",
    MOBILE * 20,
]


@pytest.mark.parametrize(
    "other", ["139****5678", "12345", "0", "<b>", "****", "1" * 5000, *ODD_NUMBERS]
)
def test_another_number_is_kept_as_is(other: str) -> None:
    receipt = parse_receipt(form(mobilephone=f" {other} "))
    assert (other, f" {other} ") == (receipt.mobile, receipt.raw["mobilephone"])
    assert other == parse_receipt(form(mobilephone=other, voiceid=None)).mobile


@pytest.mark.parametrize("none", ["", " ", None])
def test_a_missing_number_is_none(none: str | None) -> None:
    assert parse_receipt(form(mobilephone=none)).mobile is None
    assert MOBILE == parse_receipt(form(mobilephone=none, mobile=MOBILE)).mobile


@pytest.mark.parametrize("code", ["2", "DELIVRD"])
def test_two_codes_mean_delivered(code: str) -> None:
    receipt = parse_receipt(form(code=f" {code}\r\n"))
    assert (True, code, f" {code}\r\n") == (receipt.delivered, receipt.code, receipt.raw["code"])


@pytest.mark.parametrize(
    "code",
    [
        *("0", "-1", "3", "4081", "2.0", "２", "22", "success", "DELIVRD2", "UNDELIV", ""),
        *("DB:0142", "AP:17", "CL26:-37", "MK:0001", "未接听", "a\nb", "\x00", "9" * 5000, MOBILE),
    ],
)
def test_any_other_code_does_not_and_is_kept_as_is(code: str) -> None:
    receipt = parse_receipt(form(code=f" {code} "))
    assert (False, code, f" {code} ") == (receipt.delivered, receipt.code, receipt.raw["code"])


def test_a_missing_code_is_empty() -> None:
    receipt = parse_receipt(form(code=None))
    assert (False, "", "197362477") == (receipt.delivered, receipt.code, receipt.voice_id)


@pytest.mark.parametrize(
    ("at", "spelt"),
    [
        (AT, "2017-08-02 14:31:51"),
        (AT, "2017/8/2 14:31:51"),
        (AT, "2017-08-02T14:31:51"),
        (AT, "2017-08-02  14:31:51\r\n"),
        (AT, "20170802143151"),
        (AT.replace(second=0), "2017-08-02 14:31"),
        (AT.replace(hour=4), "2017-8-2 4:31:51"),
        (None, ""),
        (None, " "),
        (None, None),
        (None, "yesterday"),
        (None, "2017-13-02 14:31:51"),
        (None, "2017-08-02 24:00:00"),
        (None, "0000-01-02 14:31:51"),
        (None, "2017-08-02 14:31:51Z"),
        (None, "1501655511"),
        (None, "２０１７-08-02 14:31:51"),
    ],
)
def test_a_time_is_read_in_unambiguous_spellings(at: datetime | None, spelt: str | None) -> None:
    receipt = parse_receipt(form(report_time=spelt))
    assert (at, spelt) == (receipt.reported_at, receipt.raw.get("report_time"))


@pytest.mark.parametrize(
    ("msg", "came"),
    [("", ""), ("已 送达", " 已 送达\r\n"), ("a INFO b", "a\r\nINFO b"), ("a [2J", "a\x1b[2J")],
)
def test_msg_cannot_control_a_terminal_or_forge_a_log_line(msg: str, came: str) -> None:
    assert msg == parse_receipt(form(msg=came)).msg
    assert "" == parse_receipt(form(msg=None)).msg


@pytest.mark.parametrize("voice_id", [None, "", " ", "0", "000"])
@pytest.mark.parametrize("mobile", [None, "", " "])
def test_a_form_without_id_and_number_is_not_a_receipt(
    voice_id: str | None, mobile: str | None
) -> None:
    given = form(voiceid=voice_id, mobilephone=mobile)
    assert "it has neither an id nor a mobile number: it names no call" == why(given)


@pytest.mark.parametrize("voice_id", ["1 2", "１", "x" * 65, "\x00"])
def test_an_unreadable_id_is_not_a_reason_to_refuse(voice_id: str) -> None:
    receipt = parse_receipt(form(voiceid=voice_id, mobilephone=None))
    assert (None, voice_id) == (receipt.voice_id, receipt.raw["voiceid"])


def test_an_empty_form_is_not_a_receipt() -> None:
    assert "it has neither an id nor a mobile number: it names no call" == why({})


def test_no_frame_that_an_error_passes_shows_a_field() -> None:
    # The test's own frame holds none either.
    with pytest.raises(InvalidReceiptError) as caught:
        parse_receipt({"phone": MOBILE, "code": "2"})
    captured = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    shown = [repr(frame.locals) for frame in captured.stack]
    assert [] == [frame for frame in shown if MOBILE in frame]


def test_the_error_is_a_value_error() -> None:
    assert issubclass(InvalidReceiptError, ValueError)


# --- what forms are made of -------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        FORM,
        MultiDict(FORM),
        FormData(FORM),
        parse_qs(urlencode(FORM)),
        {name: (value,) for name, value in FORM.items()},
        {**FORM, "code": ["1", "2"]},
        dict([*FORM.items(), ("none", None), ("empty", []), (5, "five")]),
    ],
)
def test_a_form_may_come_from_any_framework(given: dict[str, str]) -> None:
    receipt = parse_receipt(given)
    assert parse_receipt(FORM) == receipt
    assert FORM == dict(receipt.raw)


def test_an_uploaded_file_is_ignored() -> None:
    uploaded = UploadFile(io.BytesIO(b"2"), filename="code")
    assert FORM == dict(parse_receipt(FormData({**FORM, "file": uploaded})).raw)


# --- the value --------------------------------------------------------------


def test_neither_the_receipt_nor_its_fields_show_the_number() -> None:
    receipt = parse_receipt(form(msg=f"{MOBILE} 已送达", mobilephone=f"+86{MOBILE}"))
    assert (
        "Receipt(voice_id='197362477', mobile='139****5678', delivered=True, code='2',"
        " msg='139****5678 已送达', reported_at=datetime.datetime(2017, 8, 2, 14, 31, 51,"
        " tzinfo=datetime.timezone(datetime.timedelta(seconds=28800), 'UTC+8')),"
        " raw=<5 fields>)" == repr(receipt)
    )
    assert "code=''" in repr(parse_receipt(form(code=None)))
    assert "mobile=None" in repr(parse_receipt(form(mobilephone=None)))
    assert MOBILE not in f"{receipt}{receipt.raw}{receipt.raw!r}"


@pytest.mark.parametrize("odd", ODD_NUMBERS)
def test_a_number_in_an_odd_spelling_is_not_shown(odd: str) -> None:
    receipt = parse_receipt(form(mobilephone=odd, msg=f"{odd} {MOBILE}", code=f"DB:0142 {odd}"))
    assert "mobile='****'" in repr(receipt)
    assert receipt.log_text().startswith("**** code='DB:0142 ")
    for text in (repr(receipt), receipt.log_text()):
        assert [] == [part for part in (odd, MOBILE, "13800138000", "12345678") if part in text]
        assert "１２３４" not in text
        assert text.isprintable()


@pytest.mark.parametrize(
    "spelt",
    [
        MOBILE,
        f"+86{MOBILE}",
        "139 1234 5678",
        "139-1234-5678",
        "(139) 1234.5678",
        "１３９１２３４５６７８",
        "139１２３４5678",
        "1 3 9 1 2 3 4 5 6 7 8",
        "①③⑨①②③④⑤⑥⑦⑧",
        "١٣٩١٢٣٤٥٦٧٨",
    ],
)
def test_a_number_in_msg_is_not_shown(spelt: str) -> None:
    # Also where the number has no field of its own.
    receipt = parse_receipt(form(mobilephone=None, msg=f"给{spelt}的", code=f"x{spelt}"))
    for text in (repr(receipt), receipt.log_text()):
        assert spelt not in text
        assert "****" in text
    assert "DB:0142" in repr(parse_receipt(form(code="DB:0142", mobilephone="2")))


@pytest.mark.parametrize(
    "odd", ["１３９１２３４５６７８", f"13800138000,{MOBILE}", "139 1234 (5678)"]
)
def test_an_id_does_not_show_the_number_in_any_spelling(odd: str) -> None:
    receipt = parse_receipt(form(mobilephone=odd, voiceid=f"x{MOBILE}"))
    assert "**** code=2 voice_id=x139****5678" == receipt.log_text()
    assert "voice_id='x139****5678'" in repr(receipt)
    # Ids have as many digits as numbers.
    assert "voice_id=15900000000" in parse_receipt(form(voiceid="15900000000")).log_text()


def test_the_number_is_not_shown_in_any_other_field() -> None:
    receipt = parse_receipt(form(voiceid=MOBILE, **{MOBILE: "x"}))
    assert "139****5678 code=2 voice_id=139****5678" == receipt.log_text()
    assert MOBILE not in repr(receipt)


def test_a_receipt_is_read_only_and_can_be_pickled_and_copied() -> None:
    given = dict(FORM)
    receipt = parse_receipt(given)
    given["code"] = "3"
    assert "2" == receipt.raw["code"]
    with pytest.raises(TypeError):
        receipt.raw["code"] = "3"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        receipt.code = "3"  # type: ignore[misc]
    for same in (pickle.loads(pickle.dumps(receipt)), copy.deepcopy(receipt)):
        assert same == receipt
        assert hash(same) == hash(receipt)
    assert dataclasses.asdict(receipt)["raw"] == FORM
    assert 5 == len(receipt.raw)


# --- bodies -----------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "gb18030"])
@pytest.mark.parametrize("quoted", [True, False])
def test_a_body_is_read_in_utf_8_and_in_gbk(encoding: str, quoted: bool) -> None:
    body = urlencode(FORM, encoding=encoding).encode()
    if not quoted:
        # A form written by hand may hold unquoted bytes.
        body = "&".join(f"{k}={v}" for k, v in FORM.items()).encode(encoding)
    assert parse_receipt(FORM) == read(body)


def read(body: bytes) -> Receipt:
    receipt = read_receipt(body)
    assert isinstance(receipt, Receipt)
    return receipt


def test_an_ambiguous_body_is_read_as_utf_8() -> None:
    # "成功" in UTF-8 is also "鎴愬姛" in GBK.
    assert "成功" == read(b"code=2&smsid=7&msg=" + "成功".encode()).msg


def test_the_code_survives_a_msg_that_cannot_be_decoded() -> None:
    receipt = read(b"code=2&smsid=7&msg=ok+%FF%FF")
    assert ("7", "ok \ufffd\ufffd") == (receipt.voice_id, receipt.msg)


def test_the_last_value_of_a_repeated_field_counts() -> None:
    assert "3" == read(b"code=2&smsid=7&code=3").code


def test_a_body_of_very_many_fields_is_not_a_receipt() -> None:
    assert "2" == read(b"code=2&smsid=7" + b"&x=y" * 98).code
    refused = read_receipt(b"code=2&smsid=7" + b"&x=y" * 99)
    assert isinstance(refused, InvalidReceiptError)
    assert "it has more than 100 fields" == str(refused)


# --- anything at all --------------------------------------------------------

NAMES = [*FORM, "smsid", "task_id", "taskid", "mobile", "CODE", " code"]
values = (
    st.text()
    | st.sampled_from([*FORM.values(), "0", "-1", "+86", "20170802143151", "9999-99-99 99:99"])
    | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}")
)


def check(receipt: Receipt) -> None:
    assert receipt.delivered is (receipt.code in ("2", "DELIVRD"))
    assert f"{receipt.msg}{receipt.voice_id}{receipt!r}{receipt.log_text()}".isprintable()
    assert receipt.reported_at is None or receipt.reported_at.tzinfo is not None
    assert receipt.mobile is None or len(receipt.mobile) < 8 or receipt.mobile not in repr(receipt)


@BOUNDED
@given(st.dictionaries(st.text() | st.sampled_from(NAMES), values))
def test_any_mapping_gives_a_receipt_or_the_documented_error(given: dict[str, str]) -> None:
    with suppress(InvalidReceiptError):
        check(parse_receipt(given))
    # With any id it is a receipt, whatever else is in it.
    receipt = parse_receipt({**FORM, **given, "smsid": "7"})
    check(receipt)
    assert {**FORM, **given, "smsid": "7"} == dict(receipt.raw)


@BOUNDED
@given(st.binary(), st.binary())
def test_any_body_gives_a_receipt_or_the_documented_error(head: bytes, tail: bytes) -> None:
    for body in (head, head + b"&code=2&smsid=7&msg=" + tail):
        receipt = read_receipt(body)
        if isinstance(receipt, Receipt):
            check(receipt)
        else:
            assert str(receipt).startswith("it has ")


# --- what it costs to import ------------------------------------------------


@pytest.mark.parametrize("name", ["aiohttp.web", "starlette"])
def test_the_package_imports_no_server(name: str) -> None:
    # Importing what is None in there is an ImportError.
    script = f"import sys; sys.modules[{name!r}] = None; import ihuyi_voice.receipts.handlers"
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
