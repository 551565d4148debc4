"""Which module may import which: the arrows of the package, read from its imports.

Imports for type checkers count too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ihuyi_voice

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "ihuyi_voice"
FOLDER = Path(ihuyi_voice.__file__).parent

# Room: its modules and subpackages, and the rooms below it. A module may import those listed
# before it in its room, and all of the rooms below. A new module needs its place here.
ROOMS: dict[str, tuple[list[str], list[str]]] = {
    "basis": (["_limits", "_threads", "_loops", "_cancellation", "_extras"], []),
    "protocol": (["errors", "_advice", "models", "events", "wire"], ["basis"]),
    "transport": (["transport", "request_log"], ["protocol"]),
    "store": (["store", "quota", "_reservations"], ["transport"]),
    "client": (["_pipeline", "bulk", "_options", "client"], ["store"]),
    "sync": (["sync"], ["client"]),
    "verification": (["verification", "adapters"], ["sync"]),
    "operation": (["balance", "celery"], ["sync"]),
    "receipts": (["receipts"], ["protocol"]),
    "package": (["__init__"], ["verification", "operation", "receipts"]),
    "sandbox": (["sandbox"], ["protocol"]),
    "testing": (["testing", "pytest_plugin"], ["sync", "sandbox"]),
    "command": (["cli", "__main__"], ["package", "sandbox"]),
}

MODULES = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts): path for path in FOLDER.rglob("*.py")
}

CLOCKS_AND_IO = {
    "aiohttp",
    "anyio",
    "asyncio",
    "datetime",
    "io",
    "logging",
    "os",
    "pathlib",
    "selectors",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
}

ONLY_FOR_SOME = {
    "ihuyi_voice.cli.app",
    "ihuyi_voice.cli.demo",
    "ihuyi_voice.sandbox",
    "rich",
    "typer",
    "uvloop",
    "xmltodict",
}


def part_of(module: str) -> str:
    """The module or subpackage at the top of the package that this module belongs to."""
    return module.partition(".")[0]


PARTS = {part for parts, _ in ROOMS.values() for part in parts}


def in_and_under(room: str) -> set[str]:
    parts, below = ROOMS[room]
    return {*parts}.union(*(in_and_under(lower) for lower in below))


def allowed(part: str) -> set[str]:
    """The part itself, those before it in its room, and everything under the room."""
    parts, below = next(room for room in ROOMS.values() if part in room[0])
    before = parts[: parts.index(part) + 1]
    return {*before}.union(*(in_and_under(lower) for lower in below))


def imports(source: str, module: str) -> Iterator[tuple[str, bool]]:
    """Every module that is imported, by its full name, and whether at run time."""
    tree = ast.parse(source)
    for_checkers = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for statement in test.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for name in names_imported(node, module):
            yield name, id(node) not in for_checkers


def names_imported(node: ast.AST, module: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    # The path of the package that the dots start from.
    here = [PACKAGE, *module.split(".")][: -node.level] if node.level else []
    origin = ".".join([*here, *([node.module] if node.module else [])])
    # What is taken may be a module itself, or a name in the one it is taken from.
    taken = [f"{origin}.{alias.name}" for alias in node.names]
    return [name if is_ours(name) else origin for name in taken]


def is_ours(name: str) -> bool:
    local = name.removeprefix(f"{PACKAGE}.")
    return local != name and (local in MODULES or part_of(local) == local in PARTS)


def parts_imported(source: str, module: str) -> Iterator[str]:
    for name, _ in imports(source, module):
        if name.partition(".")[0] == PACKAGE:
            local = name.removeprefix(PACKAGE).removeprefix(".")
            yield part_of(local) or "__init__"


def backward_arrows(source: str, module: str) -> set[str]:
    return set(parts_imported(source, module)) - allowed(part_of(module))


def run_time_imports(module: str) -> set[str]:
    """The top-level packages that a module of ours imports when it runs."""
    source = MODULES[module].read_text(encoding="utf-8")
    return {name.partition(".")[0] for name, at_run_time in imports(source, module) if at_run_time}


def test_every_module_has_its_room() -> None:
    assert PARTS == {part_of(module) for module in MODULES}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_arrow_runs_backwards(module: str) -> None:
    assert set() == backward_arrows(MODULES[module].read_text(encoding="utf-8"), module)


def test_only_modules_that_speak_http_import_aiohttp() -> None:
    names = ("connection", "control_api", "receipt_delivery", "server")
    sandbox = {f"sandbox.{name}" for name in names}
    names = ("aiohttp", "connector", "request", "resolver")
    ours = {"receipts.handlers", *(f"transport.{name}" for name in names)}
    assert ours | sandbox == {module for module in MODULES if "aiohttp" in run_time_imports(module)}


def test_the_shared_part_of_the_transports_knows_no_aiohttp_even_for_type_checkers() -> None:
    source = MODULES["transport.base"].read_text(encoding="utf-8")
    imported = {name for name, _ in imports(source, "transport.base")}
    assert "ihuyi_voice.models" in imported
    assert [] == [name for name in imported if "aiohttp" in name or "connector" in name]


@pytest.mark.parametrize(
    "module", ["errors", "wire", "sandbox.rules", "sandbox.history", "sandbox.guard"]
)
def test_pure_modules_have_no_clock_and_no_io(module: str) -> None:
    assert set() == run_time_imports(module) & CLOCKS_AND_IO


def imported_by(statement: str) -> set[str]:
    """Every module that a new interpreter has imported after the statement."""
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_of_it() -> None:
    imported = imported_by("import ihuyi_voice")
    assert {"ihuyi_voice"} == {name for name in imported if name.startswith(PACKAGE)}
    assert set() == imported & {"aiohttp", "anyio", "asyncio", "orjson"}


def test_using_the_package_imports_nothing_that_only_some_need() -> None:
    imported = imported_by("from ihuyi_voice import AsyncVoiceClient")
    assert {"aiohttp", "ihuyi_voice.client"} <= imported
    assert set() == imported & ONLY_FOR_SOME


def test_importing_receipts_imports_no_server_and_no_client() -> None:
    imported = imported_by("import ihuyi_voice.receipts.handlers")
    assert "ihuyi_voice.receipts.parsing" in imported
    assert set() == imported & {"aiohttp", "anyio", "asyncio", "orjson", "starlette"}


@pytest.mark.parametrize(
    ("backward", "module", "source"),
    [
        ({"models"}, "errors", "from .models import Balance"),
        ({"models"}, "errors", "from . import models"),
        ({"models"}, "errors", "if TYPE_CHECKING:\n    from .models import Outcome"),
        ({"client"}, "wire", "import ihuyi_voice.client"),
        ({"client"}, "wire", "from ihuyi_voice.client import AsyncVoiceClient"),
        ({"client"}, "wire", "def f():\n    from .client import AsyncVoiceClient"),
        ({"wire"}, "errors", "if TYPE_CHECKING:\n    from .wire import FormEncoder"),
        ({"sync"}, "client", "if TYPE_CHECKING:\n    from .sync.client import VoiceClient"),
        ({"quota"}, "store.guard", "from ..quota import RecipientQuota"),
        ({"__init__"}, "client", "from . import __version__"),
        ({"__init__"}, "client", "import ihuyi_voice"),
        ({"__init__"}, "sandbox.server", "from ihuyi_voice import AsyncVoiceClient"),
        ({"client"}, "sandbox.server", "from ..client import AsyncVoiceClient"),
        ({"client"}, "sandbox.server", "from .. import client"),
        ({"sandbox"}, "__init__", "from .sandbox import SandboxGateway"),
        ({"cli", "sandbox"}, "sync.client", "from .. import cli, sandbox"),
    ],
)
def test_an_arrow_that_runs_backwards_is_seen(backward: set[str], module: str, source: str) -> None:
    assert backward == backward_arrows(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("client", "from .wire import sign_submit"),
        ("models", "if TYPE_CHECKING:\n    from .errors import BulkReport"),
        ("client", "import asyncio, aiohttp.web"),
        ("sandbox.server", "from .rules import JSON"),
        ("sandbox.server", "from . import settings as check"),
        ("sandbox.server", "from ihuyi_voice.wire import PATH"),
        ("cli.app", "from .. import __version__"),
        ("cli.app", "from ..sandbox import SandboxGateway"),
    ],
)
def test_an_arrow_that_runs_forwards_is_allowed(module: str, source: str) -> None:
    assert set() == backward_arrows(source, module)


def test_an_import_for_type_checkers_differs_from_one_at_run_time() -> None:
    source = "import typing\nif TYPE_CHECKING:\n    import aiohttp\nelse:\n    import ssl"
    assert {("typing", True), ("aiohttp", False), ("ssl", True)} == set(imports(source, "wire"))


@pytest.mark.parametrize("parts", [("errors", "models", "wire"), ("sandbox",), ("transport",)])
def test_modules_form_no_cycle(parts: tuple[str, ...]) -> None:
    graph = {
        f"{PACKAGE}.{module}": {name for name, _ in imports(path.read_text("utf-8"), module)}
        for module, path in MODULES.items()
        if part_of(module) in parts
    }
    assert len(graph) > 2
    TopologicalSorter(graph).prepare()
