"""The package's public names, which come with the first use of one of them."""

from __future__ import annotations

import ast
import inspect
import pickle
import subprocess
import sys

import pytest

import ihuyi_voice
from ihuyi_voice import NotSentError, errors


def run(script: str, *given: str) -> str:
    """What a new interpreter prints, in which nothing has been imported yet."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *given],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def test_every_public_name_is_one_that_type_checkers_see() -> None:
    tree = ast.parse(inspect.getsource(ihuyi_voice))
    seen = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert {*ihuyi_voice.__all__} == seen | {"__version__"}


# The other names are those of values.
NAMED = sorted({*ihuyi_voice.__all__} - {"RECEIPT_REPLY", "__version__"})


@pytest.mark.parametrize("names", [NAMED, NAMED[::-1]], ids=["in order", "in reverse"])
def test_a_public_name_shows_the_package_as_its_module(names: list[str]) -> None:
    """Whichever is used first and brings its module."""
    script = (
        "import ihuyi_voice, sys\n"
        "for name in sys.argv[1:]:\n"
        "    it = getattr(ihuyi_voice, name); print(it.__name__, it.__module__)"
    )
    assert "".join(f"{name} ihuyi_voice\n" for name in names) == run(script, *names)


def test_all_names_can_be_taken_at_once() -> None:
    script = (
        "from ihuyi_voice import *; import ihuyi_voice;"
        " print(*set(ihuyi_voice.__all__) - {*globals()})"
    )
    assert "\n" == run(script)


@pytest.mark.measures_processes
def test_all_names_are_listed_before_they_are_used() -> None:
    script = (
        "import ihuyi_voice, sys; print({*ihuyi_voice.__all__} <= {*dir(ihuyi_voice)},"
        " 'aiohttp' in sys.modules)"
    )
    assert "True False\n" == run(script)


def test_any_other_name_is_an_attribute_error_that_imports_nothing() -> None:
    with pytest.raises(AttributeError, match=r"^module 'ihuyi_voice' has no attribute 'nothing'$"):
        ihuyi_voice.nothing  # type: ignore[attr-defined] # noqa: B018
    script = (
        "import ihuyi_voice, sys; print(hasattr(ihuyi_voice, 'nothing'), 'aiohttp' in sys.modules)"
    )
    assert "False False\n" == run(script)


def test_an_error_can_be_unpickled_where_nothing_is_imported_yet() -> None:
    error = NotSentError("no slot")
    script = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])))"
    assert f"{error}\n" == run(script, pickle.dumps(error).hex())
    # Pickled by a process that imported only the submodule.
    written = run(
        "import pickle; from ihuyi_voice.errors import NotSentError as E;"
        " print(pickle.dumps(E('no slot')).hex())"
    )
    read = pickle.loads(bytes.fromhex(written))
    assert errors.NotSentError is NotSentError is type(read)
