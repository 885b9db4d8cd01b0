"""Pyramid sparse attention in the small video generator: trained with it from the first step, and put into a model trained without.

    hiergen quickstart-video
    python eval/study_video.py --part training
    python eval/study_video.py --part training-free

"training": the same budget and seeds with dense attention and with PSA; every model is then scored with both. "training-free": the
quickstart's model, trained densely, with PSA and with plain block masks at equal compute, over densities. A stopped study continues.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import hiergen
from hiergen.benchmarks.psa import binary_config, config_of_density
from hiergen.config import parse, to_json
from hiergen.data.videos import from_uint8
from hiergen.figures import save_curves
from hiergen.files import write_json, write_text
from hiergen.generators.flow_sampling import interpolate
from hiergen.generators.flow_transformer import FlowTransformer
from hiergen.kernels.pyramid_attention import PSAConfig, PyramidPlan
from hiergen.metrics.video import compare_videos
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.quickstart.video_clips import quickstart_clips
from hiergen.quickstart.videos import BLOCKS, SAMPLING, VideoQuickstartSettings, generator_config
from hiergen.seeding import make_rng
from hiergen.training.loop import fit
from hiergen.training.study import StudyResult, run_study
from hiergen.training.tasks import GeneratorTaskConfig

#: Where on the way from noise (0) to data (1) velocities are compared.
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Budget and data of the study.

    Attributes:
        run: Folder of a finished `hiergen quickstart-video`: its codes and its pipeline are read.
        out: Folder of all runs and results.
        part: "training" or "training-free".
        seeds: Of every variant that is trained.
        samples: Training samples of each.
        density: Of PSA in training.
        densities: Of PSA in the trained model.
        num_clips: Held-out clips that velocities are compared on.
        num_samples: Clips sampled at each density; 0 compares velocities only.
    """

    run: str = "quickstart-video"
    out: str = "runs/study_video"
    part: Literal["training", "training-free"] = "training"
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 1_000
    density: float = 0.2
    densities: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    num_clips: int = 20
    num_samples: int = 10


class Probe:
    """Held-out clips on their way from noise, the same for every model.

    Args:
        pipeline: Whose tokenizer and classes are meant.
        num_clips: Clips.
    """

    def __init__(self, pipeline: ClassToVideoPipeline, num_clips: int) -> None:
        clips = quickstart_clips("test", num_clips, pipeline.tokenizer.config["video_size"], seed=0)
        with torch.no_grad():
            self.tokens = pipeline.tokenizer.encode(from_uint8(clips.videos)).concat()
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


def train(settings: Settings, pipeline: ClassToVideoPipeline) -> StudyResult:
    """Train every variant with every seed and score it with both kinds of attention."""
    sparse = config_of_density(settings.density, *BLOCKS, "pyramid")
    probe = Probe(pipeline, settings.num_clips)
    attentions: dict[str, PSAConfig | None] = {"dense": None, "psa": sparse}

    def run(name: str, seed: int, folder: Path) -> Mapping[str, float]:
        quick = VideoQuickstartSettings(out=settings.run, samples_seen=settings.samples, seed=seed)
        base = generator_config(quick)
        overrides = {} if attentions[name] is None else {"attention": to_json(attentions[name])}
        assert isinstance(base.task, GeneratorTaskConfig)
        task = dataclasses.replace(base.task, overrides=overrides)
        started = time.process_time()
        result = fit(dataclasses.replace(base, task=task, out=str(folder), log_every=100), title=f"{name}, seed {seed}")
        seconds = time.process_time() - started
        model = FlowTransformer.from_pretrained(result.model_dir).eval()
        return {
            "cpu_seconds": seconds,
            **{f"error_{kind}": probe.error(model, attention) for kind, attention in attentions.items()},
        }

    variants = {name: lambda seed, folder, name=name: run(name, seed, folder) for name in attentions}
    common = {"budget": to_json(dataclasses.replace(settings, run="", out="", seeds=()))}
    return run_study(variants, seeds=settings.seeds, out=Path(settings.out) / "training", settings=common)


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


def put_in(settings: Settings, pipeline: ClassToVideoPipeline) -> list[dict[str, Any]]:
    """Compare the dense model with itself under PSA and under block masks that compute as much."""
    generator = pipeline.generator
    assert isinstance(generator, FlowTransformer)
    probe = Probe(pipeline, settings.num_clips)
    dense, _ = probe.velocities(generator)
    labels = [number % 10 for number in range(settings.num_samples)]
    reference = _sample(pipeline, labels)
    rows = []
    for density in settings.densities:
        pyramid = config_of_density(density, *BLOCKS, "pyramid")
        plans: list[PyramidPlan] = []
        generator.set_attention(pyramid, on_plan=plans.append)
        probe.velocities(generator)
        for kind, config in (("pyramid", pyramid), ("block mask", binary_config(pyramid, plans[0]))):
            used: list[PyramidPlan] = []
            generator.set_attention(config, on_plan=used.append)
            found, _ = probe.velocities(generator)
            row: dict[str, Any] = {
                "kind": kind,
                "density": sum(float(plan.density) for plan in used) / len(used),
                "velocity_error": float((found - dense).norm() / dense.norm()),
                "by_time": [float((a - b).norm() / b.norm()) for a, b in zip(found, dense, strict=True)],
            }
            generator.set_attention(config)
            rows.append(row if reference is None else {**row, **compare_videos(_sample(pipeline, labels), reference)})
            print(rows[-1], file=sys.stderr)
    generator.set_attention(None)
    return rows


def _sample(pipeline: ClassToVideoPipeline, labels: list[int]) -> Any:
    if not labels:
        return None
    return pipeline(labels, generator=make_rng(0, "study"), output_type="pt", **SAMPLING).frames


def training_free_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    has_samples = "psnr_db" in rows[0]
    head = ["attention", "density", "relative error of the velocity", *[f"at t = {value}" for value in TIMES]]
    head += ["PSNR of samples (dB)", "SSIM"] if has_samples else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["kind"], f"{row['density']:.3f}", f"{row['velocity_error']:.4f}"]
        cells += [f"{value:.4f}" for value in row["by_time"]]
        cells += [f"{row['psnr_db']:.2f}", f"{row['ssim']:.3f}"] if has_samples else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    """Run a part of the study and write its tables."""
    torch.set_num_threads(1)
    folder = Path(settings.out)
    pipeline: ClassToVideoPipeline = hiergen.from_pretrained(Path(settings.run) / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    if settings.part == "training":
        result = train(settings, pipeline)
        titles = {
            "error_dense": "held-out error, dense",
            "error_psa": "held-out error, PSA",
            "cpu_seconds": "CPU seconds",
        }
        text = result.table(titles)
        save_curves(folder / "training.png", training_curves(settings))
    else:
        rows = put_in(settings, pipeline)
        write_json(folder / "training-free.json", rows)
        text = training_free_table(rows)
    write_text(folder / f"{settings.part}.md", text)
    print(text)


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
