"""What a training step must not do: wait for the device, rebuild tables, keep distances to all codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hiergen.data.codes import write_codes
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.training import loop
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.tasks.settings import GeneratorTaskConfig, TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, AlignmentConfig, CodebookConfig, PerceptualConfig

#: On a GPU the host waits for the result, or for its size.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "multinomial")
#: What masks and rotary tables are made of.
TABLES = ("cos", "sin", "polar", "tril", "triu", "outer")
SMALL = {"cnn_channels": 8, "encoder_dim": 16, "encoder_depth": 2, "encoder_heads": 2}
SMALL |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "vocab_size": 32, "decoder_features": True}


class Operators(TorchDispatchMode):
    """Records the name of every operator that runs, and the size of its largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names.add(name)
        if name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            self.names.add("nonzero")
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.fixture
def watch_steps(monkeypatch) -> list[Operators]:
    """Record every step of `fit`, and nothing between them: logging and saving may wait."""
    seen: list[Operators] = []
    step = loop._Run._step

    def watched(self: Any, batch: Any) -> Any:
        with Operators() as operators:
            terms = step(self, batch)
        seen.append(operators)
        return terms

    monkeypatch.setattr(loop._Run, "_step", watched)
    return seen


def check(steps: list[Operators]) -> None:
    for operators in steps:
        # Backward and update were seen too.
        assert {"convolution_backward", "mm"} & operators.names
        assert "_fused_adamw_" in operators.names
        assert operators.names.isdisjoint(WAITING), operators.names & set(WAITING)
    # Tables that are made once may be made in the first step.
    for operators in steps[1:]:
        assert operators.names.isdisjoint(TABLES), operators.names & set(TABLES)


def test_a_tokenizers_step_neither_waits_nor_rebuilds_tables(tmp_path, watch_steps) -> None:
    teacher = {"image_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}
    task = TokenizerTaskConfig(
        overrides=SMALL,
        perceptual=PerceptualConfig(network="squeeze", jitter=3, weights="random"),
        adversarial=AdversarialConfig(
            discriminator="blur", options={"dim": 4, "num_stages": 1, "groups": 2}, is_adaptive=True
        ),
        alignment=AlignmentConfig(teacher="mae", weights="random", options=teacher),
        codebook=CodebookConfig(revive_after=8),
    )
    config = TrainConfig(
        task=task, out=str(tmp_path), samples=12, batch_size=4, log_every=4, optim=OptimConfig(warmup_samples=4)
    )
    loop.fit(config, cpu=True)
    assert len(watch_steps) == 3
    check(watch_steps)


def test_a_generators_step_neither_waits_nor_rebuilds_tables(tmp_path, watch_steps) -> None:
    specs = create("har-tiny", depth=1).specs

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        ids = torch.randint(0, 512, (stop - start, 16))
        return [TokenPyramid.split(ids, specs)] * 2, torch.arange(stop - start) % 10

    write_codes(tmp_path / "codes", encode, num_samples=8, classes=[str(k) for k in range(10)], source="random")
    task = GeneratorTaskConfig(overrides={"depth": 1}, codes=str(tmp_path / "codes"))
    loop.fit(TrainConfig(task=task, out=str(tmp_path / "run"), samples=12, batch_size=4), cpu=True)
    assert len(watch_steps) == 3
    check(watch_steps)


def test_the_recorder_sees_what_it_looks_for() -> None:
    x = torch.rand(4)
    with Operators() as operators:
        float(x[0])
        x[x > 0.5]
        x.cos()
    assert {"_local_scalar_dense", "nonzero", "cos"} <= operators.names
    assert operators.largest == 4


def test_distances_to_all_codes_are_neither_kept_nor_made_at_once(monkeypatch) -> None:
    """With the published loss, which has no entropy term: [samples, tokens, vocabulary] never exists."""
    monkeypatch.setattr("hiergen.bottlenecks.vector._SEARCH_CHUNK", 2**13)
    model = create("restok-tiny", **{**SMALL, "vocab_size": 4096, "entropy_weight": 0.0}).train()
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    distances = 16 * 16 * 4096
    saved: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with Operators() as operators, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = model(images)
        sum(output.losses.values()).backward()
    assert max(saved) < distances
    assert operators.largest < distances
    # The same measure notices the term that does need them.
    model.quantizer.entropy_weight = 0.1
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(images)
    assert max(saved) >= distances
