"""Strict TOML configurations: complete, frozen dataclasses; an unknown key stops and names the nearest valid one."""

from __future__ import annotations

import copy
import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from edge_seg.errors import ConfigError, nearest

T = TypeVar("T")


def load_toml(
    path: Path, what: str = "configuration", todo: str = "see edge_seg/configs for examples"
) -> dict[str, Any]:
    """Reads a TOML file.

    Args:
        path: The file.
        what: What it should hold, for the message.
        todo: Where a reader finds what such a file looks like.

    Raises:
        ConfigError: It is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {what} {path}.", expected="a TOML file", todo=todo) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML.", expected=f"a {what} in TOML", got=str(error), todo=todo) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read.", expected="a TOML file", got=str(error)) from error


def apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies `section.key=value` texts; the value is read as TOML, or as plain text where it is none.

    Raises:
        ConfigError: A text has no `=`, no key, or leads through a value that is no section.
    """
    merged = copy.deepcopy(document)
    for text in overrides:
        key, sign, raw = text.partition("=")
        names = key.strip().split(".")
        if not sign or not all(names):
            raise ConfigError(f"Cannot read the override {text!r}.", expected="section.key=value", got=text)
        try:
            value = tomllib.loads(f"v = {raw}")["v"]
        except tomllib.TOMLDecodeError:
            value = raw
        place = merged
        for name in names[:-1]:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError(f"The override {key.strip()} leads through {name!r}, which is no section.", got=text)
        place[names[-1]] = value
    return merged


def from_mapping(kind: type[T], document: Mapping[str, Any], *, where: str = "") -> T:
    """Builds a dataclass from a mapping, recursively and strictly.

    Args:
        kind: A dataclass; fields without a default are required.
        document: Keys and values as TOML gives them.
        where: Dotted path of the section, for messages.

    Raises:
        ConfigError: An unknown or missing key, or a value of another type.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(f"{where or 'The configuration'} is not a section.", got=repr(document))
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in document:
        if key not in known:
            raise ConfigError(
                f"Unknown configuration key {_join(where, key)!r}.", got=key, todo=nearest(key, list(known))
            )
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name in document:
            values[name] = _value(hints[name], document[name], _join(where, name))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"The configuration key {_join(where, name)!r} is missing.")
    return kind(**values)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, where=where)
    origin = get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(next(a for a in get_args(hint) if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in get_args(hint):
            raise _wrong(where, " | ".join(map(repr, get_args(hint))), value)
        return value
    if origin is tuple:
        return _tuple(hint, value, where)
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise _wrong(where, "a section", value)
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is not Any and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise _wrong(where, hint.__name__, value)
    return value


def _tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, "a list", value)
    kinds = get_args(hint)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _wrong(where, f"{len(kinds)} values", value)
    return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _wrong(where: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"The configuration key {where!r} has a wrong value.", expected=expected, got=f"{value!r}")
