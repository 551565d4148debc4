"""Sphinx's configuration: the reference is made from the docstrings, without any network.

`nox -s docs` builds it. A name that the reference mentions and does not explain is a
warning, and warnings are errors.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from enum import EnumMeta
from typing import TYPE_CHECKING, get_type_hints

from sphinx.pycode import ModuleAnalyzer

import ihuyi_voice
from ihuyi_voice import celery, pytest_plugin, sandbox

if TYPE_CHECKING:
    from types import ModuleType

    from sphinx.application import Sphinx

# The packages whose types our signatures name.
OTHERS = (
    "abc",
    "aiohttp",
    "asyncio",
    "celery",
    "collections",
    "contextlib",
    "datetime",
    "enum",
    "opentelemetry",
    "os",
    "prometheus_client",
    "pytest",
    "_pytest",
    "ssl",
    "types",
    "typing",
    "typing_extensions",
)

project = "ihuyi-voice"
release = version = ihuyi_voice.__version__
html_title = f"ihuyi-voice {release}"
html_theme = "alabaster"
html_theme_options = {
    "description": "Voice-verification calls through iHuyi",
    "page_width": "70em",
    "sidebar_width": "16em",
}
html_show_sourcelink = False
html_copy_source = False

# No part of the reference.
COMMAND = ("__main__", "cli")
# Their constructors' arguments are the package's own business.
MADE_BY_THE_PACKAGE = (
    "ihuyi_voice.BulkRun",
    "ihuyi_voice.BlockingBulkRun",
    "ihuyi_voice.receipts.handlers.ReceiptApp",
)

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The texts beside the reference are Markdown, to be read as they are.
exclude_patterns = ["*.md", "_build"]
default_role = "code"
maximum_signature_line_length = 88
nitpicky = True
nitpick_ignore_regex = [
    # Other packages are explained in their own references, which are not asked: no network.
    (r"py:.*", rf"({'|'.join(OTHERS)})\..*"),
]

autoclass_content = "class"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def _modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(ihuyi_voice.__path__, "ihuyi_voice.")
    names = (it.name for it in found)
    return [importlib.import_module(it) for it in names if it.split(".")[1] not in COMMAND]


def _for_type_checkers(module: ModuleType) -> list[ast.stmt]:
    """What the module imports and defines for type checkers alone."""
    return [
        _evaluated(statement)
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
    ]


def _evaluated(statement: ast.stmt) -> ast.stmt:
    """Define an alias as its type, not as a text that other modules cannot read."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant):
        statement.value = ast.parse(str(statement.value.value), mode="eval").body
    return ast.fix_missing_locations(statement)


def _make_annotations_resolve() -> None:
    """Run those statements in their modules: annotations name what they import."""
    left = [(module, it) for module in _modules() for it in _for_type_checkers(module)]
    while left:
        waiting = []
        for module, statement in left:
            code = compile(ast.Module([statement], []), str(module.__file__), "exec")
            try:
                exec(code, module.__dict__)  # noqa: S102 - the package's own statements
            except (ImportError, NameError):
                # It needs what such a statement of another module defines.
                waiting.append((module, statement))
        if len(waiting) == len(left):
            names = [f"{module.__name__}: {ast.unparse(it)}" for module, it in waiting]
            msg = f"these cannot be imported: {names}"
            raise ImportError(msg)
        left = waiting


def _defines(module: ModuleType, thing: type) -> bool:
    tree = ast.parse(inspect.getsource(module))
    return any(isinstance(it, ast.ClassDef) and it.name == thing.__name__ for it in tree.body)


def _resolve_fields() -> None:
    """Resolve the annotations of classes where they are defined: they show another module."""
    for module in _modules():
        for name, thing in vars(module).items():
            if name.startswith("_"):
                continue
            if inspect.isclass(thing) and thing.__module__.startswith("ihuyi_voice"):
                fields = vars(thing).get("__annotations__")
                if fields and _defines(module, thing):
                    hints = get_type_hints(thing, vars(module))
                    thing.__annotations__ = {field: hints[field] for field in fields}


def _as_rest(
    _app: Sphinx, what: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """Show an indented paragraph as it is, and read no type from the text of an attribute."""
    # An escaped end of line, which shows as nothing.
    text = ["\\"] if what in {"attribute", "data", "property"} else []
    margin = ""
    for number, line in enumerate(lines):
        is_first = line.startswith("    ") and number and not lines[number - 1]
        if is_first and not margin.startswith(" "):
            text += ["::", ""]
        text.append(line)
        margin = line or margin
    lines[:] = text


def _without_constructor(
    _app: Sphinx, _what: str, name: str, thing: object, *_: object
) -> tuple[str, str] | None:
    """Show no arguments of a class that only the package calls."""
    return ("", "") if name in MADE_BY_THE_PACKAGE or isinstance(thing, EnumMeta) else None


def _name_publicly() -> None:
    """Let each class show the module from which a program imports it."""
    for name in ihuyi_voice.__all__:
        # The package does so itself, at the first use of a name.
        getattr(ihuyi_voice, name)
    for package in (celery, sandbox):
        for name in package.__all__:
            getattr(package, name).__module__ = package.__name__


def _read_sources() -> None:
    """Let Sphinx find the order of members, and the texts below them, in the public modules.

    It looks for them in the source of the module that a class shows as its own.
    """
    public = [ModuleAnalyzer.for_module(it.__name__) for it in (ihuyi_voice, celery, sandbox)]
    for analyzer in public:
        analyzer.analyze()
    for module in _modules():
        private = ModuleAnalyzer.for_module(module.__name__)
        private.analyze()
        for analyzer in public:
            analyzer.attr_docs.update(private.attr_docs)
            analyzer.tagorder.update(private.tagorder)


def setup(app: Sphinx) -> None:
    """Connect the functions above to Sphinx; before napoleon, which has the priority 500."""
    app.connect("autodoc-process-docstring", _as_rest, priority=400)
    app.connect("autodoc-process-signature", _without_constructor)


_make_annotations_resolve()
_resolve_fields()
_name_publicly()
_read_sources()
# A fixture is an object of pytest's; the function in it has docstring and annotations.
for name in ("voice_gateway", "voice_client"):
    setattr(pytest_plugin, name, getattr(pytest_plugin, name).__wrapped__)
