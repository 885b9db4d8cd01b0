"""Search the guidance scale of a pipeline by hill climbing on a Fréchet distance, as ResTok's authors did on FID.

    python eval/search_guidance.py --pipeline quickstart/pipeline --out runs/search
    python eval/search_guidance.py --pipeline PIPELINE --reference.source IMAGENET/train --reference.size 256 --inception WEIGHTS
        --search.schedule step --search.num-images 50000

Run again, it continues. `search.csv` keeps every value, `search.png` draws them. Without `--inception` (torch-fidelity's weights) the
distance is on 32 features of a classifier trained on the reference images, which compares only with itself.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import cast

from torch import Tensor

from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.pixels import to_uint8
from hiergen.data.sources import open_images
from hiergen.evaluation.features.extractors import inception_or_trained
from hiergen.evaluation.images.guidance_search import SearchPoint, SearchSettings, rectangular_windows, search_guidance
from hiergen.figures import save_curves
from hiergen.files import check_writable
from hiergen.metrics.fidelity import compare_image_sets
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.loading import from_pretrained


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is searched, and against what.

    Attributes:
        pipeline: Folder or Hub id of a class-to-image pipeline.
        out: Folder of the table and the plot.
        reference: Real images of the same size and classes.
        inception: Weights file of InceptionV3, for FID; empty for a small classifier of the reference.
        search: What is searched, and with which draws.
        all_windows: Whether to search every window of ResTok's grid, with the rectangular schedule.
    """

    pipeline: str = "quickstart/pipeline"
    out: str = "runs/search_guidance"
    reference: DataConfig = dataclasses.field(default_factory=DataConfig)
    inception: str = ""
    search: SearchSettings = dataclasses.field(default_factory=SearchSettings)
    all_windows: bool = False


def main(settings: Settings) -> None:
    """Search, print the table and draw it."""
    out = check_writable(settings.out)
    pipeline = cast(ClassToImagePipeline, from_pretrained(settings.pipeline))
    images = cast(ImageSet, open_images(settings.reference))
    real, labels = to_uint8(images.images), images.labels
    path = out / "reference-cnn-32.safetensors"
    extractor = inception_or_trained(settings.inception, path, real, labels, of="the reference")
    metric = f"frechet-{extractor.name}-{images.fingerprint}"

    def measure(made: Tensor, _: Tensor) -> float:
        return compare_image_sets(made, real, extractor)["frechet_distance"]

    search = settings.search
    if settings.all_windows:
        search = dataclasses.replace(search, schedule="rectangular", windows=rectangular_windows())
    points = search_guidance(pipeline, measure, search, table=out / "search.csv", metric=metric, progress=_show)
    title = f"Fréchet distance ({extractor.name}), {search.num_images:,} images, seed {search.seed}"
    save_curves(out / "search.png", {title: _curves(points)}, x_label="guidance scale")
    print(f"best of {len(points)}:")
    _show(points[0])


def _show(point: SearchPoint) -> None:
    window = "" if point.window is None else f"  window {point.window[0]:g} to {point.window[1]:g}"
    print(f"guidance {point.scale:<6g}{point.value:.4f}{window}", flush=True)


def _curves(points: list[SearchPoint]) -> Mapping[str, tuple[list[float], list[float]]]:
    """Return one curve per window, of the six best windows."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for window in list(dict.fromkeys(point.window for point in points))[:6]:
        part = sorted((point.scale, point.value) for point in points if point.window == window)
        name = "all steps" if window is None else f"{window[0]:g} to {window[1]:g}"
        curves[name] = ([scale for scale, _ in part], [value for _, value in part])
    return curves


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
