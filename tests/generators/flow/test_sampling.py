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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"solver": "rk4"}, "solver is 'rk4'"),
        ({"solver": "sde", "num_steps": 1}, "num_steps is 1, solver 'sde' takes at least 2"),
        ({"last_step": 1.0}, "last_step is 1.0, expected above 0 and below 1"),
        ({"timestep_shift": 0.0}, "timestep_shift is 0.0"),
        ({"cfg_channels": 0}, "cfg_channels is 0"),
        ({"guidance_start": 0.5, "guidance_end": 0.4}, "guidance_start is 0.5"),
    ],
)
def test_settings_refuse(values: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The type checker of test runs would refuse a wrong literal before we do.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        FlowSettings(**values)
