"""How well edits keep what is given, and make what is asked for.

Held-out images are edited twice. A square hole is filled in again, with the class that the image has; what comes back is compared with the
image inside and outside of the hole, before known pixels are put back. And the image is changed to another class, which a judge then looks for.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.data.images.pixels import to_uint8
from hiergen.evaluation.study import Estimate
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.editing.images import ImageEditing
from hiergen.pipelines.editing.masks import fill_holes
from hiergen.pipelines.encoding import decode_batches, encode_batches
from hiergen.seeding import make_rng

#: Side of the hole that is filled in, and of the one in which the class is changed, as shares of the image's side.
HOLE, WIDE = 0.5, 0.75
#: How much changes where a generator starts from the image with noise in it, or keeps its first levels.
STRENGTHS = (0.4, 0.6, 0.8)

#: Maps uint8 images to the classes, or groups of classes, that it sees.
Judge = Callable[[Tensor], Tensor]


def score_edits(
    pipe: ImageEditing,
    images: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    judge: Judge,
    *,
    groups: Int[Tensor, " k"] | None = None,
    seed: int = 0,
    batch_size: int = 100,
    **settings: Any,
) -> dict[str, float]:
    """Return what became of images that were edited: PSNR in dB as a mean over images, agreement as a share of them.

    "inside" and "outside" are of the filled hole, "..._rebuilt" of the tokenizer alone, which is the bound, "inside_plain" of an image of the
    class that knows nothing of this one, "inside_smooth" of a smooth continuation. "agreement_plain" is the judge's with plain generation of
    the other classes; "agreement_WAY" and "psnr_WAY" are its agreement with edits, and how near these stay to the image. A way is "hole" (all
    in the middle anew) or "strength S".

    Args:
        pipe: The pipeline.
        images: Held-out images in [-1, 1], of the pipeline's size.
        labels: Classes of the images.
        judge: Judge of the classes, or of their groups.
        groups: Group of each class, as the judge counts them; None where it sees classes.
        seed: Seed of all draws, and of the other class of each image.
        batch_size: Number of images per call.
        settings: Settings of the generator.
    """
    groups = torch.arange(int(labels.max()) + 1) if groups is None else groups
    others = other_classes(labels, groups, seed)
    hole, wide = (square(images, share) for share in (HOLE, WIDE))

    def edited(name: str, wanted: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        parts = []
        for start in range(0, len(images), batch_size):
            rows, rng = slice(start, start + batch_size), make_rng(seed, name, start)
            part_mask = None if mask is None else mask[rows]
            options |= {"output_type": "pt", "generator": rng, **settings}
            parts.append(pipe.edit(images[rows], part_mask, wanted[rows], **options).images.cpu())
        return torch.cat(parts)

    def plain(name: str, wanted: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(images), batch_size):
            rng = make_rng(seed, name, start)
            part = pipe(wanted[start : start + batch_size], generator=rng, output_type="pt", **settings)
            parts.append(part.images.cpu())
        return torch.cat(parts)

    def agreement(made: Tensor) -> float:
        return float((judge(to_uint8(made)) == groups[others]).double().mean())

    rebuilt = decode_batches(pipe.tokenizer, encode_batches(pipe.tokenizer, images))
    filled = edited("hole", labels, hole, composes=False)
    found = {
        "inside": _psnr_in(filled, images, hole),
        "outside": _psnr_in(filled, images, ~hole),
        "inside_rebuilt": _psnr_in(rebuilt, images, hole),
        "outside_rebuilt": _psnr_in(rebuilt, images, ~hole),
        "inside_plain": _psnr_in(plain("plain", labels), images, hole),
        "inside_smooth": _psnr_in(fill_holes(images, hole), images, hole),
        "agreement_plain": agreement(plain("other", others)),
    }
    ways: dict[str, dict[str, Any]] = {"hole": {"mask": wide}} if pipe.has_places else {}
    if pipe.starts_from_images or not pipe.has_places or len(pipe.tokenizer.specs) > 1:
        ways |= {f"strength {strength}": {"mask": None, "strength": strength} for strength in STRENGTHS}
    for way, options in ways.items():
        made = edited(way, others, **options)
        found |= {f"agreement_{way}": agreement(made), f"psnr_{way}": float(psnr(made, images).mean())}
    return found


def square(images: Float[Tensor, "b c h w"], share: float) -> Bool[Tensor, "b h w"]:
    """Return masks of the middle square of images, whose side is a share of theirs."""
    side = images.shape[-1]
    low = round(side * (1 - share) / 2)
    masks = torch.zeros(len(images), side, side, dtype=torch.bool)
    masks[:, low : side - low, low : side - low] = True
    return masks


def other_classes(labels: Int[Tensor, " b"], groups: Int[Tensor, " k"], seed: int) -> Int[Tensor, " b"]:
    """Return a class of another group for each image, each as likely as every other.

    Raises:
        ValueError: If all classes are of one group.
    """
    rng, found = make_rng(seed, "other-classes"), []
    for label in labels.tolist():
        choices = torch.where(groups != groups[label])[0]
        if not len(choices):
            raise ValueError(f"groups are {groups.unique().tolist()}, expected at least two")
        found.append(choices[int(torch.randint(len(choices), (1,), generator=rng))])
    return torch.stack(found)


def _psnr_in(made: Tensor, images: Tensor, mask: Tensor) -> float:
    """Return the mean over images of the PSNR of those pixels that a mask shows."""
    error = ((made.clamp(-1, 1) - images) / 2).square().mean(dim=1)
    mean = (error * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))
    return float((-10 * mean.clamp_min(1e-10).log10()).mean())


def edits_tables(results: Mapping[str, list[dict[str, float]]]) -> str:
    """Return Markdown: of each generator, over its seeds, what it filled in, and what became of other classes.

    Args:
        results: What `score_edits` returned, of each seed, by the name of the generator.
    """
    columns = ("inside", "inside_plain", "inside_smooth", "inside_rebuilt", "outside", "outside_rebuilt")
    titles = ("edit", "plain image of the class", "smooth continuation", "tokenizer alone", "edit", "tokenizer alone")
    places = ("inside",) * 4 + ("outside",) * 2
    heads = [f"{place}: {title}" for place, title in zip(places, titles, strict=True)]
    first = ["| generator | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    second = ["| generator | edit | judge sees the new class (%) | PSNR to the image (dB) |", "|---" * 4 + "|"]
    for name, seeds in results.items():
        cells = [Estimate.of([found[column] for found in seeds]).text(2) for column in columns]
        first.append(f"| {name} | " + " | ".join(cells) + " |")
        for key in seeds[0]:
            if key.startswith("agreement_"):
                way = key.removeprefix("agreement_")
                agrees = Estimate.of([100 * found[key] for found in seeds]).text(1)
                near = (
                    Estimate.of([found[f"psnr_{way}"] for found in seeds]).text(2) if f"psnr_{way}" in seeds[0] else "-"
                )
                second.append(f"| {name} | {way} | {agrees} | {near} |")
    return "\n".join([*first, "", *second]) + "\n"
