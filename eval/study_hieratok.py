"""Several scales against one: HieraTok and a flow transformer on its latents, every variant at the same budget with the same seeds.

    python eval/study_hieratok.py --data DATA/fashion-mnist --out runs/study_hieratok

A stopped study continues. The variants differ in what `VARIANTS` says and in nothing else; no setting was tuned for one of them.
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiergen.config import parse
from hiergen.data.images import ImageSet, to_uint8
from hiergen.data.pictures import PictureSet
from hiergen.data.sources import DataConfig, open_images
from hiergen.figures import save_curves
from hiergen.files import write_text
from hiergen.generators.flow_sampling import FlowSettings
from hiergen.generators.flow_transformer import FlowTransformer
from hiergen.losses.perceptual import LPIPS
from hiergen.metrics.classifiers import FeatureNetwork, train_feature_network
from hiergen.metrics.fidelity import FeatureExtractor, compare_image_sets
from hiergen.metrics.latents import (
    channel_statistics,
    interpolation_detour,
    neighbor_spread,
    spatial_autocorrelation,
)
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.encoding import decode_batches, encode_batches, encode_images
from hiergen.seeding import make_rng
from hiergen.tokenizers.hieratok import HieraTok
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.study import StudyResult, run_study
from hiergen.training.tasks import GeneratorTaskConfig, TokenizerTaskConfig

#: What all have in common: `hieratok-tiny`, narrower, without preview heads, whose loss a single scale could not have.
MODEL = {"encoder_dim": 96, "decoder_dim": 96, "has_preview_heads": False}
#: What each variant changes. Blocks in the encoder's tail are taken from the encoder, so that all have the same number.
VARIANTS: dict[str, dict[str, Any]] = {
    "1-scale": {"scales": [4]},
    "2-scales": {"scales": [2, 4]},
    "3-scales": {"scales": [1, 2, 4]},
    "3-scales-full-attention": {"scales": [1, 2, 4], "mask": "full"},
    "3-scales-in-encoder": {"scales": [1, 2, 4], "placement": "encoder_tail", "encoder_depth": 1, "tail_depth": 2},
    "3-scales-in-both": {"scales": [1, 2, 4], "placement": "both", "encoder_depth": 1, "tail_depth": 2},
}
GENERATED_ON = ("1-scale", "3-scales")
EXTRACTOR = "fashion-cnn-32"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Budget and data of the study.

    Attributes:
        data: Folder of the four files of Fashion-MNIST (or of another set in MNIST's form).
        lpips: Folder of LPIPS' AlexNet weights.
        out: Folder of all runs and results.
        part: "reconstruction" (all variants) or "generation" (after it, on two of its tokenizers).
        seeds: Of every variant.
        tokenizer_samples: Training samples of a tokenizer.
        generator_samples: Training samples of a generator.
        checkpoints: Places on a generator's way, evenly spaced, where it is scored.
        num_codes: Training images that generators are trained on.
        num_test: Held-out images for reconstruction.
        num_generated: Images generated for each score.
    """

    data: str = "DATA/fashion-mnist"
    lpips: str = "DATA/lpips"
    out: str = "runs/study_hieratok"
    part: Literal["reconstruction", "generation"] = "reconstruction"
    seeds: tuple[int, ...] = (0, 1, 2)
    tokenizer_samples: int = 24_000
    generator_samples: int = 25_000
    checkpoints: int = 5
    num_codes: int = 20_000
    num_test: int = 2_000
    num_generated: int = 1_000


#: What may change without making results stale.
_FREE = ("data", "lpips", "out", "part", "seeds")


class Study:
    """The runs, and what they share: images and the network that scores them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.out = Path(settings.out)
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

        return self._run("reconstruction", run, list(VARIANTS))

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

        return self._run("generation", run, list(GENERATED_ON))

    def _run(self, part: str, run: Any, names: Sequence[str]) -> StudyResult:
        common = {key: value for key, value in dataclasses.asdict(self.settings).items() if key not in _FREE}
        return run_study(
            {name: lambda seed, folder, name=name: run(name, seed, folder) for name in names},
            seeds=self.settings.seeds,
            out=self.out / part,
            settings={**common, "model": MODEL, **{name: VARIANTS[name] for name in names}},
        )

    def _tokenizer(self, variant: str, seed: int, folder: Path) -> HieraTok:
        config = TrainConfig(
            task=TokenizerTaskConfig(
                preset="hieratok-tiny",
                overrides={**MODEL, **VARIANTS[variant]},
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
        labels = torch.arange(self.settings.num_generated) % 10
        rng = make_rng(seed, "sample")
        parts = [generator.generate(part, settings, rng=rng) for part in labels.split(200)]
        return torch.cat([decode_batches(tokenizer, part) for part in parts])

    def _extractor(self) -> FeatureExtractor:
        path = self.out / f"{EXTRACTOR}.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            network = train_feature_network(to_uint8(self.train.images), self.train.labels, epochs=4)
            save_file(network.state_dict(), path)
        network = FeatureNetwork(len(self.train.classes))
        network.load_state_dict(load_file(path))
        right = network.scores(to_uint8(self.test.images)).argmax(1) == self.test.labels
        print(f"{EXTRACTOR}: {float(right.float().mean()):.1%} of {len(self.test)} test images", file=sys.stderr)
        return FeatureExtractor(
            EXTRACTOR, "32 features of a 3-convolution classifier of the train images", network.requires_grad_(False)
        )


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
        quality = {"psnr": "PSNR (dB)", "lpips": "LPIPS", "frechet": f"Fréchet ({EXTRACTOR})"}
        latents = ("least_std", "greatest_std", "kurtosis", "neighbor_spread", "autocorrelation", "detour")
        text = result.table(quality) + "\n" + result.table({name: name.replace("_", " ") for name in latents})
        errors = {variant: pixel_curve(folder / "reconstruction" / variant) for variant in GENERATED_ON}
        save_curves(folder / "reconstruction.png", {"squared pixel error while training, mean of the seeds": errors})
    else:
        result = study.generation()
        curves = {variant: frechet_curve(result, variant) for variant in GENERATED_ON}
        base, multi = (curves[variant] for variant in GENERATED_ON)
        last = max(base)
        reached = samples_to_reach(multi, base[last])
        text = result.table({"frechet": f"Fréchet ({EXTRACTOR})", "recall": "recall"})
        when = "not at all" if math.isnan(reached) else f"after {reached:,.0f} of {last:,} samples"
        text += f"\n{GENERATED_ON[1]} reaches the end of {GENERATED_ON[0]}, {base[last]:.3f}, {when}\n"
        panel = {variant: (list(curve), list(curve.values())) for variant, curve in curves.items()}
        save_curves(folder / "generation.png", {f"Fréchet distance ({EXTRACTOR}), mean of the seeds": panel})
    write_text(folder / f"{settings.part}.md", text)
    print(text)


def _data(settings: Settings, split: Literal["train", "test"]) -> DataConfig:
    return DataConfig(source=f"idx:{settings.data}", split=split, size=32, in_memory=False)


def _first_images(config: DataConfig, count: int) -> ImageSet:
    pictures = cast(PictureSet, open_images(config))
    batch = pictures.batch([(index, 0) for index in range(count)], seed=0)
    return ImageSet(batch["image"], batch["label"], pictures.classes)


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
