from __future__ import annotations

import dataclasses

import pytest
import torch

from hiergen.config import to_json
from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.flow.sampling import FlowSettings
from hiergen.generators.flow.sparse_attention import SparseAttention
from hiergen.kernels.pyramid_attention import OfficialRules, PSAConfig, PyramidPlan, reference_attention
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json

CLIP = (LevelSpec(96, (6, 4, 4), 5),)
#: One of eight key blocks in full, one at every pool, the rest skipped.
SPARSE = PSAConfig(
    bounds=((1, 0.3), (2, 0.5), (4, 0.7), (8, 0.9)), query_block=16, key_block=16, rules=OfficialRules(rounding_tile=2)
)
ALL = dataclasses.replace(SPARSE, bounds=((1, 1.0),))


def make(**config: object) -> FlowTransformer:
    """Return a tiny model of clips whose zero-initialized layers are random, so that everything has an effect."""
    torch.manual_seed(0)
    model = FlowTransformer(level_specs=specs_to_json(CLIP), num_classes=3, dim=32, depth=2, num_heads=2, **config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, 96, 5), torch.tensor([0.2, 0.7]), torch.tensor([0, 2])


def test_every_place_of_a_clip_is_told_apart() -> None:
    """With equal tokens everywhere only the positions differ: along time, rows and columns."""
    model = make(use_rotary=False)
    out = model.velocity(torch.ones(1, 96, 5), torch.tensor([0.5]), torch.tensor([1])).reshape(6, 4, 4, 5)
    for axis in range(3):
        assert not torch.allclose(out, out.roll(1, axis), atol=1e-3), axis
    turned = make()
    x, time, label = inputs()
    assert not torch.allclose(turned.velocity(x, time, label), model.velocity(x, time, label), atol=1e-3)


def test_a_plan_that_reads_everything_is_dense_attention() -> None:
    """In another order of tokens, with rotary tables to match, and back again."""
    model, (x, time, label) = make(), inputs()
    dense = model.velocity(x, time, label)
    for order in ("gilbert", "tiles", "raster"):
        model.set_attention(dataclasses.replace(ALL, order=order))
        torch.testing.assert_close(model.velocity(x, time, label), dense, rtol=1e-4, atol=1e-5)
    model.set_attention(SPARSE)
    assert not torch.allclose(model.velocity(x, time, label), dense, atol=1e-2)
    assert torch.equal(model.velocity(x, time, label, is_dense=True), dense)
    model.set_attention(None)
    assert torch.equal(model.velocity(x, time, label), dense)


def test_sparse_attention_is_the_operation_on_ordered_tokens() -> None:
    plans: list[PyramidPlan] = []
    attend = SparseAttention(to_json(SPARSE), (6, 4, 4), on_plan=plans.append)
    assert attend.config == SPARSE
    q, k, v = torch.randn(3, 2, 2, 96, 16).unbind(0)
    out = attend(q, k, v)
    (plan,) = plans
    assert 0 < float(plan.density) < 0.6
    torch.testing.assert_close(out, reference_attention(q, k, v, plan)[0])
    assert sorted(SparseAttention(SPARSE, (4, 4)).order.index.tolist()) == list(range(16))


def test_training_reaches_every_weight_through_sparse_attention() -> None:
    model = make(attention=to_json(SPARSE)).train()
    pyramid = TokenPyramid((torch.randn(2, 96, 5),), CLIP)
    model.loss(pyramid, torch.tensor([0, 1]), rng=seeded())["loss"].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_the_first_steps_can_be_dense(tmp_path) -> None:
    plans: list[PyramidPlan] = []
    model, labels = make(), torch.tensor([0, 2])
    settings = FlowSettings(num_steps=4, timestep_shift=1.0)
    dense = model.generate(labels, settings, rng=seeded()).levels[0]
    for warmup, blocks in ((0, 4 * 2), (3, 2), (4, 0), (9, 0)):
        plans.clear()
        model.set_attention(dataclasses.replace(SPARSE, warmup_steps=warmup), on_plan=plans.append)
        made = model.generate(labels, settings, rng=seeded()).levels[0]
        assert len(plans) == blocks
        assert torch.equal(made, dense) == (blocks == 0)
    model.set_attention(SPARSE)
    model.save_pretrained(tmp_path)
    loaded = FlowTransformer.from_pretrained(tmp_path)
    x, time, label = inputs()
    torch.testing.assert_close(loaded.velocity(x, time, label), model.velocity(x, time, label), rtol=1e-4, atol=1e-5)


def test_a_model_saved_before_the_rules_had_a_class_loads(tmp_path) -> None:
    """Its config holds the rules of the official program beside the other settings."""
    flat = to_json(SPARSE)
    flat |= flat.pop("rules") | {"kind": "PSAConfig"}
    assert flat["rounding_tile"] == 2
    make(attention=flat).save_pretrained(tmp_path)
    loaded, model = FlowTransformer.from_pretrained(tmp_path), make(attention=to_json(SPARSE))
    x, time, label = inputs()
    assert torch.equal(loaded.velocity(x, time, label), model.velocity(x, time, label))
    assert not torch.equal(make().velocity(x, time, label), model.velocity(x, time, label))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="attention has no field 'bound'; did you mean bounds"):
        make(attention={"bound": []})
    with pytest.raises(ValueError, match="text_tokens 5, expected 0"):
        make(attention={"text_tokens": 5})
    levels = specs_to_json((LevelSpec(1, (1, 1), 5), LevelSpec(16, (4, 4), 5)))
    with pytest.raises(ValueError, match="attention is given for a model of 2 levels"):
        FlowTransformer(level_specs=levels, dim=32, depth=1, num_heads=2, attention={})
