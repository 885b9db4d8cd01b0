"""Pyramid sparse attention in a small video generator: trained with it from the first step, and put into a model trained without.

    python eval/study_video.py --part training
    python eval/study_video.py --part training-free

The clips are those of the video quickstart, cut finer: 512 tokens in place of 128, so that there is something to choose from, and a
narrower model. "training": the same budget and seeds with dense attention and with PSA; every model is then scored with both.
"training-free": a model trained densely for longer, with PSA and with plain block masks at equal compute, over densities. A stopped
study continues.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hiergen.benchmarks.psa import binary_config, config_of_density
from hiergen.config import parse, to_json
from hiergen.data.images.pixels import to_uint8
from hiergen.data.videos.dataset import MovingThings, from_uint8
from hiergen.evaluation.study import Study, StudyResult, StudySettings
from hiergen.figures import save_curves
from hiergen.files import atomic_directory, write_json, write_text
from hiergen.generators.flow.model import FlowTransformer
from hiergen.kernels.pyramid_attention import PSAConfig, PyramidPlan
from hiergen.metrics.clip_classifiers import FrameJudge, digit_clip_extractor
from hiergen.metrics.video import compare_videos, frechet_video_distance
from hiergen.nn.straight_path import interpolate
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pipelines.video_encoding import encode_videos
from hiergen.pyramid import specs_to_json
from hiergen.quickstart.settings import MOVING, VideoQuickstartSettings
from hiergen.quickstart.videos.clips import digit_size, quickstart_clips
from hiergen.quickstart.videos.run import generator_config
from hiergen.quickstart.videos.samples import draw_samples
from hiergen.seeding import make_rng
from hiergen.tokenizers.videos.patch_components import PatchComponents
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig

#: Frames, rows and columns of the quickstart's clips, and of the boxes that they are cut into here: 8 x 8 x 8 tokens.
VIDEO_SIZE = (32, 24, 24)
PATCH_SIZE = (4, 3, 3)
#: Components of a box.
TOKEN_DIM = 10
#: The generator, `flow-video-tiny` in everything else.
SIZES = {"dim": 64, "depth": 3, "num_heads": 2}
#: Queries and keys of a block: 16 and 32 blocks.
BLOCKS = (32, 16)

#: Where on the way from noise (0) to data (1) velocities are compared.
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(StudySettings):
    """Budget and data of the study.

    Attributes:
        part: Part of the study: "training" or "training-free".
        seeds: Seeds of every variant that is trained.
        samples: Number of training samples of each variant.
        density: Density of PSA in training.
        dense_samples: Number of training samples of the dense model that PSA is put into (seed 0).
        densities: Densities of PSA in that model.
        train_clips: Number of training clips.
        num_clips: Number of held-out clips on which velocities are compared.
        num_samples: Number of clips sampled with each attention; 0 compares velocities only.
    """

    out: str = "runs/study_video"
    part: Literal["training", "training-free"] = "training"
    samples: int = 1_500
    density: float = 0.2
    dense_samples: int = 8_000
    densities: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    train_clips: int = 2_000
    num_clips: int = 20
    num_samples: int = 20


class Probe:
    """Held-out clips on their way from noise, the same for every model.

    Args:
        tokenizer: Tokenizer of the clips.
        num_clips: Number of clips.
    """

    def __init__(self, tokenizer: PatchComponents, num_clips: int) -> None:
        clips = quickstart_clips("test", num_clips, VIDEO_SIZE, seed=0)
        with torch.no_grad():
            self.tokens = tokenizer.encode(from_uint8(clips.videos)).concat()
        self.labels = clips.labels
        self.noise = torch.randn(self.tokens.shape, generator=make_rng(0, "probe"))

    @torch.no_grad()
    def velocities(self, generator: FlowTransformer) -> tuple[Tensor, Tensor]:
        """Return the velocities at `TIMES` and what they should be, both (times, b, n, c)."""
        data = generator.standardize(self.tokens)
        found, wanted = [], []
        for moment in TIMES:
            time_of_all = torch.full((len(data),), moment)
            x, target = interpolate(data, self.noise, time_of_all)
            found.append(generator.velocity(x, time_of_all, self.labels))
            wanted.append(target)
        return torch.stack(found), torch.stack(wanted)

    def error(self, generator: FlowTransformer, attention: PSAConfig | None) -> float:
        """Return the mean squared error of the velocity under an attention."""
        before = generator.config["attention"]
        generator.set_attention(attention)
        found, wanted = self.velocities(generator)
        generator.set_attention(before)
        return float((found - wanted).square().mean())


def tokenize(settings: Settings, clips: MovingThings) -> PatchComponents:
    """Return the tokenizer, fitted on the first clips, and leave the codes of all of them in the study's folder."""
    folder = Path(settings.out) / "tokenizer"
    if not folder.is_dir():
        tokenizer = PatchComponents(video_size=VIDEO_SIZE, patch_size=PATCH_SIZE, dim=TOKEN_DIM)
        tokenizer.fit(from_uint8(clips.videos[:200]))
        with atomic_directory(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    tokenizer = PatchComponents.from_pretrained(folder).eval()
    encode_videos(tokenizer, clips, Path(settings.out) / "codes")
    return tokenizer


def train_one(
    settings: Settings, tokenizer: PatchComponents, attention: PSAConfig | None, samples: int, seed: int, folder: Path
) -> FlowTransformer:
    """Return a generator trained with the quickstart's optimizer and schedule."""
    base = generator_config(VideoQuickstartSettings(out=settings.out, samples_seen=samples, seed=seed))
    assert isinstance(base.task, GeneratorTaskConfig)
    overrides: dict[str, Any] = {"level_specs": specs_to_json(tokenizer.specs), **SIZES}
    if attention is not None:
        overrides["attention"] = to_json(attention)
    task = dataclasses.replace(base.task, overrides=overrides)
    run = dataclasses.replace(base, task=task, out=str(folder), log_every=100)
    result = fit(run, title=f"{'dense' if attention is None else 'PSA'}, seed {seed}")
    return FlowTransformer.from_pretrained(result.model_dir).eval()  # type: ignore[no-any-return]


class TrainingStudy(Study[Settings]):
    """Models that are trained with each kind of attention."""

    def common(self) -> dict[str, Any]:
        budget = to_json(dataclasses.replace(self.settings, out="", seeds=()))
        return {"budget": budget, "sizes": SIZES, "patch": PATCH_SIZE}


def train(settings: Settings, tokenizer: PatchComponents) -> StudyResult:
    """Train every variant with every seed and score it with both kinds of attention."""
    probe = Probe(tokenizer, settings.num_clips)
    sparse = config_of_density(settings.density, *BLOCKS, "pyramid")
    attentions: dict[str, PSAConfig | None] = {"dense": None, "psa": sparse}

    def run(name: str, seed: int, folder: Path) -> Mapping[str, float]:
        started = time.process_time()
        model = train_one(settings, tokenizer, attentions[name], settings.samples, seed, folder)
        seconds = time.process_time() - started
        errors = {f"error_{kind}": probe.error(model, attention) for kind, attention in attentions.items()}
        own = errors["error_dense" if name == "dense" else "error_psa"]
        return {"cpu_seconds": seconds, **errors, "error_own": own}

    return TrainingStudy(settings).run("training", run, tuple(attentions))


def training_curves(settings: Settings) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Return the training error of each variant over the samples, the mean of the seeds."""
    curves = {}
    for name in ("dense", "psa"):
        logs = [
            [
                json.loads(line)
                for line in (Path(settings.out) / "training" / name / f"seed-{seed}" / "log.jsonl").open()
            ]
            for seed in settings.seeds
        ]
        rows = list(zip(*logs, strict=True))
        curves[name] = ([row[0]["samples"] for row in rows], [sum(x["mse"] for x in row) / len(row) for row in rows])
    return {f"velocity error in training, mean of {len(settings.seeds)} seeds": curves}


def put_in(settings: Settings, tokenizer: PatchComponents, clips: MovingThings) -> list[dict[str, Any]]:
    """Compare the dense model with itself under PSA and under block masks that compute as much."""
    out = Path(settings.out)
    generator = train_one(settings, tokenizer, None, settings.dense_samples, 0, out / "dense")
    pipeline = ClassToVideoPipeline(tokenizer=tokenizer, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    probe = Probe(tokenizer, settings.num_clips)
    dense, _ = probe.velocities(generator)
    attentions: dict[tuple[str, float], PSAConfig | None] = {("dense", 1.0): None}
    for density in settings.densities:
        pyramid = config_of_density(density, *BLOCKS, "pyramid")
        plans: list[PyramidPlan] = []
        generator.set_attention(pyramid, on_plan=plans.append)
        probe.velocities(generator)
        attentions |= {("pyramid", density): pyramid, ("block mask", density): binary_config(pyramid, plans[0])}
    score = _scorer(settings, pipeline, clips) if settings.num_samples else None
    rows = []
    for (kind, density), config in attentions.items():
        used: list[PyramidPlan] = []
        generator.set_attention(config, on_plan=used.append)
        found, _ = probe.velocities(generator)
        generator.set_attention(None)
        row: dict[str, Any] = {
            "kind": kind,
            "density": sum(float(plan.density) for plan in used) / len(used) if used else 1.0,
            "velocity_error": float((found - dense).norm() / dense.norm()),
            "by_time": [float((a - b).norm() / b.norm()) for a, b in zip(found, dense, strict=True)],
        }
        name = f"{kind.replace(' ', '-')}-{density:g}"
        rows.append(row if score is None else {**row, **score(config, out / "samples" / name)})
        print(rows[-1], file=sys.stderr)
    return rows


def _scorer(
    settings: Settings, pipeline: ClassToVideoPipeline, clips: MovingThings
) -> Callable[[PSAConfig | None, Path], dict[str, float]]:
    """Return what samples under an attention, kept in a folder, and scores the clips: alone, and beside the first ones sampled."""
    labels = [number % 10 for number in range(settings.num_samples)]
    judge, real = FrameJudge(clips.videos, clips.labels), from_uint8(clips.videos)
    extractor = digit_clip_extractor(VIDEO_SIZE[0], VIDEO_SIZE[1], digit_size=digit_size(VIDEO_SIZE[1]), seed=0)
    reference: list[Tensor] = []

    def score(config: PSAConfig | None, folder: Path) -> dict[str, float]:
        made = draw_samples(pipeline, config, labels, folder, seed=0, sampling=MOVING["digits"].sampling)
        by_clip, by_frame = judge.accuracy(to_uint8(made.videos), made.labels)
        scores = {
            "clips_agree": by_clip,
            "frames_agree": by_frame,
            "frechet": frechet_video_distance(made.videos, real, extractor).distance,
            "cpu_seconds_per_clip": made.cpu_seconds / len(labels),
        }
        if not reference:
            reference.append(made.videos)
            return scores
        return {**scores, **compare_videos(made.videos, reference[0])}

    return score


def training_free_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    head = ["attention", "density", "relative error of the velocity", *[f"at t = {value}" for value in TIMES]]
    scores = {
        "clips_agree": ("judge agrees, clips", ".1%"),
        "frames_agree": ("frames", ".1%"),
        "frechet": ("Fréchet", ".2f"),
        "psnr_db": ("PSNR to dense (dB)", ".2f"),
        "ssim": ("SSIM", ".3f"),
        "cpu_seconds_per_clip": ("CPU seconds per clip", ".2f"),
    }
    shown = {name: entry for name, entry in scores.items() if any(name in row for row in rows)}
    head += [title for title, _ in shown.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["kind"], f"{row['density']:.3f}", f"{row['velocity_error']:.3f}"]
        cells += [f"{value:.3f}" for value in row["by_time"]]
        cells += [f"{row[name]:{form}}" if name in row else "" for name, (_, form) in shown.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    """Run a part of the study and write its tables."""
    torch.set_num_threads(1)
    folder = Path(settings.out)
    clips = quickstart_clips("train", settings.train_clips, VIDEO_SIZE, seed=0)
    tokenizer = tokenize(settings, clips)
    if settings.part == "training":
        result = train(settings, tokenizer)
        titles = {
            "error_dense": "held-out error, dense",
            "error_psa": "held-out error, PSA",
            "error_own": "held-out error, own attention",
            "cpu_seconds": "CPU seconds",
        }
        text = result.table(titles)
        save_curves(folder / "training.png", training_curves(settings))
    else:
        rows = put_in(settings, tokenizer, clips)
        write_json(folder / "training-free.json", rows)
        text = training_free_table(rows)
    write_text(folder / f"{settings.part}.md", text)
    print(text)


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
