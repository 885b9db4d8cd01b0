"""What `hiergen bench scaling` makes larger: kinds of work, each as a function from a size to a call that does it.

Models have random weights and small widths, so that attention and what else grows faster than the work is seen early.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiergen.benchmarks.measuring.attention_inputs import structured_heads
from hiergen.benchmarks.measuring.timing import random_model
from hiergen.benchmarks.psa import config_of_density, video_grid
from hiergen.data.files.content import Span, content_digest
from hiergen.data.videos.moving_digits import moving_digits
from hiergen.generators.flow.sampling import FlowSettings
from hiergen.generators.level_ar.presets import doubling_specs
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.surface_extraction import extract_mesh
from hiergen.kernels.pyramid_attention import make_plan, pyramid_sparse_attention
from hiergen.levels import specs_to_json, square_specs
from hiergen.metrics.frechet import Moments
from hiergen.metrics.geometry import chamfer_distance
from hiergen.metrics.video import compare_videos
from hiergen.nn.farthest_points import farthest_points
from hiergen.pyramid import TokenPyramid
from hiergen.registry import get_preset

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Growth:
    """Work of growing size.

    Attributes:
        what: What is done.
        grows: What the sizes count.
        make: Function of a size, a seed and a device that returns the call.
        sizes: Sizes, ascending.
        quick: Sizes for a look.
        bound: Exponent of time that must be expected, and why where it is above 1.
        most: The largest exponent of time, between the two largest sizes, that is no defect.
    """

    what: str
    grows: str
    make: Callable[[int, int, torch.device], Call]
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    bound: str = "1"
    most: float = 1.2


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _model(preset: str, seed: int, device: torch.device, **overrides: Any) -> Any:
    return nn.Module.to(random_model(preset, get_preset(preset).model, seed=seed, **overrides), device)


def _without_gradients(call: Call) -> Call:
    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


def _generate(model: Any, batch: int, seed: int, settings: Any = None) -> Call:
    labels = torch.zeros(batch, dtype=torch.int64, device=model.device)
    return lambda: model.generate(labels, settings, rng=torch.Generator(model.device).manual_seed(seed))


def har_tokens(size: int, seed: int, device: torch.device) -> Call:
    specs = specs_to_json(doubling_specs(size, dim=8, vocab_size=512))
    return _generate(_model("har-tiny", seed, device, level_specs=specs), 4, seed)


def har_batch(size: int, seed: int, device: torch.device) -> Call:
    return _generate(_model("har-tiny", seed, device), size, seed)


def har_training(size: int, seed: int, device: torch.device) -> Call:
    model = _model("har-tiny", seed, device).train()
    ids = torch.randint(512, (size, sum(spec.num_tokens for spec in model.specs)), generator=_rng(seed)).to(device)
    pyramid, labels = TokenPyramid.split(ids, model.specs), torch.zeros(size, dtype=torch.int64, device=device)
    return lambda: model.loss(pyramid, labels)["loss"].backward()


def var_tokens(size: int, seed: int, device: torch.device) -> Call:
    sides = {size: count for count in range(1, 33) for size in [sum(side**2 for side in range(1, count + 1))]}[size]
    specs = specs_to_json(square_specs(tuple(range(1, sides + 1)), dim=8, vocab_size=512))
    return _generate(_model("var-tiny", seed, device, level_specs=specs), 2, seed)


def flow_frames(size: int, seed: int, device: torch.device) -> Call:
    spec = [{"num_tokens": 16 * size, "grid": [size, 4, 4], "dim": 24}]
    model = _model("flow-video-tiny", seed, device, level_specs=spec)
    return _generate(model, 1, seed, FlowSettings(num_steps=2, guidance_scale=1.0))


def _images(batch: int, side: int, seed: int, device: torch.device) -> Tensor:
    return (torch.rand(batch, 3, side, side, generator=_rng(seed)) * 2 - 1).to(device)


def restok_pixels(size: int, seed: int, device: torch.device) -> Call:
    side = round(size**0.5)
    model, images = _model("restok-tiny", seed, device, image_size=side), _images(1, side, seed, device)
    return _without_gradients(lambda: model.encode(images))


def restok_batch(size: int, seed: int, device: torch.device) -> Call:
    model, images = _model("restok-tiny", seed, device), _images(size, 32, seed, device)
    return _without_gradients(lambda: model.decode(model.encode(images)))


def restok_levels(size: int, seed: int, device: torch.device) -> Call:
    model = _model("restok-tiny", seed, device, num_latent_tokens=256)
    with torch.no_grad():
        pyramid = model.encode(_images(4, 32, seed, device)).prefix(size)
    return _without_gradients(lambda: model.decode(pyramid))


def kl_pixels(size: int, seed: int, device: torch.device) -> Call:
    side = round(size**0.5)
    model, images = _model("kl-16", seed, device, image_size=side), _images(1, side, seed, device)
    return _without_gradients(lambda: model.encode(images))


def _heads(size: int, seed: int, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(x.to(device) for x in structured_heads(video_grid(size), heads=1, dim=64, rng=_rng(seed)))


def dense_tokens(size: int, seed: int, device: torch.device) -> Call:
    q, k, v = _heads(size, seed, device)
    return lambda: nn.functional.scaled_dot_product_attention(q, k, v)


def pyramid_tokens(size: int, seed: int, device: torch.device) -> Call:
    q, k, v = _heads(size, seed, device)
    config = config_of_density(0.15, 128, 64, "pyramid")
    backend = "gather" if device.type == "cpu" else "auto"
    return lambda: pyramid_sparse_attention(q, k, v, config=config, backend=backend)


def planning_tokens(size: int, seed: int, device: torch.device) -> Call:
    q, k, _ = _heads(size, seed, device)
    return lambda: make_plan(q, k, config_of_density(0.15, 128, 64, "pyramid"))


def vae_points(size: int, seed: int, device: torch.device) -> Call:
    model = _model("pyramid-vae-tiny", seed, device, point_counts=[size, 256, 64])
    points = torch.randn(1, size, 6, generator=_rng(seed)).clamp(-1, 1).to(device)
    return _without_gradients(lambda: model.encode(points))


def vae_queries(size: int, seed: int, device: torch.device) -> Call:
    model = _model("pyramid-vae-tiny", seed, device)
    spec = model.specs[-1]
    tokens = torch.randn(1, spec.num_tokens, spec.dim, generator=_rng(seed)).to(device)
    points = torch.rand(size, 3, generator=_rng(seed)).to(device)
    with torch.no_grad():
        shape = model.decode(TokenPyramid((tokens,), (spec,))).shape(0)
    return _without_gradients(lambda: [shape(part) for part in points.split(32_768)])


def mesh_nodes(size: int, seed: int, device: torch.device) -> Call:
    settings = ExtractionSettings(depth=(size - 1).bit_length())
    return lambda: extract_mesh(lambda points: 0.8 - points.norm(dim=-1), settings, device=device)


def farthest(size: int, seed: int, device: torch.device) -> Call:
    points = torch.rand(1, size, 3, generator=_rng(seed)).to(device)
    return lambda: farthest_points(points, 256)


def chamfer_points(size: int, seed: int, device: torch.device) -> Call:
    first, second = np.random.default_rng(seed).random((2, size, 3))
    return lambda: chamfer_distance(first, second)


def moments_images(size: int, seed: int, device: torch.device) -> Call:
    features = torch.randn(size, 256, generator=_rng(seed)).to(device)
    return lambda: Moments.of(features)


def clips_made(size: int, seed: int, device: torch.device) -> Call:
    return lambda: moving_digits("train", size, num_frames=8, seed=seed)


def clips_compared(size: int, seed: int, device: torch.device) -> Call:
    first, second = (torch.rand(2, size, 3, 8, 32, 32, generator=_rng(seed)) * 2 - 1).to(device).unbind(0)
    return lambda: compare_videos(first, second)


def files_digested(size: int, seed: int, device: torch.device) -> Call:
    folder = Path(tempfile.mkdtemp())
    spans = []
    for index in range(size):
        path = folder / f"{index}.bin"
        path.write_bytes(index.to_bytes(4, "little") * 4096)
        spans.append(Span(path))

    def call() -> str:
        return content_digest(spans)

    weakref.finalize(call, shutil.rmtree, folder)
    return call


_QUADRATIC = "up to 2: attention over all of them"

#: What is measured, by name.
GROWTHS: dict[str, Growth] = {
    "har": Growth("HAR, 4 samples", "tokens", har_tokens, (32, 64, 128, 256, 512, 1024), (16, 32, 64), _QUADRATIC, 2.1),
    "har-batch": Growth("HAR, 16 tokens", "samples", har_batch, (2, 4, 8, 16, 32, 64), (1, 2, 4)),
    "har-training": Growth(
        "HAR, 16 tokens: loss and gradients", "samples", har_training, (4, 8, 16, 32, 64, 128), (2, 4, 8)
    ),
    "var": Growth(
        "VAR, levels of side 1, 2, 3, ..., 2 samples", "tokens", var_tokens, (55, 140, 285, 506, 819, 1240), (14, 30, 55),
        "up to 2: attention over all levels so far", 2.1,
    ),
    "flow-video": Growth(
        "flow on video, dense attention, 2 steps", "frames of 16 tokens", flow_frames, (8, 16, 32, 64, 128), (4, 8, 16),
        _QUADRATIC, 2.1,
    ),
    "restok-image": Growth(
        "ResTok encodes an image", "pixels", restok_pixels, (64**2, 96**2, 128**2, 192**2, 256**2), (32**2, 64**2, 96**2),
        "up to 2: attention over the image's tokens", 2.1,
    ),
    "restok-batch": Growth("ResTok encodes and decodes, 32 x 32", "images", restok_batch, (2, 4, 8, 16, 32), (1, 2, 4)),
    "restok-levels": Growth(
        "ResTok decodes a prefix of levels, 4 images, 256 tokens in all", "levels", restok_levels, (5, 6, 7, 8, 9), (3, 4, 5),
        "any: the tokens double with each level", 8.0,
    ),
    "kl-image": Growth(
        "KL-16 encodes an image", "pixels", kl_pixels, (64**2, 96**2, 128**2, 192**2), (32**2, 48**2, 64**2),
        "up to 2: attention over 1/256 of the pixels", 1.3,
    ),
    "dense": Growth(
        "dense attention, one head", "tokens", dense_tokens, (1024, 2048, 4096, 8192, 16384), (512, 1024, 2048), "2", 2.2
    ),
    "pyramid": Growth(
        "pyramid attention at density 0.15, one head", "tokens", pyramid_tokens, (1024, 2048, 4096, 8192, 16384),
        (512, 1024, 2048), "2: a share of all pairs", 2.2,
    ),
    "planning": Growth(
        "planning of pyramid attention, one head", "tokens", planning_tokens, (1024, 2048, 4096, 8192, 16384), (512, 1024, 2048),
        "2: 1/64 of all pairs", 2.2,
    ),
    "vae-points": Growth(
        "the pyramid VAE encodes a cloud", "points", vae_points, (1024, 2048, 4096, 8192, 16384), (512, 1024, 2048)
    ),
    "vae-queries": Growth(
        "the pyramid VAE answers queries", "queries", vae_queries, (8192, 32768, 131072, 524288), (4096, 8192, 16384)
    ),
    "mesh": Growth(
        "a sphere's surface is extracted", "nodes per axis", mesh_nodes, (65, 129, 257, 513), (33, 65, 129),
        "2 for the surface, 3 for the grid", 3.1,
    ),
    "farthest-points": Growth("256 farthest points", "points", farthest, (8192, 16384, 32768, 65536), (2048, 4096, 8192)),
    "chamfer": Growth(
        "Chamfer distance", "points", chamfer_points, (4096, 16384, 65536, 262144), (1024, 4096, 16384), "1, and a logarithm", 1.3
    ),
    "moments": Growth("moments of 256 features", "images", moments_images, (4096, 16384, 65536), (1024, 4096, 16384)),
    "clips": Growth("clips of moving digits are drawn", "clips", clips_made, (32, 64, 128, 256), (8, 16, 32)),
    "clips-compared": Growth("PSNR, SSIM and flicker of clips", "clips", clips_compared, (8, 16, 32, 64), (2, 4, 8)),
    "files": Growth("the content of files is digested", "files of 16 KiB", files_digested, (256, 1024, 4096), (64, 128, 256)),
}  # fmt: skip
