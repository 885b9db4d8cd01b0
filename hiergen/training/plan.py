"""What training a preset takes, before anything is allocated: memory of one process, arithmetic of one sample, time at an assumed efficiency."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hiergen.data.shapes.config import ShapeBatchConfig
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create, get_preset
from hiergen.training.reporting.throughput import flop_counter
from hiergen.training.tasks.base import count_trained

#: Models that are not trained by gradient.
_FITTED = ("PatchComponents",)
#: Models whose passes differ by a draw, the share of tokens that is hidden: the plan is a mean over so many of them.
_DRAWING, _DRAWS = ("MaskedAR", "MaskedCascade"), 8
_FLOAT = 4


@dataclasses.dataclass(frozen=True)
class Pass:
    """Forward and backward of one sample in float32.

    Attributes:
        flops: Operations of matrix products, attention and convolutions; a multiplication and an addition are two. Custom kernels are not
            counted.
        activation_bytes: Memory kept from the forward for the backward pass, without parameters.
    """

    flops: int
    activation_bytes: int


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """What one process holds under data parallelism (everything whole on each), in bytes; moments and averages are float32.

    Attributes:
        parameters: Number of trained parameters.
        weight_bytes: Memory of all weights and buffers.
        gradient_bytes: Memory of gradients, and with several processes of the buckets in which they are averaged.
        moment_bytes: Memory of AdamW's two moments.
        average_bytes: Memory of the averaged weights.
        step: The pass of one sample.
    """

    parameters: int
    weight_bytes: int
    gradient_bytes: int
    moment_bytes: int
    average_bytes: int
    step: Pass

    @property
    def fixed_bytes(self) -> int:
        """What does not grow with the batch."""
        return self.weight_bytes + self.gradient_bytes + self.moment_bytes + self.average_bytes


def plan_training(preset: str, *, num_gpus: int = 1) -> TrainingPlan:
    """Return what training a preset's model takes on each process; discriminators, teachers and frameworks come on top.

    Args:
        preset: Name of a preset.
        num_gpus: Number of GPUs, with one process per GPU.

    Raises:
        ValueError: If `num_gpus` is less than 1, there is no such preset, or its model is not trained by gradient.
    """
    if num_gpus < 1:
        raise ValueError(f"num_gpus is {num_gpus}, expected at least 1")
    kind = get_preset(preset).model
    if kind in _FITTED:
        raise ValueError(f"{preset!r} is a {kind}, which is fitted and not trained: there is nothing to plan")
    with torch.device("meta"):
        # Tables are made on the CPU wherever the model is.
        model = nn.Module.to(create(preset), "meta")
    trained = count_trained(model)
    return TrainingPlan(
        parameters=trained,
        weight_bytes=sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]),
        gradient_bytes=trained * _FLOAT * (1 if num_gpus == 1 else 2),
        moment_bytes=trained * 2 * _FLOAT,
        average_bytes=sum(p.numel() for p in model.parameters()) * _FLOAT,
        step=follow_pass(model),
    )


def depends_on_data(model: Any) -> bool:
    """Return whether what a pass takes depends on what is read: of models of text, and of those that find their own chunks."""
    return not getattr(model, "specs", True) or type(model).__name__ == "HNet"


def follow_pass(model: Any, *, shapes: ShapeBatchConfig | None = None) -> Pass:
    """Return what one training pass of one sample of a model takes, by running it: on the meta device without memory, or on a real one.

    The mean over some passes where they differ by a draw. A model with sparse attention is followed with dense attention, and left with it.

    Args:
        model: A tokenizer or a generator.
        shapes: Points and queries per sample, for tokenizers of shapes; None takes the defaults.

    Raises:
        ValueError: If it depends on the data (`depends_on_data`).
    """
    if depends_on_data(model):
        raise ValueError(
            f"what a pass of {type(model).__name__} takes depends on what it reads: there is nothing to plan"
        )
    model.train()
    if hasattr(model, "set_attention"):
        model.set_attention(None)
    seeds = range(_DRAWS if type(model).__name__ in _DRAWING else 1)
    passes = [_follow(model, torch.Generator().manual_seed(seed), shapes or ShapeBatchConfig()) for seed in seeds]
    return Pass(
        flops=sum(one.flops for one in passes) // len(passes),
        activation_bytes=sum(one.activation_bytes for one in passes) // len(passes),
    )


def _follow(model: Any, rng: torch.Generator, shapes: ShapeBatchConfig) -> Pass:
    kept: dict[int, Tensor] = {}
    own = {_storage(parameter) for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor
        return tensor

    model.zero_grad(set_to_none=True)
    with _MetaDevice(), flop_counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = _loss(model, rng, shapes)
        loss.backward()
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return Pass(flops=counter.get_total_flops(), activation_bytes=activations)


def _loss(model: Any, rng: torch.Generator, shapes: ShapeBatchConfig) -> Tensor:
    """Return a loss of one sample of zeros, as the model's task would."""
    device = model.device
    if hasattr(model, "generate"):
        levels = tuple(
            torch.zeros(1, spec.num_tokens, dtype=torch.int64, device=device)
            if spec.is_discrete
            else torch.zeros(1, spec.num_tokens, spec.dim, device=device)
            for spec in model.specs
        )
        features = model.config.get("feature_shapes")
        condition: Any = torch.zeros(1, dtype=torch.int64, device=device)
        if features is not None:
            condition = [torch.zeros(1, *shape, device=device) for shape in features]
        # The fine stage of a cascade, by itself.
        low_res = model.config.get("low_res_shape")
        coarse = {} if low_res is None else {"low_res": torch.zeros(1, *low_res, device=device)}
        return model.loss(TokenPyramid(levels, tuple(model.specs)), condition, rng=rng, **coarse)["loss"]
    if "point_counts" in model.config:
        cloud = torch.zeros(1, shapes.num_points, 6, device=device)
        queries = torch.zeros(1, shapes.num_queries, 3, device=device)
        output = model(cloud, rng=rng, points=queries, is_ordered=True)
        rebuilt = list(output.features.values())
    else:
        size = model.config.get("image_size", 256)
        output = model(torch.zeros(1, 3, size, size, device=device), rng=rng)
        # The first stage of TiTok trains what predicts proxy codes, and shows an image without a gradient.
        rebuilt = [output.reconstruction, *(x for name, x in output.features.items() if name == "proxy_logits")]
    return torch.stack([x.square().mean() for x in [*rebuilt, *output.losses.values()]]).sum()


class _MetaDevice(TorchFunctionMode):
    """What a training pass on the meta device needs beside it.

    PyTorch's fused attention: it would choose the formula that keeps all scores. And an answer where a value is read, as checks of
    labels do: 0, which the inputs are made of.
    """

    _READS = (torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__bool__, torch.Tensor.item)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_meta = bool(args) and isinstance(args[0], Tensor) and args[0].device.type == "meta"
        if is_meta and func is F.scaled_dot_product_attention:
            return _fused(*args, **kwargs)
        return 0 if is_meta and func in self._READS else func(*args, **kwargs)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attention(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


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
