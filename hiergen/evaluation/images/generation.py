"""gFID and its companions: generate images, or read samples that others generated, and compare them with a reference."""

from __future__ import annotations

import dataclasses
import hashlib
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
from hiergen.data.images.files import list_images, read_image
from hiergen.data.npz_files import open_npz, read_array
from hiergen.data.sources import DataConfig
from hiergen.environment import choose_device
from hiergen.evaluation.features.distances import DistanceConfig, bias_curve, measure
from hiergen.evaluation.features.extractors import Extractor, ExtractorConfig, build_extractor, check_extractor
from hiergen.evaluation.features.references import check_count, check_npz_images, check_source, open_reference
from hiergen.evaluation.images.sampling import DRAW_RULE, LABEL_RULES, LabelRule, SamplingConfig, TokenSource
from hiergen.evaluation.parts import Parts, refuse_others, run_parts
from hiergen.evaluation.protocol import (
    ROUNDING_RULES,
    PassConfig,
    Rounding,
    check_finite,
    check_seed,
    environment,
    quantize,
)
from hiergen.evaluation.report import publish
from hiergen.files import atomic_path, check_writable, file_digest

SHOWN_IMAGES = 64
#: Images to generate where no number is given.
DEFAULT_IMAGES = 5000


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
    labels: LabelRule = "balanced"
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
    check_seed(settings.seed)
    out, device = check_writable(settings.out), choose_device(settings.passes.device)
    check_extractor(settings.extractor)
    pictures = check_source(settings.reference or settings.data)
    if pictures is not None:
        check_count(pictures, "the reference")
    check_writable(Path(settings.cache).expanduser(), option="--cache")
    work = _open_work(settings, device)
    check_count(work.count, "the evaluation")
    _check_size(work, settings)
    identity = {**work.identity, "kind": "gfid", "keep": settings.keep != "none"}
    refuse_others(out / "parts", identity)
    extractor = build_extractor(settings.extractor, device)
    identity["extractor"] = extractor.fingerprint
    refuse_others(out / "parts", identity)
    reference = open_reference(
        settings.reference or settings.data,
        extractor,
        rounding=settings.rounding,
        passes=settings.passes,
        cache=settings.cache,
        device=device,
    )
    # Before the images are made: a picture of the reference that cannot be read shows now.
    real = reference()
    parts = run_parts(
        out / "parts",
        identity,
        work.count,
        lambda keys, loaded: _describe(work.make(keys, loaded), keys, extractor, keep=settings.keep != "none"),
        passes=settings.passes,
        what="generate",
        load=work.load,
    )
    if parts is None:
        return None
    write_samples(parts, out, settings.keep, work.count)
    names: list[str] = [name for name in ("pool", "spatial", "logits") if name in parts.names()]
    features = {name: parts.read(name) for name in names}
    found = measure(features, real, extractor, settings.distances)
    report = {
        "kind": "gfid",
        "what": f"samples of {settings.samples}" if settings.samples else f"images generated by {settings.pipeline}",
        "metrics": {f"g{k}" if k.startswith(("FID", "FD")) else k: v for k, v in found.metrics.items()},
        "intervals_95": found.half_widths,
        "protocol": {**_protocol(settings), "batches": settings.passes.rule},
        "extractor": extractor.about(),
        "reference": real.about,
        "counts": {"images": work.count, "reference": None if real.features is None else len(real.features)},
        "seed": settings.seed,
        "settings": to_json(settings),
        "environment": environment(device),
        "bias": bias_curve(features["pool"], real, settings.distances),
        "warnings": found.warnings,
        "wall_time_s": round(time.perf_counter() - started, 1),
    }
    shown = parts.read("shown")
    columns = min(16, len(shown))
    rows = {str(k): part for k, part in enumerate(shown.split(columns)) if len(part) == columns}
    return publish(out, report, values={"pool": features["pool"]}, reference=real, pictures=rows, device=device)


def _protocol(settings: GfidSettings) -> dict[str, str]:
    rounding = ROUNDING_RULES[settings.rounding]
    if settings.samples:
        return {"labels": "as the samples have them", "samples": "bytes already", "rounding": rounding}
    return {
        "labels": LABEL_RULES[settings.labels],
        "draws": DRAW_RULE,
        "sampling": str(settings.sampling),
        "rounding": rounding,
    }


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is evaluated: how many images of what size, what they depend on, how they are loaded (samples) and made (uint8, on the device)."""

    count: int
    size: tuple[int, int]
    identity: dict[str, Any]
    load: Callable[[range], Tensor] | None
    make: Callable[[range, Any], Tensor]


def _open_work(settings: GfidSettings, device: torch.device) -> _Work:
    if settings.samples:
        samples = _open_samples(settings)
        return _Work(
            samples.count,
            samples.size,
            {"samples": samples.digest},
            samples.read,
            lambda _, images: images.to(device, non_blocking=True),
        )
    tokens = _open_tokens(settings, device)

    @torch.no_grad()
    def generate(keys: range, _: None) -> Tensor:
        decoded = check_finite(tokens.tokenizer.decode(tokens.draw(keys)), keys[0], "generated image")
        return quantize(decoded, settings.rounding)

    identity = {**tokens.identity, "rounding": settings.rounding}
    side = tokens.tokenizer.config.get("image_size", settings.data.size)
    return _Work(settings.num_images or DEFAULT_IMAGES, (side, side), identity, None, generate)


def _check_size(work: _Work, settings: GfidSettings) -> None:
    """Check that squares have the size that reference images are read at; an extractor would resize both and hide it."""
    (height, width), wanted = work.size, settings.data.size
    if not settings.reference and height == width != wanted:
        raise ValueError(
            f"the images to evaluate have {height} x {width} pixels, the reference is read at {wanted} x {wanted}: set data.size to {height}"
        )


@torch.no_grad()
def _describe(images: Tensor, keys: range, extractor: Extractor, *, keep: bool) -> dict[str, Tensor]:
    """Return what is stored of a batch of uint8 images."""
    found = {**extractor(images), "shown": images[: max(0, SHOWN_IMAGES - keys[0])]}
    return {**found, "images": images} if keep else found


def _open_tokens(settings: GfidSettings, device: torch.device) -> TokenSource:
    if settings.num_images < 0:
        raise ValueError(f"num_images is {settings.num_images}, expected the number of images to generate")
    tokens = TokenSource(
        settings.pipeline, labels=settings.labels, sampling=settings.sampling, seed=settings.seed, device=device
    )
    if tokens.kind != "ClassToImagePipeline":
        raise ValueError(f"{settings.pipeline!r} holds a {tokens.kind}, expected a ClassToImagePipeline")
    return tokens


@dataclasses.dataclass(frozen=True)
class _Samples:
    """Images that are there already: how many of what height and width, what they are, and uint8 `(b, 3, h, w)` by their indices."""

    count: int
    size: tuple[int, int]
    digest: str
    read: Callable[[range], Tensor]


def _open_samples(settings: GfidSettings) -> _Samples:
    path = Path(settings.samples)
    samples = _open_npz_samples(path) if path.suffix == ".npz" else _open_folder_samples(path)
    if settings.num_images < 0 or settings.num_images > samples.count:
        raise ValueError(
            f"num_images is {settings.num_images}, expected 0 (all) to {samples.count}, the number of samples"
        )
    return dataclasses.replace(samples, count=settings.num_images or samples.count)


def _open_npz_samples(path: Path) -> _Samples:
    with open_npz(path) as file:
        if "arr_0" not in file:
            raise ValueError(f"{str(path)!r} holds {', '.join(file.files) or 'nothing'}, expected samples as `arr_0`")
        images = read_array(file, "arr_0", path)
    check_npz_images(path, images)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return _Samples(len(images), images.shape[1:3], file_digest(path)[:16], lambda keys: tensor[keys.start : keys.stop])


def _open_folder_samples(path: Path) -> _Samples:
    paths = list_images(path)
    sizes: dict[tuple[int, int], Path] = {}
    digest = hashlib.sha256()
    for file in paths:
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        try:
            # Its header alone.
            with Image.open(file) as picture:
                sizes.setdefault(picture.size, file)
        except OSError as error:
            raise ValueError(f"sample {str(file)!r} cannot be read: it is no picture") from error
    if len(sizes) > 1:
        (one, first), (two, second) = list(sizes.items())[:2]
        raise ValueError(
            f"samples in {str(path)!r} have several sizes: {first.name} is {one[0]} x {one[1]}, {second.name} is {two[0]} x {two[1]}; "
            "they are evaluated as they are, so make them alike"
        )

    def read(keys: range) -> Tensor:
        pixels = np.stack([np.asarray(read_image(paths[key])) for key in keys])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    width, height = next(iter(sizes))
    return _Samples(len(paths), (height, width), digest.hexdigest()[:16], read)


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


def run_gfid(settings: GfidSettings) -> None:
    """Evaluate and say where the report is."""
    report = evaluate_generations(settings)
    if report is not None:
        print(
            f"{', '.join(f'{k} {v:.4g}' for k, v in report['metrics'].items())}\nreport: {Path(settings.out) / 'report.md'}"
        )
