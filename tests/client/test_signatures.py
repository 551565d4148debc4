"""Both clients have the same names, arguments and docstrings."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from ihuyi_voice import AsyncVoiceClient, VoiceClient, _options
from ihuyi_voice._options import options_from_env

# The only differences.
NAMES = {"aclose": "close"}
ONLY_BLOCKING = "allow_running_loop"


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def parameters(function: object) -> list[inspect.Parameter]:
    assert callable(function)
    return list(inspect.signature(function).parameters.values())


def section(docstring: str | None, title: str) -> str:
    """The lines under `title:`, unchanged."""
    assert docstring is not None
    found = re.search(rf"(?ms)^{title}:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(docstring))
    assert found, f"no {title}"
    return found[1].rstrip()


def entries(docstring: str | None) -> dict[str, str]:
    """The arguments that a docstring documents, each with its text."""
    items = re.findall(r"(?ms)^    (\w+): (.*?)(?=^    \w|\Z)", section(docstring, "Args"))
    return {name: " ".join(text.split()) for name, text in items}


def test_both_clients_have_the_same_names() -> None:
    assert {"submit", "query_balance", "from_env", "aclose", "base_url"} <= public(AsyncVoiceClient)
    assert {NAMES.get(name, name) for name in public(AsyncVoiceClient)} == public(VoiceClient)


def test_both_constructors_take_the_same_arguments() -> None:
    blocking = parameters(VoiceClient)
    assert ONLY_BLOCKING == blocking[-1].name
    assert (inspect.Parameter.KEYWORD_ONLY, False, "bool") == (
        blocking[-1].kind,
        blocking[-1].default,
        blocking[-1].annotation,
    )
    # Parameters compare name, kind, default and annotation.
    assert blocking[:-1] == parameters(AsyncVoiceClient)


def test_the_constructor_is_the_documented_one() -> None:
    assert (
        "(api_id: 'str', api_key: 'str', *, base_url: 'str' = 'https://api.voice.ihuyi.com',"
        " dynamic_password: 'bool' = True, answer_format: 'AnswerFormat' = 'json',"
        " timeout: 'float' = 15.0, connect_timeout: 'float' = 5.0, connect_attempts: 'int' = 3,"
        " max_connections: 'int' = 100, ssl_context: 'ssl.SSLContext | None' = None,"
        " proxy: 'str | None' = None, trace_configs: 'Sequence[aiohttp.TraceConfig]' = (),"
        " quota: 'RecipientQuota | QuotaDefault | None' = RecipientQuota(),"
    ) in str(inspect.signature(AsyncVoiceClient))
    assert 1 == str(inspect.signature(AsyncVoiceClient)).count("= RecipientQuota()")


@pytest.mark.parametrize("name", ["submit", "query_balance", "from_env"])
def test_both_clients_have_the_same_methods(name: str) -> None:
    ours, theirs = getattr(AsyncVoiceClient, name), getattr(VoiceClient, name)
    assert parameters(ours) == parameters(theirs)
    assert inspect.signature(ours).return_annotation == inspect.signature(theirs).return_annotation
    assert inspect.getdoc(ours)
    assert inspect.getdoc(ours) == inspect.getdoc(theirs)


def test_both_clients_have_the_same_property() -> None:
    ours, theirs = vars(AsyncVoiceClient)["base_url"], vars(VoiceClient)["base_url"]
    assert isinstance(ours, property)
    assert isinstance(theirs, property)
    assert inspect.signature(ours.fget or len) == inspect.signature(theirs.fget or len)
    assert inspect.getdoc(ours) == inspect.getdoc(theirs)
    assert "http://127.0.0.1" == VoiceClient("id", "key", base_url="http://127.0.0.1").base_url


def test_both_ways_to_close_have_the_same_signature() -> None:
    assert inspect.signature(AsyncVoiceClient.aclose) == inspect.signature(VoiceClient.close)
    for close in (AsyncVoiceClient.aclose, VoiceClient.close):
        words = " ".join((inspect.getdoc(close) or "").lower().split())
        assert words.startswith("close the connections")
        assert "closing twice does no harm; a closed client cannot be used again." in words


def test_both_clients_are_the_same_context_manager() -> None:
    for enter, leave in (("__aenter__", "__enter__"), ("__aexit__", "__exit__")):
        ours, theirs = getattr(AsyncVoiceClient, enter), getattr(VoiceClient, leave)
        assert inspect.signature(ours) == inspect.signature(theirs)


def test_both_clients_document_the_same_arguments_alike() -> None:
    blocking = entries(VoiceClient.__doc__)
    assert "event loop" in blocking.pop(ONLY_BLOCKING)
    assert blocking == entries(AsyncVoiceClient.__doc__)
    raises = section(AsyncVoiceClient.__doc__, "Raises")
    assert "ValueError: a setting is wrong" in raises
    assert raises == section(VoiceClient.__doc__, "Raises")


@pytest.mark.parametrize("cls", [AsyncVoiceClient, VoiceClient])
def test_every_argument_is_documented_in_order(cls: type) -> None:
    assert [parameter.name for parameter in parameters(cls)] == list(entries(cls.__doc__))


def options() -> dict[str, str]:
    """The fields of `ClientOptions` with their types. Only type checkers see that class."""
    tree = ast.parse(inspect.getsource(_options))
    (found,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == "ClientOptions"
    )
    assert ["total=False"] == [ast.unparse(keyword) for keyword in found.keywords]
    return {
        ast.unparse(field.target): ast.unparse(field.annotation)
        for field in found.body
        if isinstance(field, ast.AnnAssign)
    }


def test_from_env_takes_the_arguments_of_the_constructor() -> None:
    assert not hasattr(_options, "ClientOptions")
    assert options() == {p.name: p.annotation for p in parameters(AsyncVoiceClient)}


@pytest.mark.parametrize("cls", [AsyncVoiceClient, VoiceClient])
def test_from_env_takes_keyword_arguments(cls: type[AsyncVoiceClient | VoiceClient]) -> None:
    (overrides,) = parameters(cls.from_env)
    assert (inspect.Parameter.VAR_KEYWORD, "Unpack[ClientOptions]") == (
        overrides.kind,
        overrides.annotation,
    )


def test_arguments_of_from_env_are_passed_on_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("IHUYI_VOICE_BASE_URL", raising=False)
    options = options_from_env({"api_id": "a", "api_key": "b", "timeout": 1.0})
    assert not isinstance(options, Exception)
    assert {"api_id": "a", "api_key": "b", "timeout": 1.0} == options.reveal()
