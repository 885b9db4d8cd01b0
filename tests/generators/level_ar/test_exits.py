import pytest
import torch
import torch.nn.functional as F

from hiergen.generators.level_ar.exits import exit_losses
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.presets import doubling_specs
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.nn.depth.plan import DepthPlan, cycle
from hiergen.pyramid import TokenPyramid, specs_to_json

SPECS = doubling_specs(8, dim=4, vocab_size=16)
THREE = cycle(1, loops=3, rank=2)
LABELS = torch.tensor([0, 1, 2])


def model(plan: DepthPlan = THREE, **options) -> LevelAR:
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "dim": 16, "num_heads": 2, "ffn_dim": 16, "depth": plan.num_blocks, "num_ar_tokens": 1}
    made = LevelAR(level_specs=specs_to_json(SPECS), **sizes, plan=plan.to_json(), **options)
    for parameter in made.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def generate(made: LevelAR, labels=LABELS, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    taken: list[torch.Tensor] = []
    how = LevelARSettings(greedy=True, guidance_scale=1.5, **settings)
    return made.generate(labels, how, on_exits=taken.append).concat(), torch.stack(taken)


def test_levels_read_at_their_exits_are_what_the_whole_pass_says_there() -> None:
    made, numbers = model(), (3, 2, 2, 1)
    for fill in (None, "run"):
        for use_cache in (True, False):
            ids, taken = generate(made, exit_levels=numbers, exit_fill=fill, use_cache=use_cache)
            assert taken.tolist() == [[number] * 3 for number in numbers]
            conditional, null = made.exit_logits(ids, LABELS), made.exit_logits(ids, torch.full_like(LABELS, 3))
            start = 0
            for spec, number in zip(SPECS, numbers, strict=True):
                span = slice(start, start + spec.num_tokens)
                there, without = conditional[number - 1][:, span], null[number - 1][:, span]
                assert torch.equal(ids[:, span], (without + 1.5 * (there - without)).argmax(dim=-1))
                start += spec.num_tokens


@pytest.mark.parametrize("use_cache", [True, False])
def test_running_what_was_skipped_lets_fine_levels_go_further(use_cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of every step, not only its likeliest ids, are those of the whole pass: no key is missing."""
    made, numbers, read = model(), (1, 2, 3, 3), LevelAR.read
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(LevelAR, "read", lambda self, x: seen.append(read(self, x)) or seen[-1])
    how = LevelARSettings(greedy=True, exit_levels=numbers, exit_fill="run", use_cache=use_cache)
    ids = made.generate(LABELS, how).concat()
    monkeypatch.undo()
    whole, start = made.exit_logits(ids, LABELS), 0
    assert len(seen) == len(numbers)
    for spec, number, logits in zip(SPECS, numbers, seen, strict=True):
        torch.testing.assert_close(logits, whole[number - 1][:, start : start + spec.num_tokens])
        start += spec.num_tokens


@pytest.mark.parametrize("fill", ["run", "copy"])
@pytest.mark.parametrize("lag", [0, 1])
def test_a_sample_leaves_by_itself(fill, lag: int) -> None:
    made = model(cycle(1, loops=3, rank=2, lag=lag))
    ids, taken = generate(made, exit_confidence=0.3, exit_fill=fill)
    assert len(taken.unique()) > 1, "the threshold must divide the samples"
    for place in range(3):
        alone, exits = generate(made, LABELS[place : place + 1], exit_confidence=0.3, exit_fill=fill)
        assert torch.equal(alone[0], ids[place])
        assert torch.equal(exits[:, 0], taken[:, place])


def test_confidence_has_its_ends() -> None:
    made = model()
    plain_ids = made.generate(LABELS, LevelARSettings(greedy=True, guidance_scale=1.5)).concat()
    for fill in ("run", "copy"):
        ids, taken = generate(made, exit_confidence=1.0, exit_fill=fill)
        assert torch.equal(ids, plain_ids)
        assert bool((taken == 3).all())
        first, taken = generate(made, exit_confidence=0.0, exit_fill=fill)
        assert bool((taken == 1).all())
    # All leave at once: the coarse tokens' keys at later steps are never read.
    assert torch.equal(first, generate(made, exit_levels=(1, 1, 1, 1))[0])


def test_copied_keys_come_from_the_stream_at_the_exit() -> None:
    """By hand: the only block's attention keys of a token that left at exit 1 are those of its stream there, at every later step."""
    made = model(cycle(1, loops=2))
    how = LevelARSettings(greedy=True, exit_levels=(1, 2, 2, 2), exit_fill="copy", num_levels=2)
    ids = made.generate(LABELS, how).concat()
    x = made._embed(ids, LABELS, made._layout.prefix(2).segments)
    inputs, options = made.block_inputs(x, LABELS)
    block = made.blocks[0]
    once = block(x, *inputs, **options)
    # The second step of token 1 sees token 0 as it left.
    twice = block(torch.cat((once[:, :1], once[:, 1:]), dim=1), *inputs, **options)
    second = made.head(made.norm(twice[:, 1:])).argmax(dim=-1)
    assert torch.equal(ids[:, 1:2], second)


def test_losses_of_exits_are_weighted_and_the_teacher_is_left_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 5, 7, generator=rng, requires_grad=True) for _ in range(3)]
    ids = torch.randint(7, (2, 5), generator=rng)
    errors = [F.cross_entropy(x.flatten(0, 1), ids.flatten()) for x in logits]
    aggressive = exit_losses(logits, ids, kind="aggressive", distills=False)
    torch.testing.assert_close(aggressive, 0.1 * errors[0] + 0.1 * errors[1] + errors[2])
    torch.testing.assert_close(
        exit_losses(logits, ids, kind="weighted", distills=False), (errors[0] + 2 * errors[1] + 3 * errors[2]) / 6
    )
    distilled = exit_losses(logits, ids, kind="aggressive", distills=True)
    (gradient,) = torch.autograd.grad(distilled - aggressive, logits[-1], allow_unused=True)
    assert gradient is None or gradient.abs().max() < 1e-7
    (gradient,) = torch.autograd.grad(distilled - aggressive, logits[0])
    assert gradient.abs().max() > 0
    with pytest.raises(ValueError, match="exit_losses is 'none', expected 'aggressive' or 'weighted'"):
        exit_losses(logits, ids, kind="none", distills=False)


def test_exits_are_trained_with_the_shared_norm_and_head() -> None:
    made = model(exit_losses="aggressive", exit_distillation=True)
    ids = torch.randint(16, (3, 8), generator=torch.Generator().manual_seed(0))
    pyramid = TokenPyramid.split(ids, SPECS)
    loss = made.loss(pyramid, LABELS)["loss"]
    expected = exit_losses(made.exit_logits(ids, LABELS), ids, kind="aggressive", distills=True)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(made.exit_logits(ids, LABELS)[-1], made(ids, LABELS))
    loss.backward()
    assert all(parameter.grad is not None for name, parameter in made.named_parameters() if "special" not in name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_levels": (1, 2, 2, 2)}, r"exit_levels is \[1, 2, 2, 2\] without exit_fill: a level that goes further"),
        ({"exit_levels": (1, 1)}, "expected 4 numbers from 1 to 3"),
        ({"exit_levels": (4, 1, 1, 1)}, "expected 4 numbers from 1 to 3"),
        ({"exit_confidence": 0.5}, "exit_confidence is given without exit_fill"),
        ({"exit_confidence": 0.5, "exit_fill": "copy", "use_cache": False}, "exit_fill is 'copy' without a cache"),
        ({"exit_confidence": 0.5, "exit_levels": (1, 1, 1, 1)}, "exit_levels and exit_confidence are both given"),
        ({"exit_fill": "run"}, "exit_fill is 'run' without exit_levels or exit_confidence"),
    ],
)
def test_exits_refuse_what_would_read_a_hole(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model(), **settings)


def test_exits_need_a_plan_with_exits() -> None:
    with pytest.raises(ValueError, match="the plan has none before its last step"):
        generate(model(cycle(3, loops=1)), exit_levels=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="exit_fill is 'copy', but the plan injects"):
        generate(model(cycle(1, loops=2, inject=True)), exit_levels=(1, 1, 1, 1), exit_fill="copy")
    made, settings = model(), LevelARSettings(exit_levels=(3, 3, 3, 3), exit_fill="copy")
    with pytest.raises(ValueError, match="a callback changed tokens, which takes the cache away"):
        made.generate(LABELS, settings, callback=lambda step, levels, latents: latents)
