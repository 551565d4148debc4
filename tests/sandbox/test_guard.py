"""Who may read and change the sandbox, judged by the headers alone."""

from __future__ import annotations

import pytest

from ihuyi_voice.sandbox.guard import is_from_browser, refusal

OWN = "127.0.0.1"


def is_allowed(
    method: str, headers: dict[str, str], own: str = OWN, *, on_loopback: bool = True
) -> bool:
    return refusal(method, headers, own, on_loopback=on_loopback) is None


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8765", "LOCALHOST", "localhost.:80", "sandbox.localhost:1",
        "127.0.0.1:8765", "127.0.0.2", "[::1]:8765", "[::ffff:127.0.0.1]", "192.168.1.5",
    ],
)  # fmt: skip
def test_a_name_of_this_machine_or_an_ip_address_is_allowed(host: str) -> None:
    assert is_allowed("GET", {"Host": host})
    assert is_allowed("PUT", {"Host": host, "Origin": f"http://{host}"})


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.evil.example",
        "box", "", "[evil.example]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_any_other_host_name_is_refused(host: str, method: str) -> None:
    assert not is_allowed(method, {"Host": host})
    assert not is_allowed(method, {"Host": host, "Origin": f"http://{host}"})
    assert not is_allowed(method, {"Host": host, "Sec-Fetch-Site": "same-origin"})


def test_the_name_that_it_was_asked_to_listen_on_is_allowed() -> None:
    assert is_allowed("GET", {"Host": "Box.test:80"}, own="box.test")
    assert is_allowed("GET", {"Host": "box.test"}, own="BOX.test", on_loopback=False)


@pytest.mark.parametrize(
    ("expected", "host"),
    [
        (True, "192.168.1.5:8765"),
        (True, "[fe80::1]:8765"),
        (True, "sandbox:8765"),
        (True, "localhost"),
        (False, "evil.example:8765"),
    ],
)
def test_another_machine_may_also_use_a_name_without_a_dot(expected: bool, host: str) -> None:
    assert expected == is_allowed("POST", {"Host": host}, own="0.0.0.0", on_loopback=False)  # noqa: S104


@pytest.mark.parametrize(
    ("expected", "headers"),
    [
        (False, {}),
        (False, {"Host": "evil.example"}),
        (True, {"Sec-Fetch-Site": "none"}),
        (True, {"Origin": "null"}),
    ],
)
def test_a_browser_marks_its_requests(expected: bool, headers: dict[str, str]) -> None:
    assert expected == is_from_browser(headers)


def test_a_request_without_a_host_is_judged_by_its_origin_alone() -> None:
    assert is_allowed("POST", {})
    assert not is_allowed("POST", {"Origin": "http://evil.example"})


@pytest.mark.parametrize(
    ("expected", "headers"),
    [
        (True, {}),
        (True, {"Sec-Fetch-Site": "same-origin"}),
        (True, {"Sec-Fetch-Site": "none"}),
        (False, {"Sec-Fetch-Site": "same-site"}),
        (False, {"Sec-Fetch-Site": "cross-site"}),
        (True, {"Origin": "http://LOCALHOST:8765"}),
        (False, {"Origin": "http://localhost:9"}),
        (False, {"Origin": "http://127.0.0.1:8765"}),
        (False, {"Origin": "http://evil.example"}),
        (False, {"Origin": "null"}),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_another_sites_page_changes_nothing(
    method: str, expected: bool, headers: dict[str, str]
) -> None:
    assert expected == is_allowed(method, {"Host": "localhost:8765"} | headers)
    assert is_allowed("GET", {"Host": "localhost:8765"} | headers)
