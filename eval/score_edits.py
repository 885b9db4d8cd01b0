"""What edits keep and what they make, over three seeds: holes and classes of pictures, halves of shapes, first frames of clips.

    python eval/score_edits.py --pipeline digits-1d
    python eval/score_edits.py --pipeline emoji --data.source npz:FILE --data.size 64 --data.hold-out 10 --data.hold-out-by name \
        --data.label-column labels+styles --lpips WEIGHTS --num-images 100 --guidance-scale 2.5 \
        --sampling '{"num_steps": 12, "solver": "heun", "timestep_shift": 1.0}'
    python eval/score_edits.py --pipeline shapes-by-class --num-images 24 --guidance-scale 2.0 --sampling '{"num_steps": 16, "head_steps": 50}'
    python eval/score_edits.py --pipeline clips --num-images 20 --guidance-scale 3.0 --sampling '{"num_steps": 25, "timestep_shift": 0.4}'

Of pictures: PSNR inside and outside of a filled hole, and the agreement of a judge with another class that is asked for. Of shapes, held-out
procedural ones: IoU and Chamfer distance of what is made of a half. Of clips, held-out moving digits: how much frames differ where the given
ones end, and elsewhere. The judge is trained on the real train split: a support vector machine on 8x8 pixels, or with `--lpips` a logistic regression on AlexNet's
features. Where classes are paths it tells the coarsest groups.
Generators that `compare_generators.py` trained are scored by its `--part editing`.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, cast

import torch

from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.pixels import to_uint8
from hiergen.data.shapes.dataset import TEST_OFFSET
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES, procedural_shape
from hiergen.data.sources import open_images
from hiergen.data.videos.dataset import from_uint8
from hiergen.evaluation.images.edits import HOLE, WIDE, Judge, edits_tables, other_classes, score_edits, square
from hiergen.evaluation.shapes.completion import score_completion
from hiergen.evaluation.study import Estimate
from hiergen.evaluation.videos.seams import score_seams
from hiergen.figures import save_image_grid
from hiergen.files import check_writable, write_json, write_text
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.metrics.classifiers import FeatureClassifier, LabelClassifier, stage_features
from hiergen.pipelines.editing.images import ImageEditing
from hiergen.pipelines.loading import from_pretrained
from hiergen.pipelines.shape import ClassToShapePipeline
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pretrained.perceptual import LPIPS
from hiergen.quickstart.videos.clips import quickstart_clips
from hiergen.seeding import make_rng


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is scored.

    Attributes:
        pipeline: Folder or Hub id of a pipeline of images, or the name of a packaged one.
        out: Folder of the report.
        data: Real images of the pipeline's size and classes; the held-out ones are edited.
        seeds: Seeds of draws and of the images that are edited.
        num_images: Number of images, shapes or clips per seed.
        num_given: Number of first frames that a clip is continued from.
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
    num_given: int = 8
    lpips: str | None = None
    num_steps: int | None = None
    guidance_scale: float = 1.5
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)


def main(settings: Settings) -> None:
    """Score, print the tables and write them."""
    torch.set_num_threads(1)
    out = check_writable(settings.out)
    pipe = from_pretrained(settings.pipeline)
    pipe.set_progress_bar_config(disable=True)
    sampling = {"guidance_scale": settings.guidance_scale, **settings.sampling}
    sampling |= {} if settings.num_steps is None else {"num_steps": settings.num_steps}
    if isinstance(pipe, ImageEditing):
        score, tell = of_images(pipe, settings, sampling)
    elif isinstance(pipe, ClassToShapePipeline):
        score, tell = functools.partial(of_shapes, pipe, settings, sampling), table
    elif isinstance(pipe, ClassToVideoPipeline):
        score, tell = functools.partial(of_clips, pipe, settings, sampling), table
    else:
        raise ValueError(f"{settings.pipeline!r} holds a {type(pipe).__name__}, expected one that edits")
    results = []
    for seed in settings.seeds:
        results.append(score(seed))
        write_json(out / "edits.json", {"results": results, "seeds": settings.seeds})
    text = tell(results)
    write_text(out / "edits.md", text)
    print(text)


def of_images(
    pipe: ImageEditing, settings: Settings, sampling: dict[str, Any]
) -> tuple[Callable[[int], dict[str, float]], Callable[[list[dict[str, float]]], str]]:
    """Return what scores edits of held-out pictures under a seed, and what makes a text of the scores."""
    train, test = (
        cast(ImageSet, open_images(dataclasses.replace(settings.data, split=split, in_memory=True)))
        for split in ("train", "test")
    )
    groups = class_groups(pipe)
    judge = make_judge(train, groups[train.labels], settings.lpips)

    def score(seed: int) -> dict[str, float]:
        chosen = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(seed))[: settings.num_images]
        images, labels = test.images[chosen], test.labels[chosen]
        return score_edits(pipe, images, labels, judge, groups=groups, seed=seed, **sampling)

    def tell(results: list[dict[str, float]]) -> str:
        draw_edits(pipe, test, groups, settings, sampling)
        real = float((judge(to_uint8(test.images)) == groups[test.labels]).double().mean())
        said = f"The judge agrees with {real:.1%} of the real held-out images."
        return f"{edits_tables({settings.pipeline: results})}\n{said}\n"

    return score, tell


def draw_edits(
    pipe: ImageEditing, test: ImageSet, groups: torch.Tensor, settings: Settings, sampling: dict[str, Any]
) -> None:
    """Write edits of the first pictures of the first seed, a row each, to `edits.png`."""
    seed = settings.seeds[0]
    chosen = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(seed))[:10]
    images, labels = test.images[chosen], test.labels[chosen]
    others = other_classes(labels, groups, seed)
    hole, wide = (square(images, share) for share in (HOLE, WIDE))
    rows = {"picture": images, "to be made": torch.where(hole[:, None], 0.5, images)}
    ways: list[tuple[str, torch.Tensor, torch.Tensor | None, dict[str, float]]] = []
    if pipe.has_places:
        ways += [("its own class", labels, hole, {}), ("another class inside", others, wide, {})]
    ways += [(f"strength {strength}", others, None, {"strength": strength}) for strength in (0.6, 0.8)]
    for name, wanted, mask, options in ways:
        rng = make_rng(seed, "drawn", name)
        made = pipe.edit(images, mask, wanted, generator=rng, output_type="pt", **options, **sampling)
        rows[name] = made.images.cpu()
    save_image_grid(f"{settings.out}/edits.png", list(rows.values()), row_labels=list(rows), title="Not selected")


def of_shapes(pipe: ClassToShapePipeline, settings: Settings, sampling: dict[str, Any], seed: int) -> dict[str, float]:
    """Return the scores of halves of held-out procedural shapes, others for each seed, class by class in turn."""
    numbers = range(seed * settings.num_images, (seed + 1) * settings.num_images)
    meshes = [procedural_shape(TEST_OFFSET + number).to_mesh() for number in numbers]
    labels = [number % len(PROCEDURAL_CLASSES) for number in numbers]
    return score_completion(pipe, meshes, labels, seed=seed, extraction=ExtractionSettings(depth=6), **sampling)


def of_clips(pipe: ClassToVideoPipeline, settings: Settings, sampling: dict[str, Any], seed: int) -> dict[str, float]:
    """Return the differences of frames of held-out moving digits, others for each seed."""
    count, size = settings.num_images, pipe.tokenizer.config["video_size"]
    clips = quickstart_clips("test", (1 + max(settings.seeds)) * count, size, seed=0)
    own = slice(seed * count, (seed + 1) * count)
    return score_seams(
        pipe, from_uint8(clips.videos[own]), clips.labels[own], num_given=settings.num_given, seed=seed, **sampling
    )


def table(results: list[dict[str, float]]) -> str:
    """Return Markdown: every score over the seeds."""
    rows = [f"| {name} | {Estimate.of([found[name] for found in results]).text(3)} |" for name in results[0]]
    return "\n".join(["| | |", "|---|---|", *rows]) + "\n"


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
