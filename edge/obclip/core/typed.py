"""Values from a JSON file as the dataclass that declares them, or an error that names the one of another type."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null", list: "a list",
    tuple: "a list", dict: "an object",
}  # fmt: skip


@dataclass(frozen=True)
class Least:
    """Of a number, beside its type: Annotated[int, Least(1)]."""

    value: float


def build(kind: Any, value: Any, name: str = "") -> Any:
    """`value` as the annotation `kind` says: a dataclass of an object, a tuple of a list. A typed dictionary is checked
    in what it declares, and may hold more. ValueError: "height is '64', a whole number was wanted".
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _narrowed(build(parts[0], value, name), parts[1:], name)
    if origin in (Union, UnionType):
        others = [part for part in parts if part is not NoneType]
        if value is None and len(others) < len(parts):
            return None
        fitting = [part for part in others if _is(part, value)]
        return build((fitting or others)[0], value, name)
    if not _is(kind, value):
        raise ValueError(f"{name or 'it'} is {_short(value)}, {_WORDS[_plain(kind)]} was wanted")
    if is_dataclass(kind):
        return _object(kind, value, name)
    if is_typeddict(kind):
        if lacking := sorted(kind.__required_keys__ - value.keys()):
            raise ValueError(f"{_under(name, lacking[0])} is missing")
        hints = get_type_hints(kind, include_extras=True)
        return {key: build(hints.get(key, Any), inner, _under(name, key)) for key, inner in value.items()}
    if origin in (list, tuple):
        return origin(build(parts[0], inner, f"{name}[{i}]") for i, inner in enumerate(value))
    if origin is dict:
        return {key: build(parts[1], inner, _under(name, key)) for key, inner in value.items()}
    return value


def _object(kind: Any, value: dict[str, Any], name: str) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    strange = [key for key in value if key not in {f.name for f in fields(kind)}]
    if strange:
        raise ValueError(f"{_under(name, strange[0])} is not known to this version")
    built = {key: build(hints[key], inner, _under(name, key)) for key, inner in value.items()}
    try:
        return kind(**built)
    except TypeError as error:
        raise ValueError(f"{name or 'it'} is incomplete ({error})") from error


def _narrowed(value: Any, marks: tuple[Any, ...], name: str) -> Any:
    for mark in marks:
        if not isinstance(mark, Least):
            build(mark, value, name)
        elif not mark.value <= value < math.inf:
            raise ValueError(f"{name} is {value}, {mark.value:g} or more was wanted")
    return value


def _is(kind: Any, value: Any) -> bool:
    if kind is Any:
        return True
    plain = _plain(kind)
    if isinstance(value, bool):
        return plain is bool
    wanted: Any = {float: (int, float), tuple: list}.get(plain, plain)
    return isinstance(value, wanted)


def _plain(kind: Any) -> Any:
    """What JSON has for an annotation."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    return dict if is_dataclass(kind) or is_typeddict(kind) else get_origin(kind) or kind


def _under(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:40]}…"
