"""All settings classes of the package: each checks every field that it has, also those of all its bases."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import hiergen
from hiergen.checked import Checked, Count, Range, Share
from hiergen.evaluation.settings import SamplingConfig
from hiergen.training.tasks.settings import GeneratorTaskConfig

#: Values of fields that have no default.
REQUIRED: dict[str, dict[str, Any]] = {
    "StageConfig": {
        "num_classes": 1,
        "num_buffer": 1,
        "feature_shapes": None,
        "dim": 1,
        "depth": 1,
        "num_heads": 1,
        "norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "head_dim": 1,
        "head_depth": 1,
        "diffusion_batch_mul": 1,
        "condition_drop": 0.0,
        "latent_multiplier": 1.0,
    },
    "ConvertSettings": {"family": "mar", "source": "a", "target": "b"},
    "CompareSettings": {"first": "a", "second": "b"},
    "ProxyConfig": {"tokenizer": "a"},
    "PrepareShapesSettings": {"source": "a", "out": "b"},
    "PrepareShapesOptions": {"source": "a", "out": "b"},
    "TrainConfig": {"task": GeneratorTaskConfig(), "out": "a", "samples": 1},
}
#: Named like settings, but the state that the processors of a model share.
SHARED_STATE = {"hiergen.video.processors.AttentionSettings"}


def _classes() -> dict[str, type[Any]]:
    found = {}
    for module in pkgutil.walk_packages(hiergen.__path__, "hiergen."):
        if module.name.endswith("__main__") or "pretrained.models" in module.name:
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.name):
                continue
            if re.search(r"(Settings|Config|Protocol)$", name) or issubclass(kind, Checked):
                found[f"{module.name}.{name}"] = kind
    return found


CLASSES = _classes()


def test_every_settings_class_is_checked() -> None:
    assert len(CLASSES) > 60
    assert {name for name, kind in CLASSES.items() if not issubclass(kind, Checked)} == SHARED_STATE


@pytest.mark.parametrize("name", [name for name in CLASSES if not name.startswith("hiergen.kernels.")])
def test_help_texts_have_no_line_breaks_of_the_source(name: str) -> None:
    # The command line takes a line that does not begin with a letter for one of its own.
    _, _, fields = (CLASSES[name].__doc__ or "").partition("Attributes:")
    fields, _, _ = fields.partition("\n\n")
    assert re.findall(r"^ {12}[^A-Za-z\s].*", fields, re.M) == []


def test_every_setting_of_sampling_is_described() -> None:
    described = re.findall(r"^ {8}(\w+): ", SamplingConfig.__doc__ or "", re.M)
    assert described == [field.name for field in dataclasses.fields(SamplingConfig)]


def _default(kind: type[Any]) -> Any:
    """Return an instance, or None for a class that needs what no test can make up."""
    try:
        return kind(**REQUIRED.get(kind.__name__, {}))
    except TypeError:
        return None


def _rules(kind: Any) -> Iterator[tuple[Any, list[Range]]]:
    """Yield the kinds of numbers in a type with their ranges."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        for number, ranges in _rules(inner[0]):
            yield number, [*ranges, *(rule for rule in inner[1:] if isinstance(rule, Range))]
    elif origin in (typing.Union, types.UnionType):
        for option in inner:
            yield from _rules(option)
    elif kind in (int, float):
        yield kind, []


def _wrong(kind: Any) -> Iterator[Any]:
    """Yield values that a field of numbers must refuse."""
    rules = list(_rules(kind))
    if not rules:
        return
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    yield from (math.nan, math.inf, -math.inf, [], np.float64("nan"))
    if not any(option is str for option in options):
        yield "text"
    if bool not in options:
        yield True
    if all(number is int for number, _ in rules):
        yield 1.5
    for number, ranges in rules:
        for rule in ranges:
            for end, is_excluded, step in ((rule.low, rule.excludes_low, -1), (rule.high, rule.excludes_high, 1)):
                if math.isfinite(end):
                    yield number(end) if is_excluded else number(end + step)


@pytest.mark.parametrize("name", [name for name, kind in CLASSES.items() if issubclass(kind, Checked)])
def test_what_no_field_may_be_is_refused_by_its_name(name: str, unchecked: None) -> None:
    """By our own check: with jaxtyping's hook on, that of the hook would speak first, and take hundreds of times as long."""
    kind = CLASSES[name]
    made = _default(kind)
    if made is None:
        # Classes that only their subclasses complete.
        assert kind.__subclasses__()
        return
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(kind) if field.init}
    for field, hint in typing.get_type_hints(kind, include_extras=True).items():
        if field not in values:
            continue
        for wrong in _wrong(hint):
            with pytest.raises(ValueError, match=rf"\b{field}\b"):
                kind(**{**values, field: wrong})


def test_a_class_of_two_bases_runs_the_checks_of_both() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class One(Checked):
        a: Count = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.a == 7:
                raise ValueError("a is 7, expected another")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Two(Checked):
        b: Share = 0.5

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.b == 0.25:
                raise ValueError("b is 0.25, expected another")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Both(One, Two):
        c: Literal["x", "y"] | None = None
        d: tuple[int, ...] = (1,)
        e: tuple[float, float] = (0.0, 1.0)

    Both(a=np.int64(3), b=np.float32(0.5), c="x", d=[1, 2], e=(0, 1))  # type: ignore[arg-type]
    for wrong, message in (
        ({"a": 7}, "a is 7, expected another"),
        ({"b": 0.25}, "b is 0.25, expected another"),
        ({"a": 0}, "a is 0, expected at least 1"),
        ({"b": 1.5}, "b is 1.5, expected 0 to 1"),
        ({"b": math.nan}, "b is nan, expected a finite number and 0 to 1"),
        ({"c": "z"}, "c is 'z', expected 'x' or 'y' or None"),
        ({"d": (1, 2.5)}, r"d is \(1, 2.5\), expected a list, of an integer"),
        ({"e": (0.0,)}, r"e is \(0.0,\), expected a list, of a finite number; a finite number"),
        ({"e": (0.0, math.inf)}, r"e is \(0.0, inf\), expected a list, of"),
    ):
        with pytest.raises(ValueError, match=message):
            Both(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Range(1), "at least 1"),
        (Range(high=2), "up to 2"),
        (Range(0, 1), "0 to 1"),
        (Range(0, excludes_low=True), "above 0"),
        (Range(0, 1, excludes_low=True), "above 0 and up to 1"),
        (Range(0, 1, excludes_high=True), "at least 0 and below 1"),
    ],
)
def test_a_range_says_what_it_holds(rule: Range, text: str) -> None:
    assert str(rule) == text
    assert not rule.holds(-1) or rule == Range(high=2)
    assert rule.holds(0) is not (rule.excludes_low or rule.low == 1)
