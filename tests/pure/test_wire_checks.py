"""What is let through to the gateway, and that a refusal does not show what it refuses."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import traceback
from typing import Any, NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ihuyi_voice import wire
from ihuyi_voice.errors import InvalidRequestError
from ihuyi_voice.models import mask_mobile
from ihuyi_voice.store.entry import check_key
from ihuyi_voice.wire import check_content, normalize_mobile
from tests.pure import BOUNDED, MOBILE


class Text(str):
    """A str that says something else when it is asked."""

    __slots__ = ()

    def __str__(self) -> str:
        return "else"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return "else"


class Lying(str):
    """A str whose methods cannot be trusted."""

    __slots__ = ()

    def _fail(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError

    __len__ = __iter__ = __str__ = __repr__ = __format__ = __eq__ = __hash__ = __contains__ = _fail
    isascii = isdigit = strip = removeprefix = startswith = encode = __getitem__ = _fail


class Lazy:
    """Pretends to be a str, as Django's lazy objects do, and is none."""

    __class__ = str  # type: ignore[assignment]

    def __init__(self, value: str) -> None:
        self.value = value

    def __str__(self) -> str:
        return self.value

    def __len__(self) -> int:
        return len(self.value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.value, name)


class Hostile:
    """An object that cannot be shown, compared or measured."""

    def _fail(self, *_: object) -> NoReturn:
        raise RuntimeError

    __repr__ = __str__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = _fail


def test_the_doubles_above_do_what_they_say() -> None:
    assert "else else 'else'" == f"{Text(MOBILE)} {Text(MOBILE)!s} {str(Text(MOBILE))!r}"
    for use in (repr, str, hash, bool, len, iter):
        with pytest.raises(RuntimeError):
            use(Hostile())


# --- mobile -----------------------------------------------------------------


@pytest.mark.parametrize(
    "mobile",
    [
        MOBILE,
        "139 1234 5678",
        "139-1234-5678",
        " 13912345678 ",
        "13912345678\n",
        "13912345678\r\n",
        "\t139\u00a01234\u30005678",
        "1-3-9-1-2-3-4-5-6-7-8",
        "+8613912345678",
        "+86 139 1234 5678",
        "+86-139-1234-5678",
        "+ 86 139 1234 5678",
        "008613912345678",
        "00 86 13912345678",
        "8613912345678",
        "86-13912345678",
        Text(MOBILE),
        Text("+86 139-1234-5678"),
        Text("139-1234-5678"),
    ],
)
def test_blanks_hyphens_and_the_country_code_are_stripped(mobile: str) -> None:
    checked = normalize_mobile(mobile)

    assert MOBILE == checked
    assert str is type(checked)


@pytest.mark.parametrize("second", "3456789")
def test_every_mainland_range_is_taken(second: str) -> None:
    assert f"1{second}000000000" == normalize_mobile(f"1{second}000000000")


WRONG_MOBILES = [
    ("", "it is empty"),
    (" - ", "it is empty"),
    ("\n", "it is empty"),
    ("12012345678", "its first two digits are not those of a mobile number"),
    ("10012345678", "its first two digits are not those of a mobile number"),
    ("23912345678", "its first two digits are not those of a mobile number"),
    ("01234567890", "its first two digits are not those of a mobile number"),
    ("1391234567", "it has 10 digits"),
    ("139123456789", "it has 12 digits"),
    ("8612345678901", "it has 13 digits"),
    ("868613912345678", "it has 15 digits"),
    ("+868613912345678", "it has 15 digits"),
    ("0013912345678", "it has 13 digits"),
    ("13912345678 13912345679", "it has 22 digits"),
    ("+13912345678", "its country code is not 86"),
    ("+1 212 555 0123", "its country code is not 86"),
    ("+852 9123 4567", "its country code is not 86"),
    ("+1391234567", "its country code is not 86"),
    ("１３９１２３４５６７８", "digits that are not ASCII: write them as 0-9"),
    ("139１２３４５678", "digits that are not ASCII: write them as 0-9"),
    ("١٣٩١٢٣٤٥٦٧٨", "digits that are not ASCII: write them as 0-9"),
    ("1391234567²", "digits that are not ASCII: write them as 0-9"),
    ("＋8613912345678", "it has characters other than digits"),
    ("++8613912345678", "it has characters other than digits"),
    ("+", "it has characters other than digits"),
    ("1391234567a", "it has characters other than digits"),
    ("139.1234.5678", "it has characters other than digits"),
    ("(139)12345678", "it has characters other than digits"),
    ("139–1234–5678", "it has characters other than digits"),
    ("13912345678\x00", "it has characters other than digits"),
    ("13912345678&format=xml", "it has characters other than digits"),
    ("139\u200b12345678", "it has characters other than digits"),
    ("139123456七八", "it has characters other than digits"),
    *(
        (f"13912345678{separator}13912345679", "submit once per number")
        for separator in ",;，；、|/"
    ),
    ("13912345678, 13912345679", "submit once per number"),
]


@pytest.mark.parametrize(("mobile", "why"), WRONG_MOBILES)
def test_another_mobile_is_refused_saying_why(mobile: str, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^mobile must be a mainland .*{why}"):
        normalize_mobile(mobile)


@pytest.mark.parametrize(
    "mobile",
    [None, 13912345678, 13912345678.0, True, MOBILE.encode(), [MOBILE], (MOBILE,), {MOBILE: 1}],
)
def test_a_mobile_that_is_no_str_is_refused_by_its_type(mobile: object) -> None:
    expected = f"^mobile must be a str with one number, not {type(mobile).__name__}; submit once"
    with pytest.raises(InvalidRequestError, match=expected):
        normalize_mobile(mobile)


# --- content ----------------------------------------------------------------


@pytest.mark.parametrize("content", ["1125", "0000", "00042", "012345", "999999", Text("0042")])
def test_four_to_six_digits_are_taken_as_they_are(content: str) -> None:
    checked = check_content(content)

    assert str.__str__(content) == checked
    assert str is type(checked)


WRONG_CONTENTS = [
    ("", "it is empty"),
    ("123", "it has 3"),
    ("1234567", "it has 7"),
    ("１１２５", "digits that are not ASCII: write them as 0-9"),
    ("112５", "digits that are not ASCII: write them as 0-9"),
    ("١١٢٥", "digits that are not ASCII: write them as 0-9"),
    ("112²", "digits that are not ASCII: write them as 0-9"),
    ("1125\n", "it has characters other than digits"),
    ("1125\r\n", "it has characters other than digits"),
    ("\n1125", "it has characters other than digits"),
    (" 1125", "it has characters other than digits"),
    ("1125 ", "it has characters other than digits"),
    ("11 25", "it has characters other than digits"),
    ("+1125", "it has characters other than digits"),
    ("-1125", "it has characters other than digits"),
    ("112.5", "it has characters other than digits"),
    ("abcd", "it has characters other than digits"),
    ("1125\x00", "it has characters other than digits"),
    ("1125&mobile=13912345679", "it has characters other than digits"),
    ("一一二五", "it has characters other than digits"),
    (Text("1125\n"), "it has characters other than digits"),
]


@pytest.mark.parametrize(("content", "why"), WRONG_CONTENTS)
def test_another_content_is_refused_saying_why(content: str, why: str) -> None:
    with pytest.raises(
        InvalidRequestError, match=rf"^content must be a str of 4-6 digits; .*{why}$"
    ):
        check_content(content)


@pytest.mark.parametrize("content", [1125, 42, 0, -1125, True])
def test_an_int_is_refused_for_its_leading_zeros(content: object) -> None:
    expected = rf"^content must .*, not {type(content).__name__}: an int loses leading zeros"
    with pytest.raises(InvalidRequestError, match=expected):
        check_content(content)


@pytest.mark.parametrize("content", [None, 1125.0, b"1125", ["1125"], ("1", "1", "2", "5")])
def test_a_content_that_is_no_str_is_refused_by_its_type(content: object) -> None:
    expected = rf"^content must be a str of 4-6 digits, not {type(content).__name__}$"
    with pytest.raises(InvalidRequestError, match=expected):
        check_content(content)


# --- what is nearly a str ---------------------------------------------------


def test_the_doubles_of_a_str_do_what_they_say() -> None:
    assert isinstance(Lazy(MOBILE), str)
    assert (MOBILE, 11, True) == (str(Lazy(MOBILE)), len(Lazy(MOBILE)), Lazy(MOBILE).isdigit())
    with pytest.raises(TypeError):
        re.fullmatch("", Lazy(MOBILE))  # type: ignore[call-overload]
    with pytest.raises(RuntimeError):
        Lying("1").isdigit()


def test_a_str_is_read_by_what_it_holds_whatever_its_methods_say() -> None:
    assert MOBILE == normalize_mobile(Lying("+86 139-1234-5678"))
    assert "0042" == check_content(Lying("0042"))
    assert "order-7" == check_key(Lying("order-7"))
    for value in (
        normalize_mobile(Lying(MOBILE)),
        check_content(Lying("0042")),
        check_key(Lying("k")),
    ):
        assert str is type(value)


@pytest.mark.parametrize("value", ["", "1", "1234567", "１１２５", "a", "+1", "1,2"])
def test_a_wrong_str_is_refused_whatever_its_methods_say(value: str) -> None:
    for check in (normalize_mobile, check_content):
        with pytest.raises(InvalidRequestError):
            check(Lying(value))


def test_a_lazy_string_is_refused_by_its_real_type() -> None:
    for check, value in ((normalize_mobile, MOBILE), (check_content, "1125"), (check_key, "key")):
        with pytest.raises(InvalidRequestError, match=r"must be a str.*, not Lazy"):
            check(Lazy(value))


@pytest.mark.parametrize("check", [normalize_mobile, check_content])
def test_a_refusal_is_raised_where_the_value_is_not_at_hand(check: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check("1391234567890735１")
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(caught.value.__traceback__)][1:]
    assert 1 == len(frames)
    assert "1391234567890735" not in repr(frames)


# --- refusals show nothing --------------------------------------------------


def shown(error: BaseException) -> str:
    return f"{error}{error!r}{error.args}{vars(error)}{pickle.dumps(error)!r}"


@pytest.mark.parametrize("mobile", [*(m for m, _ in WRONG_MOBILES if len(m) > 3), [MOBILE]])
def test_a_refused_mobile_is_not_shown(mobile: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        normalize_mobile(mobile)
    assert not re.search(r"\d{4}", shown(caught.value))
    assert str(mobile) not in shown(caught.value)


@pytest.mark.parametrize("content", [*(c for c, _ in WRONG_CONTENTS if c), ["1125"], 11.25, 1125])
def test_a_refused_content_is_not_shown(content: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_content(content)
    assert "1125" not in shown(caught.value)
    if len(str(content)) > 3:
        assert str(content) not in str(caught.value)


def check_shows_nothing(error: InvalidRequestError) -> None:
    # No four digits in a row, but for those of the advice to an int.
    assert not re.search(r"[0-9]{4}", str(error).replace("'0042'", ""))


# --- whatever comes in ------------------------------------------------------

number_like = st.text(alphabet="0123456789+- \n１２３９,", max_size=16)
objects: st.SearchStrategy[Any] = st.one_of(
    st.text(),
    number_like,
    number_like.map(Text),
    st.from_regex(r"(\+86|0086|86)?[ -]?1[2-9][0-9]{9}\n?", fullmatch=True),
    st.from_regex(r"1[3-9]\d{9}"),
    st.from_regex(r"[0-9]{3,7}\n?", fullmatch=True),
    st.from_regex(r"\d{3,7}"),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.binary(),
    st.lists(st.text()),
    st.tuples(st.text()),
    st.dictionaries(st.text(), st.text()),
    st.frozensets(st.integers()),
    st.builds(object),
    st.just(Hostile),
)


@pytest.mark.parametrize("check", [normalize_mobile, check_content])
def test_an_object_that_cannot_even_be_shown_is_refused_too(check: Any) -> None:
    with pytest.raises(InvalidRequestError, match="not Hostile"):
        check(Hostile())


@BOUNDED
@given(objects)
@example(MOBILE)
def test_what_normalize_mobile_takes_is_strict_and_all_else_is_refused(value: Any) -> None:
    try:
        checked = normalize_mobile(value)
    except InvalidRequestError as error:
        check_shows_nothing(error)
    else:
        assert str is type(checked)
        assert re.fullmatch(r"1[3-9][0-9]{9}", checked)
        assert checked == normalize_mobile(checked)


@BOUNDED
@given(objects)
@example("0042")
def test_what_check_content_takes_is_strict_and_all_else_is_refused(value: Any) -> None:
    try:
        checked = check_content(value)
    except InvalidRequestError as error:
        check_shows_nothing(error)
    else:
        assert str is type(checked)
        assert re.fullmatch(r"[0-9]{4,6}", checked)
        assert checked == str.__str__(value)


@BOUNDED
@given(
    st.sampled_from(["", "86", "+86", "0086", " +86 ", "86-"]),
    st.from_regex(r"1[3-9][0-9]{9}", fullmatch=True),
    st.lists(st.sampled_from(["", " ", "-", "\u3000", "\r\n"]), min_size=11, max_size=11),
)
def test_every_spelling_of_a_number_is_that_number(
    prefix: str, mobile: str, between: list[str]
) -> None:
    spelled = prefix + "".join(map("".join, zip(mobile, between, strict=True)))
    assert mobile == normalize_mobile(spelled)


# --- purity -----------------------------------------------------------------


def imported_roots(module: Any) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            roots.add(f".{source}" if node.level else source.partition(".")[0])
    return roots


def test_the_wire_is_pure() -> None:
    # Neither loop nor clock nor I/O: time is an argument, bytes come in and go out.
    allowed = {
        "__future__",
        "collections",
        "contextlib",
        "email",
        "functools",
        "hashlib",
        "re",
        "typing",
        "unicodedata",
        "urllib",
        "xml",
    }
    ours = {".errors", ".models"}
    assert set() == imported_roots(wire) - allowed - ours - {"orjson", "xmltodict"}


@pytest.mark.parametrize(
    ("expected", "mobile"),
    [
        ("139****5678", MOBILE),
        ("****", "+86 13912345678"),
        ("****", "１３９12345678"),
        ("****", ""),
        ("****", 13912345678),
    ],
)
def test_a_masked_number_hides_what_is_not_a_number(expected: str, mobile: Any) -> None:
    assert expected == mask_mobile(mobile)
