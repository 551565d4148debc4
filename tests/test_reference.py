"""The sources of the reference name every public name; `nox -s docs` makes the reference."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import ihuyi_voice
from ihuyi_voice import receipts

DOCS = Path(__file__).parents[1] / "docs"
DIRECTIVE = re.compile(
    r"^\.\. (?:(currentmodule)|auto(?:class|data|exception|function)|py:(?:class|data)):: (\S+)",
    re.MULTILINE,
)


def explained() -> set[str]:
    """The names, each with its module, that the sources say to explain."""
    names = set()
    for page in DOCS.glob("*.rst"):
        module = ""
        for is_module, name in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if is_module:
                module = name
            else:
                names.add(name if name.startswith("ihuyi_voice.") else f"{module}.{name}")
    return names


@pytest.mark.parametrize("module", ["", ".celery", ".pytest_plugin", ".sandbox"])
def test_the_reference_explains_each_public_name(module: str) -> None:
    public = import_module(f"ihuyi_voice{module}").__all__
    assert set() == {f"ihuyi_voice{module}.{name}" for name in public} - explained()


def test_the_reference_explains_the_gateway_for_tests_and_the_adapters() -> None:
    assert {
        "ihuyi_voice.testing.VoiceGateway",
        "ihuyi_voice.adapters.prometheus.PrometheusEvents",
        "ihuyi_voice.adapters.opentelemetry.OpenTelemetryEvents",
        "ihuyi_voice.adapters.structlog.StructlogEvents",
    } <= explained()


def test_the_names_of_receipts_are_those_of_the_package() -> None:
    """So the reference explains them there."""
    assert set() == set(receipts.__all__) - set(ihuyi_voice.__all__)
    for name in receipts.__all__:
        assert getattr(receipts, name) is getattr(ihuyi_voice, name)


def test_each_page_is_in_the_table_of_contents() -> None:
    contents = (DOCS / "index.rst").read_text(encoding="utf-8").partition("toctree::")[2]
    pages = {page.stem for page in DOCS.glob("*.rst")} - {"index"}
    assert pages == set(re.findall(r"^   (\w+)$", contents, re.MULTILINE))
