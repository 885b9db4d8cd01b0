"""Several scales against one: HieraTok and a flow transformer on its latents, every variant at the same budget with the same seeds.

    python eval/study_hieratok.py --data idx:DATA/fashion-mnist --lpips DATA/lpips --out runs/study_hieratok
    python eval/study_hieratok.py --data npz:DATA/caltech101-64/caltech101_64_25classes.npz --hold-out 5 --lpips DATA/lpips --patch-size 4
    python eval/study_hieratok.py --data npz:DATA/emoji_64.npz --hold-out 10 --hold-out-by name --size 64 --lpips DATA/lpips --chosen 1-scale 4-scales \
        --overrides '{"conv_channels": 64, "encoder_depth": 0, "decoder_depth": 2, "latent_dim": 16, "kl_weight": 0.001}' --precision bf16

A stopped study continues. The variants differ in what `variants` says and in nothing else; no setting was tuned for one of them.
Masks "block_diagonal" and "reverse" are missing on purpose: under both the finest tokens see no other scale, so their image is the
single-scale model's.
"""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from hiergen.config import parse
from hiergen.evaluation.images.study import ImageStudy, TwoPartSettings
from hiergen.evaluation.study import StudyResult
from hiergen.figures import save_curves
from hiergen.files import write_text
from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.flow.sampling import FlowSettings
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
from hiergen.training.tasks.settings import GeneratorTaskConfig, TokenizerTaskConfig

#: What all have in common: `hieratok-tiny`, narrower, without preview heads, whose loss a single scale could not have.
MODEL = {"encoder_dim": 96, "decoder_dim": 96, "has_preview_heads": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(TwoPartSettings):
    """Budget and data of the study.

    Attributes:
        part: Part of the study: "reconstruction" (all variants) or "generation" (after it, on the tokenizers of one and of all scales).
        chosen: Names of the variants to rebuild with; all if none is named.
        patch_size: Pixels along a side of a patch, a power of two: the finest map is size / patch_size wide, and scales go down to 1.
        checkpoints: Number of places on a generator's way, evenly spaced, where it is scored.
        num_codes: Number of training images that generators are trained on: the first ones, so a source sorted by class must be taken
            whole.
    """

    out: str = "runs/study_hieratok"
    chosen: tuple[str, ...] = ()
    patch_size: int = 8
    checkpoints: int = 5
    num_codes: int = 20_000


def variants(finest: int) -> dict[str, dict[str, Any]]:
    """Return what each variant changes: first the number of scales up to the finest one, then mask and placement of all of them.

    Blocks in the encoder's tail are taken from the encoder, so that all variants have the same number.
    """
    scales = [2**k for k in range(finest.bit_length())]
    names = ["1-scale", *(f"{count}-scales" for count in range(2, len(scales) + 1))]
    found: dict[str, dict[str, Any]] = {name: {"scales": scales[-k:]} for k, name in enumerate(names, 1)}
    tail = {"encoder_depth": 1, "tail_depth": 2}
    found[f"{names[-1]}-full-attention"] = {"scales": scales, "mask": "full"}
    found[f"{names[-1]}-in-encoder"] = {"scales": scales, "placement": "encoder_tail", **tail}
    found[f"{names[-1]}-in-both"] = {"scales": scales, "placement": "both", **tail}
    return found


class Study(ImageStudy[Settings]):
    """The runs of all variants."""

    FREE = (*ImageStudy.FREE, "chosen")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.num_codes)
        self.variants = variants(settings.size // settings.patch_size)
        scales_only = [name for name, changes in self.variants.items() if changes.keys() == {"scales"}]
        self.generated_on = (scales_only[0], scales_only[-1])

    def common(self) -> dict[str, Any]:
        return {**super().common(), "model": MODEL}

    def reconstruction(self) -> StudyResult:
        """Train and score all tokenizers."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            tokenizer = self._tokenizer(variant, seed, folder)
            pyramid = encode_batches(tokenizer, self.test.images)
            rebuilt = decode_batches(tokenizer, pyramid)
            lpips = LPIPS.from_files("alex", folder=self.settings.lpips)
            channels = channel_statistics(pyramid)
            # LPIPS averages squares; its root is a length.
            detour = interpolation_detour(
                tokenizer.decode, lambda a, b: lpips(a, b).sqrt(), pyramid[:100], pyramid[100:200]
            )
            return {
                "psnr": float(psnr(rebuilt, self.test.images).mean()),
                "lpips": self.lpips(rebuilt),
                "frechet": self.distances(rebuilt, to="test")["frechet_distance"],
                "least_std": min(channel.std for channel in channels),
                "greatest_std": max(channel.std for channel in channels),
                "kurtosis": sum(channel.kurtosis for channel in channels) / len(channels),
                "neighbor_spread": neighbor_spread(pyramid),
                "autocorrelation": spatial_autocorrelation(pyramid),
                "detour": float(detour.mean()),
            }

        names = self.settings.chosen or tuple(self.variants)
        return self.run("reconstruction", run, names, {name: self.variants[name] for name in names})

    def generation(self) -> StudyResult:
        """Train and score a generator on the tokenizers of one and of several scales."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            tokenizer = self._tokenizer(variant, seed, self.out / "reconstruction" / variant / f"seed-{seed}")
            encode_images(tokenizer, self.train, folder / "codes")
            config = self._generator_config(seed, folder)
            model = fit(config, title=f"{variant}, seed {seed}").model_dir
            generator = cast(FlowTransformer, FlowTransformer.from_pretrained(model).eval())
            found: dict[str, float] = {}
            for checkpoint in sorted((folder / "generator" / "checkpoints").glob("samples-*")):
                generator.load_state_dict(load_file(checkpoint / "ema.safetensors"), strict=False)
                images = self._generate(generator, tokenizer, seed)
                distances = self.distances(images, to="train")
                samples = int(checkpoint.name.removeprefix("samples-"))
                found[f"frechet_{samples}"] = distances["frechet_distance"]
            return {**found, "frechet": distances["frechet_distance"], "recall": distances["recall"]}

        changes = {name: self.variants[name] for name in self.generated_on}
        return self.run("generation", run, self.generated_on, changes)

    def _tokenizer(self, variant: str, seed: int, folder: Path) -> HieraTok:
        config = TrainConfig(
            task=TokenizerTaskConfig(
                preset="hieratok-tiny",
                overrides={
                    **MODEL,
                    "image_size": self.settings.size,
                    "patch_size": self.settings.patch_size,
                    **self.settings.overrides,
                    **self.variants[variant],
                },
                data=self.data("train"),
                pixel_weight=10.0,
            ),
            out=str(folder / "tokenizer"),
            samples=self.settings.tokenizer_samples,
            batch_size=32,
            precision=self.settings.precision,
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


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
