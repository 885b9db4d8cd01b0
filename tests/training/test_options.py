"""What can be switched on in a run: averaging, half precision, recomputed activations, compilation."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
import toy
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from hiergen.registry import create
from hiergen.training import loop, plan
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.loop import RunInterruptedError, fit
from hiergen.training.processes import launch
from hiergen.training.tasks.settings import TokenizerTaskConfig

pytestmark = pytest.mark.usefixtures("own_precision")


HIERATOK = {"encoder_dim": 16, "encoder_depth": 1, "decoder_dim": 16, "decoder_depth": 1, "tail_depth": 0}


def saved(out: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, object]]:
    return load_checkpoint(find_checkpoint(out / "checkpoints"))


def test_the_average_is_ramped_up_as_stated(tmp_path, monkeypatch) -> None:
    """With decay 0.3: 0 at the first update, then 2/11, 3/12, and 0.3 from the fourth on."""
    step, weights = loop._Run._step, []

    def watched(self, batch):
        terms = step(self, batch)
        weights.append(self.task.toy.first.weight.detach().double().clone())
        return terms

    monkeypatch.setattr(loop._Run, "_step", watched)
    fit(toy.toy_run(str(tmp_path), ema_decay=0.3))
    average = torch.zeros_like(weights[0])
    for decay, value in zip([0, 2 / 11, 3 / 12, *[0.3] * 9], weights, strict=True):
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(saved(tmp_path)[0]["ema"]["first.weight"].double(), average)


@pytest.mark.parametrize(
    ("asked", "fast", "given", "said"),
    [
        (
            "auto",
            "the processor, by AMX,",
            "bf16",
            "precision auto: 'bf16', whose products the processor, by AMX, computes fast",
        ),
        ("auto", "", "no", "precision auto: 'no', for this device is not known to compute bfloat16 fast"),
        ("bf16", "", "bf16", "precision is 'bf16', for which this processor has no instructions"),
        ("bf16", "the processor, by AMX,", "bf16", ""),
        ("no", "", "no", ""),
    ],
)
def test_a_precision_fits_the_device_or_is_told_about(asked, fast, given, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("hiergen.training.processes.launch.computes_bfloat16", lambda device: fast)
    accelerator = launch.make_accelerator(toy.toy_run(str(tmp_path), precision=asked), (), cpu=True)
    assert accelerator.mixed_precision == given
    told = capsys.readouterr().err
    assert said in told
    assert bool(said) == ("precision" in told)


def test_bfloat16_is_autocast_and_weights_stay_float32(tmp_path) -> None:
    task = TokenizerTaskConfig(preset="hieratok-tiny", overrides=HIERATOK)
    logs = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        run = toy.toy_run(str(tmp_path / precision), task=task, samples=16, precision=precision)
        logs[precision] = fit(run, cpu=True).log
    for wide, half in zip(logs["no"], logs["bf16"], strict=True):
        assert half["loss"] == pytest.approx(wide["loss"], rel=0.02)
        assert half["loss"] != wide["loss"]
    tensors, state = saved(tmp_path / "bf16")
    assert state["scaler"] is None
    assert all(value.dtype == torch.float32 for value in tensors["tokenizer"].values())


class HalfOnCPU(Accelerator):
    """fp16 with a gradient scaler, which Accelerate offers on GPUs alone; the scale is so large that the first steps overflow."""

    INIT_SCALE = 2.0**19

    def __init__(self, **options: object) -> None:
        super().__init__(**{**options, "mixed_precision": None})
        self.state._mixed_precision, self.native_amp = "fp16", True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=self.INIT_SCALE, growth_interval=3)


def test_a_gradient_scaler_skips_what_overflows_and_is_resumed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(launch, "Accelerator", HalfOnCPU)
    fit(toy.toy_run(str(tmp_path / "whole"), precision="fp16"))
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    # Overflows of both players in one step lower it once; a smaller scale mends them, so they are not counted as bad.
    assert [line["loss_scale"] for line in log[:2]] == [2.0**18, 2.0**17]
    assert saved(tmp_path / "whole")[0]["critic.optimizer"]["0.step"] < 12
    assert "skipped" not in log[-1]
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_agree", lambda self, number: 15 * (self.state.samples_seen == 32))
        with pytest.raises(RunInterruptedError):
            fit(toy.toy_run(str(tmp_path / "parts"), precision="fp16"))
    assert saved(tmp_path / "parts")[1]["scaler"]["scale"] < 2.0**19
    fit(toy.toy_run(str(tmp_path / "parts"), precision="fp16"))
    (whole, whole_state), (parts, parts_state) = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert whole_state["scaler"] == parts_state["scaler"]
    assert all(torch.equal(value, parts[stem][name]) for stem in whole for name, value in whole[stem].items())


def test_a_gradient_scaler_divides_the_gradients_of_every_player_once_and_bad_losses_count(
    tmp_path, monkeypatch
) -> None:
    plain = fit(toy.toy_run(str(tmp_path / "plain"))).log
    monkeypatch.setattr(HalfOnCPU, "INIT_SCALE", 2.0**8)
    monkeypatch.setattr(launch, "Accelerator", HalfOnCPU)
    AcceleratorState._reset_state(reset_partial_state=True)
    half = fit(toy.toy_run(str(tmp_path / "half"), task=toy.ToyConfig(poison=(10,)), precision="fp16")).log
    for name in ("toy/grad_norm", "critic/grad_norm"):
        assert [line[name] for line in half[:10]] == pytest.approx([line[name] for line in plain[:10]], rel=2e-2), name
    assert ["skipped" in line for line in half] == [False] * 10 + [True] * 2
    assert half[-1]["skipped"] == 1


def test_fp16_without_a_gpu_is_refused(tmp_path) -> None:
    with pytest.raises(
        ValueError, match="precision is 'fp16', which needs a GPU for its scaler: on a CPU use 'bf16' or 'no'"
    ):
        fit(toy.toy_run(str(tmp_path), precision="fp16"), cpu=True)


@pytest.mark.parametrize(
    "preset", ["restok-tiny", "hieratok-tiny", "pyramid-vae-tiny", "har-tiny", "mar-tiny", "mar3d-tiny", "flow-tiny"]
)
def test_recomputed_activations_give_the_same_gradients_with_less_memory(preset, monkeypatch) -> None:
    monkeypatch.setattr(plan, "_DRAWS", 1)
    model = create(preset)
    for parameter in model.parameters():
        # Some layers start at zero, behind which nothing would have a gradient.
        nn.init.normal_(parameter, std=0.05)
    # Dropout draws from the global generator.
    torch.manual_seed(0)
    plain = plan.follow_pass(model)
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.enable_gradient_checkpointing()
    torch.manual_seed(0)
    again = plan.follow_pass(model)
    # Of the shape tokenizer 16,384 points go through one layer, outside of the blocks.
    share = 0.98 if preset == "pyramid-vae-tiny" else 0.8
    assert again.activation_bytes < share * plain.activation_bytes
    assert again.flops > plain.flops
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > len(gradients) / 2
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        if gradient is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


def test_a_run_with_recomputed_activations_is_the_same_run(tmp_path) -> None:
    task = TokenizerTaskConfig(preset="hieratok-tiny", overrides=HIERATOK)
    for name, is_on in (("plain", False), ("again", True)):
        config = toy.toy_run(str(tmp_path / name), task=task, samples=16, activation_checkpointing=is_on)
        fit(config, cpu=True)
    plain, again = saved(tmp_path / "plain")[0]["tokenizer"], saved(tmp_path / "again")[0]["tokenizer"]
    assert all(torch.equal(value, again[name]) for name, value in plain.items())


# Dynamo looks at the gradient of what the toy keeps between its players.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_run_gives_the_same_losses(tmp_path, monkeypatch) -> None:
    """Traced, with the graph run as it is: what Inductor makes of it is PyTorch's affair, and would take a compiler."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=backend))
    plain = fit(toy.toy_run(str(tmp_path / "plain"))).log
    compiled = fit(toy.toy_run(str(tmp_path / "compiled"), compile=True, peak_tflops=1.0)).log
    assert graphs
    assert [line["toy/loss"] for line in compiled] == pytest.approx([line["toy/loss"] for line in plain], rel=1e-5)
    assert compiled[-1]["mfu"] > 0
