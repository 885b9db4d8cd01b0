"""Every generator and tokenizer with a stack of blocks takes a plan."""

import re
from typing import Any

import pytest
import torch

from hiergen.nn.depth.deltas import ParameterDelta
from hiergen.nn.depth.plan import DepthPlan, cycle, ladder, plain, sandwich, sequence
from hiergen.nn.depth.stack import BlockStack
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.training.config import LoraConfig
from hiergen.training.finetune.lora import add_adapters

SMALL = {"dim": 32, "num_heads": 2}
GENERATORS: dict[str, dict[str, Any]] = {
    "har-tiny": {**SMALL, "ffn_dim": 32},
    "flow-tiny": SMALL,
    "rar-tiny": SMALL,
    "var-tiny": {**SMALL, "dim": 30, "num_heads": 1},
    "maskgit-tiny": {**SMALL, "blocks": "post_norm"},
    "block-tiny-16": {**SMALL, "token_dim": 32, "token_depth": 1, "token_heads": 2},
    "byte-word-tiny-levels": {
        **SMALL,
        "num_kv_heads": 1,
        "ffn_dim": 32,
        "byte_dim": 32,
        "byte_heads": 2,
        "byte_ffn_dim": 32,
    },
    "mar-tiny": {f"{part}_dim": 32 for part in ("encoder", "decoder")}
    | {f"{part}_heads": 2 for part in ("encoder", "decoder")},
}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "restok-tiny": {"encoder_depth": 4, "decoder_depth": 4},
    "hieratok-tiny": {},
    "titok-tiny": {},
    "flextok-tiny": {},
    "pyramid-vae-tiny": {},
}
UP = re.compile(r"\.deltas\.\d+\.up\.")
RELAXED = cycle(2, loops=2, rank=2)
CACHED = (sandwich(1, 1, 1, loops=2, rank=2), ladder(2), cycle(2, loops=2, rank=2, lag=1))


def build(name: str, plan: DepthPlan | None, **overrides: Any) -> Any:
    """Return a tiny model of a preset whose stacks all run by one plan."""
    blocks = 4 if plan is None else plan.num_blocks
    parts = ("encoder", "decoder") if name in TOKENIZERS or name == "mar-tiny" else ()
    depths = {f"{part}_depth": blocks for part in parts} if parts else {"depth": blocks}
    steps: Any = None if plan is None else plan.to_json()
    if parts and plan is not None:
        steps = dict.fromkeys(parts, steps)
    torch.manual_seed(0)
    sizes = GENERATORS.get(name) or TOKENIZERS.get(name, {})
    return create(name, **{**sizes, **depths, "plan": steps, **overrides})


def pyramid(model: Any) -> TokenPyramid:
    rng = torch.Generator().manual_seed(1)
    levels = [
        torch.randint(spec.vocab_size, (2, spec.num_tokens), generator=rng)
        if spec.vocab_size
        else torch.randn(2, spec.num_tokens, spec.dim, generator=rng)
        for spec in model.specs
    ]
    return TokenPyramid(tuple(levels), model.specs)


def loss_of(model: Any, name: str) -> torch.Tensor:
    torch.manual_seed(2)
    rng = torch.Generator().manual_seed(3)
    if name in GENERATORS:
        return model.loss(pyramid(model), torch.tensor([0, 1]), rng=rng)["loss"]
    if name == "pyramid-vae-tiny":
        cloud = torch.rand(2, 1024, 6, generator=rng) * 2 - 1
        field = model.decode(model.encode(cloud))
        return field.query(cloud[:, :8, :3]).square().mean()
    size = model.config["image_size"]
    output = model(torch.rand(2, 3, size, size, generator=rng) * 2 - 1, rng=rng)
    return sum(output.losses.values(), output.reconstruction.square().mean())


@pytest.mark.parametrize("name", [*GENERATORS, *TOKENIZERS])
def test_the_plain_plan_is_no_plan(name: str) -> None:
    bare, planned = build(name, None), build(name, plain(4))
    for (ours, value), (theirs, other) in zip(planned.state_dict().items(), bare.state_dict().items(), strict=True):
        assert ours == theirs
        assert torch.equal(value, other)
    if name != "flextok-tiny":  # whose draws are tested below with a plan of its own
        assert torch.equal(loss_of(planned, name), loss_of(bare, name))


@pytest.mark.parametrize("name", [*GENERATORS, *TOKENIZERS])
def test_every_model_trains_by_a_plan_and_is_saved_with_it(name: str, tmp_path) -> None:
    model = build(name, RELAXED)
    stacks = [module for module in model.modules() if isinstance(module, BlockStack) and len(module)]
    assert stacks
    assert all(stack.plan == RELAXED for stack in stacks)
    for key, value in model.state_dict().items():
        assert not UP.search(key) or not value.any(), f"{key} must start at zero"
    loss = loss_of(model.train(), name)
    if loss.requires_grad:
        loss.backward()
        deltas = {key: value for key, value in model.named_parameters() if UP.search(key)}
        assert deltas
        assert all(value.grad is not None for value in deltas.values())
    for parameter in model.parameters():
        parameter.data.add_(0.01)
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert [stack.plan for stack in loaded.modules() if isinstance(stack, BlockStack) and len(stack)] == [
        RELAXED
    ] * len(stacks)
    for ours, theirs in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        *((name, plan) for name in ("har-tiny", "rar-tiny", "var-tiny") for plan in CACHED),
        *((name, CACHED[0]) for name in ("block-tiny-16", "byte-word-tiny-levels")),
    ],
)
def test_cached_generation_equals_the_whole_pass(name: str, plan: DepthPlan) -> None:
    model = build(name, plan)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    labels, settings = torch.tensor([0, 1]), model.settings_class(guidance_scale=1.5)
    found = []
    for use_cache in (True, False):
        chosen = type(settings)(guidance_scale=1.5, use_cache=use_cache)
        found.append(model.generate(labels, chosen, rng=torch.Generator().manual_seed(0)).concat())
    assert torch.equal(*found)


SHORT = {"flow-tiny": {"num_steps": 3}, "mar-tiny": {"num_steps": 2, "head_steps": 2}, "maskgit-tiny": {"num_steps": 2}}


@pytest.mark.parametrize("name", GENERATORS)
def test_generation_adds_differences_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build(name, RELAXED), []
    added_to = ParameterDelta.added_to
    monkeypatch.setattr(ParameterDelta, "added_to", lambda self, block: calls.append(self) or added_to(self, block))
    model.generate(
        torch.tensor([0, 1]), model.make_settings(**SHORT.get(name, {})), rng=torch.Generator().manual_seed(0)
    )
    assert len(calls) == sum(isinstance(module, ParameterDelta) for module in model.modules()) > 0


def test_slices_are_for_tokens_that_all_see_each_other() -> None:
    sliced = sequence(2, loops=2, groups=(4, 2))
    of_encoder = create("hieratok-tiny", encoder_depth=2, plan={"encoder": sliced.to_json()})
    for name, model in (("flow-tiny", build("flow-tiny", sliced)), ("hieratok-tiny", of_encoder)):
        assert loss_of(model.eval(), name) == loss_of(model, name)
    for name in ("har-tiny", "mar-tiny"):
        with pytest.raises(ValueError, match="4 groups, expected 1"):
            build(name, sliced)
    with pytest.raises(ValueError, match="attention is given for a model whose plan has groups"):
        build("flow-tiny", sliced, attention={})


def test_plans_are_refused_where_blocks_have_other_roles() -> None:
    with pytest.raises(ValueError, match="plan is given for blocks 'skip', expected None"):
        build("maskgit-tiny", RELAXED, blocks="skip")
    with pytest.raises(ValueError, match="plan of the encoder has a step with lag 1 or inject, expected neither"):
        build("restok-tiny", ladder(4))
    with pytest.raises(ValueError, match="step 0 of plan has lag 1, which NeoXBlock cannot run with"):
        build("block-tiny-16", ladder(4))
    with pytest.raises(ValueError, match="plan names the stack 'coder'"):
        create("titok-tiny", plan={"coder": []})


def test_adapters_beside_differences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora.rank is 2, but the model's plan has differences of single steps"):
        add_adapters(build("har-tiny", RELAXED), LoraConfig(rank=2), seed=0)
