"""The checks, each in a separate environment: `nox`, or `nox -s lint`.

`.ci/run` runs all of them. All packages come from a Python package index;
nothing else is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True
# On a developer's machine a Python may be missing; where CI runs, none may.
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))

HERE = Path(__file__).parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
PROJECT = PYPROJECT["project"]
PYTHONS = nox.project.python_versions({"project": PROJECT})

# The lowest typer depends on click; newer releases of click warn about what that
# typer imports, and warnings are errors. Users have no such bound.
BESIDE_THE_LOWEST = ("click==8.2.1",)

# The extras whose lowest versions `lowest` installs.
PINNED_EXTRAS = (
    "cli",
    "store",
    "postgresql",
    "mysql",
    "redis",
    "prometheus",
    "opentelemetry",
    "structlog",
    "speed",
)

SOURCES = ("ihuyi_voice", "tests", "benchmarks")

# What the tests read besides the package.
READ_BY_TESTS = (
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "README.zh-CN.md",
    "docs",
    "pyproject.toml",
    "tests",
)

# On the newest Python every test runs, once: the README's command and `coverage_rest`. The
# other sessions run what their versions can break.

# A Python in between differs from the lowest and the newest in its standard library's asyncio,
# threads, sockets, TLS, SQLite and shutdown. What meets these on real sockets, threads and
# processes runs on it, once. What a run, a client or a store decides, the quota, parsers, the
# command line and the sandbox are the same code on each Python, and a fault of the language
# itself shows on the lowest or the newest too.
TELLS_PYTHONS_APART = tuple(
    f"tests/{name}"
    for name in (
        "transport/test_another_transport.py",
        "transport/test_limits.py",
        "transport/test_phases.py",
        "transport/test_resolver.py",
        "transport/test_reuse.py",
        "transport/test_traces.py",
        "transport/test_without_posix.py",
        "bulk/test_interrupted.py",
        "bulk/test_processes.py",
        "client/test_misuse.py",
        "events/test_threads.py",
        "sync/test_exit.py",
        "sync/test_loop_thread.py",
        "sync/test_processes.py",
        "sync/test_signals.py",
        "store/test_failures.py",
        "quota/test_waiting.py",
        "plugin/test_fixtures.py",
        "receipts/test_end_to_end.py",
        "test_public_names.py",
    )
)

# The lowest session has enough processes without these.
FORKS_OF_STORES = ("tests/store/test_processes.py",)

# The SQL of a database that is a server does not tell Pythons apart.
NO_SERVERS = ("-k", "not postgresql and not mariadb")

# What meets the libraries whose lowest versions we support: aiohttp, anyio, orjson, xmltodict,
# SQLAlchemy, psycopg, PyMySQL, redis, typer and rich, and those of the adapters. With what tells
# Pythons apart this is the lowest session. The rest asks the same of these libraries with more
# inputs, rows or processes.
MEETS_LIBRARIES = tuple(
    f"tests/{name}"
    for name in (
        "sandbox",
        "receipts",
        "test_aioresponses.py",
        "cli/test_bulk_columns.py",
        "cli/test_bulk_file.py",
        "cli/test_commands.py",
        "cli/test_sandbox.py",
        "cli/test_usage_errors.py",
        "client/test_settings_of_client.py",
        "client/test_store.py",
        "events/test_adapters.py",
        "pure/test_models.py",
        "pure/test_wire_checks.py",
        "pure/test_wire_decoding.py",
        "pure/test_wire_signing.py",
        "store/test_command.py",
        "store/test_limits_contract.py",
        "store/test_mysql.py",
        "store/test_redis.py",
        "store/test_secrets.py",
        "verification/test_redis_steps.py",
        "verification/test_transactions.py",
    )
)

# Playwright's blocking API and gevent run code on greenlets. See pyproject.toml.
RUN_ON_GREENLETS = ("tests/plugin/test_fixtures.py", "tests/sync/test_greenlets.py")
NOT_MEASURED = ("tests/inbox",)
# `.ci/run` asks for them, because the README's command leaves them to `coverage_rest`.
RUN_APART = (*RUN_ON_GREENLETS, *NOT_MEASURED)

TESTS_OF_PEERS = tuple(
    f"tests/test_benchmarks.py::test_every_candidate_sends_as_many_as_it_reports[{peer}]"
    for peer in ("requests", "requests-threads", "httpx")
)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """What one Python can break, with the newest of everything.

    It tests the installed package, with the source tree out of sight.
    """
    session.install(".[test]")
    # Reinstalled each time: the version does not change with the sources.
    session.install("--force-reinstall", "--no-deps", ".")
    with tempfile.TemporaryDirectory() as elsewhere:
        for name in READ_BY_TESTS:
            _copy(HERE / name, Path(elsewhere, name))
        with session.chdir(elsewhere):
            session.run("python", "-c", _ASSERT_INSTALLED)
            selected = (*TELLS_PYTHONS_APART, *FORKS_OF_STORES, *NO_SERVERS)
            _pytest(session, *([] if session.posargs else selected))


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The lowest Python with the lowest versions that we support."""
    session.install("-e", ".[test]", *_lowest_pins(), *BESIDE_THE_LOWEST)
    _pytest(session, *([] if session.posargs else (*TELLS_PYTHONS_APART, *MEETS_LIBRARIES)))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, with every rule on but those that pyproject.toml gives a reason for."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """The sources as we see them, and the types of the installed package as a user does."""
    groups = nox.project.dependency_groups(PYPROJECT, "typing", "docs")
    session.install(".[test,bench]", *groups)
    # Not editable, because type checkers are to find what a user would, and
    # reinstalled each time: the version does not change with the sources.
    session.install("--force-reinstall", "--no-deps", ".")
    programs = ("noxfile.py", ".ci/once_more.py", "docs/conf.py")
    session.run("mypy", f"--python-version={PYTHONS[0]}", *SOURCES, *programs)
    # The tests use what only POSIX has; the package may not.
    newest = f"--python-version={PYTHONS[-1]}"
    for platform in ("win32", "darwin"):
        session.run("mypy", newest, f"--platform={platform}", "ihuyi_voice")
    with tempfile.TemporaryDirectory() as elsewhere:
        copies = [shutil.copy(path, elsewhere) for path in HERE.glob("tests/typing/*.py")]
        with session.chdir(elsewhere):
            # What the libraries contain is known from the first run.
            cache = f"--cache-dir={HERE / '.mypy_cache'}"
            lowest = f"--python-version={PYTHONS[0]}"
            config = f"--config-file={HERE / 'pyproject.toml'}"
            session.run("mypy", config, cache, lowest, *copies)
            session.run("pyright", "--verifytypes", "ihuyi_voice", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """The reference, made from the docstrings: docs/_build/index.html. Warnings are errors."""
    session.install("-e", ".[test]", *nox.project.dependency_groups(PYPROJECT, "docs"))
    # Everything again each time: the sources of the reference are the package's docstrings.
    options = ("--fresh-env", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet")
    session.run("sphinx-build", *options, "docs", "docs/_build", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """What sdist and wheel contain; the README's login tests with only the wheel and pytest."""
    readme = "\n".join(
        (HERE / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
    )
    blocks = re.findall(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    tests = [block for block in blocks if "(voice_gateway)" in block]
    session.install(*nox.project.dependency_groups(PYPROJECT, "build"))
    with tempfile.TemporaryDirectory() as elsewhere:
        # The wheel is built from the sdist, as a user's installer does it.
        session.run("python", "-m", "build", "--outdir", elsewhere)
        (sdist,) = Path(elsewhere).glob("*.tar.gz")
        (built,) = Path(elsewhere).glob("*.whl")
        _check_sdist(session, sdist)
        _check_wheel(session, built)
        session.run("python", "-m", "venv", f"{elsewhere}/venv")
        bare = f"{elsewhere}/venv/bin/python"
        session.run(bare, "-m", "pip", "install", "-q", str(built), "pytest", external=True)
        for number, test in enumerate(tests):
            Path(elsewhere, f"test_login_{number}.py").write_text(test, encoding="utf-8")
        with session.chdir(elsewhere):
            session.run(bare, "-W", "error", "-m", "pytest", external=True)


@nox.session(python=PYTHONS[-1])
def coverage(session: nox.Session) -> None:
    """Every line and branch of package and tests, those run in other processes too.

    On the newest Python: up to 3.11 the tracer loses the frames around a loop
    in which a coroutine was cancelled. `sys.monitoring`, which is faster, measures
    branches from 3.14 on.
    """
    session.install("-e", ".[test,bench]")
    session.run("coverage", "erase")
    apart = [f"--ignore={path}" for path in RUN_APART]
    _pytest(session, *apart, command=("coverage", "run", "-m", "pytest"))
    _pytest(session, *NOT_MEASURED)
    _measure_greenlets(session)
    _report_coverage(session)


@nox.session(python=PYTHONS[-1], default=False)
def coverage_rest(session: nox.Session) -> None:
    """What `coverage` runs beside its first run, which in CI is that of the README's command."""
    session.install("-e", ".[test,bench]")
    # The README's environment lacks the peers of the benchmark.
    _pytest(session, *TESTS_OF_PEERS, *NOT_MEASURED)
    _measure_greenlets(session)


@nox.session(python=PYTHONS[-1], default=False)
def coverage_report(session: nox.Session) -> None:
    """What both have measured."""
    session.install("coverage[toml]")
    _report_coverage(session)


def _measure_greenlets(session: nox.Session) -> None:
    greenlets = "--concurrency=thread,greenlet"
    _pytest(session, *RUN_ON_GREENLETS, command=("coverage", "run", greenlets, "-m", "pytest"))


def _report_coverage(session: nox.Session) -> None:
    session.run("coverage", "combine", "--quiet")
    # It is 100.00 %. On a loaded machine a run may miss branches that need a race to be taken:
    # a miss of 8 of the 44,000 lines and branches is printed, and does not fail the run.
    session.run("coverage", "report", "--precision=2", "--fail-under=99.98")


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Long runs and jobs at their full size: every row accounted for, memory flat. 15 minutes.

    Before a release: with the other tests they run at a small size.
    """
    session.install("-e", ".[test]")
    session.run("pytest", "-n0", "-s", "tests/soak", env={"IHUYI_VOICE_SOAK": "1"})


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Its speed beside its peers: ten minutes, or `nox -s bench -- --quick`."""
    session.install(".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)


_ASSERT_INSTALLED = """
import ihuyi_voice, pathlib, sysconfig
package = pathlib.Path(ihuyi_voice.__file__).parent
assert package.parent == pathlib.Path(sysconfig.get_path("purelib")), package
assert (package / "py.typed").is_file()
"""


def _pytest(
    session: nox.Session,
    *arguments: str,
    command: tuple[str, ...] = ("pytest",),
    env: dict[str, str] | None = None,
) -> None:
    """Run pytest; in CI, run the tests that failed once more, alone."""
    if os.environ.get("CI"):
        cache = f"--cache={Path(session.virtualenv.location, 'pytest_cache')}"
        command = ("python", str(HERE / ".ci" / "once_more.py"), cache, session.name, *command)
        # Another session runs beside this one: together they have two cores.
        command = (*command, "--numprocesses=2")
    session.run(*command, *arguments, *session.posargs, env=env)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    else:
        shutil.copy(source, target)


def _check_sdist(session: nox.Session, sdist: Path) -> None:
    """The sdist has every source file, and nothing but source files and metadata."""
    with tarfile.open(sdist) as archive:
        paths = {member.name.partition("/")[2] for member in archive if member.isfile()}
    expected = _sources("ihuyi_voice", "tests", "benchmarks", "docs", ".ci")
    expected |= {"README.md", "README.zh-CN.md", "CHANGELOG.md", "LICENSE"}
    expected |= {"noxfile.py", "pyproject.toml"}
    _compare(session, sdist, paths, expected | {".gitignore", "PKG-INFO"})


def _check_wheel(session: nox.Session, wheel: Path) -> None:
    """The wheel has every file of the package, and nothing else but metadata."""
    with zipfile.ZipFile(wheel) as archive:
        paths = set(archive.namelist())
    metadata = f"{wheel.name.rsplit('-', 3)[0]}.dist-info"
    names = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    expected = _sources("ihuyi_voice") | {f"{metadata}/{name}" for name in names}
    _compare(session, wheel, paths, expected)


def _sources(*folders: str) -> set[str]:
    """The paths of the files below these folders, without what Python and tools leave there."""
    return {
        path.relative_to(HERE).as_posix()
        for folder in folders
        for path in (HERE / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "_build"} & {*path.parts}
    }


def _compare(session: nox.Session, built: Path, paths: set[str], expected: set[str]) -> None:
    if paths != expected:
        missing, surplus = sorted(expected - paths), sorted(paths - expected)
        session.error(f"{built.name} lacks {missing} and has {surplus} besides")


def _lowest_pins() -> list[str]:
    """`name==bound` for each dependency of a user, from its `name>=bound`."""
    extras = PROJECT["optional-dependencies"]
    wanted = list(PROJECT["dependencies"])
    for extra in PINNED_EXTRAS:
        wanted += extras[extra]
    pins = []
    for requirement in map(Requirement, wanted):
        if requirement.name == PROJECT["name"]:
            continue
        (bound,) = (s.version for s in requirement.specifier if s.operator == ">=")
        marker = f"; {requirement.marker}" if requirement.marker else ""
        pins.append(f"{requirement.name}=={bound}{marker}")
    return pins
