"""What type hints say: whether what one step returns may be given to another."""

from __future__ import annotations

import collections.abc
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

_UNIONS = (Union, types.UnionType)


def hints_of(function: Any) -> dict[str, Any]:
    """The annotations of a function, as objects; one that names what only type checkers import counts as absent."""
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        found: dict[str, Any] = {}
        for name, hint in getattr(function, "__annotations__", {}).items():
            one = types.SimpleNamespace(__annotations__={name: hint})
            with suppress(NameError, TypeError):
                found |= get_type_hints(one, getattr(function, "__globals__", {}))
        return found


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other hint, itself."""
    return tuple(Any if member is Ellipsis else member for member in get_args(hint)) if get_origin(hint) in _UNIONS else (hint,)


def union(hints: collections.abc.Iterable[Any]) -> Any:
    """The hint of a value that is of one of these."""
    members = tuple(dict.fromkeys(hints))
    return Union[members] if members else Any  # noqa: UP007 - the members are known at run time


def list_of(item: Any) -> Any:
    return types.GenericAlias(list, (item,))


def fits(produced: Any, wanted: Any) -> bool:
    """Whether a value of one hint may stand where another is wanted. What is not known fits, and is checked when it runs."""
    produced, wanted = _plain(produced), _plain(wanted)
    if produced is Any or wanted in (Any, object) or isinstance(wanted, TypeVar) or isinstance(produced, TypeVar) or produced == wanted:
        return True
    if len(members := alternatives(produced)) > 1:
        return all(fits(member, wanted) for member in members)
    if len(members := alternatives(wanted)) > 1:
        return any(fits(produced, member) for member in members)
    if isinstance(produced, NewType):
        return fits(produced.__supertype__, wanted)
    if get_origin(produced) is Literal:
        if get_origin(wanted) is Literal:
            return set(get_args(produced)) <= set(get_args(wanted))
        return all(fits(type(value), wanted) for value in get_args(produced))
    if isinstance(wanted, NewType) or get_origin(wanted) is Literal:
        return False
    if is_typeddict(produced) and is_typeddict(wanted):
        return False  # two different ones
    return _is_subclass(_class(produced), _class(wanted)) and _arguments_fit(produced, wanted)


def classes(hint: Any) -> tuple[type, ...] | None:
    """What `isinstance` can check of a hint; None if nothing."""
    hint = _plain(hint)
    if len(members := alternatives(hint)) > 1:
        found = [classes(member) for member in members]
        return tuple({one: None for several in found for one in several or ()}) if all(found) else None
    if isinstance(hint, NewType):
        return classes(hint.__supertype__)
    if get_origin(hint) is Literal:
        return tuple({type(value): None for value in get_args(hint)})
    one = _class(hint)
    if one is None or one is object or (getattr(one, "_is_protocol", False) and not getattr(one, "_is_runtime_protocol", False)):
        return None
    return (float, int) if one is float else (one,)


def is_telling(hint: Any) -> bool:
    """Whether a hint says what a value is for: `list[Passage]` does, `list[str]` does not."""
    return any(isinstance(leaf, NewType) or getattr(leaf, "__module__", "builtins") not in _PLAIN_MODULES for leaf in _leaves(hint))


def streamed(hint: Any) -> Any:
    """The hint of the items of a stream; None if it is no stream."""
    if get_origin(hint) in (collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable):
        return get_args(hint)[0]
    return Any if hint in (collections.abc.AsyncIterator, collections.abc.AsyncGenerator) else None


def show(hint: Any) -> str:
    """A hint as one would write it."""
    if get_origin(hint) is None and hasattr(hint, "__name__"):
        return "None" if hint is types.NoneType else str(hint.__name__)
    if get_origin(hint) in _UNIONS:
        return " | ".join(map(show, get_args(hint)))
    if get_origin(hint) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(hint)))}]"
    if (origin := get_origin(hint)) is not None:
        inner = ", ".join("..." if one is Ellipsis else show(one) if not isinstance(one, list) else str(one) for one in get_args(hint))
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return str(hint)


_PLAIN_MODULES = ("builtins", "typing", "collections.abc", "types")


def _plain(hint: Any) -> Any:
    if hint is None:
        return types.NoneType
    return _plain(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _leaves(hint: Any) -> Iterator[Any]:
    inner = [one for one in get_args(hint) if one is not Ellipsis]
    if get_origin(hint) is Literal or not inner:
        yield types.NoneType if hint is None or get_origin(hint) is Literal else hint
        return
    yield get_origin(hint)
    for one in inner:
        yield from _leaves(one) if not isinstance(one, list) else ()


def _class(hint: Any) -> type | None:
    if is_typeddict(hint):
        return dict
    found = get_origin(hint) or hint
    return found if isinstance(found, type) and found is not Any else None


def _is_subclass(one: type | None, other: type | None) -> bool:
    if one is None or other is None:
        return True  # a special form that we do not know
    if other is float and one is int:
        return True  # as every type checker has it
    try:
        return issubclass(one, other)
    except TypeError:  # a protocol that says it cannot be asked: look for its members
        members = {*vars(other), *getattr(other, "__annotations__", {})}
        return all(hasattr(one, name) or name in getattr(one, "__annotations__", {}) for name in members if not name.startswith("_"))


def _arguments_fit(produced: Any, wanted: Any) -> bool:
    """Inner types, read as covariant: a list of passages may stand for a sequence of objects."""
    given, asked = get_args(produced), get_args(wanted)
    if not given or not asked:
        return True
    if get_origin(produced) is tuple and get_origin(wanted) is not tuple:
        return all(fits(one, asked[0]) for one in given if one is not Ellipsis)
    if get_origin(produced) is tuple is get_origin(wanted) and Ellipsis not in given and Ellipsis not in asked and len(given) != len(asked):
        return False
    if get_origin(wanted) is tuple and Ellipsis in asked:
        return all(fits(one, asked[0]) for one in given if one is not Ellipsis)
    return all(
        fits(one, other)
        for one, other in zip(given, asked, strict=False)
        if not isinstance(one, list) and not isinstance(other, list) and Ellipsis not in (one, other)
    )
