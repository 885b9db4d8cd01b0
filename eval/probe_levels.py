"""What do levels know? Probes on every prefix of a tokenizer's levels: a layer of every cell, and convolutions as an upper bound.

    python eval/probe_levels.py --tokenizer runs/pyramid_tiny/model --out runs/probes
    python eval/probe_levels.py --tokenizer TOKENIZER --images.source FOLDER --images.size 64

The probes predict the edges of the picture, which need no labels. `hiergen.evaluation.images.probes` takes classes of pixels, or depth, as well.
"""

import dataclasses
import sys
from typing import Any, cast

from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.data.sources import open_images
from hiergen.evaluation.images.probes import ProbeSettings, edges, probe_prefixes
from hiergen.files import check_writable, write_json, write_text
from hiergen.pipelines.loading import from_pretrained


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is probed.

    Attributes:
        tokenizer: Folder or name of a `PyramidTokenizer` or a `MultiScaleVQ`.
        out: Folder of the table.
        images: Images, best held-out ones, of the tokenizer's size.
        num_images: Number of images at most; a third of them is scored, the others train the probes.
        probe: Settings of the probes; both kinds are trained.
    """

    tokenizer: str = "runs/pyramid_tiny/model"
    out: str = "runs/probes"
    images: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(split="test"))
    num_images: int = 1_500
    probe: ProbeSettings = dataclasses.field(default_factory=ProbeSettings)


def main(settings: Settings) -> None:
    """Train all probes, print a table and write it."""
    out = check_writable(settings.out)
    tokenizer = from_pretrained(settings.tokenizer).eval()
    pictures = cast(Any, open_images(settings.images))
    chosen = [(index, 0) for index in range(min(settings.num_images, len(pictures)))]
    images = pictures.batch(chosen, seed=0)["image"]
    found = {
        kind: probe_prefixes(
            tokenizer,
            images,
            edges(images),
            num_test=len(images) // 3,
            settings=dataclasses.replace(settings.probe, kind=kind),
        )
        for kind in ("linear", "convolutions")
    }
    write_json(out / "probes.json", {kind: [dataclasses.asdict(score) for score in found[kind]] for kind in found})
    lines = ["| levels | tokens | edges explained, linear | edges explained, convolutions |", "|---|---|---|---|"]
    for linear, wide in zip(found["linear"], found["convolutions"], strict=True):
        tokens = sum(spec.num_tokens for spec in tokenizer.specs[: linear.num_levels])
        lines.append(f"| {linear.num_levels} | {tokens} | {linear.score:.3f} | {wide.score:.3f} |")
    write_text(out / "probes.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
