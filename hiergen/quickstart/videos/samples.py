"""Clips drawn with one kind of attention, kept on disk with what they cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiergen.config import fingerprint, to_json
from hiergen.files import atomic_directory, write_json
from hiergen.generators.flow.model import FlowTransformer
from hiergen.kernels.pyramid_attention import PSAConfig, PyramidPlan
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import make_rng

#: Clips that are drawn at once.
_BATCH = 10


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Generated clips and their cost.

    Attributes:
        videos: Clips `(n, 3, t, h, w)` in [-1, 1].
        labels: Labels that were asked for, `(n,)`, int64.
        density: Mean share of the dense products that was computed; 1 for dense attention.
        cpu_seconds: Processor time of all threads for all clips, decoding included.
    """

    videos: Tensor
    labels: Tensor
    density: float
    cpu_seconds: float


def draw_samples(
    pipeline: ClassToVideoPipeline,
    attention: PSAConfig | None,
    labels: Sequence[int],
    folder: Path,
    *,
    seed: int,
    sampling: dict[str, Any],
) -> Drawn:
    """Return clips by label, drawn now or read from `folder` if they lie there; the noise depends on seed and place alone.

    Args:
        pipeline: A pipeline with a `FlowTransformer`, whose attention is put back afterwards.
        attention: Sparse attention to sample with; None for dense.
        labels: Labels to draw clips of.
        folder: Folder where the clips are kept; those of another model or other settings are drawn again.
        seed: Seed of the noise.
        sampling: Fields of the generator's settings.
    """
    generator = pipeline.generator
    assert isinstance(generator, FlowTransformer)
    key = fingerprint(
        {
            "generator": _weights(generator),
            "attention": to_json(attention),
            "labels": list(labels),
            "seed": seed,
            "sampling": sampling,
        }
    )
    if (folder / "cost.json").is_file() and json.loads((folder / "cost.json").read_text())["key"] == key:
        cost = json.loads((folder / "cost.json").read_text())
        pyramid = TokenPyramid.load(folder / "tokens.safetensors")
    else:
        pyramid, cost = _draw(pipeline, generator, attention, labels, seed, sampling)
        with atomic_directory(folder) as temporary:
            pyramid.save(temporary / "tokens.safetensors")
            write_json(temporary / "cost.json", {"key": key, **cost})
    with torch.no_grad():
        videos = torch.cat([pipeline.tokenizer.decode(pyramid[k : k + _BATCH]) for k in range(0, len(labels), _BATCH)])
    return Drawn(videos.clamp(-1, 1), torch.tensor(labels), cost["density"], cost["cpu_seconds"])


def _draw(
    pipeline: ClassToVideoPipeline,
    generator: FlowTransformer,
    attention: PSAConfig | None,
    labels: Sequence[int],
    seed: int,
    sampling: dict[str, Any],
) -> tuple[TokenPyramid, dict[str, float]]:
    densities: list[float] = []

    def note(plan: PyramidPlan) -> None:
        densities.append(float(plan.density))

    before = generator.config["attention"]
    generator.set_attention(attention, on_plan=note)
    started = time.process_time()
    try:
        parts = [
            pipeline(list(labels[k : k + _BATCH]), generator=make_rng(seed, "sample", k), output_type="pt", **sampling)
            for k in range(0, len(labels), _BATCH)
        ]
    finally:
        generator.set_attention(before)
    seconds = time.process_time() - started
    tokens = torch.cat([part.pyramid.concat() for part in parts])
    density = sum(densities) / len(densities) if densities else 1.0
    return TokenPyramid.split(tokens, generator.specs), {"density": density, "cpu_seconds": seconds}


def _weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
