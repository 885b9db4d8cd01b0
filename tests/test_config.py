from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from hiergen.config import fingerprint, from_json, parse, to_json


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Other:
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    mode: Literal["a", "b"] = "a"
    inner: Inner | Other = dataclasses.field(default_factory=Inner)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    limit: float | None = None
    grid: tuple[int, ...] = ()
    flag: bool = False


def test_json_and_back() -> None:
    for config in (Outer("x"), Outer("y", "b", Other(5), {"k": [1, "z"]}, 2.0, (1, 2, 3), True)):
        assert from_json(Outer, to_json(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, r"Outer has no field 'nmae'; did you mean name\?"),
        ({"mode": "c"}, "Outer.mode is 'c', expected one of 'a', 'b'"),
        ({"name": 3}, "Outer.name is 3, expected str"),
        ({"flag": 1}, "Outer.flag is 1, expected bool"),
        ({"inner": {"kind": "Wrong"}}, "Outer.inner.kind is 'Wrong', expected one of Inner, Other"),
        ({"inner": {"kind": "Inner", "betas": [0.9]}}, r"Outer.inner.betas is \[0.9\], expected 2 values"),
        ({"limit": "high"}, "Outer.limit is 'high'"),
        ({"grid": [1, 2.5]}, r"Outer.grid\[1\] is 2.5, expected int"),
    ],
)
def test_what_does_not_fit_is_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Outer, {"name": "x", **change})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match="Outer lacks name"):
        from_json(Outer, {})


def test_the_fingerprint_sees_every_field() -> None:
    assert fingerprint(Outer("x")) == fingerprint(Outer("x"))
    assert fingerprint(Outer("x")) != fingerprint(Outer("x", inner=Inner(0.2)))
    with pytest.raises(TypeError, match="cannot hold a set"):
        fingerprint({"a": {1}})


def test_overrides_reach_nested_fields_and_unknown_ones_are_refused(capsys) -> None:
    config = parse(Outer("x"), ["--inner.rate", "3e-4", "--grid", "1", "2", "--flag", "True"], prog="p")
    assert config == Outer("x", inner=Inner(3e-4), grid=(1, 2), flag=True)
    with pytest.raises(SystemExit) as stop:
        parse(Outer("x"), ["--inner.rat", "1"], prog="p")
    assert stop.value.code == 2
    assert "inner.rate" in capsys.readouterr().err
