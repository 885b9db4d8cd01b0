"""ResTok's choices against their alternatives, and HAR against its token-by-token twin: the same budget and seeds for all.

    python eval/study_restok.py --data idx:DATA/fashion-mnist --lpips DATA/lpips --out runs/study_restok
    python eval/study_restok.py --data idx:DATA/fashion-mnist --lpips DATA/lpips --out runs/study_restok --part generation
    python eval/study_restok.py --data npz:DATA/caltech101-64/caltech101_64_25classes.npz --hold-out 5 --lpips DATA/lpips
    python eval/study_restok.py --data npz:DATA/emoji_64.npz --hold-out 10 --hold-out-by name --size 64 --lpips DATA/lpips --variants preset no-residuals flat \
        --revive-after 2000 --precision bf16 --overrides '{"cnn_stem": 4, "cnn_channels": 64, "cnn_multipliers": [1, 2], "encoder_dim": 128,
        "decoder_dim": 128, "num_latent_tokens": 64, "vocab_size": 4096, "entropy_weight": 0.0}'

A stopped study continues. The variants differ in what `TOKENIZERS` and `GENERATORS` say and in nothing else; no setting was tuned for
one of them.
"""

import dataclasses
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hiergen.benchmarks.measuring.timing import take_turns
from hiergen.config import parse
from hiergen.evaluation.images.study import ImageStudy, TwoPartSettings
from hiergen.evaluation.study import StudyResult
from hiergen.figures import save_image_grid
from hiergen.files import write_text
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.metrics.codebook import codebook_use
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.encoding import decode_batches, encode_batches, encode_images
from hiergen.pipelines.prefixes import rebuild_prefixes
from hiergen.registry import create
from hiergen.seeding import make_rng
from hiergen.tokenizers.restok.model import ResTok
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig, TokenizerTaskConfig
from hiergen.training.tasks.term_settings import CodebookConfig

#: What all tokenizers have in common: `restok-tiny`, narrower.
MODEL: dict[str, Any] = {"cnn_channels": 8, "encoder_dim": 96, "decoder_dim": 96}
#: What each tokenizer changes. The preset has the corrected projection, merge and shortcut, and residual image levels.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "preset": {},
    "residual-latents-too": {"residual_latent_tokens": True},
    "no-residuals": {"residual_image_tokens": False},
    "flat": {"num_image_levels": 1, "latent_hierarchy": False},
    "official": {"projection": "reinterpreted", "merge": "even", "cnn_shortcut": "branch"},
}
#: The tokenizer of each generator, and what the generator changes of `har-tiny`.
GENERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "levels": ("preset", {}),
    "token-by-token": ("preset", {"layout": "token"}),
    "levels-of-official": ("official", {}),
}
GUIDANCE = (1.0, 1.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(TwoPartSettings):
    """Budget and data of the study.

    Attributes:
        variants: Names of the tokenizers to compare; all if none is named.
        revive_after: Number of samples after which unused codes are revived, as `CodebookConfig.revive_after`, for every tokenizer.
        batch_size: Number of samples per step, of tokenizers and generators.
        num_train: Number of training images that generators and the extractor are trained on, the first ones; tokenizers see all.
    """

    out: str = "runs/study_restok"
    variants: tuple[str, ...] = ()
    revive_after: int | None = None
    batch_size: int = 32
    tokenizer_samples: int = 6_000
    generator_samples: int = 8_000
    num_train: int = 8_000
    num_test: int = 1_000


class Study(ImageStudy[Settings]):
    """The runs of all tokenizers and generators."""

    FREE = (*ImageStudy.FREE, "variants")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.num_train)

    def common(self) -> dict[str, Any]:
        return {**super().common(), "model": MODEL}

    def reconstruction(self) -> StudyResult:
        """Train and score all tokenizers."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            tokenizer = self._tokenizer(variant, seed, folder)
            prefixes = rebuild_prefixes(tokenizer, self.test.images)
            use = codebook_use(prefixes.pyramid.concat(), tokenizer.config["vocab_size"])
            found = {"used": use.used, "perplexity": use.perplexity}
            for tokens, images in zip(prefixes.tokens, prefixes.images, strict=True):
                found[f"psnr_{tokens}"] = float(psnr(images, self.test.images).mean())
                found[f"lpips_{tokens}"] = self.lpips(images)
                found[f"frechet_{tokens}"] = self.distances(images, to="test")["frechet_distance"]
            rows = [self.test.images[:12], *(images[:12] for images in prefixes.images)]
            save_image_grid(
                folder / "prefixes.png", rows, row_labels=["input", *(f"{count} tokens" for count in prefixes.tokens)]
            )
            return found

        chosen = self.settings.variants or tuple(TOKENIZERS)
        return self.run("reconstruction", run, chosen, {name: TOKENIZERS[name] for name in chosen})

    def generation(self) -> StudyResult:
        """Train and score all generators."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            of, overrides = GENERATORS[variant]
            tokenizer = self._tokenizer(of, seed, self.out / "reconstruction" / of / f"seed-{seed}")
            encode_images(tokenizer, self.train, folder / "codes")
            model = fit(self._generator_config(overrides, seed, folder), title=f"{variant}, seed {seed}").model_dir
            generator = cast(LevelAR, LevelAR.from_pretrained(model).eval())
            found = {"test_nats": self._test_loss(generator, tokenizer)}
            for scale in GUIDANCE:
                images, labels = self._generate(generator, tokenizer, seed, scale)
                distances = self.distances(images, to="train")
                found[f"frechet_{scale}"] = distances["frechet_distance"]
                found[f"recall_{scale}"] = distances["recall"]
                found[f"agreement_{scale}"] = self.agreement(images, labels)
            return found

        return self.run("generation", run, tuple(GENERATORS), GENERATORS)

    def _tokenizer(self, variant: str, seed: int, folder: Path) -> ResTok:
        config = TrainConfig(
            task=TokenizerTaskConfig(
                preset="restok-tiny",
                overrides={
                    **MODEL,
                    "image_size": self.settings.size,
                    **self.settings.overrides,
                    **TOKENIZERS[variant],
                },
                data=self.data("train"),
                pixel_weight=10.0,
                codebook=CodebookConfig(revive_after=self.settings.revive_after),
            ),
            out=str(folder / "tokenizer"),
            samples=self.settings.tokenizer_samples,
            batch_size=self.settings.batch_size,
            precision=self.settings.precision,
            seed=seed,
            optim=OptimConfig(lr=2e-3, warmup_samples=1_000, final_lr_ratio=0.05),
            ema_decay=0.99,
            log_every=1_000,
        )
        model = fit(config, title=f"{variant}, seed {seed}").model_dir
        return cast(ResTok, ResTok.from_pretrained(model).eval())

    def _generator_config(self, overrides: dict[str, Any], seed: int, folder: Path) -> TrainConfig:
        return TrainConfig(
            task=GeneratorTaskConfig(preset="har-tiny", overrides=overrides, codes=str(folder / "codes")),
            out=str(folder / "generator"),
            samples=self.settings.generator_samples,
            batch_size=self.settings.batch_size,
            seed=seed,
            optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup_samples=1_000, final_lr_ratio=0.05),
            ema_decay=0.99,
            log_every=1_000,
        )

    @torch.no_grad()
    def _test_loss(self, generator: LevelAR, tokenizer: ResTok) -> float:
        """Return the nats per token of the held-out images."""
        pyramid = encode_batches(tokenizer, self.test.images)
        starts = range(0, len(self.test), 100)
        losses = [generator.loss(pyramid[i : i + 100], self.test.labels[i : i + 100])["loss"] for i in starts]
        return float(torch.stack(losses).mean())

    def _generate(self, generator: LevelAR, tokenizer: ResTok, seed: int, scale: float) -> tuple[Tensor, Tensor]:
        settings = LevelARSettings(guidance_scale=scale)
        labels = torch.arange(self.settings.num_generated) % len(self.train.classes)
        rng = make_rng(seed, "sample")
        parts = [generator.generate(part, settings, rng=rng) for part in labels.split(100)]
        return torch.cat([decode_batches(tokenizer, part) for part in parts]), labels


def sampling_times(*, repeats: int = 7) -> str:
    """Return Markdown: milliseconds to generate a batch by levels and token by token, in turns; random weights cost the same."""
    models = {name: create("har-tiny", **GENERATORS[name][1]).eval() for name in ("levels", "token-by-token")}
    lines = ["| batch | levels (ms) | token by token (ms) | ratio, median of the pairs |", "|---|---|---|---|"]
    settings = LevelARSettings(guidance_scale=GUIDANCE[-1])
    for batch in (1, 16, 100):
        labels = torch.arange(batch) % 10
        rng = torch.Generator().manual_seed(0)
        calls = {
            name: lambda model=model, labels=labels, rng=rng: model.generate(labels, settings, rng=rng)
            for name, model in models.items()
        }
        seconds = take_turns(calls, repeats=repeats, device=torch.device("cpu"))
        levels, tokens = seconds["levels"], seconds["token-by-token"]
        ratio = statistics.median(b / a for a, b in zip(levels, tokens, strict=True))
        medians = [1e3 * statistics.median(times) for times in (levels, tokens)]
        lines.append(f"| {batch} | {medians[0]:.1f} | {medians[1]:.1f} | {ratio:.2f} |")
    steps = ", ".join(f"{name} {model.num_steps}" for name, model in models.items())
    return f"Steps: {steps}.\n\n" + "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    """Run a part of the study and write its tables."""
    torch.set_num_threads(1)
    study = Study(settings)
    if settings.part == "reconstruction":
        result = study.reconstruction()
        names = next(iter(result.values[result.baseline].values()))
        lengths = [int(name[5:]) for name in names if name.startswith("psnr_")]
        text = result.table({f"psnr_{n}": f"PSNR, {n} tokens (dB)" for n in lengths}, digits=2)
        text += "\n" + result.table({f"lpips_{n}": f"LPIPS, {n} tokens" for n in lengths})
        text += "\n" + result.table({f"frechet_{n}": f"Fréchet ({settings.extractor}), {n} tokens" for n in lengths})
        text += "\n" + result.table({"used": "codebook in use", "perplexity": "perplexity"}, digits=2)
    else:
        result = study.generation()
        text = result.table({"test_nats": "held-out nats per token"})
        for scale in GUIDANCE:
            columns = {
                "frechet": f"Fréchet ({settings.extractor})",
                "agreement": "classifier agrees",
                "recall": "recall",
            }
            text += f"\nGuidance {scale}\n\n"
            text += result.table({f"{key}_{scale}": title for key, title in columns.items()})
        text += f"\n{sampling_times()}"
    write_text(Path(settings.out) / f"{settings.part}.md", text)
    print(text)


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
