"""Options that are written once: a config value in, keyword arguments and a flat saved config out."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
from typing import Any

import pytest

from hiergen.tokenizers.base import Tokenizer, configured
from hiergen.tokenizers.hieratok.config import HieraTokConfig
from hiergen.tokenizers.hieratok.model import HieraTok
from hiergen.tokenizers.pyramid_vae.config import PyramidVAEConfig
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE
from hiergen.tokenizers.restok.config import ResTokConfig
from hiergen.tokenizers.restok.model import ResTok

CONFIGURED = ((ResTok, ResTokConfig), (HieraTok, HieraTokConfig), (PyramidVAE, PyramidVAEConfig))


@dataclasses.dataclass(frozen=True)
class Sizes:
    sides: tuple[int, ...]
    dim: int = 4


class Toy(Tokenizer):
    @configured(Sizes)
    def __init__(self, layout: Sizes) -> None:
        super().__init__()
        self.layout = layout


@pytest.mark.parametrize(("model", "kind"), CONFIGURED)
def test_the_constructor_takes_the_options_by_name_alone(model: type[Any], kind: type[Any]) -> None:
    parameters = list(inspect.signature(model).parameters.values())
    assert [(p.name, p.default) for p in parameters] == [(f.name, f.default) for f in dataclasses.fields(kind)]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)


@pytest.mark.parametrize("kind", [kind for _, kind in CONFIGURED])
def test_every_option_has_a_description_of_its_own(kind: type[Any]) -> None:
    lines = inspect.getsource(kind).splitlines()
    described = {line.split(":")[0].strip() for line, after in itertools.pairwise(lines) if after.startswith('    """')}
    assert {field.name for field in dataclasses.fields(kind)} <= described


def test_what_is_saved_is_flat_and_loads_to_the_same_value(tmp_path) -> None:
    toy = Toy(sides=[1, 2])
    assert toy.layout == Sizes((1, 2), 4)
    toy.save_config(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert {name: value for name, value in stored.items() if not name.startswith("_")} == {"sides": [1, 2], "dim": 4}
    assert Toy.from_config(Toy.load_config(tmp_path)).layout == toy.layout
    # What a config of an older version does not say is the default.
    assert Toy.from_config({"sides": [3]}).layout == Sizes((3,), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": [1], "dimm": 3}, "Toy has no field 'dimm'; did you mean dim"),
        ({"sides": [1], "dim": "3"}, r"Toy\.dim is '3', expected int"),
        ({}, "Toy lacks sides"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Toy(**options)


def test_an_unknown_entry_of_a_saved_config_is_refused() -> None:
    with pytest.raises(ValueError, match="the config of a Toy has an unknown entry 'dimm'; did you mean dim"):
        Toy.from_config({"sides": [1], "dimm": 3})
