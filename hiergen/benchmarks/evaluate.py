"""`hiergen bench evaluate`: which share of an evaluation's time is the models', and which is this library's own."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hiergen.benchmarks.measuring.timing import describe_times, publish, take_turns
from hiergen.benchmarks.settings import EvaluateSettings
from hiergen.data.config import DataConfig
from hiergen.data.images.pixels import to_uint8
from hiergen.environment import choose_device
from hiergen.evaluation.features.extractors import Extractor, build_extractor
from hiergen.evaluation.features.references import open_evaluated, read_batch
from hiergen.evaluation.images.generation import evaluate_generations
from hiergen.evaluation.images.pair_metrics import measure_pairs
from hiergen.evaluation.images.reconstruction import evaluate_reconstructions
from hiergen.evaluation.settings import DistanceConfig, GfidSettings, PassConfig, RfidSettings
from hiergen.pipelines.prefixes import decode_prefix, list_prefixes
from hiergen.registry import create
from hiergen.tokenizers.base import Tokenizer


def run(settings: EvaluateSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" for each part the median, fastest and slowest time in seconds,
        images per second, and the share of the whole evaluation's median. The "models" are the parts that would be there without this
        library; "around the pass" is an evaluation whose parts are all there: opening models and data, distances, intervals, report.
    """
    device = choose_device(settings.device)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        tokenizer = create(settings.preset).eval()
        if not isinstance(tokenizer, Tokenizer) or "image_size" not in tokenizer.config:
            raise ValueError(f"preset {settings.preset!r} is a {type(tokenizer).__name__}, expected an image tokenizer")
        root = Path(folder)
        tokenizer.save_pretrained(root / "tokenizer")
        size = tokenizer.config["image_size"]
        _write_pictures(root / "pictures", settings.num_images, size)
        data = DataConfig(source=str(root / "pictures"), size=size, in_memory=False)
        nn.Module.to(tokenizer, device)
        calls = _parts(settings, tokenizer, build_extractor(settings.extractor, device), data)
        evaluate = _evaluation(settings, root, data)
        evaluate(root / "finished")
        fresh = (root / f"run-{k}" for k in range(settings.repeats + 1))
        calls = {
            "evaluation": lambda: evaluate(next(fresh)),
            **calls,
            "around the pass": lambda: evaluate(root / "finished"),
        }
        seconds = take_turns(calls, repeats=settings.repeats, device=device)
    return publish(
        settings,
        device,
        _rows(seconds, settings.num_images),
        title=f"{settings.kind}, {settings.preset}, extractor {settings.extractor.name}",
        caption="models: tokenizer and extractor; every part alone, reading without threads",
        names=("part",),
        extra={"share": ("share_of_evaluation", ".1%")},
    )


def _write_pictures(folder: Path, count: int, size: int) -> None:
    """Write smooth random pictures with a little noise, which compress about as photographs do."""
    folder.mkdir()
    for index in range(count):
        smooth = F.interpolate(torch.randn(1, 3, 6, 6), size=(size, size), mode="bicubic", align_corners=False)[0]
        pixels = to_uint8(0.6 * smooth + 0.02 * torch.randn(3, size, size))
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index:06d}.png")


def _evaluation(settings: EvaluateSettings, root: Path, data: DataConfig) -> Callable[[Path], Any]:
    """Return what evaluates into a folder."""
    common: dict[str, Any] = {
        "data": data,
        "extractor": settings.extractor,
        "distances": DistanceConfig(resamples=settings.resamples),
        "passes": PassConfig(batch_size=settings.batch_size, workers=settings.workers, device=settings.device),
    }
    if settings.kind == "samples":
        common |= {"samples": data.source, "cache": str(root / "cache")}
        return lambda out: evaluate_generations(GfidSettings(out=str(out), **common))
    common |= {"tokenizer": str(root / "tokenizer"), "lpips": "none"}
    return lambda out: evaluate_reconstructions(RfidSettings(out=str(out), **common))


def _parts(
    settings: EvaluateSettings, tokenizer: Tokenizer, extractor: Extractor, data: DataConfig
) -> dict[str, Callable[[], Any]]:
    """Return the parts of an evaluation, each over all images that are in memory already."""
    images = open_evaluated(data)
    batches = [
        range(start, min(start + settings.batch_size, len(images)))
        for start in range(0, len(images), settings.batch_size)
    ]
    device = tokenizer.device
    inputs = [read_batch(images, batch).to(device) for batch in batches]
    pixels = [to_uint8(batch) for batch in inputs]
    prefix = list_prefixes(tokenizer)[-1]

    @torch.no_grad()
    def rebuild() -> None:
        for batch in inputs:
            decode_prefix(tokenizer, tokenizer.encode(batch), prefix)

    def extract(times: int) -> None:
        for batch in pixels * times:
            extractor(batch)

    def compare() -> list[dict[str, Tensor]]:
        return [measure_pairs(batch, batch.flip(0), None) for batch in pixels]

    reading = {"reading": lambda: [read_batch(images, batch) for batch in batches]}
    if settings.kind == "samples":
        return {"extractor": lambda: extract(1), **reading}
    return {"tokenizer": rebuild, "extractor": lambda: extract(2), **reading, "pixel metrics": compare}


def _rows(seconds: dict[str, list[float]], count: int) -> list[dict[str, Any]]:
    models = [name for name in ("tokenizer", "extractor") if name in seconds]
    # Of the same turn, so that a slow spell of the machine is in both.
    together = [sum(turn) for turn in zip(*(seconds[name] for name in models), strict=True)]
    shares = {
        name: statistics.median([part / whole for part, whole in zip(times, seconds["evaluation"], strict=True)])
        for name, times in {**seconds, "models": together}.items()
    }
    listed = {"evaluation": seconds["evaluation"], "models": together, **seconds}
    return [
        {"batch": count, "part": name, **describe_times(times, count), "share_of_evaluation": shares[name]}
        for name, times in listed.items()
    ]
