"""Configurations are dataclasses: to JSON and back strictly, and overridden from a command line by tyro."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

C = TypeVar("C")


def to_json(config: Any) -> Any:
    """Return a dataclass as JSON values; nested dataclasses of a union carry their class name under "kind"."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            "kind": type(config).__name__,
            **{f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)},
        }
    if isinstance(config, dict):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_json(value) for value in config]
    if config is None or isinstance(config, str | int | float | bool):
        return config
    raise TypeError(f"a config cannot hold a {type(config).__name__}: {config!r}")


def from_json(kind: type[C], value: Any, *, where: str = "") -> C:
    """Return the dataclass `kind` that `to_json` wrote.

    Raises:
        ValueError: If a key is unknown (with the nearest name), or a value does not fit its field; the path is named.
    """
    return _read(kind, value, where or getattr(kind, "__name__", str(kind)))


def with_defaults(saved: Any, config: Any) -> Any:
    """Return what `to_json` once wrote of a config, with the defaults of the fields that have been added since.

    So a new field must default to what was done before it existed. A value of another kind than `config` is left as it is.

    Args:
        saved: JSON values that `to_json` wrote.
        config: A config of today, whose classes say what fields there are now.
    """
    if (
        not dataclasses.is_dataclass(config)
        or not isinstance(saved, dict)
        or saved.get("kind") != type(config).__name__
    ):
        return saved
    filled = dict(saved)
    for field in dataclasses.fields(config):
        if field.name in saved:
            filled[field.name] = with_defaults(saved[field.name], getattr(config, field.name))
        elif field.default is not dataclasses.MISSING:
            filled[field.name] = to_json(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            filled[field.name] = to_json(field.default_factory())
    return filled


def fingerprint(value: Any) -> str:
    """Return 16 hexadecimal digits that change whenever a JSON value or dataclass changes."""
    text = json.dumps(to_json(value), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse(default: C, args: Sequence[str] | None, *, prog: str, description: str | None = None) -> C:
    """Return `default` with the fields overridden that a command line names, e.g. `--optim.lr 3e-4`.

    An unknown option ends the program with code 2 and the nearest names.
    """
    import tyro

    return tyro.cli(
        type(default),
        args=args,
        default=default,
        prog=prog,
        description=description,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _read(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _read_union(typing.get_args(kind), value, where)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError(f"{where} is {value!r}, expected one of {', '.join(map(repr, choices))}")
        return value
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin in (list, tuple):
        return _read_sequence(kind, value, where)
    if origin is dict:
        _, inner = typing.get_args(kind)
        _expect(isinstance(value, dict), where, value, "an object")
        return {key: _read(inner, item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    exact = type(value) is kind if kind in (int, bool) else isinstance(value, kind)
    _expect(exact, where, value, getattr(kind, "__name__", str(kind)))
    return value


def _read_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    named = {
        option.__name__: option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)
    }
    if isinstance(value, dict) and named:
        name = value.get("kind")
        if name not in named:
            raise ValueError(f"{where}.kind is {name!r}, expected one of {', '.join(sorted(named))}")
        return _read(named[name], value, where)
    for option in options:
        if option is type(None):
            continue
        try:
            return _read(option, value, where)
        except ValueError:
            continue
    raise ValueError(f"{where} is {value!r}, expected one of {', '.join(str(option) for option in options)}")


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, value, f"an object for {kind.__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    arguments = {}
    for key, item in value.items():
        if key == "kind":
            continue
        if key not in fields:
            raise ValueError(f"{where} has no field {key!r}{nearest(key, fields)}")
        arguments[key] = _read(hints[key], item, f"{where}.{key}")
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return kind(**arguments)


def _read_sequence(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, list | tuple), where, value, "a list")
    inner = typing.get_args(kind)
    make = typing.get_origin(kind)
    if make is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        _expect(len(value) == len(inner), where, value, f"{len(inner)} values")
        return tuple(_read(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(inner, value, strict=True)))
    return make(_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))


def _expect(fits: bool, where: str, value: Any, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{where} is {value!r}, expected {wanted}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint of the nearest known names, for the end of an error message."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names) or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(names)}"
