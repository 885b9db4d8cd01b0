"""MAR-3D's choices on procedural shapes: the pyramid of points, the number of tokens, the fine stage and its condition augmentation.

    python eval/study_shapes.py --out runs/study_shapes
    python eval/study_shapes.py --out runs/study_shapes --part generation
    python eval/study_shapes.py --out runs/study_shapes_1024 --num-tokens 256 1024 --chosen pyramid --tokenizer-samples 4000

A stopped study continues. The variants differ in what `TOKENIZERS` and `CASCADES` say and in nothing else; no setting was tuned for one of
them. The paper's 256 and 1024 tokens became 8 and 32, a size that a CPU trains in numbers: the same ratio; `--num-tokens` takes others.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from hiergen.config import parse
from hiergen.data.shapes.building import PROCEDURAL, PrepareShapesSettings
from hiergen.data.shapes.dataset import (
    TEST_OFFSET,
    ShapeBatchConfig,
    ShapeDataConfig,
    ShapeDataset,
    open_shapes,
    procedural_records,
)
from hiergen.data.shapes.preparation import prepare_shapes
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES, procedural_shape
from hiergen.data.shapes.views import ViewSettings
from hiergen.evaluation.study import Study, StudyResult, StudySettings
from hiergen.files import write_text
from hiergen.generators.masked.cascade import MaskedCascade, MaskedCascadeSettings
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.surface_sampling import SamplingSettings
from hiergen.metrics.geometry import ShapeSetProtocol
from hiergen.metrics.shape_sets import compare_shape_sets
from hiergen.pipelines.shape import decode_meshes
from hiergen.pipelines.shape_encoding import encode_clouds, encode_shapes
from hiergen.pyramid import TokenPyramid
from hiergen.quickstart.shapes.scores import class_agreement, draw_contact_sheet, reconstruction_scores
from hiergen.seeding import make_rng
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import ShapeGeneratorTaskConfig, ShapeTokenizerTaskConfig

if TYPE_CHECKING:
    import trimesh

#: What all tokenizers have in common beside their numbers of tokens: `pyramid-vae-tiny`, all of its levels trained in every step.
MODEL: dict[str, Any] = {"token_dim": 8, "num_frequencies": 6}
#: What each changes: the preset reads 1024, 256 and 64 points of a cloud, a cross-attention each; the others all 1024, as released, the
#: last with two more blocks in the encoder, which make up for the parameters of the two cross-attentions.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "pyramid": {},
    "single": {"point_counts": None},
    "single-deeper": {"point_counts": None, "encoder_depth": 4},
}
#: What each fine stage changes; all of a seed start from one coarse stage and continue the same coarse tokens.
CASCADES: dict[str, dict[str, Any]] = {
    "fine": {"low_res_noise": [0.0, 0.0]},
    "fine-augmented": {"low_res_noise": [0.4, 0.6]},
}
#: Share of noise in the coarse tokens while generating: the middle of what was trained.
NOISE = {"fine": 0.0, "fine-augmented": 0.5}
#: Training samples of a coarse stage alone, as a multiple of `stage_samples`; the first is the one that fine stages start from.
COARSE = {"coarse": 1, "coarse-longer": 2}
#: How all of them sample.
SAMPLING: dict[str, Any] = {
    "num_steps": 16,
    "guidance_scale": 2.0,
    "guidance_schedule": "constant",
    "head_sampler": "ddpm",
    "head_steps": 50,
    "head_spacing": "leading",
}
POINTS = SamplingSettings(num_surface=4096, num_volume=8192, num_near=4096, near_sigmas=(0.02, 0.05), num_farthest=0)
NUM_POINTS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(StudySettings):
    """Budget and data of the study.

    Attributes:
        part: Part of the study: "reconstruction" (all tokenizers) or "generation" (after it, on the tokens of the first one).
        chosen: Names of the tokenizers to compare in the part "reconstruction", of `TOKENIZERS`; the first is the baseline.
        num_tokens: Numbers of tokens of the coarse and of the fine level.
        num_shapes: Number of training shapes.
        num_test: Number of held-out shapes, and of shapes in every generated set.
        tokenizer_samples: Number of training samples of a tokenizer.
        stage_samples: Number of training samples of each stage of a cascade.
        depth: Meshes come from a grid of `2 ** depth + 1` nodes along each axis, all of them evaluated.
    """

    out: str = "runs/study_shapes"
    part: Literal["reconstruction", "generation"] = "reconstruction"
    chosen: tuple[str, ...] = tuple(TOKENIZERS)
    num_tokens: tuple[int, int] = (8, 32)
    num_shapes: int = 512
    num_test: int = 40
    tokenizer_samples: int = 5_000
    stage_samples: int = 6_000
    depth: int = 5

    def __post_init__(self) -> None:
        unknown = set(self.chosen) - set(TOKENIZERS)
        if unknown or not self.chosen:
            raise ValueError(
                f"chosen holds {', '.join(sorted(unknown)) or 'nothing'}, expected of {', '.join(TOKENIZERS)}"
            )


class ShapeStudy(Study[Settings]):
    """The runs, and what they share: prepared shapes, and the meshes that results are compared with."""

    FREE = ("out", "part", "seeds", "chosen")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.extraction = ExtractionSettings(depth=settings.depth, coarse_depth=settings.depth)
        prepare_shapes(
            PrepareShapesSettings(
                source=PROCEDURAL,
                out=str(self.out / "shapes"),
                count=settings.num_shapes,
                sampling=POINTS,
                views=ViewSettings(num_views=0),
                num_workers=1,
            )
        )
        self.test = _meshes(TEST_OFFSET, settings.num_test)
        self.judges = _meshes(0, 8 * len(PROCEDURAL_CLASSES))

    def common(self) -> dict[str, Any]:
        return {**super().common(), "model": MODEL}

    def reconstruction(self) -> StudyResult:
        """Train and score the tokenizers."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            tokenizer = self.tokenizer(variant, seed)
            found = {}
            for level, meshes in self.rebuild(tokenizer, TEST_OFFSET, self.settings.num_test).items():
                scores = reconstruction_scores(meshes, self.test, seed=0)
                found[f"iou_{level}"] = scores["iou"]
                # Without any surface there is no distance; the study then refuses the run.
                found[f"chamfer_{level}"] = math.nan if scores["chamfer"] is None else scores["chamfer"]
                found |= {f"f{threshold}_{level}": value for threshold, value in scores["f_scores"].items()}
            coarse, fine = self.settings.num_tokens
            gains = {name: found[f"{name}_{fine}"] - found[f"{name}_{coarse}"] for name in ("iou", "chamfer", "f0.05")}
            return {**found, **{f"gain_{name}": value for name, value in gains.items()}}

        chosen = {name: TOKENIZERS[name] for name in self.settings.chosen}
        return self.run("reconstruction", run, self.settings.chosen, chosen)

    def generation(self) -> StudyResult:
        """Train and score the stages, beside rebuilt and real training shapes: what the tokenizer allows, and what there is to reach."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            if variant == "real":
                meshes = _meshes(*self._others)
            elif variant in rebuilt:
                levels = self.rebuild(self.tokenizer(next(iter(TOKENIZERS)), seed), *self._others)
                meshes = levels[rebuilt[variant]]
            else:
                meshes = self.decode(seed, self.generate(variant, seed))
            return self._set_scores(meshes, seed)

        rebuilt = {f"rebuilt-{count}": count for count in self.settings.num_tokens}
        names = ("coarse", *CASCADES, "coarse-longer", *rebuilt, "real")
        own = {**COARSE, **{name: {**change, "noise": NOISE[name]} for name, change in CASCADES.items()}}
        return self.run(
            "generation", run, names, {name: own.get(name, name) for name in names} | {"sampling": SAMPLING}
        )

    def tokenizer(self, variant: str, seed: int) -> PyramidVAE:
        """Return a tokenizer, trained unless it was."""
        config = TrainConfig(
            task=ShapeTokenizerTaskConfig(
                preset="pyramid-vae-tiny",
                overrides={"num_tokens": list(self.settings.num_tokens), **MODEL, **TOKENIZERS[variant]},
                data=ShapeDataConfig(source=str(self.out / "shapes"), split="all", batch=_batch()),
                near_weight=0.5,
            ),
            out=str(self.out / "reconstruction" / variant / f"seed-{seed}" / "tokenizer"),
            samples=self.settings.tokenizer_samples,
            batch_size=8,
            seed=seed,
            optim=OptimConfig(lr=2e-3, betas=(0.9, 0.98), warmup_samples=800, final_lr_ratio=0.02),
            ema_decay=0.99,
            log_every=1_000,
        )
        model = fit(config, title=f"{variant}, seed {seed}").model_dir
        return cast(PyramidVAE, PyramidVAE.from_pretrained(model).eval())

    def rebuild(self, tokenizer: PyramidVAE, first: int, count: int) -> dict[int, list["trimesh.Trimesh"]]:
        """Return the meshes of procedural shapes `first` to `first + count` from each level, by its number of tokens."""
        records = procedural_records(count, offset=first, sampling=POINTS)
        shapes = ShapeDataset(records, _batch(), classes=PROCEDURAL_CLASSES)
        pyramid = encode_clouds(tokenizer, shapes, range(count))
        return {
            spec.num_tokens: decode_meshes(tokenizer, pyramid.prefix(k + 1), self.extraction)
            for k, spec in enumerate(pyramid.specs)
        }

    def cascade(self, variant: str, seed: int) -> MaskedCascade:
        """Return a cascade of which the stage of the variant, and the coarse one, are trained."""
        root = self.out / "generation"
        codes, samples, start = root / "codes" / f"seed-{seed}", self.settings.stage_samples, None
        if not (codes / "index.json").is_file():
            shapes = open_shapes(ShapeDataConfig(source=str(self.out / "shapes"), split="all", batch=_batch()))
            encode_shapes(self.tokenizer(next(iter(TOKENIZERS)), seed), shapes, codes, num_variants=2, seed=seed)
        if variant in CASCADES:
            self.cascade("coarse", seed)
            start = str(root / "coarse" / f"seed-{seed}" / "generator" / "model")
        config = TrainConfig(
            task=ShapeGeneratorTaskConfig(
                preset="mar3d-tiny",
                overrides=CASCADES.get(variant, {}),
                codes=str(codes),
                stages="high" if variant in CASCADES else "low",
                start=start,
            ),
            out=str(root / variant / f"seed-{seed}" / "generator"),
            samples=samples * COARSE.get(variant, 1),
            batch_size=32,
            seed=seed,
            optim=OptimConfig(lr=1e-3, weight_decay=0.02, warmup_samples=1_000, final_lr_ratio=0.05),
            ema_decay=0.99,
            log_every=1_000,
        )
        model = fit(config, title=f"{variant}, seed {seed}").model_dir
        return cast(MaskedCascade, MaskedCascade.from_pretrained(model).eval())

    def generate(self, variant: str, seed: int) -> TokenPyramid:
        """Return the tokens of a set of shapes, the same number of each class."""
        cascade = self.cascade(variant, seed)
        settings = MaskedCascadeSettings(**SAMPLING, low_res_noise=NOISE.get(variant, 0.5))
        labels = torch.arange(self.settings.num_test) % len(PROCEDURAL_CLASSES)
        rng = make_rng(seed, "sample")
        if variant in CASCADES:
            return cascade.generate(labels, settings, rng=rng)
        # A cascade's coarse stage draws first, so that these are the coarse tokens of the fine stages.
        return cascade.low.generate(labels, settings.stage(0), rng=rng)

    def decode(self, seed: int, pyramid: TokenPyramid) -> list["trimesh.Trimesh"]:
        """Return the meshes of generated tokens."""
        return decode_meshes(self.tokenizer(next(iter(TOKENIZERS)), seed), pyramid, self.extraction)

    @property
    def _others(self) -> tuple[int, int]:
        # Training shapes that the judge of classes does not know.
        return len(self.judges), self.settings.num_test

    def _set_scores(self, meshes: Sequence["trimesh.Trimesh"], seed: int) -> dict[str, float]:
        protocol = ShapeSetProtocol(num_points=1024, normalize=False, seed=seed)
        usable = [mesh for mesh in meshes if len(mesh.faces)]
        scores = compare_shape_sets(usable, self.test, protocol)
        return {
            "coverage": scores.coverage,
            "mmd": scores.matching_distance,
            "1-nna": scores.nearest_neighbor_accuracy,
            "agreement": class_agreement(meshes, self.judges, protocol),
            "without_surface": 1 - len(usable) / len(meshes),
        }


def draw(study: ShapeStudy, part: str) -> None:
    """Write a picture of the first seed: one held-out shape of each class, rebuilt; or the first generated shape of each class."""
    seed, count = study.settings.seeds[0], len(PROCEDURAL_CLASSES)
    rows: dict[str, Sequence[trimesh.Trimesh]] = {}
    if part == "reconstruction":
        rows["input"] = study.test[:count]
        for variant in study.settings.chosen:
            for tokens, meshes in study.rebuild(study.tokenizer(variant, seed), TEST_OFFSET, count).items():
                rows[f"{variant}, {tokens} tokens"] = meshes
        title = "Held-out shapes, rebuilt"
    else:
        for variant in ("coarse", *CASCADES):
            rows[variant] = study.decode(seed, study.generate(variant, seed)[:count])
        title = "Generated by class, not selected: the coarse stage, and two fine stages that continue its tokens"
    draw_contact_sheet(study.out / f"{part}.png", rows, column_labels=PROCEDURAL_CLASSES, title=title)


def table(result: StudyResult, part: str, num_tokens: tuple[int, int]) -> str:
    """Return the result as Markdown."""
    if part == "generation":
        titles = {"coverage": "coverage", "mmd": "MMD", "1-nna": "1-NNA", "agreement": "class agrees"}
        return result.table({**titles, "without_surface": "without surface"})
    text = ""
    for tokens in num_tokens:
        columns = {"iou": "IoU", "chamfer": "Chamfer", "f0.02": "F@0.02", "f0.05": "F@0.05"}
        text += result.table({f"{key}_{tokens}": f"{title}, {tokens} tokens" for key, title in columns.items()}) + "\n"
    gains = {"gain_iou": "IoU", "gain_chamfer": "Chamfer", "gain_f0.05": "F@0.05"}
    coarse, fine = num_tokens
    return text + result.table({key: f"{title}, {fine} less {coarse} tokens" for key, title in gains.items()}, digits=4)


def main(settings: Settings) -> None:
    """Run a part of the study, write its table and its picture."""
    torch.set_num_threads(1)
    study = ShapeStudy(settings)
    result = study.reconstruction() if settings.part == "reconstruction" else study.generation()
    text = table(result, settings.part, settings.num_tokens)
    write_text(study.out / f"{settings.part}.md", text)
    print(text)
    draw(study, settings.part)


def _batch() -> ShapeBatchConfig:
    return ShapeBatchConfig(num_points=NUM_POINTS, num_ordered=NUM_POINTS // 4, num_queries=256, near_fraction=0.5)


def _meshes(first: int, count: int) -> list["trimesh.Trimesh"]:
    return [procedural_shape(first + number, seed=0).to_mesh() for number in range(count)]


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
