"""The studies of images take other sizes, sources and models, and results of before stay theirs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from hiergen.evaluation.images.study import CAME_LATER
from hiergen.registry import create

ROOT = Path(__file__).resolve().parents[3]
EMOJI = {"data": "npz:emoji.npz", "hold_out": 10, "hold_out_by": "name", "size": 64, "precision": "bf16"}
OVERRIDES = {
    "study_hieratok": ({"latent_dim": 16, "decoder_dim": 32}, "1-scale", "4-scales"),
    "study_restok": ({"cnn_stem": 4, "cnn_multipliers": [1, 2], "num_latent_tokens": 64}, "preset", "flat"),
}


class CaughtError(Exception):
    """The training that was about to start."""


def study_of(name: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """Return a study without its images, and the names of its program."""
    program = runpy.run_path(str(ROOT / "eval" / f"{name}.py"), run_name=name)
    study = object.__new__(program["Study"])
    study.settings = program["Settings"](**settings)
    if name == "study_hieratok":
        study.variants = program["variants"](study.settings.size // study.settings.patch_size)
    return study, program


def config_of(study: Any, program: dict[str, Any], variant: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    def fit(config: Any, **kwargs: Any) -> None:
        raise CaughtError(config)

    monkeypatch.setitem(program["Study"]._tokenizer.__globals__, "fit", fit)
    with pytest.raises(CaughtError) as caught:
        study._tokenizer(variant, 0, Path("out"))
    return caught.value.args[0]


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_study_of_other_images_and_models(name, monkeypatch) -> None:
    overrides, first, second = OVERRIDES[name]
    study, program = study_of(name, **EMOJI, overrides=overrides)
    configs = [config_of(study, program, variant, monkeypatch) for variant in (first, second)]
    for config in configs:
        assert config.precision == "bf16"
        task = config.task
        assert (task.data.size, task.data.hold_out_by, task.data.hold_out) == (64, "name", 10)
        model = create(task.preset, **task.overrides)
        assert model.config["image_size"] == 64
        assert overrides.items() <= dict(model.config).items()
    changed = [config.task.overrides for config in configs]
    assert changed[0] != changed[1]


@pytest.mark.parametrize("name", OVERRIDES)
def test_settings_that_came_later_are_no_part_of_results_of_before(name) -> None:
    assert not CAME_LATER.keys() & study_of(name)[0].common().keys()
    found = study_of(name, **EMOJI, overrides={"latent_dim": 16})[0].common()
    assert found["overrides"] == {"latent_dim": 16}
    assert {key: found[key] for key in ("size", "hold_out_by", "precision")} == {
        "size": 64,
        "hold_out_by": "name",
        "precision": "bf16",
    }
