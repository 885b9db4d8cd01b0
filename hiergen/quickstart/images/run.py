"""The image quickstart: pictures -> tokenizer -> codes -> generator -> samples -> report.

Every stage leaves its result in the output folder and is passed over when it is there, so a stopped run continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from hiergen.data.codes import name_data
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.sources import load_embedded
from hiergen.figures import as_rows, log_curves, save_curves, save_image_grid
from hiergen.files import check_writable
from hiergen.pipelines.card import save_whole
from hiergen.pipelines.encoding import encode_images
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.prefixes import rebuild_prefixes
from hiergen.quickstart.images.report import markdown_report
from hiergen.quickstart.images.scoring import score
from hiergen.quickstart.images.trainings import generator_config, tokenizer_config
from hiergen.quickstart.report import publish
from hiergen.quickstart.settings import PICTURES, QuickstartSettings, family, sampling
from hiergen.quickstart.stages import StageTimes
from hiergen.registry import get_preset, model_class
from hiergen.seeding import make_rng
from hiergen.tokenizers.base import Tokenizer
from hiergen.training.loop import fit
from hiergen.training.reporting.facts import EMBEDDED


def run_quickstart(settings: QuickstartSettings) -> dict[str, Any]:
    """Train, sample, score and draw; return the report, which is also written to `report.json` and `report.md`.

    Raises:
        ValueError: If the output folder cannot be written to, or holds a run of other settings.
        RunInterruptedError: When stopped by a signal, after saving.
    """
    out = check_writable(settings.out)
    console = Console(stderr=True)
    times = StageTimes(out / "times.json")
    pictures = PICTURES[settings.data]
    train, test = (load_embedded(settings.data, split) for split in ("train", "test"))
    console.print(f"[bold]hiergen quickstart[/] -> {out}: {len(train):,} {pictures.name}, {len(test)} held out")
    with times.stage("train tokenizer"):
        tokenizer_run = fit(tokenizer_config(settings), title="tokenizer")
    tokenizer = _load(settings.tokenizer, tokenizer_run.model_dir)
    with times.stage("encode"):
        codes = encode_images(tokenizer, train, out / "codes")
        name_data(out / "codes", EMBEDDED[settings.data])
    with times.stage("train generator"):
        generator_run = fit(generator_config(settings), title="generator")
    generator = _load(settings.generator, generator_run.model_dir)
    pipeline = ClassToImagePipeline(tokenizer=tokenizer, generator=generator)
    with times.stage("sample"):
        generated = _sample(pipeline, settings, test.classes, console)
    # Before the scores: whatever goes wrong with them, pictures and models are there.
    with times.stage("draw"):
        _draw(out, tokenizer, generated, test, settings.data)
        families = family("tokenizer", settings.tokenizer), family("generator", settings.generator)
        panels = {
            f"{chosen.kind}: {title}": log_curves(run.log, entries)
            for chosen, run in zip(families, (tokenizer_run, generator_run), strict=True)
            for title, entries in chosen.curves.items()
        }
        save_curves(out / "curves.png", panels)
    save_whole(pipeline, out / "pipeline")
    with times.stage("score"):
        report = score(settings, tokenizer, generated, train, test, codes)
    rows = next(rows for name, rows in report["reconstruction"].items() if name.startswith("psnr_by_"))
    agreed = f"{report['classifier']['generated_agreement']:.1%} of {len(generated)} generated images"
    result = f"{rows[-1]['psnr_db']:.1f} dB on held-out {settings.data}; the judge reads {agreed} as the {pictures.thing} asked for"
    report["summary"] = result
    console.print(result, highlight=False, soft_wrap=True)
    return publish(out, report, markdown_report, pipeline=pipeline, times=times, console=console)


def _load(preset: str, folder: Path) -> Any:
    return model_class(get_preset(preset).model).from_pretrained(folder).eval()


def _sample(
    pipeline: ClassToImagePipeline, settings: QuickstartSettings, classes: tuple[str, ...], console: Console
) -> ImageSet:
    """Return generated images, class by class in turn, so that any first part of them is balanced."""
    pipeline.set_progress_bar_config(disable=True)
    labels = torch.arange(settings.num_generated) % len(classes)
    rng = make_rng(settings.seed, "sample")
    parts = [
        pipeline(part.tolist(), generator=rng, output_type="pt", **sampling(settings)).images
        for part in track(labels.split(50), "sample", console=console, disable=not console.is_terminal)
    ]
    return ImageSet(torch.cat([part for part in parts if isinstance(part, Tensor)]), labels, classes)


def _draw(out: Path, tokenizer: Tokenizer, generated: ImageSet, test: ImageSet, name: str) -> None:
    count = len(test.classes)
    chosen = torch.cat([torch.where(test.labels == label)[0][:1] for label in range(count)])
    images = test.images[chosen]
    prefixes = rebuild_prefixes(tokenizer, images)
    save_image_grid(
        out / "reconstruction.png",
        [images, *prefixes.images],
        row_labels=["input", *[f"{count} token{'s' * (count > 1)}" for count in prefixes.tokens]],
        title=f"Held-out {name}, rebuilt from more and more {prefixes.unit} of tokens",
    )
    by_class = torch.stack([generated.images[generated.labels == label][:8] for label in range(count)], dim=1)
    save_image_grid(
        out / "samples.png",
        as_rows(by_class.flatten(0, 1), count),
        column_labels=[name.partition(" ")[0] for name in test.classes],
        title="Generated, by the class asked for (not selected)",
    )
