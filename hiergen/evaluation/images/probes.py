"""What levels know of a picture: small networks that read maps of frozen codes and predict something at every pixel, or of all of it.

For each prefix of levels, the codes are added up on the finest grid and a probe is trained on them: a linear layer of every cell, in which
nothing can hide, or two 3 x 3 convolutions as an upper bound. Its answer is enlarged to the targets. What is asked of the whole picture (its
class, the box of its object, a color, a count) is answered by a linear layer of all cells. What a level adds is the difference of two prefixes.

Letters: `b` batch, `c h w` image, `d` channels of a code, `y x` the finest grid.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.checked import Checked, Count, NotNegative, Positive
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.base import Tokenizer
from hiergen.tokenizers.multiscale_vq.model import MultiScaleVQ
from hiergen.tokenizers.pyramid.model import PyramidTokenizer

#: Most cells along a side that a probe of the whole picture reads; finer maps are averaged to as many.
_WHOLE_SIDE = 8
#: Images that are encoded, or answered, at once.
_BATCH = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSettings(Checked):
    """How probes are trained.

    Attributes:
        kind: "linear" is one layer of every cell, or of all cells; "convolutions" has two of 3 x 3 before it.
        reads: "sum" reads the codes of a prefix added up, as the decoder does; "levels" reads each level's codes beside the others.
        hidden_dim: Channels between the convolutions.
        steps: Optimizer steps.
        batch_size: Images per step.
        lr: Learning rate, which falls to 0 along a cosine.
        weight_decay: Weight decay of AdamW.
        seed: Seed of the weights and the batches.
    """

    kind: Literal["linear", "convolutions"] = "linear"
    reads: Literal["sum", "levels"] = "sum"
    hidden_dim: Count = 64
    steps: Count = 500
    batch_size: Count = 32
    lr: Positive = 1e-2
    weight_decay: NotNegative = 1e-4
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ProbeScore:
    """What a prefix of levels tells of held-out pictures.

    Attributes:
        num_levels: Levels of the prefix; 0 is the best constant answer.
        score: Mean intersection over union of the classes of pixels that occur; share of pictures whose class is right; or share of the
            variance of numbers that is explained, a mean over the numbers of a picture, 0 for one that does not vary.
    """

    num_levels: int
    score: float


def prefix_maps(
    tokenizer: Tokenizer, pyramid: TokenPyramid, *, reads: Literal["sum", "levels"] = "sum"
) -> Float[Tensor, "b d y x"]:
    """Return the codes of all levels present, or of a prefix, on the finest grid, without gradients.

    Args:
        tokenizer: A `PyramidTokenizer` or a `MultiScaleVQ`.
        pyramid: Tokens of that tokenizer.
        reads: "sum" adds the levels up; "levels" puts them side by side as channels.

    Raises:
        ValueError: If the tokenizer has no such maps.
    """
    if reads == "levels" and isinstance(tokenizer, PyramidTokenizer | MultiScaleVQ):
        return _beside_each_other(tokenizer, pyramid)
    with torch.no_grad():
        if isinstance(tokenizer, PyramidTokenizer):
            return tokenizer.levels.combine(pyramid.levels)
        if isinstance(tokenizer, MultiScaleVQ):
            codes = tokenizer.quantizer.lookup(pyramid.concat())
            return rearrange(codes, "b (y x) d -> b d y x", y=tokenizer.quantizer.grids[-1][0])
    raise ValueError(f"{type(tokenizer).__name__} has no probes, expected a PyramidTokenizer or a MultiScaleVQ")


@torch.no_grad()
def _beside_each_other(tokenizer: PyramidTokenizer | MultiScaleVQ, pyramid: TokenPyramid) -> Tensor:
    if isinstance(tokenizer, PyramidTokenizer):
        grids = tokenizer.levels.grids
        codes = [tokenizer.levels.lookup(tokens, level) for level, tokens in enumerate(pyramid.levels)]
    else:
        grids = tokenizer.quantizer.grids
        codes = [tokenizer.quantizer.embed(tokens) for tokens in pyramid.levels]
    maps = [
        F.interpolate(rearrange(part, "b (y x) d -> b d y x", y=grid[0]), size=grids[-1])
        for part, grid in zip(codes, grids, strict=False)
    ]
    return torch.cat(maps, dim=1)


def probe_prefixes(
    tokenizer: Tokenizer,
    images: Float[Tensor, "b c h w"],
    targets: Int[Tensor, "n ..."] | Float[Tensor, "n ..."],
    *,
    num_test: int,
    settings: ProbeSettings | None = None,
) -> list[ProbeScore]:
    """Return the scores of every prefix of levels, on the last images; the first entry is the best constant answer.

    Args:
        tokenizer: A `PyramidTokenizer` or a `MultiScaleVQ`; it is not changed.
        images: Images in [-1, 1].
        targets: A class of every pixel `(b, h, w)`, -1 where there is none, as int64, such as `foreground`; or a number of every pixel, such
            as depth, or `edges`; a class of every picture `(b,)`; or some numbers of every picture `(b, k)`, such as `boxes`.
        num_test: How many of the last images are scored and not trained on.
        settings: Settings of the probes; None takes the defaults.

    Raises:
        ValueError: If the targets are of another size, too few images are left, or the tokenizer has no maps.
    """
    settings = settings or ProbeSettings()
    is_whole = targets.ndim == (2 if targets.is_floating_point() else 1)
    wanted = (len(images), *(targets.shape[1:] if is_whole else images.shape[2:]))
    if targets.shape != wanted:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, expected {wanted}")
    if not 0 < num_test < len(images):
        raise ValueError(f"num_test is {num_test}, expected 1 to {len(images) - 1}, some of the {len(images)} images")
    with torch.no_grad():
        parts = [tokenizer.encode(part) for part in images.split(_BATCH)]
    if targets.is_floating_point():
        targets = _standardized(targets, len(targets) - num_test)
    train, test = targets[:-num_test], targets[-num_test:]
    size = () if is_whole else test.shape[1:]
    scores = [ProbeScore(0, _score(_constant(train, is_whole).expand(num_test, -1, *size), test))]
    for count in tokenizer.decodable_levels:
        maps = torch.cat([prefix_maps(tokenizer, part.prefix(count), reads=settings.reads).float() for part in parts])
        probe = _train(maps[:-num_test], train, settings, is_whole)
        with torch.no_grad():
            answers = torch.cat([_enlarge(probe(part), test) for part in maps[-num_test:].split(_BATCH)])
        scores.append(ProbeScore(count, _score(answers, test)))
    return scores


def edges(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Return the length of the brightness' gradient at every pixel, by central differences; 0 for an even image."""
    padded = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    return (across.square() + down.square()).sqrt()


def foreground(images: Float[Tensor, "b c h w"], *, tolerance: float = 0.1) -> Int[Tensor, "b h w"]:
    """Return 1 at every pixel whose color is not the background's, 0 elsewhere.

    Args:
        images: Pictures of an object on an even background, in [-1, 1]; the background's color is the median of the outermost pixels.
        tolerance: Largest difference of a channel that still counts as background, in [-1, 1] units.
    """
    rim = torch.cat((images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]), dim=2)
    background = rim.median(dim=2).values[:, :, None, None]
    return ((images - background).abs().amax(dim=1) > tolerance).long()


def boxes(mask: Int[Tensor, "b h w"]) -> Float[Tensor, "b 4"]:
    """Return the box around the pixels that are not 0: the row and the column of its center, its height and its width, in [0, 1].

    The box of an empty mask is the whole picture.
    """
    found = []
    for axis in (2, 1):
        holds = mask.any(dim=axis)
        holds = holds | ~holds.any(dim=1, keepdim=True)
        side = holds.shape[1]
        first = holds.float().argmax(dim=1)
        last = side - holds.flip(1).float().argmax(dim=1)
        found.append(((first + last) / 2 / side, (last - first) / side))
    (row, height), (column, width) = found
    return torch.stack((row, column, height, width), dim=1)


def counts(mask: Int[Tensor, "b h w"], *, least: int = 4) -> Float[Tensor, "b 1"]:
    """Return in how many connected parts the pixels that are not 0 lie; corners connect.

    Args:
        mask: Where something is, e.g. `foreground`.
        least: Pixels of the smallest part that counts; smaller ones are mostly the smoothed rims of others.
    """
    from scipy.ndimage import label

    found = [torch.from_numpy(label(part, np.ones((3, 3)))[0]).flatten().bincount()[1:] for part in mask.cpu().numpy()]
    return torch.tensor([[float((sizes >= least).sum())] for sizes in found], device=mask.device)


def mean_colors(images: Float[Tensor, "b c h w"], mask: Int[Tensor, "b h w"]) -> Float[Tensor, "b c"]:
    """Return the mean color of the pixels that are not 0 in the mask, of each image; 0 where there are none."""
    weights = (mask != 0).to(images.dtype)[:, None]
    return (images * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3)).clamp(min=1)


def _standardized(targets: Tensor, num_train: int) -> Tensor:
    """Return numbers with mean 0 and deviation 1 on the training images: probes learn small and large ones alike, and no score changes."""
    axes = (0,) if targets.ndim == 2 else (0, 1, 2)
    known = targets[:num_train]
    deviation = known.std(dim=axes, correction=0, keepdim=True)
    return (targets - known.mean(dim=axes, keepdim=True)) / torch.where(deviation > 0, deviation, 1.0)


def _train(maps: Tensor, targets: Tensor, settings: ProbeSettings, is_whole: bool) -> nn.Module:
    """Return a trained probe."""
    outputs = int(targets.max()) + 1
    if targets.is_floating_point():
        outputs = targets.shape[1] if is_whole else 1
    # The global generator is put back: a caller's own draws are none of the probe's affair.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        probe = _make_probe(maps, outputs, settings, is_whole)
    probe = probe.to(maps.device)
    standardize = cast(Any, probe[0])
    standardize.running_mean.copy_(maps.mean(dim=(0, 2, 3)))
    standardize.running_var.copy_(maps.var(dim=(0, 2, 3)))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
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


def _make_probe(maps: Tensor, outputs: int, settings: ProbeSettings, is_whole: bool) -> nn.Sequential:
    """Return a probe whose first layer standardizes by fixed statistics, so that it has no say in what is found."""
    dim, hidden = maps.shape[1], settings.hidden_dim
    layers: list[nn.Module] = [nn.BatchNorm2d(dim, affine=False).eval()]
    if settings.kind == "convolutions":
        for width in (dim, hidden):
            layers += [nn.Conv2d(width, hidden, 3, padding=1), nn.GELU()]
        dim = hidden
    if is_whole:
        rows, columns = (min(side, _WHOLE_SIDE) for side in maps.shape[2:])
        layers += [nn.AdaptiveAvgPool2d((rows, columns)), nn.Flatten(), nn.Linear(dim * rows * columns, outputs)]
    else:
        layers.append(nn.Conv2d(dim, outputs, 1))
    return nn.Sequential(*layers)


def _enlarge(answers: Tensor, targets: Tensor) -> Tensor:
    """Return answers of the size of the targets; those about the whole picture as they are."""
    if answers.ndim == 2:
        return answers
    return F.interpolate(answers, size=targets.shape[1:], mode="bilinear", align_corners=False)


def _loss(answers: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return (answers.reshape(targets.shape) - targets).square().mean()
    return F.cross_entropy(answers, targets, ignore_index=-1)


def _constant(targets: Tensor, is_whole: bool) -> Tensor:
    """Return the answer that is best without a look at the image: `(1, outputs)` of the whole picture, else `(1, outputs, 1, 1)`."""
    if targets.is_floating_point():
        return targets.mean(dim=0)[None] if is_whole else targets.mean()[None, None, None, None]
    counts = targets[targets >= 0].bincount(minlength=int(targets.max()) + 1).float()[None]
    return counts if is_whole else counts[:, :, None, None]


def _score(answers: Tensor, targets: Tensor) -> float:
    """Return the mean intersection over union of classes, the share of right classes, or the explained share of the variance."""
    if targets.is_floating_point():
        said, known = answers.reshape(targets.shape).double(), targets.double()
        # Every number of a picture by itself, and all pixels together.
        axes = (0,) if targets.ndim == 2 else (0, 1, 2)
        rest, variance = (said - known).square().mean(dim=axes), known.var(dim=axes, correction=0)
        return float(torch.where(variance > 0, 1 - rest / variance, 0.0).mean())
    said, is_known = answers.argmax(dim=1), targets >= 0
    if targets.ndim == 1:
        return float((said == targets)[is_known].double().mean())
    ratios = []
    for label in targets[is_known].unique():
        here, there = (said == label) & is_known, targets == label
        ratios.append((here & there).sum().double() / (here | there).sum())
    return float(cast(Tensor, sum(ratios)) / len(ratios))
