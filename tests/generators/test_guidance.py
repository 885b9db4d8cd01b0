from __future__ import annotations

from typing import Any

import pytest
import torch

from hiergen.generators.guidance import GuidanceSettings, guide

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
]


@pytest.mark.parametrize(("values", "wanted"), CASES)
def test_schedules_by_hand(values: dict[str, Any], wanted: list[float]) -> None:
    settings = GuidanceSettings(guidance_scale=3.0, **values)
    assert settings.scales(5) == pytest.approx(wanted, abs=1e-12)
    assert all(type(scale) is float for scale in settings.scales(5))


def test_published_schedule_of_nine_steps() -> None:
    settings = GuidanceSettings(guidance_scale=3.75, guidance_schedule="step", window_start=0.25)
    assert settings.scales(9) == (1.0001, 1.0001, *[3.75] * 7)


def test_a_single_step_is_at_the_start() -> None:
    assert GuidanceSettings(guidance_scale=2.0, guidance_schedule="linear").scales(1) == (1.0001,)


def test_guide_moves_away_from_the_null_half() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert guide(logits, 2.0).tolist() == [[2.0, 2.0], [5.0, -1.0]]
    assert torch.equal(guide(logits, 1.0), logits[:2])


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
    with pytest.raises(ValueError, match="guidance_schedule is 'sigmoid', expected one of constant, linear"):
        settings.__post_init__()
