"""Several scales against one: HieraTok and a flow transformer on its latents, every variant at the same budget with the same seeds.

    python eval/study_hieratok.py --data idx:DATA/fashion-mnist --lpips DATA/lpips --out runs/study_hieratok
    python eval/study_hieratok.py --data npz:DATA/caltech101-64/caltech101_64_25classes.npz --hold-out 5 --lpips DATA/lpips --patch-size 4

A stopped study continues. The variants differ in what `variants` says and in nothing else; no setting was tuned for one of them.
Masks "block_diagonal" and "reverse" are missing on purpose: under both the finest tokens see no other scale, so their image is the
single-scale model's.
"""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from hiergen.config import parse
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import PictureSet
from hiergen.data.images.pixels import to_uint8
from hiergen.data.sources import DataConfig, open_images
from hiergen.evaluation.study import StudyResult, run_study
from hiergen.figures import save_curves
from hiergen.files import write_text
from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.flow.sampling import FlowSettings
from hiergen.metrics.classifiers import saved_feature_network
from hiergen.metrics.fidelity import FeatureExtractor, compare_image_sets
from hiergen.metrics.latents import (
    channel_statistics,
    interpolation_detour,
    neighbor_spread,
    spatial_autocorrelation,
)
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.encoding import decode_batches, encode_batches, encode_images
from hiergen.pretrained.perceptual import LPIPS
from hiergen.seeding import make_rng
from hiergen.tokenizers.hieratok.model import HieraTok
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.generator import GeneratorTaskConfig
from hiergen.training.tasks.tokenizer import TokenizerTaskConfig

#: What all have in common: `hieratok-tiny`, narrower, without preview heads, whose loss a single scale could not have.
MODEL = {"encoder_dim": 96, "decoder_dim": 96, "has_preview_heads": False}
IMAGE_SIZE = 32
#: Samples that the network behind the Fréchet distance is trained on.
EXTRACTOR_SAMPLES = 80_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """Budget and data of the study.

    Attributes:
        data: Source of the images, as `DataConfig.source`.
        hold_out: As `DataConfig.hold_out`, for a source without a test split.
        lpips: Folder of LPIPS' AlexNet weights.
        out: Folder of all runs and results.
        part: "reconstruction" (all variants) or "generation" (after it, on the tokenizers of one and of all scales).
        chosen: Names of the variants to rebuild with; all if none is named.
        seeds: Of every variant.
        extractor: What the network behind the Fréchet distance is called in the tables.
        patch_size: Pixels of a patch, a power of two: the finest map is 32 / patch_size wide, and scales go down to 1.
        tokenizer_samples: Training samples of a tokenizer.
        generator_samples: Training samples of a generator.
        checkpoints: Places on a generator's way, evenly spaced, where it is scored.
        num_codes: Training images that generators are trained on: the first ones, so a source sorted by class must be taken whole.
        num_test: Held-out images for reconstruction, also the first.
        num_generated: Images generated for each score.
    """

    data: str = "idx:DATA/fashion-mnist"
    hold_out: int = 0
    lpips: str = "DATA/lpips"
    out: str = "runs/study_hieratok"
    part: Literal["reconstruction", "generation"] = "reconstruction"
    chosen: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    extractor: str = "fashion-cnn-32"
    patch_size: int = 8
    tokenizer_samples: int = 24_000
    generator_samples: int = 25_000
    checkpoints: int = 5
    num_codes: int = 20_000
    num_test: int = 2_000
    num_generated: int = 1_000


#: What may change without making results stale.
_FREE = ("data", "lpips", "out", "part", "chosen", "seeds")


def variants(patch_size: int) -> dict[str, dict[str, Any]]:
    """Return what each variant changes: first the number of scales, then mask and placement of all of them.

    Blocks in the encoder's tail are taken from the encoder, so that all variants have the same number.
    """
    finest = IMAGE_SIZE // patch_size
    scales = [2**k for k in range(finest.bit_length())]
    names = ["1-scale", *(f"{count}-scales" for count in range(2, len(scales) + 1))]
    found: dict[str, dict[str, Any]] = {name: {"scales": scales[-k:]} for k, name in enumerate(names, 1)}
    tail = {"encoder_depth": 1, "tail_depth": 2}
    found[f"{names[-1]}-full-attention"] = {"scales": scales, "mask": "full"}
    found[f"{names[-1]}-in-encoder"] = {"scales": scales, "placement": "encoder_tail", **tail}
    found[f"{names[-1]}-in-both"] = {"scales": scales, "placement": "both", **tail}
    return found


class Study:
    """The runs, and what they share: images and the network that scores them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.out = Path(settings.out)
        self.variants = variants(settings.patch_size)
        scales_only = [name for name, changes in self.variants.items() if changes.keys() == {"scales"}]
        self.generated_on = (scales_only[0], scales_only[-1])
        self.train = _first_images(_data(settings, "train"), settings.num_codes)
        self.test = _first_images(_data(settings, "test"), settings.num_test)
        self.extractor = self._extractor()

    def reconstruction(self) -> StudyResult:
        """Train and score all tokenizers."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            tokenizer = self._tokenizer(variant, seed, folder)
            pyramid = encode_batches(tokenizer, self.test.images)
            rebuilt = decode_batches(tokenizer, pyramid)
            lpips = LPIPS.from_files("alex", folder=self.settings.lpips)
            with torch.no_grad():
                parts = zip(rebuilt.split(250), self.test.images.split(250), strict=True)
                perceptual = torch.cat([lpips(a, b) for a, b in parts]).mean()
            distances = compare_image_sets(to_uint8(rebuilt), to_uint8(self.test.images), self.extractor)
            channels = channel_statistics(pyramid)
            # LPIPS averages squares; its root is a length.
            detour = interpolation_detour(
                tokenizer.decode, lambda a, b: lpips(a, b).sqrt(), pyramid[:100], pyramid[100:200]
            )
            return {
                "psnr": float(psnr(rebuilt, self.test.images).mean()),
                "lpips": float(perceptual),
                "frechet": distances["frechet_distance"],
                "least_std": min(channel.std for channel in channels),
                "greatest_std": max(channel.std for channel in channels),
                "kurtosis": sum(channel.kurtosis for channel in channels) / len(channels),
                "neighbor_spread": neighbor_spread(pyramid),
                "autocorrelation": spatial_autocorrelation(pyramid),
                "detour": float(detour.mean()),
            }

        return self._run("reconstruction", run, self.settings.chosen or tuple(self.variants))

    def generation(self) -> StudyResult:
        """Train and score a generator on the tokenizers of one and of several scales."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            tokenizer = self._tokenizer(variant, seed, self.out / "reconstruction" / variant / f"seed-{seed}")
            encode_images(tokenizer, self.train, folder / "codes")
            config = self._generator_config(seed, folder)
            model = fit(config, title=f"{variant}, seed {seed}").model_dir
            generator = cast(FlowTransformer, FlowTransformer.from_pretrained(model).eval())
            found: dict[str, float] = {}
            reference = to_uint8(self.train.images[:5_000])
            for checkpoint in sorted((folder / "generator" / "checkpoints").glob("samples-*")):
                generator.load_state_dict(load_file(checkpoint / "ema.safetensors"), strict=False)
                images = self._generate(generator, tokenizer, seed)
                distances = compare_image_sets(to_uint8(images), reference, self.extractor)
                samples = int(checkpoint.name.removeprefix("samples-"))
                found[f"frechet_{samples}"] = distances["frechet_distance"]
            return {**found, "frechet": distances["frechet_distance"], "recall": distances["recall"]}

        return self._run("generation", run, self.generated_on)

    def _run(self, part: str, run: Any, names: Sequence[str]) -> StudyResult:
        common = {key: value for key, value in dataclasses.asdict(self.settings).items() if key not in _FREE}
        return run_study(
            {name: lambda seed, folder, name=name: run(name, seed, folder) for name in names},
            seeds=self.settings.seeds,
            out=self.out / part,
            settings={**common, "model": MODEL, **{name: self.variants[name] for name in names}},
        )

    def _tokenizer(self, variant: str, seed: int, folder: Path) -> HieraTok:
        config = TrainConfig(
            task=TokenizerTaskConfig(
                preset="hieratok-tiny",
                overrides={**MODEL, "patch_size": self.settings.patch_size, **self.variants[variant]},
                data=_data(self.settings, "train"),
                pixel_weight=10.0,
            ),
            out=str(folder / "tokenizer"),
            samples=self.settings.tokenizer_samples,
            batch_size=32,
            seed=seed,
            optim=OptimConfig(lr=1e-3, warmup_samples=1_000, final_lr_ratio=0.05),
            ema_decay=0.99,
            log_every=1_000,
        )
        model = fit(config, title=f"{variant}, seed {seed}").model_dir
        return cast(HieraTok, HieraTok.from_pretrained(model).eval())

    def _generator_config(self, seed: int, folder: Path) -> TrainConfig:
        samples = self.settings.generator_samples
        return TrainConfig(
            task=GeneratorTaskConfig(preset="flow-tiny", codes=str(folder / "codes")),
            out=str(folder / "generator"),
            samples=samples,
            batch_size=32,
            seed=seed,
            # Constant, so that a score on the way is that of a shorter run.
            optim=OptimConfig(lr=1e-3, warmup_samples=1_000, schedule="constant"),
            ema_decay=0.995,
            log_every=1_000,
            checkpoint_every=samples // self.settings.checkpoints,
            keep_last=self.settings.checkpoints + 1,
        )

    def _generate(self, generator: FlowTransformer, tokenizer: HieraTok, seed: int) -> Tensor:
        settings = FlowSettings(num_steps=8, solver="heun", timestep_shift=1.0)
        labels = torch.arange(self.settings.num_generated) % len(self.train.classes)
        rng = make_rng(seed, "sample")
        parts = [generator.generate(part, settings, rng=rng) for part in labels.split(200)]
        return torch.cat([decode_batches(tokenizer, part) for part in parts])

    def _extractor(self) -> FeatureExtractor:
        name, images = self.settings.extractor, to_uint8(self.train.images)
        epochs = max(1, round(EXTRACTOR_SAMPLES / len(images)))
        network = saved_feature_network(self.out / f"{name}.safetensors", images, self.train.labels, epochs=epochs)
        right = network.scores(to_uint8(self.test.images)).argmax(1) == self.test.labels
        print(f"{name}: {float(right.float().mean()):.1%} of {len(self.test)} test images", file=sys.stderr)
        return FeatureExtractor(name, "32 features of a 3-convolution classifier of the train images", network)


def samples_to_reach(curve: Mapping[int, float], value: float) -> float:
    """Return the samples at which a falling curve first has a value, between its points by straight lines; NaN if it never does."""
    points = sorted(curve.items())
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y1 <= value:
            return float(x0) if y0 <= value else x0 + (x1 - x0) * (y0 - value) / (y0 - y1)
    return float("nan")


def frechet_curve(result: StudyResult, variant: str) -> dict[int, float]:
    """Return the Fréchet distance over a generator's training, the mean of the seeds."""
    names = [name for name in result.values[variant][next(iter(result.values[variant]))] if name.startswith("frechet_")]
    return {int(name.removeprefix("frechet_")): result.estimate(variant, name).mean for name in names}


def pixel_curve(folder: Path) -> tuple[list[float], list[float]]:
    """Return samples and the squared pixel error of a tokenizer's training log, the mean of the seeds in a variant's folder."""
    logs = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("seed-*/tokenizer/log.jsonl"))
    ]
    rows = list(zip(*logs, strict=True))
    return [row[0]["samples"] for row in rows], [sum(line["pixel"] for line in row) / len(row) for row in rows]


def main(settings: Settings) -> None:
    """Run a part of the study and write its tables and curves."""
    torch.set_num_threads(1)
    study = Study(settings)
    folder = Path(settings.out)
    if settings.part == "reconstruction":
        result = study.reconstruction()
        quality = {"psnr": "PSNR (dB)", "lpips": "LPIPS", "frechet": f"Fréchet ({settings.extractor})"}
        latents = ("least_std", "greatest_std", "kurtosis", "neighbor_spread", "autocorrelation", "detour")
        text = result.table(quality) + "\n" + result.table({name: name.replace("_", " ") for name in latents})
        errors = {variant: pixel_curve(folder / "reconstruction" / variant) for variant in study.generated_on}
        save_curves(folder / "reconstruction.png", {"squared pixel error while training, mean of the seeds": errors})
    else:
        result = study.generation()
        curves = {variant: frechet_curve(result, variant) for variant in study.generated_on}
        base, multi = (curves[variant] for variant in study.generated_on)
        last = max(base)
        reached = samples_to_reach(multi, base[last])
        text = result.table({"frechet": f"Fréchet ({settings.extractor})", "recall": "recall"})
        when = "not at all" if math.isnan(reached) else f"after {reached:,.0f} of {last:,} samples"
        text += f"\n{study.generated_on[1]} reaches the end of {study.generated_on[0]}, {base[last]:.3f}, {when}\n"
        panel = {variant: (list(curve), list(curve.values())) for variant, curve in curves.items()}
        save_curves(folder / "generation.png", {f"Fréchet distance ({settings.extractor}), mean of the seeds": panel})
    write_text(folder / f"{settings.part}.md", text)
    print(text)


def _data(settings: Settings, split: Literal["train", "test"]) -> DataConfig:
    return DataConfig(source=settings.data, split=split, hold_out=settings.hold_out, size=IMAGE_SIZE, in_memory=False)


def _first_images(config: DataConfig, count: int) -> ImageSet:
    pictures = cast(PictureSet, open_images(config))
    batch = pictures.batch([(index, 0) for index in range(min(count, len(pictures)))], seed=0)
    return ImageSet(batch["image"], batch["label"], pictures.classes)


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
