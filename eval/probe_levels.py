"""What do levels know? Probes on every prefix of a tokenizer's levels: a linear layer, and convolutions as an upper bound.

    python eval/probe_levels.py --tokenizer runs/pyramid_tiny/model --out runs/probes
    python eval/probe_levels.py --tokenizer TOKENIZER --images.source npz:FILE --images.size 64 --targets class foreground box color

The targets: `edges` (their strength at every pixel), `foreground` (which pixels are not of the background's color), `box` (of the
foreground), `color` (its mean), `count` (its connected parts), `class`, and `group` (what stands before the first slash of the class's name).
Edges, boxes, colors and counts are scored by the share of their variance that is explained, the foreground by the mean intersection over union,
classes by the share that is right. The first row of a table is the best answer without a look at the picture. Targets of another kind:
`hiergen.evaluation.images.probes`.
"""

import dataclasses
import sys
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor

from hiergen.checked import Checked, Range
from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.data.sources import open_images
from hiergen.evaluation.images.probes import (
    ProbeScore,
    ProbeSettings,
    boxes,
    counts,
    edges,
    foreground,
    mean_colors,
    probe_prefixes,
)
from hiergen.figures import save_curves
from hiergen.files import check_writable, write_json, write_text
from hiergen.pipelines.loading import from_pretrained

Target = Literal["edges", "foreground", "box", "color", "count", "class", "group"]
KINDS: tuple[Literal["linear", "convolutions"], ...] = ("linear", "convolutions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """What is probed.

    Attributes:
        tokenizer: Folder or name of a `PyramidTokenizer` or a `MultiScaleVQ`.
        out: Folder of the tables and the picture.
        images: Images, best held-out ones, of the tokenizer's size.
        num_images: Number of images at most, drawn at random; a third of them is scored, the others train the probes.
        targets: What the probes predict.
        probe: Settings of the probes; both kinds are trained.
    """

    tokenizer: str = "runs/pyramid_tiny/model"
    out: str = "runs/probes"
    images: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(split="test"))
    num_images: Annotated[int, Range(3)] = 1_500
    targets: tuple[Target, ...] = ("edges", "foreground", "box", "color", "class")
    probe: ProbeSettings = dataclasses.field(default_factory=ProbeSettings)


def make_targets(
    names: tuple[Target, ...], images: Tensor, labels: Tensor, classes: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the targets of the images by name."""
    mask = foreground(images)
    before = [name.split("/")[0] for name in classes]
    groups = torch.tensor([sorted(set(before)).index(name) for name in before])
    made = {
        "edges": lambda: edges(images),
        "foreground": lambda: mask,
        "box": lambda: boxes(mask),
        "color": lambda: mean_colors(images, mask),
        "count": lambda: counts(mask),
        "class": lambda: labels,
        "group": lambda: groups[labels],
    }
    return {name: made[name]() for name in names}


def main(settings: Settings) -> None:
    """Train all probes; print the tables, write and draw them."""
    torch.set_num_threads(1)
    out = check_writable(settings.out)
    tokenizer = from_pretrained(settings.tokenizer).eval()
    pictures = cast(Any, open_images(settings.images))
    # In a random order: sources are often sorted by class.
    chosen = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[: settings.num_images]
    batch = pictures.batch([(index, 0) for index in chosen.tolist()], seed=0)
    images = batch["image"]
    found: dict[str, dict[str, list[ProbeScore]]] = {}
    for name, targets in make_targets(settings.targets, images, batch["label"], pictures.classes).items():
        found[name] = {
            kind: probe_prefixes(
                tokenizer,
                images,
                targets,
                num_test=len(images) // 3,
                settings=dataclasses.replace(settings.probe, kind=kind),
            )
            for kind in KINDS
        }
        scores = {kind: [dataclasses.asdict(score) for score in rows] for kind, rows in found[name].items()}
        write_json(out / f"{name}.json", {"num_images": len(images), **scores})
    counts = [score.num_levels for score in next(iter(found.values()))["linear"]]
    tokens = [sum(spec.num_tokens for spec in tokenizer.specs[:count]) for count in counts]
    lines = ["| levels | tokens | " + " | ".join(f"{name}, {kind}" for name in found for kind in KINDS) + " |"]
    lines.append("|---" * (2 + 2 * len(found)) + "|")
    for index, count in enumerate(counts):
        cells = [f"{found[name][kind][index].score:.3f}" for name in found for kind in KINDS]
        lines.append(f"| {count} | {tokens[index]} | " + " | ".join(cells) + " |")
    write_text(out / "probes.md", "\n".join(lines) + "\n")
    panels = {
        name: {
            kind: ([float(count) for count in counts], [score.score for score in rows])
            for kind, rows in by_kind.items()
        }
        for name, by_kind in found.items()
    }
    save_curves(out / "probes.png", panels, x_label="levels")
    print("\n".join(lines))


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
