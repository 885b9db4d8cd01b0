"""Configurations are dataclasses: to JSON and back strictly, and overridden from a command line by tyro."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")

#: Names that an error lists where none is near.
MOST_KNOWN = 24


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


def overlay(config: C, value: Any, *, where: str = "") -> C:
    """Return a config with the fields replaced that a JSON value gives, in the form of `to_json`; other fields stay.

    Raises:
        ValueError: If a key is unknown (with the nearest name), or a value does not fit its field; the path is named.
    """
    name = type(config).__name__
    where = where or name
    _expect(isinstance(value, dict), where, value, f"an object for {name}")
    if value.get("kind", name) != name:
        raise ValueError(f"{where}.kind is {value['kind']!r}, expected {name!r}")
    hints, known = typing.get_type_hints(type(config)), {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, item in value.items():
        if key == "kind":
            continue
        if key not in known:
            raise ValueError(f"{where} has no field {key!r}{nearest(key, known)}")
        current, place = getattr(config, key), f"{where}.{key}"
        is_one = isinstance(hints[key], type) and dataclasses.is_dataclass(hints[key])
        is_same = isinstance(item, dict) and item.get("kind", type(current).__name__) == type(current).__name__
        is_part = dataclasses.is_dataclass(current) and (is_one or is_same)
        changes[key] = overlay(current, item, where=place) if is_part else _read(hints[key], item, place)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def read_values(path: str) -> Any:
    """Return what a JSON or YAML file holds; a number such as 1e-4, which YAML takes for text, is a number.

    Raises:
        ValueError: If the file cannot be read or is neither.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    exponent = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    try:
        return yaml.load(Path(path).read_text(), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"config {path!r} cannot be read as JSON or YAML: {error}") from error


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

    Entries of a dict are options too (`--overrides.sizes 4 8`, or the whole as JSON), a part that is None is made by naming one of its
    fields, and `--part None` takes it away. An unknown option ends the program with code 2 and the nearest names.
    """
    import tyro

    default, words = _take_entries(default, list(sys.argv[1:] if args is None else args))
    return tyro.cli(
        type(default),
        args=words,
        default=default,
        prog=prog,
        description=description,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _take_entries(config: C, words: list[str]) -> tuple[C, list[str]]:
    """Apply the options that address what has no option of its own: entries of dicts, and parts that are None or shall be."""
    rest: list[str] = []
    while words:
        end = next((i for i, word in enumerate(words) if i and word.startswith("--")), len(words))
        group, words = words[:end], words[end:]
        option, has_value, value = group[0].partition("=")
        given = [value] * bool(has_value) + group[1:]
        is_done = False
        if option.startswith("--") and given:
            config, is_done = _assign(config, option[2:].replace("-", "_").split("."), given, option)
        rest += [] if is_done else group
    return config, rest


def _assign(config: C, path: list[str], words: list[str], option: str) -> tuple[C, bool]:
    """Return a config in which a value may have been set, and whether it was; a part that is None is made for what comes then."""
    name, inner = path[0], path[1:]
    hint = typing.get_type_hints(type(config)).get(name)
    kinds = [kind for kind in typing.get_args(hint) if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    value = getattr(config, name, None)
    is_done = False
    if typing.get_origin(hint) is dict:
        assert isinstance(value, dict)
        value, is_done = _with_entry(value, inner, words, option), True
    elif kinds and type(None) in typing.get_args(hint) and not inner and words == ["None"]:
        value, is_done = None, True
    elif inner and hint is not None:
        if value is None and len(kinds) == 1:
            value = kinds[0]()
        if not dataclasses.is_dataclass(value):
            return config, False
        value, is_done = _assign(value, inner, words, option)
    else:
        return config, False
    return dataclasses.replace(config, **{name: value}), is_done  # type: ignore[type-var]


def _with_entry(entries: dict[str, Any], path: list[str], words: list[str], option: str) -> dict[str, Any]:
    values = [_value(word) for word in words]
    if not path:
        if len(values) != 1 or not isinstance(values[0], dict):
            raise ValueError(f"{option} is {' '.join(words)!r}, expected a JSON object, or {option}.NAME VALUE")
        return {**entries, **values[0]}
    inner = entries.get(path[0])
    if len(path) > 1:
        return {**entries, path[0]: _with_entry(inner if isinstance(inner, dict) else {}, path[1:], words, option)}
    # One value of what was a list is a list still.
    is_list = len(values) > 1 or (isinstance(inner, list | tuple) and not isinstance(values[0], list))
    return {**entries, path[0]: values if is_list else values[0]}


def _value(word: str) -> Any:
    """Return the value that a word of a command line spells as JSON or Python does; other words are text."""
    spelled = {"True": True, "False": False, "None": None}
    if word in spelled:
        return spelled[word]
    try:
        return json.loads(word)
    except ValueError:
        return word


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
        name = value.get("kind", next(iter(named)) if len(named) == 1 else None)
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
    folded = {known.casefold(): known for known in reversed(names)}
    near = (
        difflib.get_close_matches(name, names)
        or [folded[found] for found in difflib.get_close_matches(name.casefold(), folded)]
        or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    )
    if near:
        return f"; did you mean {' or '.join(near)}?"
    more = f" and {len(names) - MOST_KNOWN} more" if len(names) > MOST_KNOWN else ""
    return f"; known are {', '.join(names[:MOST_KNOWN])}{more}"
