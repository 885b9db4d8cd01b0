from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import pytest
import torch

from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.guidance import GuidanceSchedule, GuidanceSettings, guide
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.masked.cascade import MaskedCascade
from hiergen.generators.masked.model import MaskedAR

# Five steps are at 0, 1/4, 1/2, 3/4 and 1. Worked by hand for s = 3.
CASES: list[tuple[dict[str, Any], list[float]]] = [
    ({"guidance_schedule": "constant"}, [3, 3, 3, 3, 3]),
    ({"guidance_schedule": "linear"}, [1.0001, 1.5001, 2.0001, 2.5001, 3.0001]),
    ({"guidance_schedule": "linear_re"}, [3.0001, 2.5001, 2.0001, 1.5001, 1.0001]),
    ({"guidance_schedule": "linear_constant"}, [1, 2, 3, 3, 3]),
    ({"guidance_schedule": "linear_constant", "peak": 1.0}, [1, 1.5, 2, 2.5, 3]),
    ({"guidance_schedule": "triangular"}, [1.0001, 2.0001, 3.0001, 2.0001, 1.0001]),
    ({"guidance_schedule": "triangular", "peak": 1.0}, [1.0001, 1.5001, 2.0001, 2.5001, 3.0001]),
    ({"guidance_schedule": "rectangular"}, [1.0001, 3, 3, 3, 3]),
    ({"guidance_schedule": "rectangular", "window_start": 0.5, "window_end": 0.75}, [1.0001, 1.0001, 3, 3, 1.0001]),
    ({"guidance_schedule": "step"}, [1.0001, 3, 3, 3, 3]),
    ({"guidance_schedule": "step", "window_start": 0.3, "min_guidance_scale": 1.5}, [1.5, 1.5, 3, 3, 3]),
    ({"guidance_schedule": "step", "window_start": 0.3, "min_guidance_scale": 1.0}, [1.0001, 1.0001, 3, 3, 3]),
    ({"guidance_schedule": "cosine"}, [1, 2 - 0.5**0.5, 2, 2 + 0.5**0.5, 3]),
    ({"guidance_schedule": "cosine_re"}, [3, 2 + 0.5**0.5, 2, 2 - 0.5**0.5, 1]),
    ({"guidance_schedule": "official"}, [1, 1.5, 2, 2.5, 3]),
    ({"guidance_schedule": "paper"}, [0, 0.75, 1.5, 2.25, 3]),
    ({"guidance_schedule": "power_cosine", "guidance_power": 1.0}, [1, 2 - 0.5**0.5, 2, 2 + 0.5**0.5, 3]),
    (
        {"guidance_schedule": "power_cosine", "guidance_power": 0.5},
        [1, 2, 2 - math.cos(math.pi * 0.5**0.5), 2 - math.cos(math.pi * 0.75**0.5), 3],
    ),
    ({"guidance_schedule": "power_cosine", "guidance_power": 0.0}, [3, 3, 3, 3, 3]),
    ({"guidance_schedule": "muse"}, [4, 4, 4, 4, 4]),
    ({"guidance_schedule": "muse_linear"}, [1, 1.75, 2.5, 3.25, 4]),
]


@pytest.mark.parametrize(("values", "wanted"), CASES)
def test_schedules_by_hand(values: dict[str, Any], wanted: list[float]) -> None:
    settings = GuidanceSettings(guidance_scale=3.0, **values)
    assert settings.scales(5) == pytest.approx(wanted, abs=1e-12)
    assert all(type(scale) is float for scale in settings.scales(5))


def test_published_schedule_of_nine_steps() -> None:
    settings = GuidanceSettings(guidance_scale=3.75, guidance_schedule="step", window_start=0.25)
    assert settings.scales(9) == (1.0001, 1.0001, *[3.75] * 7)


def test_schedules_that_count_from_the_conditional_prediction_are_off_at_zero() -> None:
    conditional, null = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])
    for schedule, scale, guided in (
        ("muse", 2.0, [7.0, -1.0]),
        ("muse_linear", 2.0, [5.0, 0.0]),
        ("constant", 2.0, [5.0, 0.0]),
    ):
        settings = GuidanceSettings(guidance_scale=scale, guidance_schedule=schedule)
        assert settings.guide(conditional, null, 1, 2).tolist() == guided
        assert settings.is_guided
    for schedule, off in (("muse", 0.0), ("muse_linear", 0.0), ("power_cosine", 1.0)):
        assert not GuidanceSettings(guidance_scale=off, guidance_schedule=schedule).is_guided
    assert GuidanceSettings(guidance_scale=1.0, guidance_schedule="muse").is_guided


def test_a_single_step_is_at_the_start() -> None:
    assert GuidanceSettings(guidance_scale=2.0, guidance_schedule="linear").scales(1) == (1.0001,)


def test_shares_are_divided_last_in_the_schedules_of_masked_generation() -> None:
    """As in the released program: 2.9 * 2 / 13 and 2.9 * (2 / 13) differ in the last digit."""
    assert 2.9 * 2 / 13 != 2.9 * (2 / 13)
    assert GuidanceSettings(guidance_scale=2.9, guidance_schedule="paper").scale_at(2, 13) == 2.9 * 2 / 13
    assert 1 + (2.9 - 1) * 2 / 13 != 1 + (2.9 - 1) * (2 / 13)
    official = GuidanceSettings(guidance_scale=2.9, guidance_schedule="official")
    assert official.scale_at(2, 13) == 1 + (2.9 - 1) * 2 / 13


def test_all_families_read_one_vocabulary() -> None:
    for family in (LevelAR, MaskedAR, MaskedCascade, FlowTransformer):
        for schedule in get_args(GuidanceSchedule):
            settings = family.make_settings(guidance_scale=3.0, guidance_schedule=schedule, peak=0.25)
            assert settings.scale_at(0.5) == GuidanceSettings(
                **dataclasses.asdict(settings, dict_factory=_guidance)
            ).scale_at(0.5)
            assert settings.is_guided


def _guidance(values: list[tuple[str, Any]]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(GuidanceSettings)}
    return {name: value for name, value in values if name in names}


def test_which_scales_are_no_guidance() -> None:
    assert [GuidanceSettings(guidance_scale=scale).is_guided for scale in (0.5, 1.0, 1.5)] == [True, False, True]
    # HAR's official sampler takes 1 or less as off; MAR-3D's form of the paper never is.
    assert [LevelAR.make_settings(guidance_scale=scale).is_guided for scale in (0.5, 1.0, 1.5)] == [False, False, True]
    assert GuidanceSettings(guidance_scale=1.0, guidance_schedule="paper").is_guided


def test_guide_moves_away_from_the_prediction_without_a_condition() -> None:
    conditional, null = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert guide(conditional, null, 2.0).tolist() == [[2.0, 2.0], [5.0, -1.0]]
    assert torch.equal(guide(conditional, null, 1.0), conditional)
    assert guide(conditional, null, 2.0, num_channels=1).tolist() == [[2.0, 2.0], [5.0, 0.0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window_start": -0.1}, "window_start is -0.1, expected 0 to 1"),
        ({"window_end": 1.5}, "window_end is 1.5, expected 0 to 1"),
        ({"peak": 0.0}, "peak is 0.0, expected above 0 and up to 1"),
    ],
)
def test_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidanceSettings(**values)


def test_unknown_schedule() -> None:
    settings = GuidanceSettings()
    # Set afterwards, because type checking, where it is on, refuses the name before we can.
    object.__setattr__(settings, "guidance_schedule", "sigmoid")
    with pytest.raises(ValueError, match="guidance_schedule is 'sigmoid', expected one of 'constant', 'linear'"):
        settings.__post_init__()
