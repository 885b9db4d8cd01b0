from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hiergen
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.pipelines.base import HiergenPipeline
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.shape import ClassToShapePipeline
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

LOW = (torch.bfloat16, torch.float16)
_VIT = {
    f"{part}_{name}": size
    for part in ("encoder", "decoder")
    for name, size in (("dim", 32), ("depth", 1), ("heads", 2))
}
_KL = {
    "autoencoder": {
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        "block_out_channels": [32, 32],
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 8,
    },
    "image_size": 8,
}
_FRAME = {"image_size": 16, "patch_size": 8, "latent_dim": 4, "scales": [1, 2], "has_preview_heads": False, **_VIT}
_FLOW = {"dim": 48, "depth": 2, "num_heads": 2, "num_classes": 10}
_MAR = {**_VIT, "num_classes": 10, "head_dim": 32, "head_depth": 1}
_IDS = {"dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
_VQ_16 = {"widths": [32, 32, 32], "latent_channels": 8, "vocab_size": 16, "image_size": 16}
_VQ = {"cnn_channels": 8, "cnn_groups": 4}
_PROXY = {"output": "proxy_decoded", "proxy_vocab_size": 16, "z_channels": 8, "cnn_multipliers": [1, 2, 2, 2], **_VQ}
_HAR = {"dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
#: Every tokenizer with every generator that takes its levels: preset and overrides of each, and the settings of a call.
PAIRS: dict[str, tuple[Any, tuple[str, dict[str, Any]], tuple[str, dict[str, Any]], dict[str, Any]]] = {
    f"{tokenizer[0]}, {generator[0]}": (pipeline, tokenizer, generator, settings)
    for pipeline, tokenizer, generators in (
        (ClassToImagePipeline, ("restok-tiny", {}), (("har-tiny", _HAR), ("ar-b", _HAR))),
        (
            ClassToImagePipeline,
            ("hieratok-tiny", _VIT),
            (("flow-tiny", _FLOW), ("sit-b", {**_FLOW, "latent_std": [0.2] * 8}), ("mar-tiny", _MAR)),
        ),
        (
            ClassToImagePipeline,
            ("hieratok-tiny-levels", _VIT),
            (("lightningdit-b", _FLOW), ("mar-tiny-levels", _MAR), ("mar-b", {**_MAR, "num_buffer": 2})),
        ),
        (ClassToImagePipeline, ("kl-16", _KL), (("flow-tiny", {**_FLOW, "use_qk_norm": True}), ("mar-tiny", _MAR))),
        (
            ClassToImagePipeline,
            ("multiscale-vq-tiny", {"widths": [32, 32, 32]}),
            (("var-tiny", _HAR), ("var-d16", {**_HAR, "shares_modulation": True})),
        ),
        (
            ClassToImagePipeline,
            ("titok-tiny", {**_VIT, **_PROXY}),
            (("maskgit-b-64", _IDS), ("rar-tiny", _IDS)),
        ),
        (ClassToImagePipeline, ("flextok-tiny", {**_VIT, "num_steps": 2}), (("har-tiny", _HAR),)),
        (ClassToImagePipeline, ("titok-bl-64-vae", {**_VIT, "image_size": 32}), (("mar-tiny", _MAR),)),
        (ClassToImagePipeline, ("maskgit-vq-tiny", _VQ), (("maskgit-tiny", _IDS),)),
        (ClassToImagePipeline, ("vq-16", _VQ_16), (("llamagen-b-256", _HAR),)),
        (
            ClassToShapePipeline,
            ("pyramid-vae-tiny", {"width": 32, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 1}),
            (
                ("mar3d-tiny", {"dim": 32, "depth": 1, "num_heads": 2, "head_dim": 32, "head_depth": 1}),
                ("mar-tiny", _MAR),
            ),
        ),
        (
            ClassToVideoPipeline,
            ("patches-tiny", {"video_size": [4, 12, 12], "dim": 4}),
            (("flow-video-tiny", {**_FLOW, "num_heads": 1, "dim": 48}), ("mar-tiny", _MAR)),
        ),
        (
            ClassToVideoPipeline,
            ("frames-128", {"num_frames": 2, "frame": _FRAME}),
            (("flow-video-s", {**_FLOW, "num_heads": 1, "dim": 48}), ("mar-tiny", _MAR)),
        ),
    )
    for generator in generators
    for settings in [
        {"num_steps": 2, "head_steps": 3, "head_spacing": "leading", "guidance_scale": 2.0}
        if generator[0].startswith("mar")
        else {"guidance_scale": 2.0}
        if generator[0].endswith("ar-tiny") or generator[0] in ("ar-b", "var-d16", "llamagen-b-256")
        else {"num_steps": 2, "guidance_scale": 2.0}
    ]
}


def build(pair: str) -> HiergenPipeline:
    """Return the pipeline of a pair with random weights, none of which is zero."""
    pipeline, (tokenizer, tokenizer_options), (generator, generator_options), _ = PAIRS[pair]
    torch.manual_seed(0)
    made = create(tokenizer, **tokenizer_options).eval()
    drawn = create(generator, **{**generator_options, "level_specs": specs_to_json(made.specs)}).eval()
    for model in (made, drawn):
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    pipe = pipeline(tokenizer=made, generator=drawn)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: HiergenPipeline, pair: str) -> Tensor:
    """Return what a pipeline makes of two labels: images, clips, or for shapes the values of the field at some points."""
    settings = dict(PAIRS[pair][3])
    rng = torch.Generator().manual_seed(0)
    if isinstance(pipe, ClassToShapePipeline):
        extraction = ExtractionSettings(depth=3)
        made = pipe([3, 4], generator=rng, extraction=extraction, **settings)
        assert len(made.meshes) == 2
        points = torch.linspace(-1, 1, 30).reshape(1, 10, 3).expand(2, -1, -1)
        return pipe.tokenizer.decode(made.pyramid).query(points)
    return pipe([3, 4], generator=rng, output_type="pt", **settings)[0]


@functools.cache
def wide_shape(pair: str) -> torch.Size:
    return call(build(pair), pair).shape


def lowered(pair: str, way: str, dtype: torch.dtype, folder: Path) -> HiergenPipeline:
    pipe = build(pair)
    if way == "dtype=":
        pipe.save_pretrained(folder)
        return hiergen.from_pretrained(folder, dtype=dtype)
    if way == ".to":
        return pipe.to(dtype)
    getattr(pipe, way).to(dtype)
    return pipe


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("way", ["dtype=", ".to", "tokenizer", "generator"])
@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_runs_in_low_precision(pair: str, way: str, dtype: torch.dtype, tmp_path: Path) -> None:
    expected = wide_shape(pair)
    pipe = lowered(pair, way, dtype, tmp_path)
    made = call(pipe, pair)
    assert made.shape == expected
    assert bool(made.isfinite().all())
    halves = [pipe.tokenizer, pipe.generator] if way in ("dtype=", ".to") else [getattr(pipe, way)]
    assert all(half.dtype == dtype for half in halves)
    for half in halves:
        wide = {name for name, value in half.named_parameters() if value.dtype == torch.float32}
        kept = half._keep_in_fp32_modules or []
        assert {name for name, _ in half.named_parameters() if set(name.split(".")) & set(kept)} <= wide
