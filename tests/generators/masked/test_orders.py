from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hiergen.generators.masked.orders import (
    MaskedARSettings,
    check_masked_config,
    guidance_at,
    make_stages,
    mask_ratio,
    random_orders,
    unmask_counts,
)
from hiergen.pyramid import LevelSpec

CPU = torch.device("cpu")


def test_stages_are_the_whole_sequence_or_its_levels() -> None:
    assert [dataclasses.astuple(stage) for stage in make_stages([1, 4, 16], "random")] == [(2, 21, 21)]
    assert [dataclasses.astuple(stage) for stage in make_stages([1, 4, 16], "levelwise")] == [
        (0, 1, 1),
        (1, 5, 4),
        (2, 21, 16),
    ]


def test_orders_permute_the_tokens_of_the_stage_and_put_the_given_ones_last() -> None:
    stage = make_stages([1, 4, 16], "levelwise")[2]
    orders = random_orders(64, stage, rng=torch.Generator().manual_seed(0), device=CPU)
    assert orders.sort(dim=1).values.eq(torch.arange(21)).all()
    assert orders[:, 16:].eq(torch.arange(5)).all()
    # Every token comes first in some sample, and samples differ.
    assert len(orders[:, 0].unique()) == 16
    again = random_orders(64, stage, rng=torch.Generator().manual_seed(0), device=CPU)
    assert torch.equal(orders, again)


def test_mask_ratio_follows_the_truncated_normal() -> None:
    def cumulative(ratio: float) -> float:
        """Normal of mean 1 and deviation 0.25, cut to [0.7, 1]."""
        low = math.erf(-0.3 / 0.25 / math.sqrt(2))
        return (math.erf((ratio - 1) / 0.25 / math.sqrt(2)) - low) / -low

    quantiles = [0.0, 0.1, 0.5, 0.9, 1.0]
    ours = [mask_ratio(u, minimum=0.7, std=0.25) for u in quantiles]
    assert [cumulative(ratio) for ratio in ours] == pytest.approx(quantiles, abs=1e-9)
    assert ours[1:4] == pytest.approx([0.745, 0.875, 0.976], abs=2e-3)
    grid = [mask_ratio((i + 0.5) / 400, minimum=0.7, std=0.25) for i in range(400)]
    assert sum(grid) / 400 == pytest.approx(0.867, abs=1e-3)


@pytest.mark.parametrize(("num_tokens", "num_steps"), [(1, 5), (16, 4), (16, 16), (7, 100), (256, 64), (1024, 64)])
def test_every_step_reveals_tokens_and_all_are_revealed_once(num_tokens: int, num_steps: int) -> None:
    counts = unmask_counts(num_tokens, num_steps)
    assert len(counts) == min(num_tokens, num_steps)
    assert counts[0][0] == num_tokens
    assert counts[-1][1] == 0
    assert all(before > after for before, after, _ in counts)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(counts))
    assert [hidden for *_, hidden in counts] == [max(1, after) for _, after, _ in counts]


def test_cosine_schedule_reveals_the_published_numbers_of_tokens() -> None:
    image = [before - after for before, after, _ in unmask_counts(256, 64)]
    assert image[:13] == [1] * 13
    assert image[13] > 1
    assert max(image) == 7
    shape = [before - after for before, after, _ in unmask_counts(1024, 64)]
    assert shape[:6] == [1, 1, 1, 2, 3, 4]
    assert max(shape) == 25
    assert [before - after for before, after, _ in unmask_counts(256, 256)] == [1] * 256


def test_guidance_schedules() -> None:
    def scales(schedule: Any) -> list[float]:
        settings = MaskedARSettings(guidance_scale=3.0, guidance_schedule=schedule)
        counts = unmask_counts(8, 4)
        return [
            guidance_at(settings, step, 4, hidden=hidden, num_tokens=8) for step, (_, _, hidden) in enumerate(counts)
        ]

    # floor(8 cos(pi/2 s/4)) = 7, 5, 3, and the last step counts one token as hidden.
    assert scales("official") == pytest.approx([1 + 2 * revealed / 8 for revealed in (1, 3, 5, 7)])
    assert scales("paper") == pytest.approx([0.75, 1.5, 2.25, 3.0])
    assert scales("constant") == [3.0] * 4


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
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0, expected 0 or more"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule is 'cosine', expected 'official', 'paper' or 'constant'"),
        ({"low_res_noise": 2.0}, "low_res_noise is 2.0, expected 0 to 1"),
        ({"head_steps": 1}, "head_steps is 1, expected at least 2"),
        ({"temperature": -0.5}, "temperature is -0.5, expected 0 or more"),
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
    with pytest.raises(ValueError, match="expected continuous levels"):
        check_masked_config(specs, SimpleNamespace())
    with pytest.raises(ValueError, match="level_specs is empty"):
        check_masked_config((), SimpleNamespace())
