"""The video quickstart: moving digits or emoji -> tokens -> flow transformer -> clips, with dense and with sparse attention -> report.

Every stage leaves its result in the output folder and is passed over when it is there, so a stopped run continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console

from hiergen.benchmarks.psa import config_of_density, describe_default
from hiergen.data.videos.dataset import MovingThings, from_uint8
from hiergen.data.videos.decoding import require_pyav
from hiergen.data.videos.files import caption_videos, tile_videos, write_gif, write_mp4
from hiergen.figures import log_curves, save_curves, save_image_grid
from hiergen.files import atomic_directory, check_writable
from hiergen.generators.flow.model import FlowTransformer
from hiergen.kernels.pyramid_attention import PSAConfig
from hiergen.pipelines.card import save_whole
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pipelines.video_encoding import encode_videos
from hiergen.quickstart.report import publish
from hiergen.quickstart.settings import MOVING, NUM_DIGITS, VideoQuickstartSettings
from hiergen.quickstart.stages import StageTimes
from hiergen.quickstart.videos.clips import quickstart_clips
from hiergen.quickstart.videos.report import video_markdown
from hiergen.quickstart.videos.samples import Drawn, draw_samples
from hiergen.quickstart.videos.scores import video_scores
from hiergen.registry import create, get_preset
from hiergen.tokenizers.videos.patch_components import PatchComponents
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig

#: Queries and keys of a block: small, because there are 128 tokens.
BLOCKS = (32, 16)


def run_video_quickstart(settings: VideoQuickstartSettings) -> dict[str, Any]:
    """Train, sample, score and draw; return the report, which is also written to `report.json` and `report.md`.

    Raises:
        ValueError: If the output folder cannot be written to, or holds a run of other settings.
        ImportError: If PyAV is not installed.
        RunInterruptedError: When stopped by a signal, after saving.
    """
    # Before the work of training, not after it.
    require_pyav()
    out = check_writable(settings.out)
    console = Console(stderr=True)
    times = StageTimes(out / "times.json")
    with times.stage("make clips"):
        train, test = _clips(settings, "train"), _clips(settings, "test")
    size = " x ".join(map(str, train.videos.shape[2:]))
    console.print(f"[bold]hiergen quickstart video[/] -> {out}: {len(train):,} clips of {size}, {len(test)} held out")
    with times.stage("fit tokenizer"):
        tokenizer = _tokenizer(settings, train)
    with times.stage("encode"):
        encode_videos(tokenizer, train, out / "codes")
    with times.stage("train generator"):
        run = fit(generator_config(settings), title="generator")
    generator = FlowTransformer.from_pretrained(run.model_dir).eval()
    pipeline = ClassToVideoPipeline(tokenizer=tokenizer, generator=generator)
    save_whole(pipeline, out / "pipeline")
    with times.stage("sample"):
        drawn = _sample(pipeline, settings, console)
    with times.stage("score"):
        report = video_scores(settings, tokenizer, drawn, train, test)
    with times.stage("draw"):
        _draw(out, test, drawn)
        save_curves(out / "curves.png", {"generator: velocity error": log_curves(run.log, ["mse"])})
    report["sampling"] = MOVING[settings.data].sampling
    sparse = config_of_density(settings.densities[0], *BLOCKS, "pyramid")
    report["default_attention"] = describe_default(len(generator.position_table()), sparse)
    report["samples_seen"] = run.samples_seen
    dense = report["sets"]["dense"]
    agreed = f"{dense['clips_agree']:.1%} of {dense['count']} clips, attending densely, as the {MOVING[settings.data].thing} asked for"
    report["summary"] = f"a judge ({report['judge']}) reads {agreed}"
    return publish(out, report, video_markdown, pipeline=pipeline, times=times, console=console)


def generator_config(settings: VideoQuickstartSettings) -> TrainConfig:
    """Return the training run of the generator."""
    return TrainConfig(
        task=GeneratorTaskConfig(preset=settings.generator, codes=str(Path(settings.out) / "codes")),
        out=str(Path(settings.out) / "generator"),
        samples=settings.samples_seen,
        batch_size=4,
        seed=settings.seed,
        optim=OptimConfig(
            lr=2e-3, weight_decay=1e-4, warmup_samples=min(800, settings.samples_seen // 10), final_lr_ratio=0.05
        ),
        ema_decay=0.995,
        log_every=400,
        checkpoint_every=4_000,
    )


def attention_kinds(settings: VideoQuickstartSettings) -> dict[str, PSAConfig | None]:
    """Return the attention of each set of samples by name: dense first, then one for each density."""
    sparse = {f"psa-{value:g}": config_of_density(value, *BLOCKS, "pyramid") for value in settings.densities}
    return {"dense": None, **sparse}


def _clips(settings: VideoQuickstartSettings, split: str) -> MovingThings:
    count = settings.num_clips if split == "train" else settings.num_test
    size = get_preset(settings.tokenizer).config["video_size"]
    return quickstart_clips(split, count, size, seed=settings.seed, data=settings.data)


def _tokenizer(settings: VideoQuickstartSettings, train: MovingThings) -> PatchComponents:
    folder = Path(settings.out) / "tokenizer"
    if not folder.is_dir():
        tokenizer: PatchComponents = create(settings.tokenizer)
        tokenizer.fit(from_uint8(train.videos[:200]))
        with atomic_directory(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    return PatchComponents.from_pretrained(folder).eval()


def _sample(pipeline: ClassToVideoPipeline, settings: VideoQuickstartSettings, console: Console) -> dict[str, Drawn]:
    """Return the clips of each kind of attention, from the same noise: class by class in turn."""
    pipeline.set_progress_bar_config(disable=True)
    labels = [number % NUM_DIGITS for number in range(settings.num_generated)]
    drawn = {}
    for name, attention in attention_kinds(settings).items():
        folder = Path(settings.out) / "samples"
        drawn[name] = draw_samples(
            pipeline, attention, labels, folder / name, seed=settings.seed, sampling=MOVING[settings.data].sampling
        )
        console.print(f"{name}: {drawn[name].cpu_seconds / len(labels):.2f} CPU seconds per clip", highlight=False)
    return drawn


def _draw(out: Path, test: MovingThings, drawn: dict[str, Drawn]) -> None:
    names = list(drawn)[:2]
    real = from_uint8(test.videos[:NUM_DIGITS])
    made = [drawn[name].videos[:NUM_DIGITS] for name in names]
    step = max(real.shape[2] // 8, 1)
    # One picture for each clip: its frames side by side.
    strips = [torch.cat(list(F.pad(clips[:, :, ::step], (0, 2)).unbind(2)), dim=-1) for clips in (real, *made)]
    save_image_grid(
        out / "contact_sheet.png",
        list(torch.stack(strips, dim=1)),
        row_labels=list(test.classes),
        column_labels=["real", *names],
        title=f"Every {step}th frame of real clips, and of generated ones by the class asked for (not selected)",
        scale=0.45,
    )
    sheet = tile_videos([real, *made])
    write_gif(out / "samples.gif", sheet, enlarge=2)
    write_mp4(out / "samples.mp4", sheet, enlarge=4)
    titles = ["dense attention", f"pyramid sparse, {drawn[names[1]].density:.0%} of the products"]
    halves = [tile_videos([clips[: len(clips) // 2], clips[len(clips) // 2 :]]) for clips in made]
    write_gif(out / "attention.gif", caption_videos(dict(zip(titles, halves, strict=True)), enlarge=2))
