import pytest
import torch
import torch.nn.functional as F

from hiergen.generators.level_ar.expansion import freeze_first_chains, to_chains
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.presets import doubling_specs
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.nn.depth.chains import ChainLinear
from hiergen.nn.depth.plan import cycle
from hiergen.pyramid import TokenPyramid, specs_to_json

SPECS = doubling_specs(8, dim=4, vocab_size=16)
LABELS = torch.tensor([0, 1, 2])


def model(**options) -> LevelAR:
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "dim": 32, "num_heads": 4, "ffn_dim": 32, "depth": 2, "num_ar_tokens": 1}
    made = LevelAR(level_specs=specs_to_json(SPECS), **{**sizes, **options})
    for parameter in made.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def some_ids() -> torch.Tensor:
    return torch.randint(16, (3, 8), generator=torch.Generator().manual_seed(0))


def test_the_loss_is_that_of_all_first_chains_together() -> None:
    made, ids = model(chains=[1, 1, 2], chain_losses=True), some_ids()
    logits = made.chain_logits(ids, LABELS)
    torch.testing.assert_close(logits[-1], made(ids, LABELS))
    expected = sum(F.cross_entropy(x.flatten(0, 1), ids.flatten()) for x in logits)
    torch.testing.assert_close(made.loss(TokenPyramid.split(ids, SPECS), LABELS)["loss"], expected)
    fresh = LevelAR(
        level_specs=specs_to_json(SPECS), num_classes=3, dim=32, num_heads=4, ffn_dim=32, depth=1, chains=[2, 2]
    )
    layer = fresh.blocks[0].ffn.gate
    assert isinstance(layer, ChainLinear)
    assert not layer.weight[:16, 16:].any()


@pytest.mark.parametrize(
    ("share_kv", "numbers"), [(False, (2, 2, 1, 1)), (False, (1, 1, 1, 1)), (True, (1, 1, 2, 2)), (True, (1, 2, 1, 2))]
)
def test_every_level_runs_with_its_chains(share_kv: bool, numbers) -> None:
    made, found = model(chains=[2, 2], share_kv=share_kv), []
    for use_cache in (True, False):
        settings = LevelARSettings(greedy=True, level_chains=numbers, use_cache=use_cache)
        found.append(made.generate(LABELS, settings).concat())
    assert torch.equal(*found)
    logits, start = made.chain_logits(found[0], LABELS), 0
    for spec, number in zip(SPECS, numbers, strict=True):
        span = slice(start, start + spec.num_tokens)
        assert torch.equal(found[0][:, span], logits[number - 1][:, span].argmax(dim=-1))
        start += spec.num_tokens


def test_an_expanded_model_says_the_same_and_its_first_chain_stays() -> None:
    dense, ids = model(), some_ids()
    made = to_chains(dense, [2]).eval()
    assert (made.config["chains"], made.config["dim"], made.config["ffn_dim"]) == ([4, 2], 48, 48)
    expected = dense(ids, LABELS)
    for logits in made.chain_logits(ids, LABELS):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    freeze_first_chains(made, 1)
    before = made.chain_logits(ids, LABELS)[0]
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2, weight_decay=0.0)
    made.loss(TokenPyramid.split(ids, SPECS), LABELS)["loss"].backward()
    optimizer.step()
    first, both = made.chain_logits(ids, LABELS)
    assert torch.equal(first, before)
    assert not torch.equal(both, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model(chains=[2, 1]), r"chains is \[2, 1\], expected num_heads, 4, in all"),
        (
            lambda: model(chains=[2, 2], chain_losses=True, exit_losses="weighted", plan=cycle(2, loops=2).to_json()),
            "chain_losses is True and exit_losses 'weighted', expected one of the two",
        ),
        (lambda: to_chains(model(chains=[2, 2]), [2]), "the model has chains, a class_hierarchy or a plan"),
        (lambda: to_chains(model(), [2], share_kv=True), "share_kv is True, expected False"),
        (lambda: to_chains(model(), []), r"added is \[\], expected the heads of at least one chain"),
        (lambda: to_chains(model(ffn_dim=30), [1]), r"added is \[1\], which does not divide 32 and 30 channels by 4"),
        (lambda: freeze_first_chains(model(chains=[2, 2]), 2), "count is 2, expected 1 to 1, fewer than"),
    ],
)
def test_models_refuse_chains_that_do_not_fit(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1, 1, 2, 2), r"level_chains is \[1, 1, 2, 2\], but a level with more chains than a coarser one"),
        ((1, 1), "expected 4 numbers from 1 to 2"),
        ((3, 1, 1, 1), "expected 4 numbers from 1 to 2"),
    ],
)
def test_levels_refuse_chains_whose_keys_are_not_there(numbers, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(chains=[2, 2]).generate(LABELS, LevelARSettings(level_chains=numbers))
