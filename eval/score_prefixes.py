"""Quality against number of levels: reconstructions from every prefix, and generations that stop early.

    python eval/score_prefixes.py --pipeline quickstart/pipeline --out runs/prefixes
    python eval/score_prefixes.py --pipeline digits-1d --out runs/prefixes --num-generated 0 --bounds 12 14 16 18
    python eval/score_prefixes.py --pipeline PIPELINE --images.source IMAGENET/val --images.size 256 --inception WEIGHTS

Distances are of reconstructions to the images themselves (rFID with `--inception`), and of generated images to the images. Without
`--inception` (torch-fidelity's weights) they are on 32 features of a classifier of the images, which compare only with each other.
"""

import dataclasses
import sys
from typing import Any, cast

import torch

from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.pixels import to_uint8
from hiergen.data.sources import open_images
from hiergen.evaluation.features.extractors import inception_or_trained
from hiergen.evaluation.images.prefix_scores import (
    AdaptiveScore,
    PrefixScore,
    score_adaptive,
    score_generations,
    score_reconstructions,
)
from hiergen.figures import save_curves
from hiergen.files import check_writable, write_json, write_text
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.loading import from_pretrained


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is scored.

    Attributes:
        pipeline: Folder or Hub id of a class-to-image pipeline.
        out: Folder of the report and the plot.
        images: Real images, best held-out ones, of the same size and classes.
        inception: Weights file of InceptionV3, for FID; empty for a small classifier of the images.
        num_generated: Number of images behind each score of generations, labels in turn; 0 for reconstructions only.
        seed: Seed of the generations.
        guidance_scale: Guidance scale of the generations; 1 is no guidance.
        bounds: Wanted PSNRs in dB: for each, what codes cost where every image keeps as many levels as it needs; none for no such table.
    """

    pipeline: str = "quickstart/pipeline"
    out: str = "runs/prefixes"
    images: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(split="test"))
    inception: str = ""
    num_generated: int = 500
    seed: int = 0
    guidance_scale: float = 1.5
    bounds: tuple[float, ...] = ()


def main(settings: Settings) -> None:
    """Score, print a table, write it and draw it."""
    out = check_writable(settings.out)
    pipeline = cast(ClassToImagePipeline, from_pretrained(settings.pipeline))
    images = cast(ImageSet, open_images(settings.images))
    real, labels = to_uint8(images.images), images.labels
    path = out / "images-cnn-32.safetensors"
    extractor = inception_or_trained(settings.inception, path, real, labels, of="the images")
    scores = {"reconstruction": score_reconstructions(pipeline.tokenizer, images.images, extractor)}
    adaptive = score_adaptive(pipeline.tokenizer, images.images, settings.bounds)
    if settings.num_generated:
        wanted = torch.arange(settings.num_generated) % pipeline.generator.config["num_classes"]
        chosen = {"seed": settings.seed, "guidance_scale": settings.guidance_scale}
        scores["generation"] = score_generations(pipeline, wanted, real, extractor, **chosen)
    text = table(scores, extractor.name)
    if adaptive:
        text += "\n" + adaptive_table(adaptive)
        write_json(out / "adaptive.json", [dataclasses.asdict(row) for row in adaptive])
    write_text(out / "prefixes.md", text)
    write_json(
        out / "prefixes.json", {name: [dataclasses.asdict(row) for row in rows] for name, rows in scores.items()}
    )
    curves = {
        name: ([row.tokens for row in rows], [row.frechet_distance for row in rows]) for name, rows in scores.items()
    }
    save_curves(out / "prefixes.png", {f"Fréchet distance ({extractor.name})": curves}, x_label="tokens")
    print(text)


def table(scores: dict[str, list[PrefixScore]], extractor: str) -> str:
    """Return Markdown: one row per prefix."""
    lines = [f"| | levels | tokens | Fréchet ({extractor}) | PSNR (dB) | seconds |", "|---|---|---|---|---|---|"]
    for name, rows in scores.items():
        for row in rows:
            cells: list[Any] = [name, row.levels, row.tokens, f"{row.frechet_distance:.3f}"]
            cells += ["" if value is None else f"{value:.2f}" for value in (row.psnr_db, row.seconds)]
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def adaptive_table(rows: list[AdaptiveScore]) -> str:
    """Return Markdown: one row per wanted PSNR."""
    lines = ["| wanted PSNR (dB) | size | tokens | PSNR (dB) | of 95 % at least | reached |", "|---" * 6 + "|"]
    for row in rows:
        cells = [
            f"{row.min_psnr:g}",
            f"{row.size:.1f}",
            f"{row.tokens:.1f}",
            f"{row.psnr_db:.2f}",
            f"{row.lowest_psnr_db:.2f}",
        ]
        lines.append("| " + " | ".join([*cells, f"{row.reached:.1%}"]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
