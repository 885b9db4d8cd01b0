"""Settings: the published presets, reading and writing, refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from hiergen.config import to_json
from hiergen.kernels.pyramid_attention.config import PSA_PRESETS, OfficialRules, PSAConfig, psa_preset
from hiergen.kernels.pyramid_attention.planning.assignment import assign_pools


def test_presets_are_the_published_ones():
    assert len(PSA_PRESETS) == 10
    wan = psa_preset("wan2.1-14b-balanced")
    assert (wan.mode, wan.key_block, wan.warmup_steps, dict(wan.bounds)) == (
        "threshold",
        128,
        15,
        {1: 0.4, 2: 0.5, 4: 0.6, 8: 0.8},
    )
    # Quotas imply the densities that the paper states.
    for name, density in {"default": 0.15, "wan2.1-1.3b-quota": 0.10, "cogvideox-5b-4-steps": 0.15625}.items():
        pools = assign_pools(torch.rand(1, 1, 1, 800), PSA_PRESETS[name])
        assert float(torch.where(pools > 0, 1 / pools.clamp(min=1).float(), 0.0).mean()) == pytest.approx(
            density, abs=0.003
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bounds": ((3, 0.5),)}, "bounds holds pool 3"),
        ({"bounds": ((1, 1.5),)}, "bounds gives pool 1 the bound 1.5"),
        ({"bounds": ((1, 0.5), (1, 0.6))}, "expected each pool once"),
        ({"mode": "topk"}, "mode is 'topk'"),
        (
            {"key_block": 32, "rules": OfficialRules(rounding_tile=64)},
            "rules.rounding_tile is 64, expected 1 to key_block = 32",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PSAConfig(**kwargs)


@pytest.mark.usefixtures("unchecked")
def test_a_wrong_rule_is_named():
    with pytest.raises(ValueError, match="empty_rows is 'best', expected 'best_block' or 'nothing'"):
        OfficialRules(empty_rows="best")


#: A config as it was saved while the rules of the official program were fields among the others.
FLAT = """
{"kind": "PSAConfig", "bounds": [[1, 0.5], [2, 0.6], [4, 0.7], [8, 0.8]], "mode": "threshold", "query_block": 128,
 "key_block": 64, "rounding_tile": 16, "crossing": "exclude", "min_full": 0.1, "epsilon": 1e-05, "energy_rule": "end",
 "importance": "sampled", "sample_fraction": 2, "stride": 16, "similarity": [0.7, 0.65, 0.6], "tail": "replicate",
 "empty_rows": "nothing", "sink_blocks": 2, "text_tokens": 0, "text_at": "end", "order": "tiles", "warmup_steps": 12,
 "num_steps": 40}
"""


def test_configs_saved_before_the_rules_had_a_class_are_read():
    wanted = PSAConfig(
        bounds=((1, 0.5), (2, 0.6), (4, 0.7), (8, 0.8)), mode="threshold", key_block=64, importance="sampled",
        sample_fraction=2, stride=16, similarity=(0.7, 0.65, 0.6), sink_blocks=2, text_at="end", order="tiles",
        warmup_steps=12, num_steps=40,
        rules=OfficialRules(
            crossing="exclude", energy_rule="end", tail="replicate", empty_rows="nothing", min_full=0.1, epsilon=1e-5,
            rounding_tile=16,
        ),
    )  # fmt: skip
    assert PSAConfig.from_json(json.loads(FLAT)) == wanted
    assert PSAConfig.from_json(json.loads(json.dumps(to_json(wanted)))) == wanted
    assert PSAConfig.from_json({"key_block": 64}) == PSAConfig(key_block=64)
    assert len(dataclasses.fields(PSAConfig)) == 15


def test_wrong_configs_in_files_are_named():
    with pytest.raises(ValueError, match=r"attention\.rules\.tail is 'sharp', expected one of 'exact', 'replicate'"):
        PSAConfig.from_json({"tail": "sharp"}, where="attention")
    with pytest.raises(ValueError, match="attention has no field 'bound'; did you mean bounds"):
        PSAConfig.from_json({"bound": [], "tail": "exact"}, where="attention")
    with pytest.raises(ValueError, match="attention has 'rules' and beside it 'tail', expected one of the two"):
        PSAConfig.from_json({"rules": {}, "tail": "exact"}, where="attention")


def test_unknown_preset():
    with pytest.raises(ValueError, match="there is no PSA preset 'wan'"):
        psa_preset("wan")
