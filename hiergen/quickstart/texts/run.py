"""The text quickstart: Python's help topics -> flat models, blocks and learned chunks at equal compute -> bits per byte, samples, report.

Every training leaves its model in the output folder and is passed over when it is there, so a stopped run continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from hiergen.data.text.config import TextDataConfig
from hiergen.data.text.dataset import TextSet
from hiergen.evaluation.texts.scores import bits_per_byte, count_operations, share_at_words
from hiergen.figures import byte_symbols, save_chunks, save_curves
from hiergen.files import check_writable, write_json, write_text
from hiergen.generators.sequences.base import SequenceModel
from hiergen.generators.sequences.byte_word.words import word_starts
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.generators.sequences.settings import TextSettings
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.quickstart.report import versions
from hiergen.quickstart.settings import TextQuickstartSettings
from hiergen.quickstart.stages import StageTimes
from hiergen.quickstart.texts.report import text_markdown
from hiergen.registry import create, get_preset, model_class
from hiergen.seeding import SampleRng
from hiergen.telling import say_next
from hiergen.training.checkpoints.checkpoint import load_checkpoint
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import FitResult, fit
from hiergen.training.tasks.settings import TextTaskConfig

BATCH_SIZE = 8
#: Peak learning rates: of models whose stages have factors of their own, and of others.
RATES = (1e-3, 2e-3)
#: What the samples are drawn with.
SAMPLING = TextSettings(max_new_bytes=240, temperature=0.8)
PROMPTS = ("The ", "A class ", "If the ")
#: Bytes of the held-out text whose chunks are drawn, and how often while they are learned.
DRAWN, MOMENTS = 360, 6


def run_text_quickstart(settings: TextQuickstartSettings) -> dict[str, Any]:
    """Train all models, score, sample and draw; return the report, which is also written to `report.json` and `report.md`.

    Raises:
        ValueError: If the output folder cannot be written to, or holds a run of other settings.
        RunInterruptedError: When stopped by a signal, after saving.
    """
    out = check_writable(settings.out)
    console = Console(stderr=True)
    times = StageTimes(out / "times.json")
    data = TextDataConfig(length=settings.length)
    train, test = TextSet.open(data), TextSet.open(held_out(settings))
    console.print(
        f"[bold]hiergen quickstart text[/] -> {out}: {train.num_bytes:,} bytes of help topics, {test.num_bytes:,} held out"
    )
    with times.stage("count operations"):
        counted = {name: _operations(name, settings) for name in settings.models}
    models, runs, rows = {}, {}, {}
    for name, samples in equal_samples(settings, counted).items():
        with times.stage(f"train {name}"):
            runs[name] = fit(training_of(settings, name, samples), title=name)
        models[name] = model_class(get_preset(name).model).from_pretrained(runs[name].model_dir).eval()
        with times.stage(f"score {name}"):
            rows[name] = _score(models[name], settings, counted[name], runs[name])
        console.print(f"{name}: {rows[name]['bits_per_byte']:.3f} bits per byte", highlight=False)
    with times.stage("sample"):
        samples_of = {name: _sample(model, settings) for name, model in models.items()}
    with times.stage("draw"):
        words = _draw(out, models, runs, test)
    best = min(rows, key=lambda name: rows[name]["bits_per_byte"])
    report: dict[str, Any] = {
        "what": "Models of bytes on Python's help topics, at equal compute of training",
        "settings": {**vars(settings), "models": list(settings.models)},
        "data": {
            "train_bytes": train.num_bytes,
            "test_bytes": test.num_bytes,
            "test_topics": len(test.documents.names),
        },
        "rows": rows,
        "words": words,
        "samples": samples_of,
        "prompts": list(PROMPTS),
        "sampling": {"temperature": SAMPLING.temperature, "max_new_bytes": SAMPLING.max_new_bytes},
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "models": {name: tokenizer_fingerprint(model) for name, model in models.items()},
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "seconds": {**times.seconds, "total": times.total},
        "summary": f"{best} is best, with {rows[best]['bits_per_byte']:.3f} bits per byte on held-out topics",
    }
    write_json(out / "report.json", report)
    write_text(out / "report.md", text_markdown(report))
    console.print(report["summary"], highlight=False, soft_wrap=True)
    console.print(f"report in {out / 'report.md'}, everything else beside it")
    say_next(f"hiergen demo {runs[best].model_dir}")
    return report


def held_out(settings: TextQuickstartSettings) -> TextDataConfig:
    """Return the held-out texts."""
    return TextDataConfig(split="test", length=settings.length, shifts=False)


def equal_samples(settings: TextQuickstartSettings, counted: Mapping[str, int]) -> dict[str, int]:
    """Return how many rows each model is trained on, whole batches: with them all compute as much as the first."""
    budget = settings.samples_seen * counted[settings.models[0]]
    return {name: max(round(budget / count / BATCH_SIZE), 1) * BATCH_SIZE for name, count in counted.items()}


def training_of(settings: TextQuickstartSettings, preset: str, samples: int) -> TrainConfig:
    """Return the training run of a model."""
    has_chunks = bool(create(preset).rate_multipliers())
    return TrainConfig(
        task=TextTaskConfig(preset=preset, data=TextDataConfig(length=settings.length)),
        out=str(Path(settings.out) / preset),
        samples=samples,
        batch_size=BATCH_SIZE,
        seed=settings.seed,
        optim=OptimConfig(
            lr=RATES[0 if has_chunks else 1], weight_decay=0.1, warmup_samples=samples // 10, final_lr_ratio=0.05
        ),
        ema_decay=None,
        log_every=BATCH_SIZE * 5,
        # Chunks are drawn as they were at each checkpoint.
        checkpoint_every=max(samples // BATCH_SIZE // MOMENTS, 1) * BATCH_SIZE if has_chunks else BATCH_SIZE * 100,
        keep_last=MOMENTS + 1 if has_chunks else 1,
    )


def _operations(preset: str, settings: TextQuickstartSettings) -> int:
    # The same weights every time: they decide how many chunks there are, and so how long the others are trained.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model: SequenceModel = create(preset)
    data = TextSet.open(TextDataConfig(length=settings.length), multiple=model.alignment)
    return count_operations(model, data)


def _score(model: SequenceModel, settings: TextQuickstartSettings, counted: int, run: FitResult) -> dict[str, Any]:
    test = TextSet.open(held_out(settings), multiple=model.alignment)
    return {
        "bits_per_byte": bits_per_byte(model, test),
        "operations_at_start": counted,
        "operations": count_operations(model, test),
        "train_bytes": run.samples_seen * settings.length,
        "log": {name: value for name, value in run.log[-1].items() if name.startswith("compression")},
    }


def _sample(model: SequenceModel, settings: TextQuickstartSettings) -> list[str]:
    """Return the continuation of each prompt, as text; bytes that are none are marked."""
    made = model.generate_text(PROMPTS, SAMPLING, rng=SampleRng.of(range(len(PROMPTS)), settings.seed, "sample"))
    return [text.decode(errors="replace") for text in made]


def _draw(
    out: Path, models: Mapping[str, SequenceModel], runs: Mapping[str, FitResult], test: TextSet
) -> dict[str, Any]:
    """Draw curves and chunks; return how often chunks begin at words, of each model that has chunks."""
    curves = {
        name: (
            [line["samples"] * test.length for line in run.log if "bits_per_byte" in line],
            [line["bits_per_byte"] for line in run.log if "bits_per_byte" in line],
        )
        for name, run in runs.items()
    }
    save_curves(out / "curves.png", {"bits per byte, training text": curves}, x_label="bytes seen")
    text = test.documents.texts[0][:DRAWN]
    ids = torch.tensor([list(text)])
    begins = word_starts(text)
    stages = {"words": [place in set(begins) for place in range(len(text))]}
    found = {}
    for name, model in models.items():
        if isinstance(model, HNet) and model.targets:
            boundaries = model.find_boundaries(ids)
            for stage, marks in enumerate(boundaries):
                stages[name if len(boundaries) == 1 else f"{name} {stage}"] = marks[0].tolist()
            found[name] = share_at_words(model, test)
            history = _boundaries_over_training(name, runs[name], ids)
            save_chunks(
                out / f"chunks_{name}.png", byte_symbols(text), history, title=f"The chunks of {name} as it learned"
            )
    save_chunks(out / "chunks.png", byte_symbols(text), stages, title=f"Held-out topic {test.documents.names[0]!r}")
    return found


def _boundaries_over_training(preset: str, run: FitResult, ids: Tensor) -> dict[str, list[bool]]:
    """Return where the chunks of the outermost stage begin at each checkpoint of a run, by the rows seen."""
    model, found = create(preset).eval(), {}
    for path in sorted((run.model_dir.parent / "checkpoints").glob("samples-*")):
        tensors, state = load_checkpoint(path)
        model.load_state_dict(tensors["model"])
        found[f"{state['samples_seen']:,} rows"] = model.find_boundaries(ids)[0][0].tolist()
    return found
