"""What is given to a generator stays, and the rest follows it: one contract for all that take `known`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.generators.base import Generator
from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.flow.sampling import FlowSettings
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.generators.masked.cascade import MaskedCascade, MaskedCascadeSettings
from hiergen.generators.masked.ids.model import MaskedIds
from hiergen.generators.masked.ids.settings import MaskedIdsSettings
from hiergen.generators.masked.model import MaskedAR
from hiergen.generators.masked.settings import MaskedARSettings
from hiergen.generators.next_scale.model import NextScaleAR
from hiergen.generators.next_scale.settings import NextScaleSettings
from hiergen.generators.random_order.model import RandomOrderAR, RandomOrderARSettings
from hiergen.generators.sequences.block.model import BlockTransformer
from hiergen.generators.sequences.settings import SequenceSettings
from hiergen.known import Known
from hiergen.levels import square_specs
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json
from hiergen.seeding import SampleRng

LABELS = torch.tensor([0, 3, 1, 2])
LINE = tuple(LevelSpec(count, dim=4, vocab_size=13) for count in (1, 1, 2, 4))
MAPS = square_specs((1, 2, 3), dim=4, vocab_size=13)
LATENTS = square_specs((1, 2, 3), dim=3, vocab_size=None)
SMALL: dict[str, Any] = {"num_classes": 4, "dim": 16, "depth": 2, "num_heads": 2}
MASKED: dict[str, Any] = {
    "num_classes": 4, "num_buffer": 2, "dropout": 0.0, "attention_dropout": 0.0, "head_dim": 16, "head_depth": 1,
}  # fmt: skip
BOTH: dict[str, Any] = {
    f"{part}_{name}": size
    for part in ("encoder", "decoder")
    for name, size in (("dim", 16), ("depth", 1), ("heads", 2))
}
BLOCK: dict[str, Any] = {
    "num_classes": 4, "dim": 16, "depth": 1, "num_heads": 2, "token_dim": 16, "token_heads": 2, "embedder_dim": 8,
    "embedder_depth": 1, "embedder_heads": 2, "embedder_ffn_dim": 16, "block_length": 2,
}  # fmt: skip
#: Without it, standardizing and back would be exact by itself.
SHIFT: dict[str, Any] = {"latent_mean": [0.3, -0.7, 0.1], "latent_std": [1.7, 0.6, 1.1]}
HEAD: dict[str, Any] = {"head_steps": 2, "head_spacing": "leading", "guidance_scale": 2.0}


@dataclasses.dataclass(frozen=True)
class Case:
    """A small generator, in which everything depends on everything that it may depend on."""

    build: Callable[..., Generator]
    specs: tuple[LevelSpec, ...]
    settings: Any
    sizes: dict[str, Any]
    std: float = 0.4

    def model(self) -> Any:
        torch.manual_seed(1)
        model = self.build(level_specs=specs_to_json(self.specs), **self.sizes)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.0 if "embedding" in name else self.std)
        return model

    def tokens(self, seed: int = 0, batch: int = 4) -> TokenPyramid:
        rng = torch.Generator().manual_seed(seed)
        levels = [
            torch.randint(13, (batch, spec.num_tokens), generator=rng)
            if spec.is_discrete
            else torch.randn(batch, spec.num_tokens, spec.dim, generator=rng)
            for spec in self.specs
        ]
        return TokenPyramid(tuple(levels), self.specs)


CASES = {
    "level": Case(LevelAR, LINE, LevelARSettings(guidance_scale=1.5), {**SMALL, "num_ar_tokens": 1}),
    "token": Case(LevelAR, MAPS, LevelARSettings(top_p=0.9), {**SMALL, "layout": "token"}),
    "scale": Case(NextScaleAR, MAPS, NextScaleSettings(guidance_scale=1.5), SMALL),
    "random order": Case(RandomOrderAR, MAPS, RandomOrderARSettings(guidance_scale=1.5), SMALL),
    "ids": Case(MaskedIds, MAPS, MaskedIdsSettings(num_steps=4, guidance_scale=1.5), SMALL),
    "masked": Case(MaskedAR, LATENTS, MaskedARSettings(num_steps=3, **HEAD), {**MASKED, **BOTH, **SHIFT}, 0.15),
    "masked by level": Case(
        MaskedAR, LATENTS, MaskedARSettings(num_steps=2, **HEAD), {**MASKED, **BOTH, **SHIFT, "order": "levelwise"}, 0.15
    ),
    "cascade": Case(
        MaskedCascade, LATENTS[1:], MaskedCascadeSettings(num_steps=2, **HEAD),
        {**MASKED, "dim": 16, "depth": 1, "num_heads": 2, **{name: [values] * 2 for name, values in SHIFT.items()}}, 0.15,
    ),
    "flow": Case(FlowTransformer, LATENTS, FlowSettings(num_steps=3, guidance_scale=1.5), {**SMALL, **SHIFT}, 0.25),
    "flow resampled": Case(
        FlowTransformer, LATENTS, FlowSettings(num_steps=2, solver="heun", resamplings=2), {**SMALL, **SHIFT}, 0.25
    ),
    "block": Case(BlockTransformer, LINE, SequenceSettings(), BLOCK),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def ragged(tokens: TokenPyramid) -> Known:
    """Nothing of sample 0, the first level and half of the last of sample 1, all of sample 2, some of every level of sample 3."""
    masks = []
    for index, level in enumerate(tokens.levels):
        mask = torch.zeros(level.shape[:2], dtype=torch.bool)
        mask[1] = index == 0 if index < len(tokens) - 1 else torch.arange(level.shape[1]) % 2 == 0
        mask[2], mask[3, 0] = True, True
        masks.append(mask)
    return Known(tokens, tuple(masks))


def generate(case: Case, model: Any, known: Known | None, samples: slice = slice(None), **options: Any) -> TokenPyramid:
    numbers = range(len(LABELS))[samples]
    return model.generate(LABELS[samples], case.settings, known=known, rng=SampleRng.of(numbers, 5), **options)


def assert_given(known: Known, made: TokenPyramid) -> None:
    for index, tokens in enumerate(known.pyramid.levels):
        mask = known.mask_of(index)
        assert torch.equal(made.levels[index][mask], tokens[mask])


@every_case
def test_what_is_given_comes_back_and_the_rest_depends_on_it(case: Case) -> None:
    model = case.model()
    prefix = Known(case.tokens().prefix(1))
    for first, second in (
        (prefix, Known(case.tokens(seed=1).prefix(1))),
        (ragged(case.tokens()), ragged(case.tokens(seed=1))),
    ):
        made, other = generate(case, model, first), generate(case, model, second)
        assert made.specs == case.specs
        assert_given(first, made)
        assert_given(second, other)
        # A few ids may be the same by chance.
        some = torch.tensor([1, 3])
        free = ~first.sequence(case.specs)[1][some]
        one, two = (torch.cat(found.levels, dim=1)[some][free] for found in (made, other))
        assert not torch.allclose(one, two)
    # One generator for the whole batch does as well, though samples take different steps.
    assert_given(first, model.generate(LABELS, case.settings, known=first, rng=torch.Generator().manual_seed(0)))


@every_case
def test_nothing_given_is_plain_generation(case: Case) -> None:
    model = case.model()
    nothing = Known(case.tokens(), tuple(torch.zeros(4, spec.num_tokens, dtype=torch.bool) for spec in case.specs))
    plain = generate(case, model, None)
    for ours, theirs in zip(generate(case, model, nothing).levels, plain.levels, strict=True):
        assert torch.equal(ours, theirs)
    # Nor does it matter to a sample that something is given in others.
    beside = generate(case, model, ragged(case.tokens()))
    for ours, theirs in zip(beside.levels, plain.levels, strict=True):
        torch.testing.assert_close(ours[0], theirs[0])


@every_case
def test_everything_given_draws_nothing_and_is_returned(case: Case) -> None:
    model, rng, seen = case.model(), torch.Generator().manual_seed(0), []
    before, known = rng.get_state(), Known(case.tokens())
    made = model.generate(LABELS, case.settings, known=known, rng=rng, callback=lambda *_, **__: seen.append(1))
    assert torch.equal(rng.get_state(), before)
    assert seen == []
    assert_given(known, made)


@every_case
def test_samples_do_not_depend_on_what_is_given_in_others_and_callbacks_see_the_steps(case: Case) -> None:
    model, known = case.model(), ragged(case.tokens())
    steps: list[int] = []
    shown: list[TokenPyramid | None] = []

    def note(step: int, done: TokenPyramid | None, **_: Any) -> None:
        steps.append(step)
        shown.append(done)

    together = generate(case, model, known, callback=note)
    assert steps == list(range(len(steps)))
    assert len(steps) > 1
    assert shown[-1] is not None
    for ours, theirs in zip(shown[-1].levels, together.levels, strict=True):
        assert torch.equal(ours, theirs)
    for sample in range(len(LABELS)):
        own = slice(sample, sample + 1)
        alone = generate(case, model, known.rows(own), own)
        for ours, theirs in zip(together.levels, alone.levels, strict=True):
            torch.testing.assert_close(ours[own], theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["level", "token", "random order", "scale", "block"])
def test_a_step_that_is_given_whole_is_not_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    model, known = case.model(), Known(case.tokens().prefix(1))
    drawn: list[int] = []
    original = torch.Tensor.exponential_

    def exponential(self: Tensor, *args: Any, **options: Any) -> Tensor:
        drawn.append(self.numel())
        return original(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "exponential_", exponential)
    model.generate(LABELS, case.settings, known=known, rng=torch.Generator().manual_seed(0))
    assert sum(drawn) == 4 * 13 * sum(spec.num_tokens for spec in case.specs[1:])


def test_levels_are_composed_after_all_their_places_are_drawn() -> None:
    """What is given at a level changes finer levels alone."""
    case = CASES["scale"]
    model, tokens = case.model(), case.tokens()
    mask = torch.tensor([[True, False, False, True]] * 4)
    plain = generate(case, model, None)
    made = generate(case, model, Known(tokens.prefix(2), (torch.zeros(4, 1, dtype=torch.bool), mask)))
    assert torch.equal(made.levels[0], plain.levels[0])
    assert torch.equal(made.levels[1], torch.where(mask, tokens.levels[1], plain.levels[1]))
    assert not torch.equal(made.levels[2], plain.levels[2])


def test_mixtures_of_codes_hold_the_codes_of_what_is_given() -> None:
    case = dataclasses.replace(CASES["scale"], settings=NextScaleSettings(smooth=True))
    model, known = case.model(), ragged(case.tokens())
    made = generate(case, model, known)
    for index, tokens in enumerate(known.pyramid.levels):
        mask = known.mask_of(index)
        codes = model.quantizer.embed(tokens)
        assert torch.equal(made.levels[index][mask], codes[mask])
        assert not (made.levels[index][~mask] == codes[~mask]).all()
    whole = model.generate(LABELS, case.settings, known=Known(case.tokens()))
    assert torch.equal(whole.levels[1], model.quantizer.embed(case.tokens().levels[1]))


@pytest.mark.parametrize("name", ["level", "scale"])
def test_fewer_levels_can_be_given_and_made(name: str) -> None:
    case = CASES[name]
    few = dataclasses.replace(case, settings=dataclasses.replace(case.settings, num_levels=2))
    known = Known(case.tokens().prefix(1))
    made, whole = generate(few, case.model(), known), generate(case, case.model(), known)
    assert len(made) == 2
    assert torch.equal(made.levels[1], whole.levels[1])
    both = Known(case.tokens().prefix(2))
    assert_given(both, generate(few, case.model(), both))
    with pytest.raises(ValueError, match=r"known gives the levels .*, expected the first of .*, which are made"):
        generate(few, case.model(), Known(case.tokens()))


def test_the_schedule_of_ids_counts_those_that_are_made() -> None:
    case = CASES["ids"]
    model, known, hidden = case.model(), ragged(case.tokens()), []
    model.register_forward_pre_hook(
        lambda _, args: hidden.append((args[0] == model.vocab_size).sum(dim=1)[:4].tolist())
    )
    generate(case, model, known)
    missing = (~known.sequence(case.specs)[1]).sum(dim=1).tolist()
    assert missing == [14, 8, 0, 11]
    expected = [missing]
    for step in range(3):
        share = math.acos((step + 1) / 4) / (math.pi / 2)
        expected.append([min(count, max(1, math.floor(count * share))) for count in missing])
    assert hidden == expected


def test_tokens_of_a_flow_are_as_noisy_as_the_rest() -> None:
    case = CASES["flow"]
    model, known = case.model(), ragged(case.tokens())
    tokens, given = known.sequence(case.specs)
    noise = SampleRng.of(range(4), 5).stack(lambda rng, size: torch.randn(size, generator=rng), (4, 3, 14), 0)

    def check(_: int, __: Any, *, time: float, latents: Tensor) -> None:
        expected = time * model.standardize(tokens) + (1 - time) * noise.transpose(1, 2)
        torch.testing.assert_close(latents[given], expected[given])

    generate(case, model, known, callback=check)


@pytest.mark.usefixtures("unchecked")
def test_errors_say_what_came_and_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["ids"]
    model, known = case.model(), Known(case.tokens())
    with pytest.raises(ValueError, match="known holds 4 samples, expected 2, one per row of the condition"):
        model.generate(LABELS[:2], known=known)
    with pytest.raises(ValueError, match=r"known gives the levels .*, expected the first of"):
        model.generate(LABELS, known=Known(CASES["flow"].tokens()))
    with pytest.raises(ValueError, match="known gives ids 1 to 99 at level 0, expected 0 to 12"):
        model.generate(LABELS, known=Known(TokenPyramid((torch.tensor([[1], [2], [99], [3]]),), MAPS[:1])))
    with pytest.raises(ValueError, match="known gives NaN or infinity at level 0"):
        CASES["flow"].model().generate(
            LABELS, known=Known(TokenPyramid((torch.full((4, 1, 3), torch.nan),), LATENTS[:1]))
        )
    monkeypatch.setattr(MaskedIds, "takes_known", frozenset({"levels"}))
    with pytest.raises(ValueError, match="known gives places, but MaskedIds takes levels"):
        model.generate(LABELS, known=ragged(case.tokens()))
    monkeypatch.setattr(MaskedIds, "takes_known", frozenset())
    with pytest.raises(ValueError, match="known gives levels, but MaskedIds takes nothing that is given: leave it out"):
        model.generate(LABELS, known=known)
