"""Both stages of TiTok through the task of all tokenizers: proxy codes, then the decoder on pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import hiergen
from hiergen.registry import create
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, ProxyConfig, VAEConfig

CNN: dict[str, Any] = {"cnn_channels": 8, "cnn_multipliers": [1, 1, 1, 1], "cnn_blocks": 1, "cnn_mid_blocks": 1}
CNN |= {"cnn_groups": 4, "z_channels": 4}
SMALL: dict[str, Any] = {"encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2, "decoder_dim": 16}
SMALL |= {"decoder_depth": 1, "decoder_heads": 2, "vocab_size": 16, "output": "proxy", "proxy_vocab_size": 12, **CNN}


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    folder = tmp_path / "teacher"
    create("maskgit-vq-tiny", vocab_size=12, **CNN).save_pretrained(folder)
    return str(folder)


def stage1(teacher: str) -> TokenizerTaskConfig:
    return TokenizerTaskConfig("titok-tiny", SMALL, pixel_weight=0.0, proxy=ProxyConfig(teacher, weight=2.0))


def run(task: TokenizerTaskConfig, out: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"task": task, "out": str(out), "samples": 24, "batch_size": 8, "log_every": 8}
    values |= {"optim": OptimConfig(lr=1e-3), "ema_decay": 0.5}
    return TrainConfig(**{**values, **changes})


def test_the_first_stage_predicts_the_ids_of_the_other_tokenizer(teacher: str) -> None:
    task, target = stage1(teacher).build(), hiergen.from_pretrained(teacher)
    assert torch.equal(task.tokenizer.proxy_codebook, target.quantizer.codebook)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    found = task.losses("tokenizer", {"image": images}, torch.Generator())
    output = task.tokenizer(images)
    logits, ids = output.features["proxy_logits"], target.encode(images).levels[0]
    entropy = F.cross_entropy(logits.transpose(1, 2), ids)
    torch.testing.assert_close(found["proxy"], entropy.detach())
    torch.testing.assert_close(found["proxy_accuracy"], (logits.argmax(-1) == ids).float().mean())
    torch.testing.assert_close(found["loss"], 2 * entropy + output.losses["quantizer"])


def test_the_second_stage_goes_on_from_the_first_and_leaves_the_encoder(teacher: str, tmp_path: Path) -> None:
    fit(run(stage1(teacher), tmp_path / "one"))
    first, target = (hiergen.from_pretrained(path) for path in (str(tmp_path / "one" / "model"), teacher))
    assert all(
        torch.equal(value, first.pixel_decoder.state_dict()[name])
        for name, value in target.pixel_decoder.state_dict().items()
    )
    task = TokenizerTaskConfig(
        "titok-tiny",
        {"output": "proxy_decoded", "freeze_encoder": True},
        adversarial=AdversarialConfig(
            weight=0.01, start_samples=8, discriminator="blur", augment=False, options={"dim": 4, "groups": 2}
        ),
    )
    fit(run(task, tmp_path / "two", init=str(tmp_path / "one")))
    second = hiergen.from_pretrained(str(tmp_path / "two" / "model"))
    changed = {
        name.split(".")[0]
        for name, value in second.state_dict().items()
        if not torch.equal(value, first.state_dict()[name])
    }
    assert changed == {"decoder", "head", "proxy_codebook", "pixel_decoder"}


def test_what_does_not_fit_is_refused(teacher: str, tmp_path: Path) -> None:
    task = stage1(teacher)
    with pytest.raises(ValueError, match="proxy is set for a ResTok, which predicts no proxy codes"):
        dataclasses.replace(task, preset="restok-tiny", overrides={}).build()
    with pytest.raises(ValueError, match="output is 'pixels', expected 'proxy' or 'proxy_decoded'"):
        dataclasses.replace(task, overrides={**SMALL, "output": "pixels"}).build()
    create("titok-tiny", **SMALL).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"proxy.tokenizer is '.*other', a TiTok, expected a MaskGITVQ"):
        dataclasses.replace(task, proxy=ProxyConfig(str(tmp_path / "other"))).build()
    with pytest.raises(ValueError, match="proxy is set beside vae, whose objective has no term of proxy codes"):
        dataclasses.replace(task, vae=VAEConfig())


def test_the_plan_of_the_first_stage_needs_no_other_tokenizer() -> None:
    assert TokenizerTaskConfig("titok-tiny", SMALL, proxy=ProxyConfig("nowhere")).count_parameters()["tokenizer"] > 0
