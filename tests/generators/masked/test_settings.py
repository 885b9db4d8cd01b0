from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hiergen.generators.masked.orders import unmask_counts
from hiergen.generators.masked.settings import MaskedARSettings, check_masked_config
from hiergen.pyramid import LevelSpec


def test_guidance_schedules() -> None:
    def scales(schedule: Any) -> list[float]:
        return list(MaskedARSettings(guidance_scale=3.0, guidance_schedule=schedule).step_scales(unmask_counts(8, 4)))

    # floor(8 cos(pi/2 s/4)) = 7, 5, 3, and the last step counts one token as hidden.
    assert scales("official") == pytest.approx([1 + 2 * revealed / 8 for revealed in (1, 3, 5, 7)])
    assert scales("paper") == pytest.approx([0.75, 1.5, 2.25, 3.0])
    assert scales("constant") == [3.0] * 4
    # The other generators' schedules count revealed tokens too.
    assert scales("linear_constant") == pytest.approx([1.5, 2.5, 3.0, 3.0])
    assert scales("step") == [1.0001, 3.0, 3.0, 3.0]


def test_guidance_is_off_at_one_except_in_the_papers_form() -> None:
    assert not MaskedARSettings(guidance_scale=1.0).is_guided
    assert not MaskedARSettings(guidance_scale=1.0, guidance_schedule="constant").is_guided
    assert MaskedARSettings(guidance_scale=1.0, guidance_schedule="paper").is_guided
    assert MaskedARSettings(guidance_scale=0.5).is_guided


def test_steps_by_stage() -> None:
    assert MaskedARSettings(num_steps=9).steps_of(1, 3) == 9
    assert MaskedARSettings(num_steps=(1, 2, 3)).steps_of(1, 3) == 2
    with pytest.raises(ValueError, match="num_steps holds 2 numbers, the generator has 3 stages"):
        MaskedARSettings(num_steps=(1, 2)).steps_of(0, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0, expected at least 1"),
        ({"num_steps": ()}, r"num_steps is \(\), expected at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0, expected at least 0"),
        ({"guidance_schedule": "sigmoid"}, "guidance_schedule is 'sigmoid', expected one of 'constant', 'linear'"),
        ({"low_res_noise": 2.0}, "low_res_noise is 2.0, expected 0 to 1"),
        ({"head_steps": 1}, "head_steps is 1, expected at least 2"),
        ({"temperature": -0.5}, "temperature is -0.5, expected at least 0"),
        ({"eta": 1.5, "head_sampler": "ddim"}, "eta is 1.5, expected 0 to 1"),
        ({"eta": 0.5}, "eta is 0.5 with head_sampler 'ddpm', expected 0"),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], message: str) -> None:
    settings = MaskedARSettings()
    for name, value in values.items():
        # Around the constructor, where the type checker of the tests would refuse some of these first.
        object.__setattr__(settings, name, value)
    with pytest.raises(ValueError, match=message):
        settings.__post_init__()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"order": "raster"}, "order is 'raster', expected 'random' or 'levelwise'"),
        ({"mask_ratio_min": 1.0}, "mask_ratio_min is 1.0, expected more than 0 and less than 1"),
        ({"mask_ratio_std": 0.0}, "mask_ratio_std is 0.0, expected a positive number"),
        ({"condition_drop": 2.0}, "condition_drop is 2.0, expected 0 to 1"),
        ({"diffusion_batch_mul": 0}, "diffusion_batch_mul is 0, expected at least 1"),
        ({"level_weights": [1.0]}, r"level_weights is \[1.0\], expected 2 weights"),
        ({"low_res_noise": [0.6, 0.4]}, r"low_res_noise is \[0.6, 0.4\], expected two numbers, 0 <= low <= high <= 1"),
        ({"latent_multiplier": 0.0}, "latent_multiplier is 0, expected another number"),
    ],
)
def test_config_errors_say_what_is_wrong(values: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "order": "random",
        "mask_ratio_min": 0.7,
        "mask_ratio_std": 0.25,
        "condition_drop": 0.1,
        "diffusion_batch_mul": 1,
        "level_weights": None,
        "low_res_noise": [0.4, 0.6],
        "latent_multiplier": 1.0,
    }
    specs = (LevelSpec(1, dim=4), LevelSpec(4, dim=4))
    check_masked_config(specs, SimpleNamespace(**good))
    with pytest.raises(ValueError, match=message):
        check_masked_config(specs, SimpleNamespace(**{**good, **values}))


@pytest.mark.parametrize("specs", [(LevelSpec(4, dim=4, vocab_size=9),), (LevelSpec(1, dim=4), LevelSpec(4, dim=5))])
def test_levels_must_be_continuous_and_alike(specs: tuple[LevelSpec, ...]) -> None:
    fitting = "; discrete tokens are for the recipe har-tiny$" if specs[0].is_discrete else "channels$"
    with pytest.raises(ValueError, match=f"expected continuous levels .*{fitting}"):
        check_masked_config(specs, SimpleNamespace())
    with pytest.raises(ValueError, match="level_specs is empty"):
        check_masked_config((), SimpleNamespace())
