"""Training on texts: the loss of the model, rates by stage, held-out texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.data.text.config import TextDataConfig
from hiergen.generators.sequences.base import SequenceModel
from hiergen.registry import model_class
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.optim import make_optimizer
from hiergen.training.plan import plan_training
from hiergen.training.run import run_recipe
from hiergen.training.tasks.settings import TextTaskConfig
from hiergen.training.tasks.text import TextTask

HNET: dict[str, Any] = {
    "layout": ["m1", ["T1"], "m1"], "dims": [16, 24], "num_heads": [2, 2], "state_dim": 8, "head_dim": 8,
}  # fmt: skip
BLOCK: dict[str, Any] = {"dim": 32, "depth": 1, "num_heads": 2, "token_dim": 16, "token_depth": 1, "token_heads": 2}
WORDS: dict[str, Any] = {
    "dim": 16, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 32, "byte_dim": 16, "byte_heads": 2,
    "byte_ffn_dim": 32, "encoder_depth": 1, "decoder_depth": 1,
}  # fmt: skip
MODELS = {"hnet-tiny": HNET, "block-tiny": BLOCK, "byte-word-tiny": WORDS}


def run(folder: Path, preset: str, samples: int, **changes: Any) -> TrainConfig:
    task = TextTaskConfig(
        preset=preset,
        overrides=MODELS[preset],
        data=TextDataConfig("descriptions", length=64),
        validation=TextDataConfig("descriptions", split="test", length=64, shifts=False),
    )
    settings: dict[str, Any] = {"batch_size": 8, "log_every": 16, "checkpoint_every": 64, "ema_decay": None, **changes}
    return TrainConfig(task=task, out=str(folder), samples=samples, optim=OptimConfig(lr=3e-3), **settings)


@pytest.mark.parametrize("preset", MODELS)
def test_models_learn_and_tell_of_themselves(preset: str, tmp_path: Path) -> None:
    result = fit(run(tmp_path, preset, 192), title="text")
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    terms = [line for line in log if "bits_per_byte" in line]
    assert terms[-1]["bits_per_byte"] < terms[0]["bits_per_byte"] - 0.5
    assert any("val/bits_per_byte" in line for line in log)
    wanted = {"hnet-tiny": {"ratio", "compression_0"}, "byte-word-tiny": {"symbols_per_word"}}.get(preset, set())
    assert wanted <= set(terms[-1])
    model: SequenceModel = model_class(type(result_model(result)).__name__).from_pretrained(result.model_dir)
    assert isinstance(model.generate_text("The ")[0], bytes)


def result_model(result: Any) -> Any:
    import hiergen

    return hiergen.from_pretrained(str(result.model_dir))


def test_stages_learn_at_rates_of_their_own() -> None:
    task = TextTaskConfig(overrides=HNET, data=TextDataConfig(length=32)).build()
    groups = make_optimizer(task.model, OptimConfig(lr=1.0), multipliers=task.rate_multipliers("model")).param_groups
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {name: rate_of[id(p)] for name, p in task.model.named_parameters()}
    outer, inner = math.sqrt(4.6 * 24 / 16), math.sqrt(4.6 / 6)
    assert {rate for name, rate in found.items() if name.startswith(("stages.0", "head"))} == {outer}
    assert {rate for name, rate in found.items() if name.startswith("stages.1")} == {inner}


def test_rows_of_blocks_are_aligned() -> None:
    task = TextTaskConfig(preset="block-tiny", overrides=BLOCK, data=TextDataConfig(length=32)).build()
    batch = task.dataset.batch([(3, 0), (70, 1)], seed=0)
    assert task.losses("model", batch, torch.Generator())["loss"].isfinite()
    with pytest.raises(ValueError, match="length is 30, expected a multiple of 4"):
        TextTaskConfig(preset="block-tiny", overrides=BLOCK, data=TextDataConfig(length=30)).build()


@pytest.mark.parametrize("preset", ["har-tiny", "block-5m"])
def test_what_is_no_model_of_bytes_is_refused(preset: str) -> None:
    with pytest.raises(ValueError, match=f"preset is '{preset}', a .*, expected a model of text as bytes"):
        TextTask(TextTaskConfig(preset=preset))


def test_a_dry_run_says_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_recipe(run(tmp_path, "hnet-tiny", 64), ["--dry-run"], name="p") is None
    assert "activations and FLOPs of a sample depend on what model reads" in capsys.readouterr().out
    with pytest.raises(ValueError, match="what a pass of BlockTransformer takes depends on what it reads"):
        plan_training("block-tiny")
    assert plan_training("block-tiny-16").step.flops > 16 * 1e6
