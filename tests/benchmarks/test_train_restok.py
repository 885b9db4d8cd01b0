from __future__ import annotations

import json

import pytest
import torch

from hiergen.benchmarks.settings import TrainResTokSettings
from hiergen.benchmarks.train_restok import _config, run
from hiergen.registry import get_preset


def test_a_step_of_both_players_is_split_and_held_against_the_peak(monkeypatch) -> None:
    small = {"preset": "restok-tiny", "repeats": 1, "device": "cpu"}
    both = run(TrainResTokSettings(**small, batch=4, perceptual="squeeze", discriminator="patch"))
    json.dumps(both, allow_nan=False)
    assert list(both["split_s"]) == [
        "tokenizer: forward and losses",
        "tokenizer: backward",
        "discriminator: forward and losses",
        "discriminator: backward",
        "clipping, optimizers, average",
    ]
    assert both["mfu"] == pytest.approx(both["flops"] / both["step_s"]["median"] / both["peak_flops_per_s"])
    alone = [run(TrainResTokSettings(**small, batch=batch))["flops"] for batch in (2, 4)]
    # All that is counted is proportional to the batch.
    assert alone[1] == 2 * alone[0]
    assert both["flops"] > alone[1]


@pytest.mark.parametrize("preset", [TrainResTokSettings().preset, "restok-tiny"])
def test_the_data_have_the_size_of_the_model(preset) -> None:
    assert _config(TrainResTokSettings(preset=preset)).data.size == get_preset(preset).config["image_size"]


def test_the_count_agrees_with_a_hand_count_of_the_linear_layers() -> None:
    """Forward, and twice that backward, of every linear layer; what is left are convolutions, attention and the codebook."""
    from hiergen.benchmarks.train_restok import _Step

    step = _Step(TrainResTokSettings(preset="restok-tiny", batch=2, device="cpu"), torch.device("cpu"))
    counted = []

    def count(module: torch.nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        counted.append(3 * 2 * inputs[0].numel() * module.out_features)

    for module in step.task.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    step()
    total = run(TrainResTokSettings(preset="restok-tiny", batch=2, repeats=1, device="cpu"))["flops"]
    assert 0.1 * total < sum(counted) < total


def test_a_step_of_har_is_held_against_plain_operations() -> None:
    found = run(TrainResTokSettings(preset="har-tiny", batch=2, repeats=1, device="cpu"))
    assert list(found["split_s"]) == [
        "generator: forward and losses",
        "generator: backward",
        "clipping, optimizers, average",
    ]
    assert found["times_faster_than_plain"] > 0
    assert found["flops"] > 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="repeats is 0, expected at least 1"):
        TrainResTokSettings(repeats=0)
    with pytest.raises(ValueError, match="batch is 0, expected at least 1"):
        TrainResTokSettings(batch=0)
    with pytest.raises(ValueError, match="is a MaskedAR, expected a ResTok or a LevelAR"):
        run(TrainResTokSettings(preset="mar-tiny"))
