from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from hiergen.config import fingerprint, from_json, nearest, overlay, parse, read_values, to_json


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


@dataclasses.dataclass(frozen=True)
class Whole:
    outer: Outer = dataclasses.field(default_factory=lambda: Outer("x", extra={"sizes": [1, 2]}))
    part: Other | None = None


@pytest.mark.parametrize(
    ("words", "entries"),
    [
        (["--outer.extra.image-size", "48"], {"image_size": 48}),
        (["--outer.extra.image-size=48"], {"image_size": 48}),
        (["--outer.extra.sizes", "4", "8"], {"sizes": [4, 8]}),
        (["--outer.extra.sizes", "[4, 8]"], {"sizes": [4, 8]}),
        # What was a list stays one.
        (["--outer.extra.sizes", "4"], {"sizes": [4]}),
        (
            ["--outer.extra.rate", "1e-4", "--outer.extra.on", "True", "--outer.extra.kind", "a"],
            {"rate": 1e-4, "on": True, "kind": "a"},
        ),
        (["--outer.extra.shift", "-1", "--outer.extra.none", "None"], {"shift": -1, "none": None}),
        (["--outer.extra.inner.rate", "2", "--outer.extra.inner.name", "x"], {"inner": {"rate": 2, "name": "x"}}),
        (["--outer.extra", '{"image_size": 48}'], {"image_size": 48}),
    ],
)
def test_entries_of_a_dict_are_options(words, entries) -> None:
    found = parse(Whole(), [*words, "--outer.limit", "3"], prog="p")
    assert found.outer.extra == {"sizes": [1, 2], **entries}
    assert found.outer.limit == 3


def test_a_dict_that_is_no_json_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"--outer.extra is 'image_size 48', expected a JSON object, or --outer.extra.NAME VALUE"
    ):
        parse(Whole(), ["--outer.extra", "image_size", "48"], prog="p")


def test_a_part_that_is_none_is_made_and_taken_away(capsys) -> None:
    assert parse(Whole(), ["--part.size", "5"], prog="p").part == Other(5)
    assert parse(Whole(part=Other(7)), ["--part", "None"], prog="p").part is None
    with pytest.raises(SystemExit) as stop:
        parse(Whole(), ["--part.sise", "5"], prog="p")
    assert stop.value.code == 2
    assert "part.size" in capsys.readouterr().err


def test_a_file_replaces_the_fields_that_it_gives(tmp_path) -> None:
    given = {"outer": {"limit": 2, "inner": {"kind": "Other", "size": 9}, "grid": [1, 2]}, "part": {"size": 4}}
    found = overlay(Whole(), given)
    expected = Outer("x", limit=2.0, inner=Other(9), grid=(1, 2), extra={"sizes": [1, 2]})
    assert found == Whole(expected, Other(4))
    assert overlay(Whole(), to_json(found)) == found
    assert overlay(Whole(part=Other(3)), {"part": None}).part is None
    (tmp_path / "a.yaml").write_text("# a note\nouter:\n  limit: 1e-4\n  mode: b\n")
    assert overlay(Whole(), read_values(str(tmp_path / "a.yaml"))).outer == Outer(
        "x", "b", limit=1e-4, extra={"sizes": [1, 2]}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outer": {"lmit": 2}}, r"Whole.outer has no field 'lmit'; did you mean limit\?"),
        ({"outer": {"limit": "high"}}, "Whole.outer.limit is 'high'"),
        ({"outer": {"kind": "Inner"}}, "Whole.outer.kind is 'Inner', expected 'Outer'"),
        ({"outer": 3}, "Whole.outer is 3, expected an object for Outer"),
        ([], r"Whole is \[\], expected an object for Whole"),
    ],
)
def test_what_a_file_may_not_hold_is_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(Whole(), change)


def test_a_file_that_is_neither_json_nor_yaml_is_refused(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("outer: [1")
    for name in ("a.yaml", "missing.yaml"):
        with pytest.raises(ValueError, match=rf"config '.*{name}' cannot be read as JSON or YAML: "):
            read_values(str(tmp_path / name))


def test_the_nearest_names_are_said_or_some_of_the_known() -> None:
    assert nearest("dpeth", ["depth", "num_heads"]) == "; did you mean depth?"
    assert nearest("DEPHT", ["Depth", "width"]) == "; did you mean Depth?"
    assert nearest("zzz", ["depth", "width"]) == "; known are depth, width"
    assert nearest("zzz", [f"name-{k:02d}" for k in range(30)]).endswith("name-22, name-23 and 6 more")
