"""What levels know of a picture: small networks that read maps of frozen codes and predict something at every pixel.

For each prefix of levels, the codes are added up on the finest grid and a probe is trained on them: a linear layer of every cell, in which
nothing can hide, or two 3 x 3 convolutions as an upper bound. Its answer is enlarged to the targets. What a level adds is the difference of two
prefixes.

Letters: `b` batch, `c h w` image, `d` channels of a code, `y x` the finest grid.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.checked import Checked, Count, Positive
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.base import Tokenizer
from hiergen.tokenizers.multiscale_vq.model import MultiScaleVQ
from hiergen.tokenizers.pyramid.model import PyramidTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSettings(Checked):
    """How probes are trained.

    Attributes:
        kind: "linear" is one layer of every cell; "convolutions" has two of 3 x 3 before it.
        hidden_dim: Channels between the convolutions.
        steps: Optimizer steps.
        batch_size: Images per step.
        lr: Learning rate, which falls to 0 along a cosine.
        seed: Seed of the weights and the batches.
    """

    kind: Literal["linear", "convolutions"] = "linear"
    hidden_dim: Count = 64
    steps: Count = 500
    batch_size: Count = 32
    lr: Positive = 1e-2
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ProbeScore:
    """What a prefix of levels tells of held-out pictures.

    Attributes:
        num_levels: Levels of the prefix; 0 is the best constant answer.
        score: Mean intersection over union of the classes that occur, or the share of the variance of numbers that is explained.
    """

    num_levels: int
    score: float


def prefix_maps(tokenizer: Tokenizer, pyramid: TokenPyramid) -> Float[Tensor, "b d y x"]:
    """Return the codes of all levels present, or of a prefix, added up on the finest grid, without gradients.

    Raises:
        ValueError: If the tokenizer has no such maps.
    """
    with torch.no_grad():
        if isinstance(tokenizer, PyramidTokenizer):
            return tokenizer.levels.combine(pyramid.levels)
        if isinstance(tokenizer, MultiScaleVQ):
            codes = tokenizer.quantizer.lookup(pyramid.concat())
            return rearrange(codes, "b (y x) d -> b d y x", y=tokenizer.quantizer.grids[-1][0])
    raise ValueError(f"{type(tokenizer).__name__} has no probes, expected a PyramidTokenizer or a MultiScaleVQ")


def probe_prefixes(
    tokenizer: Tokenizer,
    images: Float[Tensor, "b c h w"],
    targets: Int[Tensor, "b y x"] | Float[Tensor, "b y x"],
    *,
    num_test: int,
    settings: ProbeSettings | None = None,
) -> list[ProbeScore]:
    """Return the scores of every prefix of levels, on the last images; the first entry is the best constant answer.

    Args:
        tokenizer: A `PyramidTokenizer` or a `MultiScaleVQ`; it is not changed.
        images: Images in [-1, 1].
        targets: A class of every pixel, -1 where there is none, as int64; or a number of every pixel, such as depth, or `edges`.
        num_test: How many of the last images are scored and not trained on.
        settings: Settings of the probes; None takes the defaults.

    Raises:
        ValueError: If the targets are of another size, too few images are left, or the tokenizer has no maps.
    """
    settings = settings or ProbeSettings()
    if targets.shape != (len(images), *images.shape[2:]):
        raise ValueError(f"targets have shape {tuple(targets.shape)}, expected {(len(images), *images.shape[2:])}")
    if not 0 < num_test < len(images):
        raise ValueError(f"num_test is {num_test}, expected 1 to {len(images) - 1}, some of the {len(images)} images")
    with torch.no_grad():
        pyramid = tokenizer.encode(images)
    train, test = targets[:-num_test], targets[-num_test:]
    scores = [ProbeScore(0, _score(_constant(train).expand(num_test, -1, *test.shape[1:]), test))]
    for count in tokenizer.decodable_levels:
        maps = prefix_maps(tokenizer, pyramid.prefix(count)).float()
        probe = _train(maps[:-num_test], train, settings)
        with torch.no_grad():
            answers = _enlarge(probe(maps[-num_test:]), test)
        scores.append(ProbeScore(count, _score(answers, test)))
    return scores


def edges(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Return the length of the brightness' gradient at every pixel, by central differences; 0 for an even image."""
    padded = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    return (across.square() + down.square()).sqrt()


def _train(maps: Tensor, targets: Tensor, settings: ProbeSettings) -> nn.Module:
    """Return a trained probe."""
    # The global generator is put back: a caller's own draws are none of the probe's affair.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        probe = _make_probe(maps.shape[1], 1 if targets.is_floating_point() else int(targets.max()) + 1, settings)
    probe = probe.to(maps.device)
    standardize = cast(Any, probe[0])
    standardize.running_mean.copy_(maps.mean(dim=(0, 2, 3)))
    standardize.running_var.copy_(maps.var(dim=(0, 2, 3)))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=settings.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    rng = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        chosen = torch.randint(len(maps), (settings.batch_size,), generator=rng).to(maps.device)
        loss = _loss(_enlarge(probe(maps[chosen]), targets), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe


def _make_probe(dim: int, outputs: int, settings: ProbeSettings) -> nn.Sequential:
    """Return a probe whose first layer standardizes by fixed statistics, so that it has no say in what is found."""
    standardize = nn.BatchNorm2d(dim, affine=False).eval()
    if settings.kind == "linear":
        return nn.Sequential(standardize, nn.Conv2d(dim, outputs, 1))
    hidden = settings.hidden_dim
    return nn.Sequential(
        standardize,
        nn.Conv2d(dim, hidden, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(hidden, outputs, 1),
    )


def _enlarge(answers: Tensor, targets: Tensor) -> Tensor:
    return F.interpolate(answers, size=targets.shape[1:], mode="bilinear", align_corners=False)


def _loss(answers: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return (answers[:, 0] - targets).square().mean()
    return F.cross_entropy(answers, targets, ignore_index=-1)


def _constant(targets: Tensor) -> Tensor:
    """Return the answer that is best without a look at the image, `(1, outputs, 1, 1)`."""
    if targets.is_floating_point():
        return targets.mean()[None, None, None, None]
    counts = targets[targets >= 0].bincount(minlength=int(targets.max()) + 1)
    return counts.float()[None, :, None, None]


def _score(answers: Tensor, targets: Tensor) -> float:
    """Return the mean intersection over union, or the explained share of the variance."""
    if targets.is_floating_point():
        rest = (answers[:, 0].double() - targets).square().mean()
        return float(1 - rest / (targets.double() - targets.double().mean()).square().mean())
    said, is_known = answers.argmax(dim=1), targets >= 0
    ratios = []
    for label in targets[is_known].unique():
        here, there = (said == label) & is_known, targets == label
        ratios.append((here & there).sum().double() / (here | there).sum())
    return float(cast(Tensor, sum(ratios)) / len(ratios))
