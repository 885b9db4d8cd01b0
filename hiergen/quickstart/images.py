"""The image quickstart: digits -> tokenizer -> codes -> generator -> samples -> report.

Every stage leaves its result in the output folder and is passed over when it is there, so a stopped run continues.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from hiergen import __version__
from hiergen.config import to_json
from hiergen.data.codes import CodeSet
from hiergen.data.digits import load_digits
from hiergen.data.images import ImageSet, to_uint8
from hiergen.data.sources import DataConfig
from hiergen.figures import as_rows, log_curves, save_curves, save_image_grid
from hiergen.files import atomic_directory, check_writable, write_json, write_text
from hiergen.metrics.classifiers import LabelClassifier, nearest_distances, train_feature_network
from hiergen.metrics.codebook import codebook_use, codebook_use_by_level
from hiergen.metrics.fidelity import FeatureExtractor, compare_image_sets
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.encoding import decode_batches, encode_batches, encode_images
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.quickstart.report import markdown_report
from hiergen.registry import get_preset, model_class
from hiergen.seeding import make_rng
from hiergen.tokenizers.base import Tokenizer
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import FitResult, fit
from hiergen.training.tasks import GeneratorTaskConfig, TokenizerTaskConfig

#: What the samples are drawn with.
SAMPLING: dict[str, Any] = {"guidance_scale": 1.5, "guidance_schedule": "constant", "temperature": 1.0, "top_p": 1.0}


@dataclasses.dataclass(frozen=True)
class QuickstartSettings:
    """Settings of `hiergen quickstart`.

    Attributes:
        out: Folder for models, pictures and the report.
        samples_seen: Training samples of each of the two models.
        seed: Of everything random.
        num_generated: Images to generate for the figures, the same number for each class.
        tokenizer: Preset of the tokenizer.
        generator: Preset of the generator.
    """

    out: str = "quickstart"
    samples_seen: int = 24_000
    seed: int = 0
    num_generated: int = 500
    tokenizer: str = "restok-tiny"
    generator: str = "har-tiny"

    def __post_init__(self) -> None:
        if self.samples_seen < 64:
            raise ValueError(f"samples_seen is {self.samples_seen}, expected at least 64, one batch")
        if self.num_generated < 80 or self.num_generated % 10:
            raise ValueError(f"num_generated is {self.num_generated}, expected a multiple of 10, at least 80")
        for name in (self.tokenizer, self.generator):
            get_preset(name)


def run_quickstart(settings: QuickstartSettings) -> dict[str, Any]:
    """Train, sample, score and draw; return the report, which is also written to `report.json` and `report.md`.

    Raises:
        ValueError: If the output folder cannot be written to, or holds a run of other settings.
        RunInterruptedError: When stopped by a signal, after saving.
    """
    out = check_writable(settings.out)
    console = Console(stderr=True)
    times = _Times(out / "times.json")
    train, test = load_digits("train"), load_digits("test")
    console.print(f"[bold]hiergen quickstart[/] -> {out}: {len(train):,} handwritten digits, {len(test)} held out")
    with times.stage("train tokenizer"):
        tokenizer_run = fit(_tokenizer_config(settings), title="tokenizer")
    tokenizer = _load(settings.tokenizer, tokenizer_run.model_dir)
    with times.stage("encode"):
        codes = encode_images(tokenizer, train, out / "codes")
    with times.stage("train generator"):
        generator_run = fit(_generator_config(settings), title="generator")
    generator = _load(settings.generator, generator_run.model_dir)
    pipeline = ClassToImagePipeline(tokenizer=tokenizer, generator=generator)
    with times.stage("sample"):
        generated = _sample(pipeline, settings, console)
    with times.stage("score"):
        report = _score(settings, tokenizer, generated, train, test, codes)
    with times.stage("draw"):
        _draw(out, tokenizer, generated, test, tokenizer_run, generator_run)
    with atomic_directory(out / "pipeline") as temporary:
        pipeline.save_pretrained(temporary)
    report["parameters"] = {"tokenizer": _count(tokenizer), "generator": _count(generator)}
    report["seconds"] = {**times.seconds, "total": round(sum(times.seconds.values()), 1)}
    write_json(out / "report.json", report)
    write_text(out / "report.md", markdown_report(report))
    console.print(f"report in {out / 'report.md'}, pictures in {out}")
    return report


def _tokenizer_config(settings: QuickstartSettings) -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(preset=settings.tokenizer, data=DataConfig(), pixel_weight=10.0),
        out=str(Path(settings.out) / "tokenizer"),
        samples=settings.samples_seen,
        batch_size=32,
        seed=settings.seed,
        optim=OptimConfig(lr=2e-3, warmup_samples=min(1_000, settings.samples_seen // 10), final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=1_000,
        checkpoint_every=10_000,
    )


def _generator_config(settings: QuickstartSettings) -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset=settings.generator, codes=str(Path(settings.out) / "codes")),
        out=str(Path(settings.out) / "generator"),
        samples=settings.samples_seen,
        batch_size=32,
        seed=settings.seed,
        optim=OptimConfig(
            lr=1e-3, weight_decay=0.05, warmup_samples=min(1_000, settings.samples_seen // 10), final_lr_ratio=0.05
        ),
        ema_decay=0.99,
        log_every=1_000,
        checkpoint_every=10_000,
    )


def _load(preset: str, folder: Path) -> Any:
    return model_class(get_preset(preset).model).from_pretrained(folder).eval()


def _sample(pipeline: ClassToImagePipeline, settings: QuickstartSettings, console: Console) -> ImageSet:
    """Return generated images, class by class in turn, so that any first part of them is balanced."""
    pipeline.set_progress_bar_config(disable=not console.is_terminal)
    labels = torch.arange(settings.num_generated) % 10
    rng = make_rng(settings.seed, "sample")
    parts = [
        pipeline(part.tolist(), generator=rng, output_type="pt", **SAMPLING).images
        for part in pipeline.progress_bar(labels.split(50))
    ]
    return ImageSet(
        torch.cat([part for part in parts if isinstance(part, Tensor)]), labels, tuple(str(k) for k in range(10))
    )


def _score(
    settings: QuickstartSettings,
    tokenizer: Tokenizer,
    generated: ImageSet,
    train: ImageSet,
    test: ImageSet,
    codes: CodeSet,
) -> dict[str, Any]:
    real, held_out, made = (to_uint8(images.images) for images in (train, test, generated))
    pyramid = encode_batches(tokenizer, test.images)
    prefixes = _prefixes(tokenizer, pyramid)
    rebuilt = to_uint8(prefixes[-1][1])
    network = train_feature_network(real, train.labels, seed=settings.seed)
    extractor = FeatureExtractor(
        "digits-cnn-32",
        "32 features of a 3-convolution classifier trained on the real train split with the same seed (not Inception: "
        "these distances compare only with each other)",
        network,
    )
    judge = LabelClassifier(real, train.labels)
    network_accuracy = float((network.scores(held_out).argmax(1) == test.labels).double().mean())
    return {
        "what": "quickstart on scikit-learn's handwritten digits, 32x32, trained from random weights",
        "settings": to_json(settings),
        "sampling": SAMPLING,
        "versions": {"hiergen": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "extractor": {"name": extractor.name, "description": extractor.description, "test_accuracy": network_accuracy},
        "reconstruction": {
            "images": f"{len(test)} held-out test images",
            "psnr_by_levels": [
                {"levels": k, "tokens": sum(s.num_tokens for s in tokenizer.specs[:k]), "psnr_db": _mean_psnr(x, test)}
                for k, x in prefixes
            ],
            "rfid": _distances(rebuilt, held_out, extractor, "reconstructions", "the test images themselves"),
        },
        "codebook": _codebook(codes),
        "generation": {
            "images": f"{len(generated)} generated, {len(generated) // 10} a class",
            "gfid": _distances(made, real, extractor, "generated images", f"{len(train)} real train images"),
            "real_test_against_train": _distances(held_out, real, extractor, "real test images", "real train images"),
        },
        "classifier": {
            "what": "support vector machine on 8x8 pixels, trained on the real train split",
            "real_test_accuracy": judge.accuracy(held_out, test.labels),
            "reconstruction_accuracy": judge.accuracy(rebuilt, test.labels),
            "generated_agreement": judge.accuracy(made, generated.labels),
        },
        "nearest_train_image": {
            "what": "root mean square pixel distance in [0, 1] to the nearest real train image",
            "generated": _spread(nearest_distances(made, real)),
            "real_test": _spread(nearest_distances(held_out, real)),
        },
    }


def _prefixes(tokenizer: Tokenizer, pyramid: Any) -> list[tuple[int, Tensor]]:
    """Return (number of levels, images) for every prefix of levels that can be decoded."""
    return [(k, decode_batches(tokenizer, pyramid.prefix(k))) for k in tokenizer.decodable_levels]


def _mean_psnr(images: Tensor, reference: ImageSet) -> float:
    return float(psnr(images, reference.images).mean())


def _distances(a: Tensor, b: Tensor, extractor: FeatureExtractor, name: str, reference: str) -> dict[str, Any]:
    return {"of": name, "against": reference, **compare_image_sets(a, b, extractor)}


def _codebook(codes: CodeSet) -> dict[str, Any]:
    pyramid = codes.pyramid({f"level_{k}": level[:, 0] for k, level in enumerate(codes.levels)})
    vocab_size = codes.specs[0].vocab_size
    if vocab_size is None:
        return {"what": "continuous tokens: no codebook"}
    return {
        "what": f"ids of the {len(codes)} train images, vocabulary of {vocab_size}",
        "all_levels": dataclasses.asdict(codebook_use(pyramid.concat(), vocab_size)),
        "by_level": [dataclasses.asdict(use) for use in codebook_use_by_level(pyramid)],
    }


def _spread(values: Tensor) -> dict[str, float]:
    quantiles = torch.quantile(values.double(), torch.tensor([0.0, 0.05, 0.5], dtype=torch.float64)).tolist()
    return dict(zip(("min", "p5", "median"), quantiles, strict=True))


def _draw(
    out: Path,
    tokenizer: Tokenizer,
    generated: ImageSet,
    test: ImageSet,
    tokenizer_run: FitResult,
    generator_run: FitResult,
) -> None:
    chosen = torch.cat([torch.where(test.labels == label)[0][:1] for label in range(10)])
    images = test.images[chosen]
    prefixes = _prefixes(tokenizer, encode_batches(tokenizer, images))
    counts = [sum(spec.num_tokens for spec in tokenizer.specs[:k]) for k, _ in prefixes]
    save_image_grid(
        out / "reconstruction.png",
        [images, *[rebuilt for _, rebuilt in prefixes]],
        row_labels=["input", *[f"{count} token{'s' * (count > 1)}" for count in counts]],
        title="Held-out digits, rebuilt from more and more levels of tokens",
    )
    by_class = torch.stack([generated.images[generated.labels == label][:8] for label in range(10)], dim=1)
    save_image_grid(
        out / "samples.png",
        as_rows(by_class.flatten(0, 1), 10),
        column_labels=[str(label) for label in range(10)],
        title="Generated, by the class asked for (not selected)",
    )
    save_curves(
        out / "curves.png",
        {
            "tokenizer: pixel error": log_curves(tokenizer_run.log, ["pixel"]),
            "generator: cross-entropy (nats)": log_curves(generator_run.log, ["loss"]),
            "generator: accuracy": log_curves(generator_run.log, ["accuracy"]),
        },
    )


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _Times:
    """Seconds of each stage, added up over the sessions of a run that was stopped and continued."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def stage(self, name: str) -> _Stage:
        return _Stage(name, self._add)

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 2)
        write_json(self._path, self.seconds)


class _Stage:
    def __init__(self, name: str, add: Callable[[str, float], None]) -> None:
        self._name, self._add = name, add

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        # Also when stopped: the time was spent.
        self._add(self._name, time.perf_counter() - self._started)
