"""What a Fréchet distance says when it should say nothing: between two random halves of one set of real images, by number of images.

    python eval/measure_bias.py --data.source npz:DATA/caltech101_64_25classes.npz --data.size 64 \
        --extractor.name inception-768 --extractor.weights FILE

Both halves are draws of one distribution, so whatever the distance is, it is due to the number of images. The kernel
distance of the same halves (KID on Inception's features) is beside it: it has no such bias. Features are computed once and cached; a stopped run continues.
"""

import dataclasses
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.environment import choose_device
from hiergen.evaluation.features.extractors import build_extractor
from hiergen.evaluation.features.references import open_reference
from hiergen.evaluation.protocol import environment
from hiergen.evaluation.report import table
from hiergen.evaluation.settings import ExtractorConfig, PassConfig
from hiergen.figures import save_curves
from hiergen.files import check_writable, write_json, write_text
from hiergen.metrics.fidelity import kernel_distance_by_block
from hiergen.metrics.frechet import Moments, frechet_distance
from hiergen.seeding import make_rng


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        data: Real images.
        extractor: Feature extractor on which distances are measured.
        out: Folder of the table and the plot.
        smallest: Number of images in each of the smallest halves; the others are twice, four times, ... as large, the last is half of all.
        repeats: Number of random pairs of each size.
        seed: Seed of the pairs.
        cache: Folder of the features.
        passes: Batch size, part size, device.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    extractor: ExtractorConfig = dataclasses.field(default_factory=ExtractorConfig)
    out: str = "evaluation/bias"
    smallest: int = 50
    repeats: int = 10
    seed: int = 0
    cache: str = "~/.cache/hiergen/references"
    passes: PassConfig = dataclasses.field(default_factory=PassConfig)

    def __post_init__(self) -> None:
        for name, least in (("smallest", 2), ("repeats", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")


def main(settings: Settings) -> None:
    """Measure, print a table, write it and draw it."""
    out, device = check_writable(settings.out), choose_device(settings.passes.device)
    extractor = build_extractor(settings.extractor, device)
    reference = open_reference(
        settings.data, extractor, rounding="nearest", passes=settings.passes, cache=settings.cache, device=device
    )
    assert reference.features is not None
    rows = two_halves(reference.features, settings)
    name = extractor.distance
    header = ["images of each half", name, "deviation", "kernel distance", "deviation"]
    columns = {"frechet": ".2f", "frechet_std": ".2f", "kernel": ".5f", "kernel_std": ".5f"}
    body = [[f"{row['count']:,}", *(f"{row[key]:{form}}" for key, form in columns.items())] for row in rows]
    lines = table(header, body)
    text = "\n".join(
        [
            f"{extractor.description}; {len(reference.features):,} images of {settings.data.source}; means and standard deviations "
            f"over {settings.repeats} random pairs of halves, seed {settings.seed}.",
            "",
            *lines,
            "",
        ]
    )
    write_text(out / "bias.md", text)
    about = {"reference": reference.about, "environment": environment(device)}
    write_json(out / "bias.json", {**about, "rows": rows})
    counts = [row["count"] for row in rows]
    save_curves(out / "bias.png", {name: {name: (counts, [row["frechet"] for row in rows])}}, x_label="images")
    print(text)


def two_halves(features: Tensor, settings: Settings) -> list[dict[str, Any]]:
    """Return the mean distances between disjoint random sets of equal size, by size."""
    half = len(features) // 2
    counts = [settings.smallest]
    while 2 * counts[-1] <= half:
        counts.append(2 * counts[-1])
    counts = [count for count in counts if count < half] + [half]
    rng, rows = make_rng(settings.seed, "halves"), []
    wide = features.double()
    for count in counts:
        frechet, kernel = [], []
        for _ in range(settings.repeats):
            order = torch.randperm(len(wide), generator=rng)
            first, second = wide[order[:count]], wide[order[count : 2 * count]]
            frechet.append(frechet_distance(Moments.of(first), Moments.of(second)))
            kernel.append(float(kernel_distance_by_block(first, second, num_blocks=1, is_paired=False)))
        rows.append(
            {
                "count": count,
                "frechet": float(np.mean(frechet)),
                "frechet_std": float(np.std(frechet, ddof=1)),
                "kernel": float(np.mean(kernel)),
                "kernel_std": float(np.std(kernel, ddof=1)),
            }
        )
    return rows


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
