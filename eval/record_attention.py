"""Record the queries, keys and values of a trained video generator, for `hiergen bench psa-quality --inputs FILE`.

    python eval/record_attention.py --pipeline quickstart-video/pipeline --out attention.safetensors

One clip is sampled with dense attention; the calls of one step, all layers, become the heads of one file, tokens in Gilbert order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hiergen.config import parse
from hiergen.files import atomic_path
from hiergen.kernels.pyramid_attention import token_order
from hiergen.pipelines.video import ClassToVideoPipeline


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to record.

    Attributes:
        pipeline: Folder of a `ClassToVideoPipeline` whose generator attends densely to all tokens of a clip.
        out: The safetensors file to write.
        label: Class of the clip.
        num_steps: Number of steps of the sampler.
        step: Step that is recorded.
        seed: Seed of the noise.
    """

    pipeline: str = "quickstart-video/pipeline"
    out: Path = Path("attention.safetensors")
    label: int = 3
    num_steps: int = 10
    step: int = 5
    seed: int = 0


class AttentionCalls(TorchFunctionMode):
    """While entered, keeps the inputs of every dense attention call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            self.calls.append(tuple(x.detach() for x in args[:3]))  # type: ignore[arg-type]
        return function(*args, **(kwargs or {}))


def record(settings: Settings) -> dict[str, Tensor]:
    """Return q, k and v of (1, layers · heads, tokens, channels)."""
    pipe = ClassToVideoPipeline.from_pretrained(settings.pipeline)
    grid = pipe.tokenizer.specs[-1].grid
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    calls = AttentionCalls()

    def after_step(_: Any, step: int, timestep: Any, shown: dict[str, Any]) -> dict[str, Any]:
        if step == settings.step:
            kept.extend(calls.calls)
        calls.calls.clear()
        return shown

    with calls:
        pipe(
            settings.label,
            num_steps=settings.num_steps,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(settings.seed),
            callback_on_step_end=after_step,
            output_type="pt",
        )
    order = token_order("gilbert", grid)
    return {
        name: order.apply(torch.cat([call[index][:1] for call in kept], dim=1), dim=2).contiguous()
        for index, name in enumerate("qkv")
    }


def main(settings: Settings) -> None:
    tensors = record(settings)
    with atomic_path(settings.out) as temporary:
        save_file(tensors, temporary)
    print(f"wrote {settings.out}: {tuple(tensors['q'].shape)}")


if __name__ == "__main__":
    main(parse(Settings(), None, prog="record_attention"))
