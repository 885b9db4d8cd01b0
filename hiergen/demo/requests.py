"""Checks that the requests of all tabs share; whoever sends one, a program or the page, is told what is out of range."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from hiergen.demo.library import DemoModel

MAX_SEED = 2**32 - 1
#: Least and greatest value of what more than one tab asks for.
GUIDANCE, SEED = (0, 20), (0, MAX_SEED)
#: Most characters of what is asked for in words.
MAX_PROMPT = 300

T = TypeVar("T")


def check_ranges(request: Any, **ranges: tuple[float | int, float | int]) -> None:
    """Check that fields of a request lie between their least and greatest values, both included.

    Raises:
        ValueError: If one does not; it is named.
    """
    for name, (least, most) in ranges.items():
        value = getattr(request, name)
        # Written so that NaN is refused too.
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}, expected {least} to {most}")


def read_query(kind: type[T], asked: Mapping[str, str]) -> T:
    """Return a request from what stands in an address; what is not there has its default.

    Raises:
        ValueError: If a number is none, or out of range.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # a dataclass, as all requests
        if field.name in asked and isinstance(field.default, (int, float, str)):
            try:
                found[field.name] = type(field.default)(asked[field.name])
            except ValueError as error:
                raise ValueError(f"{field.name} is {asked[field.name]!r} in the address, expected a number") from error
    return kind(**found)


def to_seed(value: float | None) -> int:
    """Return the number in the field for the seed.

    Raises:
        ValueError: If the field is empty.
    """
    if value is None:
        raise ValueError("the field for the seed is empty, expected a whole number")
    return int(value)


def check_label(entry: DemoModel, label: int) -> None:
    """Check that a model knows a class, or a node of its hierarchy of classes.

    Raises:
        ValueError: If it does not.
    """
    if not 0 <= label < entry.num_labels:
        raise ValueError(f"label is {label}, expected 0 to {entry.num_labels - 1}")


def check_asked(entry: DemoModel, request: Any) -> None:
    """Check that a model knows the class that is asked for, or a node of its hierarchy; or that there are words, where it takes these.

    Raises:
        ValueError: If it does not, or there are none or too many.
    """
    if not entry.takes_words:
        check_label(entry, request.label)
        return
    if not request.prompt.strip():
        raise ValueError("the field for the words is empty: say what you want to see")
    for name in ("prompt", "negative_prompt"):
        if (size := len(getattr(request, name))) > MAX_PROMPT:
            raise ValueError(f"{name} has {size:,} characters, expected at most {MAX_PROMPT}")
