"""What is wrong with a request that no rule judges: one table of texts in two languages."""

from __future__ import annotations

from ihuyi_voice.sandbox.page_files import TEXTS, problem, problem_in, problem_name
from ihuyi_voice.sandbox.server import MAX_BODY_BYTES
from ihuyi_voice.wire import PATH


def test_the_texts_name_what_the_program_has() -> None:
    for language in TEXTS.values():
        assert str(MAX_BODY_BYTES) in language["problem_too_large"]
        assert language["problem_unknown_path"].endswith(PATH)


def test_a_problem_is_found_by_its_english() -> None:
    english = problem("tls")
    assert ("tls", english) == (problem_name(english), problem_in("en", english))
    assert TEXTS["zh"]["problem_tls"] == problem_in("zh", english)
    assert (None, "another") == (problem_name("another"), problem_in("zh", "another"))
