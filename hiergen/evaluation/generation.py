"""gFID and its companions: generate images, or read samples that others generated, and compare them with a reference.

Image i is a function of (seed, i) and its label alone: neither the batch size nor the number of processes changes what is drawn.
"""

from __future__ import annotations

import dataclasses
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hiergen.config import to_json
from hiergen.data.images import list_images, read_image, to_tensor
from hiergen.data.sources import DataConfig
from hiergen.evaluation.distances import DistanceConfig, bias_curve, measure
from hiergen.evaluation.extractors import Extractor, ExtractorConfig, build_extractor
from hiergen.evaluation.parts import Parts, batches, gather, run_parts
from hiergen.evaluation.protocol import (
    ROUNDING_RULES,
    PassConfig,
    Rounding,
    check_finite,
    choose_device,
    environment,
    quantize,
)
from hiergen.evaluation.references import check_count, check_npz_images, open_npz, open_reference
from hiergen.evaluation.report import publish
from hiergen.files import atomic_path, check_writable, file_digest
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.loading import from_pretrained
from hiergen.seeding import SampleRng, make_rng

SHOWN_IMAGES = 64
LABEL_RULES = {
    "balanced": "label of image i is i modulo the number of classes: the same number of each, up to one",
    "iid": "label of image i is drawn uniformly from a generator seeded with (seed, i)",
}

#: From the indices of images to `(b, 3, h, w)` uint8 on the device.
Source = Callable[[range], Tensor]


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Fields that are handed on to the generator where they are given; the rest are its own defaults."""

    guidance_scale: float | None = None
    guidance_schedule: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class GfidSettings:
    """Evaluate generated images.

    Attributes:
        pipeline: Folder or Hub id of a pipeline that generates images from class labels.
        samples: Images that are there already, in place of the pipeline: an .npz with `arr_0` (uint8, n h w 3), or a folder of pictures.
        out: Folder of the report. Run again to continue or to draw it anew.
        num_images: Images to generate; of samples, 0 takes all.
        labels: "balanced" or "iid" class labels; see the report.
        seed: Of all random draws, with the index of the image.
        sampling: Settings of the generator.
        data: Reference images.
        reference: A statistics file (.npz) in place of them, such as ADM's.
        extractor: Where distances are measured.
        rounding: Of pixels to bytes, for both sets.
        keep: Images themselves: "npz" writes samples.npz in ADM's layout, "png" a folder of pictures.
        cache: Folder of the statistics of reference images.
        distances: Subset sizes, bootstrap draws and seed.
        passes: Batch size, part size, device.
    """

    pipeline: str = "quickstart/pipeline"
    samples: str = ""
    out: str = "evaluation/gfid"
    num_images: int = 0
    labels: Literal["balanced", "iid"] = "balanced"
    seed: int = 0
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    reference: str = ""
    extractor: ExtractorConfig = dataclasses.field(default_factory=ExtractorConfig)
    rounding: Rounding = "nearest"
    keep: Literal["none", "npz", "png"] = "none"
    cache: str = "~/.cache/hiergen/references"
    distances: DistanceConfig = dataclasses.field(default_factory=DistanceConfig)
    passes: PassConfig = dataclasses.field(default_factory=PassConfig)


def evaluate_generations(settings: GfidSettings) -> dict[str, Any] | None:
    """Run (or continue) an evaluation, write its report and return it; None on all processes but the main one.

    Raises:
        ValueError: If the settings, the samples, the reference or the models do not fit together; before any long work.
        FileNotFoundError: If weights are missing.
    """
    started = time.perf_counter()
    out, device = check_writable(settings.out), choose_device(settings.passes.device)
    extractor = build_extractor(settings.extractor, device)
    reference = open_reference(
        settings.reference or settings.data,
        extractor,
        rounding=settings.rounding,
        passes=settings.passes,
        cache=settings.cache,
        device=device,
    )
    source, count, about = _open_samples(settings, device) if settings.samples else _open_pipeline(settings, device)
    check_count(count, "the evaluation")
    keeps = settings.keep != "none"
    identity = {"kind": "gfid", **about, "extractor": extractor.fingerprint, "keep": keeps}
    work = _Pass(source, extractor, settings, keeps)
    parts = run_parts(out / "parts", identity, count, work, part_size=settings.passes.part_size, what="generate")
    real = reference()
    if parts is None:
        return None
    write_samples(parts, out, settings.keep, count)
    features: dict[str, Tensor] = {
        name: parts.read(name) for name in ("pool", "spatial", "logits") if name in parts.names()
    }
    metrics, warnings = measure(features, real, extractor, settings.distances)
    shown = parts.read("shown")
    report = {
        "kind": "gfid",
        "what": f"images generated by {settings.pipeline}"
        if not settings.samples
        else f"samples of {settings.samples}",
        "metrics": {f"g{k}" if k.startswith(("FID", "FD")) else k: v for k, v in metrics.items()},
        "protocol": {
            "labels": LABEL_RULES[settings.labels] if not settings.samples else "as the samples have them",
            "draws": "image i draws from a generator seeded with (seed, i), on the CPU",
            "rounding": ROUNDING_RULES[settings.rounding],
            "sampling": ", ".join(f"{k} {v}" for k, v in _given(settings.sampling).items())
            or "the generator's defaults",
        },
        "extractor": {
            "name": extractor.name,
            "description": extractor.description,
            "fingerprint": extractor.fingerprint,
        },
        "reference": real.about,
        "counts": {"images": count, "reference": None if real.features is None else len(real.features)},
        "seed": settings.seed,
        "settings": to_json(settings),
        "environment": environment(device),
        "bias": bias_curve(features["pool"], real, settings.distances),
        "warnings": warnings,
        "wall_time_s": round(time.perf_counter() - started, 1),
    }
    columns = min(16, len(shown))
    rows = {str(k): part for k, part in enumerate(shown.split(columns)) if len(part) == columns}
    return publish(out, report, values={"pool": features["pool"]}, reference=real, pictures=rows)


@dataclasses.dataclass(frozen=True)
class _Pass:
    source: Source
    extractor: Extractor
    settings: GfidSettings
    keeps: bool

    @torch.no_grad()
    def __call__(self, items: range) -> dict[str, Tensor]:
        return gather(self._batch(keys) for keys in batches(items, self.settings.passes.batch_size))

    def _batch(self, keys: range) -> dict[str, Tensor]:
        images = self.source(keys)
        found = {**self.extractor(images), "shown": images[: max(0, SHOWN_IMAGES - keys[0])]}
        return {**found, "images": images} if self.keeps else found


def _open_pipeline(settings: GfidSettings, device: torch.device) -> tuple[Source, int, dict[str, Any]]:
    if settings.num_images < 0:
        raise ValueError(f"num_images is {settings.num_images}, expected the number of images to generate")
    pipeline = from_pretrained(settings.pipeline)
    if not hasattr(pipeline, "generator") or not hasattr(pipeline, "tokenizer"):
        raise ValueError(
            f"{settings.pipeline!r} holds a {type(pipeline).__name__}, expected a pipeline of a generator and a tokenizer"
        )
    pipeline = pipeline.to(device)
    generator, tokenizer = pipeline.generator.eval(), pipeline.tokenizer.eval()
    chosen = generator.make_settings(**_given(settings.sampling))
    num_classes = generator.config["num_classes"]

    def generate(keys: range) -> Tensor:
        labels = class_labels(keys, num_classes, settings.labels, settings.seed).to(device)
        pyramid = generator.generate(labels, chosen, rng=SampleRng.of(keys, settings.seed, "evaluate"))
        return quantize(check_finite(tokenizer.decode(pyramid), keys[0], "generated image"), settings.rounding)

    about = {
        "generator": tokenizer_fingerprint(generator),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "labels": settings.labels,
        "seed": settings.seed,
        "sampling": _given(settings.sampling),
        "rounding": settings.rounding,
    }
    return generate, settings.num_images or 5000, about


def class_labels(keys: range, num_classes: int, rule: str, seed: int) -> Tensor:
    """Return the labels of some images by their indices, `(b,)` int64; see `LABEL_RULES`."""
    if rule == "balanced":
        return torch.tensor([key % num_classes for key in keys])
    return torch.cat([torch.randint(num_classes, (1,), generator=make_rng(seed, "label", key)) for key in keys])


def _open_samples(settings: GfidSettings, device: torch.device) -> tuple[Source, int, dict[str, Any]]:
    path = Path(settings.samples)
    read, available, digest = _open_npz_samples(path) if path.suffix == ".npz" else _open_folder_samples(path)
    if settings.num_images < 0 or settings.num_images > available:
        raise ValueError(f"num_images is {settings.num_images}, expected 0 (all) to {available}, the number of samples")
    return lambda keys: read(keys).to(device), settings.num_images or available, {"samples": digest}


def _open_npz_samples(path: Path) -> tuple[Source, int, str]:
    with open_npz(path) as file:
        if "arr_0" not in file:
            raise ValueError(f"{str(path)!r} holds {', '.join(file.files) or 'nothing'}, expected samples as `arr_0`")
        images = file["arr_0"]
    check_npz_images(path, images)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return lambda keys: tensor[list(keys)], len(images), file_digest(path)[:16]


def _open_folder_samples(path: Path) -> tuple[Source, int, str]:
    paths = list_images(path)
    sizes: dict[tuple[int, int], Path] = {}
    for file in paths:
        with Image.open(file) as picture:
            sizes.setdefault(picture.size, file)
    if len(sizes) > 1:
        (one, first), (two, second) = list(sizes.items())[:2]
        raise ValueError(
            f"samples in {str(path)!r} have several sizes: {first.name} is {one[0]} x {one[1]}, {second.name} is {two[0]} x {two[1]}; "
            "they are evaluated as they are, so make them alike"
        )

    def read(keys: range) -> Tensor:
        return quantize(torch.stack([to_tensor(read_image(paths[key])) for key in keys]))

    return read, len(paths), "+".join(sorted({file_digest(file)[:4] for file in paths[:64]})) + f"x{len(paths)}"


def write_samples(parts: Parts, out: Path, keep: str, count: int) -> None:
    """Write the images of all parts: samples.npz in ADM's layout, or a folder of PNG files; never all of them in memory."""
    if keep == "npz":
        shape = next(parts.each("images")).shape
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape[2:], shape[1])}
        # A fixed date: the same samples give the same bytes.
        entry = zipfile.ZipInfo("arr_0.npy")
        with (
            atomic_path(out / "samples.npz") as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
            archive.open(entry, "w", force_zip64=True) as file,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for images in parts.each("images"):
                file.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    elif keep == "png":
        folder = check_writable(out / "samples")
        for index, image in enumerate(_one_by_one(parts)):
            with atomic_path(folder / f"{index:06d}.png") as temporary:
                Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(temporary)


def _one_by_one(parts: Parts) -> Iterator[Tensor]:
    for images in parts.each("images"):
        yield from images


def _given(sampling: SamplingConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(sampling).items() if value is not None}


def run_gfid(settings: GfidSettings) -> None:
    """Evaluate and say where the report is."""
    report = evaluate_generations(settings)
    if report is not None:
        print(
            f"{', '.join(f'{k} {v:.4g}' for k, v in report['metrics'].items())}\nreport: {Path(settings.out) / 'report.md'}"
        )
