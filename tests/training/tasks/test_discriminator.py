from __future__ import annotations

import torch

from hiergen.training.tasks.discriminator import AdversarialTurns, make_adversary
from hiergen.training.tasks.term_settings import AdversarialConfig

SMALL = AdversarialConfig(
    discriminator="patch", options={"dim": 4, "num_layers": 1}, augment=False, weight=0.25, start_samples=16
)


def test_it_takes_part_from_its_start_on() -> None:
    turns = AdversarialTurns(SMALL, make_adversary(SMALL), torch.nn.Identity())
    for samples, is_on in ((0, False), (15, False), (16, True), (8, False)):
        turns.begin_step(samples)
        assert turns.is_on is is_on


def test_it_is_trained_on_the_reconstruction_of_its_step_without_a_gradient_to_the_tokenizer() -> None:
    torch.manual_seed(0)
    adversary = make_adversary(SMALL).eval()
    turns = AdversarialTurns(SMALL, adversary, torch.nn.Identity())
    real, fake = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)
    rng = torch.Generator().manual_seed(0)
    term, scale = turns.term(fake, fake.sum(), rng)
    assert scale == 0.25
    torch.testing.assert_close(term, -adversary.logits(fake).mean())
    turns.keep(fake)
    found = turns.losses(real, rng)
    assert torch.equal(found["loss"], adversary(real, fake.detach())["loss"])
    found["loss"].backward()
    assert fake.grad is None
