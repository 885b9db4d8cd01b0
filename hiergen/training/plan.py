"""What training a preset takes, before anything is allocated: memory of one process, arithmetic of one sample, time at an assumed efficiency."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from hiergen.pyramid import TokenPyramid
from hiergen.registry import create, get_preset
from hiergen.training.task import count_trained

#: Models whose training pass can be followed on fake tensors. Tokenizers and MAR read values on the host; LevelAR keeps real tensors.
_FOLLOWED = ("FlowTransformer",)
_FLOAT = 4


@dataclasses.dataclass(frozen=True)
class Pass:
    """Forward and backward of one sample in float32.

    Attributes:
        flops: Of matrix products, attention and convolutions, a multiplication and an addition being two. Custom kernels are not seen.
        activation_bytes: Kept from the forward for the backward pass, parameters excluded.
    """

    flops: int
    activation_bytes: int


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """What one process holds under data parallelism (everything whole on each), in bytes; moments and averages are float32.

    Attributes:
        parameters: Trained numbers.
        weight_bytes: All weights and buffers.
        gradient_bytes: Gradients, and with several processes the buckets in which they are averaged.
        moment_bytes: AdamW's two moments.
        average_bytes: The averaged weights.
        step: One sample's pass; None for models whose pass is not followed.
    """

    parameters: int
    weight_bytes: int
    gradient_bytes: int
    moment_bytes: int
    average_bytes: int
    step: Pass | None

    @property
    def fixed_bytes(self) -> int:
        """What does not grow with the batch."""
        return self.weight_bytes + self.gradient_bytes + self.moment_bytes + self.average_bytes


def plan_training(preset: str, *, num_gpus: int = 1) -> TrainingPlan:
    """Return what training a preset's model takes of each process; discriminators, teachers and frameworks come on top.

    Args:
        preset: Name of a preset.
        num_gpus: Processes, one a GPU.

    Raises:
        ValueError: If `num_gpus` is less than 1, or there is no such preset.
    """
    if num_gpus < 1:
        raise ValueError(f"num_gpus is {num_gpus}, expected at least 1")
    with FakeTensorMode(allow_non_fake_inputs=True):
        is_followed = get_preset(preset).model in _FOLLOWED
        if is_followed:
            model = create(preset)
        else:
            with torch.device("meta"):
                model = create(preset)
        trained = count_trained(model)
        held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
        every = sum(p.numel() for p in model.parameters())
        return TrainingPlan(
            parameters=trained,
            weight_bytes=held,
            gradient_bytes=trained * _FLOAT * (1 if num_gpus == 1 else 2),
            moment_bytes=trained * 2 * _FLOAT,
            average_bytes=every * _FLOAT,
            step=follow_pass(model) if is_followed else None,
        )


def follow_pass(generator: Any) -> Pass:
    """Return what one training pass of one sample of a generator takes, by running it: on fake tensors without memory, or on real ones."""
    levels = tuple(
        torch.zeros(1, spec.num_tokens, dtype=torch.int64)
        if spec.is_discrete
        else torch.zeros(1, spec.num_tokens, spec.dim)
        for spec in generator.specs
    )
    pyramid = TokenPyramid(levels, tuple(generator.specs))
    kept: dict[int, Tensor] = {}
    own = {_storage(parameter) for parameter in generator.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor
        return tensor

    generator.train()
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = generator.loss(pyramid, torch.zeros(1, dtype=torch.int64), rng=torch.Generator())["loss"]
        loss.backward()
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return Pass(flops=counter.get_total_flops(), activation_bytes=activations)


def training_hours(flops: int, samples: int, *, num_gpus: int, peak_tflops: float, mfu: float) -> float:
    """Return the hours that `samples` passes of `flops` take on GPUs of a peak speed, used to the share `mfu` in (0, 1].

    Raises:
        ValueError: If `mfu` is outside (0, 1] or `peak_tflops` is not positive.
    """
    if not 0 < mfu <= 1 or peak_tflops <= 0:
        raise ValueError(f"mfu is {mfu} and peak_tflops is {peak_tflops}, expected mfu in (0, 1] and a positive peak")
    return flops * samples / (num_gpus * peak_tflops * 1e12 * mfu) / 3600


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
