"""Any bytes in, ours out: a result, a refusal or an unknown outcome, and nothing else."""

from __future__ import annotations

import json
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ihuyi_voice.errors import CODES, GatewayError, OutcomeUnknownError, UnrecognizedCodeError
from ihuyi_voice.models import Answer, SubmitResult
from tests.pure import BOUNDED, DATA, MOBILE, balance_read, submit_read

RECORDED = sorted(path.read_bytes() for path in (DATA / "answers").iterdir())
HIDE = ("recognisable-key", "1125")

statuses = st.sampled_from([200, 200, 200, 204, 302, 404, 500, 502]) | st.integers(100, 599)


def check_refusal(error: GatewayError) -> None:
    assert 2 != error.code
    assert not error.may_have_rung
    assert error.msg.isprintable()
    assert str(error).isprintable()
    unrecognized = error.code not in {*CODES, 40501, 40502}
    assert unrecognized is isinstance(error, UnrecognizedCodeError)
    assert not any(secret in error.msg for secret in HIDE)


def check_unknown(error: OutcomeUnknownError, *, may_have_rung: bool) -> None:
    assert may_have_rung is error.may_have_rung
    assert str(error).isprintable()
    assert error.__cause__ is None
    assert error.__context__ is None


def check(body: bytes, status: int = 200, date: str | None = None) -> None:
    """Both decoders end in one of three ways; any other exception fails the test."""
    answer = Answer(status, body, date)
    try:
        result = submit_read(answer, hide=HIDE)
    except GatewayError as error:
        check_refusal(error)
    except OutcomeUnknownError as error:
        check_unknown(error, may_have_rung=True)
    else:
        assert MOBILE == result.mobile
        assert result.msg.isprintable()
        assert not any(secret in result.msg for secret in HIDE)
        assert result.voice_id is None or result.voice_id.strip("0 ")
        assert result.voice_id not in HIDE
    try:
        balance = balance_read(answer, hide=HIDE)
    except GatewayError as error:
        check_refusal(error)
    except OutcomeUnknownError as error:
        check_unknown(error, may_have_rung=False)
    else:
        assert int is type(balance.remaining)
        assert balance.msg.isprintable()


@pytest.mark.parametrize("body", RECORDED)
def test_every_recorded_answer(body: bytes) -> None:
    check(body)


# --- bytes ------------------------------------------------------------------


@BOUNDED
@given(st.binary(), statuses, st.none() | st.text())
def test_any_bytes(body: bytes, status: int, date: str | None) -> None:
    check(body, status, date)


@BOUNDED
@given(
    st.sampled_from([b"{", b'{"code":', b'{"code":2,', b"<", b"<r><code>", b"<?xml ", b"<!"]),
    st.binary(),
    st.sampled_from([b"", b"}", b'"}', b">", b"</code></r>", b"</r>"]),
)
def test_any_bytes_between_the_marks_of_an_answer(start: bytes, inside: bytes, end: bytes) -> None:
    check(start + inside + end)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A recorded answer with a few slices removed, doubled or replaced."""
    body = draw(st.sampled_from(RECORDED))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 12)))
        middle = draw(
            st.just(b"")
            | st.just(body[start:end] * 2)
            | st.binary(max_size=4)
            | st.sampled_from(
                [
                    *(
                        b'"',
                        b"\\",
                        b"<",
                        b">",
                        b"&",
                        b"{",
                        b"}",
                        b"]]>",
                        b"<![CDATA[",
                        b"<!--",
                        b"0",
                    ),
                    *(b"null", b"true", b"1e999", b"-", b"9" * 30, b"\xff", b"\x00", b"\xc0\x80"),
                    *(b"\\ud800", b"&#0;", b"&#xD800;", b"&lt;", b"&x;", b"<?x?>", b":", b" a=''"),
                ]
            )
        )
        body = body[:start] + middle + body[end:]
    return body


@BOUNDED
@given(mutated(), statuses)
def test_any_mutation_of_a_real_answer(body: bytes, status: int) -> None:
    check(body, status)


# --- both formats, any field ------------------------------------------------

texts = st.text() | st.sampled_from(
    ["2", " 2 ", "0", "", "405", "20023.0", *HIDE, "a" * 40, "\ud800"]
)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**3), 10**4),
    st.integers(-(10**25), 10**25),
    st.floats(),
    texts,
    st.sampled_from([2, "2", *CODES]),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["code", "code", "msg", "voiceid", "smsid", "num"])


@BOUNDED
@given(
    st.dictionaries(names | st.text(), values),
    st.booleans(),
    st.sampled_from(["utf-8", "gb18030", "utf-16"]),
)
@example({"code": 2, "num": float("inf")}, True, "utf-8")
def test_any_json_object(fields: dict[str, Any], ascii_only: bool, encoding: str) -> None:
    text = json.dumps(fields, ensure_ascii=ascii_only)
    check(text.encode(encoding, "replace"))


@BOUNDED
@given(
    st.lists(st.tuples(names | st.sampled_from(["a:code", "x", ":", "code "]), texts)),
    st.sampled_from(["r", "a:r", "SubmitResult xmlns='106.ihuyi.com'"]),
    st.booleans(),
    st.sampled_from(["utf-8", "gb18030", "utf-16"]),
)
def test_any_text_in_xml(
    fields: list[tuple[str, str]], root: str, escaped: bool, encoding: str
) -> None:
    inner = "".join(f"<{n}>{escape(v) if escaped else v}</{n}>" for n, v in fields)
    check(f"<{root}>{inner}</{root.partition(' ')[0]}>".encode(encoding, "replace"))


# --- what is valid is read --------------------------------------------------

plain = st.text(
    st.characters(codec="gb18030", exclude_categories=["C", "Z"]), min_size=1, max_size=20
).filter(lambda text: not text.isascii())


@BOUNDED
@given(plain, st.integers(1, 10**20 - 1), st.sampled_from(["utf-8", "gb18030"]))
def test_any_printable_words_survive_in_both_formats(msg: str, number: int, encoding: str) -> None:
    # A GBK text may by chance be valid UTF-8; the code and the id survive even so.
    as_json = json.dumps({"code": 2, "msg": msg, "voiceid": number}, ensure_ascii=False)
    as_xml = f"<r><code>2</code><msg>{escape(msg)}</msg><voiceid>{number}</voiceid></r>"
    for text in (as_json, as_xml):
        body = text.encode(encoding)
        result = submit_read(Answer(200, body))
        assert str(number) == result.voice_id
        if encoding == "utf-8":
            assert SubmitResult(str(number), msg, MOBILE) == result
