from __future__ import annotations

import jaxtyping
import pytest

from hiergen.generators.flow.sampling import FlowSettings


def test_guidance_interval() -> None:
    settings = FlowSettings(guidance_scale=2.0, guidance_start=0.1, guidance_end=0.9)
    assert [settings.is_guided_at(t) for t in (0.0, 0.099, 0.1, 0.5, 0.9, 0.95)] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    assert not FlowSettings(guidance_scale=1.0).is_guided_at(0.5)


def test_a_path_of_a_strength_is_the_end_of_the_whole_one() -> None:
    whole = FlowSettings(num_steps=4, timestep_shift=1.0)
    assert whole.times() == [0.0, 0.25, 0.5, 0.75, 1.0]
    for strength, times in (
        (0.6, [0.4, 0.5, 0.75, 1.0]),
        (0.5, [0.5, 0.75, 1.0]),
        (0.1, [0.9, 1.0]),
        (0.0, [1.0]),
    ):
        assert FlowSettings(num_steps=4, timestep_shift=1.0, strength=strength).times() == pytest.approx(times)
    sde = FlowSettings(num_steps=4, timestep_shift=1.0, solver="sde", strength=0.5).times()
    assert sde == pytest.approx([0.5, 0.64, 0.96, 1.0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"solver": "rk4"}, "solver is 'rk4'"),
        ({"solver": "sde", "num_steps": 1}, "num_steps is 1, solver 'sde' takes at least 2"),
        ({"last_step": 1.0}, "last_step is 1.0, expected above 0 and below 1"),
        ({"timestep_shift": 0.0}, "timestep_shift is 0.0"),
        ({"strength": 1.1}, "strength is 1.1, expected 0 to 1"),
        ({"cfg_channels": 0}, "cfg_channels is 0"),
        ({"guidance_start": 0.5, "guidance_end": 0.4}, "guidance_start is 0.5"),
    ],
)
def test_settings_refuse(values: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The type checker of test runs would refuse a wrong literal before we do.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        FlowSettings(**values)
