"""Who may read and steer the sandbox, judged by the headers alone."""

from __future__ import annotations

import pytest

from ihuyi_voice.sandbox.guard import gateway_refusal, refusal

LOOPBACK = "127.0.0.1"
LAN = "192.168.1.5"


def is_let_through(
    method: str, headers: dict[str, str], asked: str = LOOPBACK, address: str = LOOPBACK
) -> bool:
    return refusal(method, headers, asked, address) is None


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8765", "LOCALHOST", "localhost.:80", "sandbox.localhost:1",
        "127.0.0.1:8765", "127.0.0.2", "[::1]:8765", "[::ffff:127.0.0.1]",
    ],
)  # fmt: skip
def test_this_machine_by_any_of_its_names(host: str) -> None:
    assert is_let_through("GET", {"Host": host})
    assert is_let_through("PUT", {"Host": host, "Origin": f"http://{host}"})


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "localhost.evil.example", "box", "", "192.168.1.5"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_is_not_this_machines(host: str, method: str) -> None:
    assert not is_let_through(method, {"Host": host})
    assert not is_let_through(method, {"Host": host, "Origin": f"http://{host}"})


def test_the_name_that_it_was_told_to_listen_on() -> None:
    assert is_let_through("GET", {"Host": "Box.test:80"}, asked="box.test")
    assert is_let_through("GET", {"Host": "box.test"}, asked="BOX.test", address=LAN)


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
def test_asked_from_another_machine(expected: bool, host: str) -> None:
    assert expected == is_let_through("POST", {"Host": host}, asked="0.0.0.0", address=LAN)  # noqa: S104


@pytest.mark.parametrize(
    ("expected", "headers"),
    [
        (True, {}),
        (True, {"Host": "evil.example"}),
        (True, {"Sec-Fetch-Site": "none"}),
        (True, {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8765"}),
        (False, {"Sec-Fetch-Site": "cross-site"}),
        (False, {"Sec-Fetch-Site": "same-site"}),
        (False, {"Origin": "null"}),
        (False, {"Origin": "http://evil.example"}),
        (False, {"Host": "evil.example", "Origin": "http://evil.example"}),
        (False, {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}),
    ],
)
def test_the_gateways_own_path_is_for_programs_and_its_own_page(
    expected: bool, headers: dict[str, str]
) -> None:
    headers = {"Host": "localhost:8765"} | headers
    refused = gateway_refusal(headers, LOOPBACK, lambda: LOOPBACK)
    assert expected == (refused is None)


def test_without_any_host() -> None:
    assert is_let_through("POST", {})
    assert not is_let_through("POST", {"Origin": "http://evil.example"})
    assert not is_let_through("GET", {"Host": "evil.example"}, address="")


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
        (False, {"Origin": "null"}),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_what_changes_something(method: str, expected: bool, headers: dict[str, str]) -> None:
    assert expected == is_let_through(method, {"Host": "localhost:8765"} | headers)
    assert is_let_through("GET", {"Host": "localhost:8765"} | headers)
