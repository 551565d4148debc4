"""Usage errors in whole sentences of the command's language.

typer translates few of its own sentences and none of click's. This module says each
error of a known kind in the language of the command, and leaves the library's own text
to every other error. It reads only names and attributes that both have: click, which
typer used first, and the copy of click in later releases of typer.

What a wrong value must be comes from the command's own annotations: the libraries'
English differs from release to release, and some of it is that of a validator. So this
module says it in English, too; all other English texts are theirs.
"""

from __future__ import annotations

import inspect
import re
from enum import Enum
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import typer

from .language import gettext as _
from .language import is_english

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

UsageError: Any = typer.BadParameter.__bases__[0]
"""The class of all usage errors: typer exports only this one below it."""

_EXTRA = r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)"


class _Explained(typer.BadParameter):
    """A usage error whose message is a whole sentence."""

    def format_message(self) -> str:
        return self.message


def explained(error: Any, ctx: Any) -> Exception:  # noqa: ANN401 - typer's or click's
    """The error to raise instead of one that typer raised; the same one if its kind is unknown.

    In English it is always the same one, which says what a wrong value must be.

    Args:
        error: a `UsageError`.
        ctx: the context of the command that was read.
    """
    kind = type(error).__name__
    if is_english():
        if kind == "BadParameter":
            error.message = _must_be(ctx, error.param) or error.message
        return error  # type: ignore[no-any-return] # as above
    say = _SENTENCES.get(kind)
    text = None if say is None else say(error, ctx)
    return error if text is None else _Explained(text, ctx=ctx)


def unknown_command(
    error: Any,  # noqa: ANN401 - typer's or click's
    ctx: Any,  # noqa: ANN401 - typer's or click's
    name: str,
    names: Collection[str],
) -> Exception:
    """As `explained`, for a name that is no command.

    Args:
        error: a `UsageError`.
        ctx: the context of the group.
        name: what the user wrote.
        names: the commands that there are.
    """
    if is_english() or type(error) is not UsageError:
        return error  # type: ignore[no-any-return] # as above
    from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

    text = _("No such command {name!r}.").format(name=name)
    return _Explained(text + _suggested(get_close_matches(name, names)), ctx=ctx)


def _missing(error: Any, _ctx: Any) -> str | None:  # noqa: ANN401 - typer's or click's
    name = _named(error)
    if name is None:
        return None
    is_option = getattr(error.param, "param_type_name", "") == "option"
    text = _("the option {name} is missing") if is_option else _("the argument {name} is missing")
    return _sentence(text.format(name=name))


def _bad_value(error: Any, ctx: Any) -> str | None:  # noqa: ANN401 - typer's or click's
    name = _named(error)
    if name is None:
        return None
    reason = _must_be(ctx, error.param) or error.message
    return _sentence(_("invalid value for {name}: {reason}").format(name=name, reason=reason))


def _no_such_option(error: Any, _ctx: Any) -> str:  # noqa: ANN401 - typer's or click's
    text = _("there is no option {name!r}").format(name=error.option_name)
    return _sentence(text) + _suggested(sorted(error.possibilities or ()))


def _bad_option(error: Any, ctx: Any) -> str | None:  # noqa: ANN401 - typer's or click's
    name = error.option_name
    for param in ctx.command.get_params(ctx):
        if name in (*param.opts, *param.secondary_opts):
            is_flag = getattr(param, "is_flag", False)
            text = _("the option {name} takes no value") if is_flag else _("{name} needs a value")
            return _sentence(text.format(name=name))
    return None


def _unexpected(error: Any, _ctx: Any) -> str | None:  # noqa: ANN401 - typer's or click's
    # Neither library keeps the arguments in an attribute.
    found = re.fullmatch(_EXTRA, error.message, re.DOTALL)
    return found and _sentence(_("unexpected argument: {what}").format(what=found[1]))


_SENTENCES: dict[str, Callable[[Any, Any], str | None]] = {
    "MissingParameter": _missing,
    "BadParameter": _bad_value,
    "NoSuchOption": _no_such_option,
    "BadOptionUsage": _bad_option,
    "UsageError": _unexpected,
}


def _named(error: Any) -> str | None:  # noqa: ANN401 - typer's or click's
    """The parameter as the user writes it; None when the error has none."""
    hint, param = error.param_hint, error.param
    if hint is not None:
        return hint if isinstance(hint, str) else " / ".join(hint)
    if param is None:
        return None
    if getattr(param, "param_type_name", "") == "option":
        return " / ".join((*param.opts, *param.secondary_opts))
    return str(getattr(param, "human_readable_name", None) or param.metavar or param.name)


def _sentence(text: str) -> str:
    return _("{sentence}.").format(sentence=text)


def _suggested(names: Collection[str]) -> str:
    return _(" Did you mean {names}?").format(names=_either(names)) if names else ""


def _either(names: Collection[str]) -> str:
    *others, last = names
    if not others:
        return last
    return _("{names} or {last}").format(names=_(", ").join(others), last=last)


def _must_be(ctx: Any, param: Any) -> str | None:  # noqa: ANN401 - typer's or click's
    """What a value must be, from the annotation of the command's function; None if unknown."""
    if param is None or ctx.command.callback is None:
        return None
    pieces = pieces_of_hints(ctx.command.callback).get(param.name, [])
    bounds = next((piece for piece in pieces if hasattr(piece, "min")), None)
    for piece in pieces:
        if isinstance(piece, type) and issubclass(piece, Enum):
            choices = _either([str(one.value) for one in piece])
            return _("it must be {choices}").format(choices=choices)
        if piece in (int, float):
            what = _("a whole number") if piece is int else _("a number")
            return _number(what, getattr(bounds, "min", None), getattr(bounds, "max", None))
    return None


def pieces_of_hints(function: Callable[..., object]) -> dict[str, list[Any]]:
    """For each parameter: the types in its annotation, and typer's values beside them."""
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    return {name: list(_pieces(hint)) for name, hint in hints.items()}


def _number(what: str, least: float | None, most: float | None) -> str:
    text = _("it must be {what}")
    if least is not None:
        text = _("it must be {what} of at least {least}")
        if most is not None:
            text = _("it must be {what} from {least} to {most}")
    return text.format(what=what, least=least, most=most)


def _pieces(hint: Any) -> Iterator[Any]:  # noqa: ANN401 - annotations of any form
    """The types in an annotation, and typer's values beside them."""
    yield from getattr(hint, "__metadata__", ())
    inner = get_args(hint)
    if not inner:
        yield hint
    for one in inner:
        yield from _pieces(one)
