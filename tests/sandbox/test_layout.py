"""What the modules of the sandbox import: no client, no cycle, and the rules nothing impure."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from ihuyi_voice import sandbox

MODULES = {path.stem: path for path in Path(sandbox.__file__).parent.glob("*.py")}


def imported(module: str) -> set[str]:
    """Everything that a module imports, for type checkers too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def test_the_rules_know_no_loop_no_socket_and_no_clock() -> None:
    ours = {f"ihuyi_voice.{name}" for name in ("errors", "models", "wire")}
    ours |= {".settings", ".faults", ".history", ".masking", ".reasons"}
    pure = {"__future__", "collections.abc", "dataclasses", "functools", "itertools", "re"}
    written = {"hashlib", "orjson", "typing", "urllib.parse", "xml.sax.saxutils"}
    used = set().union(*map(imported, ("rules", "reasons", "masking", "received")))
    assert ours | pure | written == used


def test_the_sandbox_knows_the_code_table_and_the_wire_but_no_client() -> None:
    names = set().union(*map(imported, MODULES))
    ours = {name for name in names if name.startswith(("ihuyi_voice", ".."))}
    below = {"ihuyi_voice._limits", "ihuyi_voice.errors", "ihuyi_voice.models"}
    assert below | {"ihuyi_voice.wire"} == ours


def test_the_sandbox_has_no_import_cycle() -> None:
    """Nor one that only type checkers see: the sorter raises for either."""
    graph = {
        module: {name[1:] for name in imported(module) if name.startswith(".")}
        for module in MODULES
    }
    assert set(MODULES) == set(TopologicalSorter(graph).static_order())
