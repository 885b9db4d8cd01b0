"""Train a small tokenizer for a given time on one device, then evaluate it on held-out pictures and write the report.

    python eval/train_on_one_gpu.py tokenizers/restok_small_64.py --minutes 30 --source DATA/train --test-source DATA/test \\
        --extractor.name inception --extractor.weights INCEPTION.pth --lpips DATA/lpips

The recipe is any that trains a tokenizer of images. A short run of it measures its speed; the run itself sees as many samples as fit, its
schedule, warm-up and the start of its discriminator scaled to that. Runs on whatever device Accelerate finds. Run again, it continues.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from hiergen.cli.train import load_recipe
from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.evaluation.images.reconstruction import evaluate_reconstructions
from hiergen.evaluation.settings import ExtractorConfig, PassConfig, RfidSettings
from hiergen.figures import log_curves, save_curves
from hiergen.files import check_writable, write_json
from hiergen.training.config import TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import TokenizerTaskConfig

#: Steps of the run that measures the speed; the discriminator plays in the second half, as it does in the run itself.
CALIBRATION_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train for a time, evaluate, report.

    Attributes:
        recipe: Recipe that trains a tokenizer of images.
        minutes: Time to train in minutes; loading data, measuring the speed and the evaluation come on top.
        out: Folder for the run and its report.
        source: Images to train on, as in `DataConfig.source`; "" takes the recipe's.
        test_source: Held-out images; "" is the test split of the embedded digits, a Hugging Face dataset or MNIST's files.
        num_test: Number of held-out images, the first ones; 0 takes all.
        batch_size: Number of samples per step; 0 takes the recipe's.
        precision: Precision of the training; "auto" is bf16 on a GPU and float32 elsewhere.
        num_workers: Number of processes that load data.
        lpips: Folder with LPIPS' AlexNet, for the perceptual term of the recipe and for the report; "" leaves both out.
        extractor: Feature extractor of the report's Fréchet distance.
        seed: Seed of all random draws.
        evaluation_batch: Number of images that the models take at once in the evaluation.
    """

    recipe: tyro.conf.Positional[str] = "tokenizers/restok_small_64.py"
    minutes: float = 30.0
    out: str = "runs/on_one_gpu"
    source: str = ""
    test_source: str = ""
    num_test: int = 0
    batch_size: int = 0
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    num_workers: int = 0
    lpips: str = ""
    extractor: ExtractorConfig = dataclasses.field(default_factory=lambda: ExtractorConfig("digits"))
    seed: int = 0
    evaluation_batch: int = 64

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"minutes is {self.minutes}, expected above 0")


def choose_run(settings: Settings) -> TrainConfig:
    """Return the recipe with the data, the precision and the terms that the settings ask for; its length is not chosen yet.

    Raises:
        ValueError: If the recipe trains something else, or there are no held-out images.
    """
    config = load_recipe(settings.recipe)
    task = config.task
    if not isinstance(task, TokenizerTaskConfig):
        raise ValueError(
            f"recipe {settings.recipe!r} has a {type(task).__name__}, expected one that trains a tokenizer of images"
        )
    data = dataclasses.replace(task.data, source=settings.source or task.data.source)
    if data.source == "digits":
        data = dataclasses.replace(data, in_memory=True, crop="center", flip=False)
    perceptual = task.perceptual
    if perceptual is not None:
        perceptual = dataclasses.replace(perceptual, weights=settings.lpips) if settings.lpips else None
    task = dataclasses.replace(task, data=data, perceptual=perceptual, validation=held_out(settings, data))
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() else "no"
    return dataclasses.replace(
        config,
        task=task,
        out=str(Path(settings.out) / "run"),
        batch_size=settings.batch_size or config.batch_size,
        precision=precision,
        num_workers=settings.num_workers,
        seed=settings.seed,
        peak_tflops="measure",
        keep_best="val/psnr",
        best_is="highest",
    )


def held_out(settings: Settings, data: DataConfig) -> DataConfig:
    """Return the images that the run is scored on, unchanged but for a central crop.

    Raises:
        ValueError: If the source has no test split and none is given.
    """
    has_split = data.source == "digits" or data.source.startswith(("hf:", "idx:"))
    if not settings.test_source and not has_split:
        raise ValueError(f"source is {data.source!r}, which has no test split: give held-out images with --test-source")
    source = settings.test_source or data.source
    return dataclasses.replace(
        data, source=source, split="test", in_memory=source == "digits", crop="center", flip=False
    )


def set_length(config: TrainConfig, samples: int) -> TrainConfig:
    """Return the run with another length: its warm-up is at most a twentieth, its discriminator begins half-way, as the recipes have it."""
    task: Any = config.task
    if task.adversarial is not None:
        task = dataclasses.replace(task, adversarial=dataclasses.replace(task.adversarial, start_samples=samples // 2))
    warmup = min(config.optim.warmup_samples, samples // 20)
    return dataclasses.replace(
        config,
        task=task,
        samples=samples,
        optim=dataclasses.replace(config.optim, warmup_samples=warmup),
        log_every=max(config.batch_size, samples // 50),
        checkpoint_every=max(config.batch_size, samples // 10),
    )


def measure_speed(config: TrainConfig, folder: Path) -> float:
    """Return samples per second of the run's second and fourth quarters, the others being warm-up of the two players."""
    quarter = CALIBRATION_STEPS // 4 * config.batch_size
    task: Any = config.task
    task = dataclasses.replace(task, validation=None)
    short = set_length(dataclasses.replace(config, task=task, out=str(folder), keep_best=None), 4 * quarter)
    log = fit(dataclasses.replace(short, log_every=quarter, checkpoint_every=10 * quarter), title="speed").log
    shutil.rmtree(folder)
    return 2 / sum(1 / line["samples_per_second"] for line in log[1::2])


def train(settings: Settings) -> dict[str, Any]:
    """Train and evaluate; return the report of the evaluation."""
    out = check_writable(settings.out)
    config, plan = choose_run(settings), out / "plan.json"
    if not plan.is_file():
        rate = measure_speed(config, out / "speed")
        steps = max(1, int(rate * 60 * settings.minutes / config.batch_size))
        write_json(
            plan, {"samples_per_second": rate, "samples": steps * config.batch_size, "minutes": settings.minutes}
        )
    planned = json.loads(plan.read_text())
    started = time.perf_counter()
    result = fit(set_length(config, planned["samples"]), title="tokenizer")
    minutes = (time.perf_counter() - started) / 60
    print(f"{result.samples_seen:,} samples in {minutes:.1f} minutes since this start ({settings.minutes:g} asked for)")
    task: Any = config.task
    curves = log_curves(result.log, ("tokenizer/pixel", "pixel", "val/pixel"))
    save_curves(out / "curves.png", {"pixel error": {name: curve for name, curve in curves.items() if curve[0]}})
    report = evaluate_reconstructions(
        RfidSettings(
            tokenizer=str(result.model_dir),
            out=str(out / "evaluation"),
            data=task.validation,
            num_images=settings.num_test,
            prefixes=True,
            extractor=settings.extractor,
            lpips="alex" if settings.lpips else "none",
            lpips_folder=settings.lpips or None,
            passes=PassConfig(batch_size=settings.evaluation_batch),
        )
    )
    assert report is not None
    last = next(line for line in reversed(result.log) if "mfu" in line)
    shown = {
        **report["metrics"],
        **{name: last[name] for name in ("samples_per_second", "mfu", "data_wait", "peak_memory_gib")},
    }
    print(", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    print(f"report: {out / 'evaluation' / 'report.md'}; best model by val/psnr: {out / 'run' / 'best'}")
    return report


if __name__ == "__main__":
    train(parse(Settings(), None, prog="train_on_one_gpu", description=Settings.__doc__))
