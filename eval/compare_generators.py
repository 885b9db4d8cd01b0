"""Which generator for how many steps: HAR, VAR, RAR, MaskGIT, MAR and a flow, each on its tokenizer, at the same budget with the same seeds.

    python eval/compare_generators.py --data idx:DATA/fashion-mnist --lpips DATA/lpips --out runs/compare_generators
    python eval/compare_generators.py ... --part editing      # after it: what its generators do with a part of a picture

A stopped study continues. The budget is processor seconds and not samples: a sample of one costs three times that of another, and time is
what a reader has. How many samples that makes is measured once and kept in `rates.json`, so that all seeds see the same number. All train
and draw by the same rules, and no setting was tuned for one of them.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hiergen.benchmarks.measuring.timing import take_turns
from hiergen.config import parse
from hiergen.data.images.pixels import to_uint8
from hiergen.evaluation.images.edits import edits_tables, score_edits
from hiergen.evaluation.images.study import ImageStudy, ImageStudySettings
from hiergen.evaluation.study import StudyResult
from hiergen.figures import save_image_grid
from hiergen.files import write_json, write_text
from hiergen.generators.base import Generator
from hiergen.metrics.classifiers import LabelClassifier
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.encoding import decode_batches, encode_batches, encode_images
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.loading import from_pretrained
from hiergen.seeding import make_rng
from hiergen.tokenizers.base import Tokenizer
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig, TokenizerTaskConfig
from hiergen.training.tasks.term_settings import CodebookConfig

_NARROW = {"encoder_dim": 96, "decoder_dim": 96}
#: Preset of each tokenizer and what is changed: all of them narrow, and no map finer than 4 x 4.
TOKENIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ResTok": ("restok-tiny", {**_NARROW, "cnn_channels": 8}),
    "multi-scale VQ": ("multiscale-vq-tiny", {"widths": [32, 32, 32, 64], "sides": [1, 2, 3, 4]}),
    "plain VQ": ("maskgit-vq-tiny", {}),
    "HieraTok": ("hieratok-tiny", {**_NARROW, "has_preview_heads": False}),
}


class Method(NamedTuple):
    """A generator.

    Attributes:
        tokenizer: Name of its tokenizer.
        preset: Its preset.
        overrides: What is changed of it.
        drawn: Settings of its sampler, by the number of passes of its transformer without guidance.
    """

    tokenizer: str
    preset: str
    overrides: dict[str, Any]
    drawn: dict[int, dict[str, Any]]


_WIDTH = {"dim": 128, "num_heads": 4}
_STEPS = (1, 2, 4, 8, 16)
#: All of them have about four blocks of 128 channels.
METHODS: dict[str, Method] = {
    "HAR": Method("ResTok", "har-tiny", _WIDTH, {4: {"num_levels": 3}, 5: {"num_levels": 4}, 6: {}}),
    "VAR": Method("multi-scale VQ", "var-tiny", _WIDTH, {2: {"num_levels": 2}, 3: {"num_levels": 3}, 4: {}}),
    "RAR": Method("plain VQ", "rar-tiny", {}, {16: {}}),
    "MaskGIT": Method("plain VQ", "maskgit-tiny", {}, {n: {"num_steps": n} for n in _STEPS}),
    "MAR": Method("HieraTok", "mar-tiny", {}, {n: {"num_steps": n, "head_steps": 25} for n in _STEPS[1:]}),
    "flow": Method("HieraTok", "flow-tiny", {}, {n: {"num_steps": n} for n in (2, 4, 8)}),
}
GUIDANCE = (1.0, 1.5)
#: Settings of the samplers that edit, where they are not those of the presets.
EDITED: dict[str, dict[str, Any]] = {
    "MaskGIT": {"num_steps": 8},
    "MAR": {"num_steps": 4, "head_steps": 25},
    "flow": {"num_steps": 8},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageStudySettings):
    """Budget and data of the comparison.

    Attributes:
        part: Part of the comparison: "generation" with the tokenizers before it, or "editing", after it.
        num_edited: Number of held-out images that are edited.
        tokenizer_seconds: Processor seconds of a tokenizer's training.
        generator_seconds: Processor seconds of a generator's training.
        batch_size: Number of samples per step, of tokenizers and generators.
        num_train: Number of training images that generators, the judge and the extractor are trained on, the first ones; tokenizers see all.
        timed_batch: Number of images per call where samplers are timed.
        repeats: Number of timed calls per sampler.
    """

    out: str = "runs/compare_generators"
    part: Literal["generation", "editing"] = "generation"
    num_edited: int = 200
    tokenizer_seconds: float = 20.0
    generator_seconds: float = 30.0
    batch_size: int = 32
    num_train: int = 6_000
    num_generated: int = 500
    timed_batch: int = 16
    repeats: int = 5


class Study(ImageStudy[Settings]):
    """The runs of all tokenizers and generators."""

    FREE = (*ImageStudy.FREE, "timed_batch", "repeats", "num_edited")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.num_train)
        self.judge = LabelClassifier(to_uint8(self.train.images), self.train.labels)

    def reconstruction(self) -> StudyResult:
        """Train and score all tokenizers: what no generator on them can pass."""

        def run(name: str, seed: int, folder: Path) -> Mapping[str, float]:
            config = self._tokenizer_config(name, seed, folder, samples[name])
            tokenizer, seconds = _trained(config, f"{name}, seed {seed}")
            rebuilt = decode_batches(tokenizer, encode_batches(tokenizer, self.test.images))
            return {
                "psnr": float(psnr(rebuilt, self.test.images).mean()),
                "lpips": self.lpips(rebuilt),
                "frechet": self.distances(rebuilt, to="test")["frechet_distance"],
                "agreement": self._agreement(rebuilt, self.test.labels),
                "thousands": samples[name] / 1000,
                "processor_seconds": seconds,
            }

        trial = self.out / "trial"
        samples = {
            name: self._samples(name, self._tokenizer_config(name, 0, trial, 1), self.settings.tokenizer_seconds)
            for name in TOKENIZERS
        }
        changes = {name: {"changes": TOKENIZERS[name], "samples": samples[name]} for name in TOKENIZERS}
        return self.run("reconstruction", run, tuple(TOKENIZERS), changes)

    def generation(self) -> StudyResult:
        """Train all generators and score all their samplers; `reconstruction` goes before it."""

        def run(name: str, seed: int, folder: Path) -> Mapping[str, float]:
            title = f"{name}, seed {seed}"
            generator, seconds = _trained(self._generator_config(name, seed, samples[name]), title)
            tokenizer = self._tokenizer(name, seed)
            found = {"thousands": samples[name] / 1000, "processor_seconds": seconds}
            found["parameters"] = float(sum(weight.numel() for weight in generator.parameters()))
            for steps, drawn in METHODS[name].drawn.items():
                for scale in GUIDANCE:
                    labels = torch.arange(self.settings.num_generated) % len(self.train.classes)
                    images = self._generate(generator, tokenizer, labels, {**drawn, "guidance_scale": scale}, seed)
                    distances = self.distances(images, to="train")
                    found[f"frechet_{steps}_{scale}"] = distances["frechet_distance"]
                    found[f"recall_{steps}_{scale}"] = distances["recall"]
                    found[f"agreement_{steps}_{scale}"] = self._agreement(images, labels)
            return found

        samples = {}
        for name in METHODS:
            config = self._generator_config(name, self.settings.seeds[0], 1)
            samples[name] = self._samples(name, config, self.settings.generator_seconds)
        changes = {name: {"changes": METHODS[name]._asdict(), "samples": samples[name]} for name in METHODS}
        return self.run("generation", run, tuple(METHODS), {**changes, "guidance": GUIDANCE})

    def compare_samplers(self) -> dict[str, float]:
        """Write samples of the first seed's generators to `samples.png`; return the seconds per image of every sampler, timed in turns."""
        seed, rows, calls = self.settings.seeds[0], {}, {}
        labels = torch.arange(20) // 2 % len(self.train.classes)
        for name, method in METHODS.items():
            generator = from_pretrained(str(self._folder("generation", name, seed) / "generator" / "model")).eval()
            tokenizer = self._tokenizer(name, seed)
            for steps, drawn in method.drawn.items():
                settings = {**drawn, "guidance_scale": GUIDANCE[-1]}
                few = labels[: self.settings.timed_batch]
                calls[f"{name}, {steps}"] = lambda g=generator, t=tokenizer, s=settings, y=few: self._generate(
                    g, t, y, s, 0
                )
                rows[f"{name}, {steps}"] = self._generate(generator, tokenizer, labels, settings, seed)
        save_image_grid(self.out / "samples.png", list(rows.values()), row_labels=list(rows))
        seconds = take_turns(calls, repeats=self.settings.repeats, device=torch.device("cpu"))
        return {name: statistics.median(taken) / len(few) for name, taken in seconds.items()}

    def editing(self) -> StudyResult:
        """Score what all generators do with held-out images; `generation` goes before it."""

        def run(name: str, seed: int, folder: Path) -> Mapping[str, float]:
            generator = from_pretrained(str(self._folder("generation", name, seed) / "generator" / "model")).eval()
            pipe = ClassToImagePipeline(self._tokenizer(name, seed), generator)
            pipe.set_progress_bar_config(disable=True)
            chosen = torch.randperm(len(self.test), generator=make_rng(seed, "edited"))[: self.settings.num_edited]
            images, labels = self.test.images[chosen], self.test.labels[chosen]
            settings = {"guidance_schedule": "constant", "guidance_scale": GUIDANCE[-1], **EDITED.get(name, {})}
            return score_edits(pipe, images, labels, self.judge.predict, seed=seed, **settings)

        changes = {name: {"drawn": EDITED.get(name, {})} for name in METHODS}
        return self.run("editing", run, tuple(METHODS), {**changes, "num_edited": self.settings.num_edited})

    def _folder(self, part: str, name: str, seed: int) -> Path:
        return self.out / part / name / f"seed-{seed}"

    def _tokenizer(self, method: str, seed: int) -> Tokenizer:
        folder = self._folder("reconstruction", METHODS[method].tokenizer, seed)
        return from_pretrained(str(folder / "tokenizer" / "model")).eval()

    def _samples(self, name: str, config: TrainConfig, seconds: float) -> int:
        """Return the number of samples that a run may see, in whole batches; the rate is measured where it is not known yet."""
        path = self.out / "rates.json"
        rates = json.loads(path.read_text()) if path.is_file() else {}
        if name not in rates:
            rates[name] = seconds_per_sample(config)
            write_json(path, rates)
        return round(seconds / rates[name] / config.batch_size) * config.batch_size

    def _config(self, task: Any, out: Path, seed: int, samples: int, lr: float) -> TrainConfig:
        return TrainConfig(
            task=task,
            out=str(out),
            samples=samples,
            batch_size=self.settings.batch_size,
            seed=seed,
            optim=OptimConfig(lr=lr, warmup_samples=1_000, final_lr_ratio=0.05),
            ema_decay=0.99,
            log_every=1_000,
        )

    def _tokenizer_config(self, name: str, seed: int, folder: Path, samples: int) -> TrainConfig:
        preset, overrides = TOKENIZERS[name]
        task = TokenizerTaskConfig(
            preset=preset,
            overrides=overrides,
            data=self.data("train"),
            pixel_weight=10.0,
            codebook=None if name == "HieraTok" else CodebookConfig(revive_after=1_000),
        )
        return self._config(task, folder / "tokenizer", seed, samples, 2e-3)

    def _generator_config(self, name: str, seed: int, samples: int) -> TrainConfig:
        """Return the run of a generator on the codes of its tokenizer, which are written where they are missing."""
        method, folder = METHODS[name], self._folder("generation", name, seed)
        of = self._folder("reconstruction", method.tokenizer, seed)
        encode_images(self._tokenizer(name, seed), self.train, of / "codes")
        task = GeneratorTaskConfig(
            preset=method.preset,
            overrides=method.overrides,
            codes=str(of / "codes"),
            tokenizer=str(of / "tokenizer" / "model") if name == "VAR" else None,
            # As published: random orders in the first half, raster order in the last quarter.
            random_until=(samples // 2, samples * 3 // 4) if name == "RAR" else None,
        )
        return self._config(task, folder / "generator", seed, samples, 1e-3)

    def _generate(
        self, generator: Generator, tokenizer: Tokenizer, labels: Tensor, settings: dict[str, Any], seed: int
    ) -> Tensor:
        # The same schedule for all, not each family's own.
        chosen = generator.make_settings(guidance_schedule="constant", **settings)
        rng = make_rng(seed, "sample")
        parts = [generator.generate(part, chosen, rng=rng) for part in labels.split(100)]
        return torch.cat([decode_batches(tokenizer, part) for part in parts])

    def _agreement(self, images: Tensor, labels: Tensor) -> float:
        return float((self.judge.predict(to_uint8(images)) == labels).double().mean())


def seconds_per_sample(config: TrainConfig) -> float:
    """Return the processor seconds of a training sample: what 48 batches take beyond 8, so that the start of a run does not count."""
    taken = []
    for batches in (8, 8, 48):
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            fit(dataclasses.replace(config, out=folder, samples=batches * config.batch_size), title="rate")
            taken.append(time.process_time() - started)
    return (taken[2] - taken[1]) / (40 * config.batch_size)


def _trained(config: TrainConfig, title: str) -> tuple[Any, float]:
    """Return the model of a run, and the processor seconds that it took now: less for one that goes on, next to none for a finished one."""
    started = time.process_time()
    folder = fit(config, title=title).model_dir
    return from_pretrained(str(folder)).eval(), time.process_time() - started


def reconstruction_table(result: StudyResult, extractor: str) -> str:
    """Return Markdown: what each tokenizer keeps."""
    lines = [
        f"| tokenizer | samples (thousands) | processor seconds | PSNR (dB) | LPIPS (AlexNet) | Fréchet ({extractor}) | judge agrees (%) |",
        "|---" * 7 + "|",
    ]
    for name in result.values:
        cells = [result.estimate(name, key) for key in ("thousands", "processor_seconds", "psnr", "lpips", "frechet")]
        texts = [f"{cells[0].mean:.1f}", cells[1].text(0), cells[2].text(2), cells[3].text(3), cells[4].text(2)]
        lines.append(f"| {name} | " + " | ".join(texts) + f" | {_percent(result, name, 'agreement')} |")
    return "\n".join(lines) + "\n"


def generation_table(result: StudyResult, seconds: Mapping[str, float], extractor: str) -> str:
    """Return Markdown: one row per sampler, with its time as a ratio to HAR's full one."""
    titles = (f"Fréchet ({extractor})", "judge agrees (%)", "recall")
    heads = [f"{title}, guidance {scale}" for title in titles for scale in GUIDANCE]
    lines = ["| generator | passes | time per image | " + " | ".join(heads) + " |", "|---" * (3 + len(heads)) + "|"]
    unit = seconds["HAR, 6"]
    for name, method in METHODS.items():
        for steps in method.drawn:
            cells = [name, str(steps), f"{seconds[f'{name}, {steps}'] / unit:.2f}"]
            cells += [result.estimate(name, f"frechet_{steps}_{scale}").text(2) for scale in GUIDANCE]
            cells += [_percent(result, name, f"agreement_{steps}_{scale}") for scale in GUIDANCE]
            cells += [result.estimate(name, f"recall_{steps}_{scale}").text(2) for scale in GUIDANCE]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def training_table(result: StudyResult) -> str:
    """Return Markdown: what the budget made of each generator."""
    lines = ["| generator | parameters | samples (thousands) | processor seconds |", "|---" * 4 + "|"]
    for name in result.values:
        cells = [result.estimate(name, key) for key in ("parameters", "thousands", "processor_seconds")]
        lines.append(f"| {name} | {cells[0].mean:,.0f} | {cells[1].mean:.1f} | {cells[2].text(0)} |")
    return "\n".join(lines) + "\n"


def _percent(result: StudyResult, name: str, metric: str) -> str:
    found = result.estimate(name, metric)
    return dataclasses.replace(found, mean=100 * found.mean, half_width=100 * found.half_width).text(1)


def main(settings: Settings) -> None:
    """Run what is missing and write the tables."""
    torch.set_num_threads(1)
    study = Study(settings)
    if settings.part == "editing":
        edited = study.editing()
        table = edits_tables({name: list(seeds.values()) for name, seeds in edited.values.items()})
        write_text(study.out / "editing.md", table)
        print(table)
        return
    tokenizers, generators = study.reconstruction(), study.generation()
    seconds = study.compare_samplers()
    write_json(study.out / "seconds.json", seconds)
    extractor = settings.extractor
    real = study._agreement(study.test.images, study.test.labels)
    tables = [reconstruction_table(tokenizers, extractor), training_table(generators)]
    tables += [
        generation_table(generators, seconds, extractor),
        f"The judge agrees with {real:.1%} of the real test images.\n",
    ]
    write_text(study.out / "generators.md", "\n".join(tables))
    print("\n".join(tables))


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
