"""The recipes for web frameworks, as README.md and docs/frameworks.md show them.

Each is served by two workers of a real server, in processes of their own. Only
the gateway, and so its record of calls, is the test's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.recipes.site import GUNICORN, GUNICORN_LOG, MOBILE, UVICORN, UVICORN_LOG, Recipe, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.recipes.site import Site

FRAMEWORKS = "docs/frameworks.md"
RECIPES = {
    "fastapi": Recipe(
        "README.md", "FastAPI(", (*UVICORN, "site_login:app"), *UVICORN_LOG, takes_json=True
    ),
    "django": Recipe(
        FRAMEWORKS, "get_asgi_application(", (*UVICORN, "site_login:application"), *UVICORN_LOG
    ),
    "flask": Recipe(FRAMEWORKS, "Flask(", (*GUNICORN, "site_login:app"), *GUNICORN_LOG),
}


@pytest.fixture(params=RECIPES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with served(RECIPES[request.param], tmp_path) as site:
        yield site


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06d}"


def test_a_login_from_start_to_replay(site: Site) -> None:
    status, started, _ = site.start()
    assert 200 == status
    assert 0 < float(str(started["resend_after"])) <= 60
    code = site.gateway.last_code(MOBILE)

    assert 403 == site.check(started["id"], wrong(code))
    assert 403 == site.check(started["id"], code, mobile="13812345678")
    assert 200 == site.check(started["id"], f"{code[:3]} {code[3:]}")
    assert 403 == site.check(started["id"], code)
    assert 403 == site.check("0" * 32, code)

    status, body, retry_after = site.start()
    assert (429, {"error": "too early"}) == (status, body)
    assert 1 <= int(str(retry_after)) <= 60
    assert 400 == site.start("12345")[0]
    site.gateway.blacklist = ["13812345678"]
    assert 503 == site.start("13812345678")[0]

    assert 1 == len(site.gateway.calls)
    log = site.log()
    assert "Traceback" not in log
    assert not [secret for secret in (code, MOBILE, site.gateway.api_key) if secret in log]


def test_the_two_workers_share_the_store(site: Site) -> None:
    first, second = site.workers
    with site.without(first):
        status, started, _ = site.start()
    assert 200 == status
    code = site.gateway.last_code(MOBILE)
    with site.without(second):
        status, _, retry_after = site.start()
        assert 429 == status
        assert 1 <= int(str(retry_after)) <= 60
        assert 200 == site.check(started["id"], code)
    with site.without(first):
        assert 403 == site.check(started["id"], code)
    assert 1 == len(site.gateway.calls)
