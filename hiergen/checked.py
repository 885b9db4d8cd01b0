"""Settings that check themselves: every field by its type, numbers by the range that their annotation declares."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number of a settings class may be, written at its type: `Annotated[float, Range(0, 1)]`.

    Attributes:
        low: Smallest value.
        high: Largest value.
        excludes_low: Whether `low` itself is refused.
        excludes_high: Whether `high` itself is refused.
    """

    low: float | int = -math.inf
    high: float | int = math.inf
    excludes_low: bool = False
    excludes_high: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether a number is in the range."""
        return not (
            value < self.low
            or value > self.high
            or (self.excludes_low and value == self.low)
            or (self.excludes_high and value == self.high)
        )

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.excludes_low else f"at least {self.low:g}"
        high = f"below {self.high:g}" if self.excludes_high else f"up to {self.high:g}"
        if math.isinf(self.high):
            return low
        if math.isinf(self.low):
            return high
        return f"{low} and {high}" if self.excludes_low or self.excludes_high else f"{self.low:g} to {self.high:g}"


#: Numbers that settings often are.
Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, excludes_low=True)]
NotNegative = Annotated[float, Range(0)]


class Checked:
    """A base of settings classes that checks every field when one is made: its type, that numbers are finite, and their `Range`.

    A class that checks more in a `__post_init__` of its own calls that of `super()` first, which also reaches every other base.

    Raises:
        ValueError: Naming the field, its value and what was expected.
    """

    def __post_init__(self) -> None:
        if _is_traced():
            return
        for name, kind in _hints(type(self)).items():  # type: ignore[arg-type]  # classes are hashable
            value = getattr(self, name)
            if not _fits(kind, value):
                raise ValueError(f"{name} is {value!r}, expected {_describe(kind, value)}")


def _is_traced() -> bool:
    """Return whether `torch.compile` looks on: it cannot follow a look at annotations, and runs eagerly what it has not seen."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fits(kind: Any, value: Any) -> bool:
    """Return whether a value is of a type; numbers also of NumPy, and finite."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        ranges = [rule for rule in inner[1:] if isinstance(rule, Range)]
        return _fits(inner[0], value) and all(rule.holds(value) for rule in ranges)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in inner)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if kind in (int, float):
        is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
            return len(value) == len(inner) and all(map(_fits, inner, value))
        return all(_fits(inner[0], item) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if origin is Callable:
        return callable(value)
    return isinstance(value, kind) if isinstance(kind, type) and origin is None else kind is not None or value is None


def _describe(kind: Any, value: Any = None) -> str:
    """Return in words what fits a type that `value` does not: of a number of the right kind, its range alone."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        ranges = [str(rule) for rule in inner[1:] if isinstance(rule, Range)]
        return " and ".join(ranges if ranges and _fits(inner[0], value) else [_describe(inner[0]), *ranges])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option, value) for option in inner)
    if origin is typing.Literal:
        *first, last = map(repr, inner)
        return f"{'one of ' if len(inner) > 2 else ''}{', '.join(first)} or {last}" if first else last
    if origin in (tuple, list, Sequence):
        return f"a list, of {'; '.join(_describe(item) for item in inner if item is not Ellipsis)}"
    if kind is type(None):
        return "None"
    words = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string"}
    return words.get(kind, f"a {getattr(kind, '__name__', kind)}")
