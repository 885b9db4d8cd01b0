"""How well a pipeline fills a hole, and whether edits show another class: PSNR inside and outside, agreement of a judge, three seeds.

    python eval/score_edits.py --pipeline digits-1d
    python eval/score_edits.py --pipeline emoji --data.source npz:FILE --data.size 64 --data.hold-out 10 --data.hold-out-by name \
        --data.label-column labels+styles --lpips WEIGHTS --num-images 100 --guidance-scale 2.5 \
        --sampling '{"num_steps": 12, "solver": "heun", "timestep_shift": 1.0}'

The judge is trained on the real train split: a support vector machine on 8x8 pixels, or with `--lpips` a logistic regression on AlexNet's
features. Where classes are paths it tells the coarsest groups.
Generators that `compare_generators.py` trained are scored by its `--part editing`.
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
from hiergen.evaluation.images.edits import Judge, edits_tables, score_edits
from hiergen.files import check_writable, write_json, write_text
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.metrics.classifiers import FeatureClassifier, LabelClassifier, stage_features
from hiergen.pipelines.editing.images import ImageEditing
from hiergen.pipelines.loading import from_pretrained
from hiergen.pretrained.perceptual import LPIPS


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is scored.

    Attributes:
        pipeline: Folder or Hub id of a pipeline of images, or the name of a packaged one.
        out: Folder of the report.
        data: Real images of the pipeline's size and classes; the held-out ones are edited.
        seeds: Seeds of draws and of the images that are edited.
        num_images: Number of images per seed.
        lpips: Folder of AlexNet's weights, for a judge on its features; None is a judge on small pixels.
        num_steps: Number of steps of a masked or flow generator; by default its own.
        guidance_scale: Guidance scale; 1 is no guidance.
        sampling: Further settings of the generator.
    """

    pipeline: str = "digits-1d"
    out: str = "runs/edits"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_images: int = 200
    lpips: str | None = None
    num_steps: int | None = None
    guidance_scale: float = 1.5
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)


def main(settings: Settings) -> None:
    """Score, print the tables and write them."""
    torch.set_num_threads(1)
    out = check_writable(settings.out)
    pipe = from_pretrained(settings.pipeline)
    if not isinstance(pipe, ImageEditing):
        raise ValueError(f"{settings.pipeline!r} holds a {type(pipe).__name__}, expected a pipeline of images")
    pipe.set_progress_bar_config(disable=True)
    train, test = (
        cast(ImageSet, open_images(dataclasses.replace(settings.data, split=split, in_memory=True)))
        for split in ("train", "test")
    )
    groups = class_groups(pipe)
    judge = make_judge(train, groups[train.labels], settings.lpips)
    results = []
    sampling = {"guidance_scale": settings.guidance_scale, **settings.sampling}
    sampling |= {} if settings.num_steps is None else {"num_steps": settings.num_steps}
    for seed in settings.seeds:
        chosen = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(seed))[: settings.num_images]
        images, labels = test.images[chosen], test.labels[chosen]
        results.append(score_edits(pipe, images, labels, judge, groups=groups, seed=seed, **sampling))
        write_json(out / "edits.json", {"results": results, "seeds": settings.seeds})
    real = float((judge(to_uint8(test.images)) == groups[test.labels]).double().mean())
    tables = (
        edits_tables({settings.pipeline: results})
        + f"\nThe judge agrees with {real:.1%} of the real held-out images.\n"
    )
    write_text(out / "edits.md", tables)
    print(tables)


def make_judge(train: ImageSet, labels: torch.Tensor, lpips: str | None) -> Judge:
    """Return a judge that has learned the labels of real images: on AlexNet's features where there is a folder of its weights."""
    if lpips is None:
        return LabelClassifier(to_uint8(train.images), labels).predict
    network = LPIPS.from_files("alex", folder=lpips)
    machine = FeatureClassifier(stage_features(network, train.images), labels.numpy())

    def judge(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(machine.likeliest(stage_features(network, images.float() / 127.5 - 1))[:, 0])

    return judge


def class_groups(pipe: ImageEditing) -> torch.Tensor:
    """Return the group that each class of a pipeline belongs to: its coarsest level where classes are paths, else itself."""
    stored = pipe.generator.config.get("class_hierarchy")
    if not stored:
        return torch.arange(pipe.generator.config["num_classes"])
    hierarchy = ClassHierarchy.from_json(stored)
    return torch.tensor([node[0] for node in hierarchy.nodes[: len(hierarchy.classes)]])


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
