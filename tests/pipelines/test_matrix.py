"""One API over all presets: every tokenizer and every generator of the registry, shrunk to a toy, does all that its kind promises.

A new preset of a known family takes part by itself; one of a new family fails until its toy sizes stand in `TOYS`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.data.codes import write_codes
from hiergen.demo.tabs.reconstruct import reconstruct
from hiergen.generators.base import Generator
from hiergen.generators.conditioning import TextCondition
from hiergen.generators.guidance import GuidanceSettings
from hiergen.generators.sequences.base import SequenceModel
from hiergen.generators.sequences.settings import TextSettings
from hiergen.generators.sequences.texts import Texts
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import Kind, model_class, presets
from hiergen.tokenizers.base import Tokenizer

#: More than any toy has: a preset that is larger has sizes that `TOYS` does not shrink.
MOST_PARAMETERS = 500_000
BATCH = 2


def _levels(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a few small levels of the same kind: discrete or not, with a grid or without, one or several."""
    small = []
    for index, spec in enumerate(specs[:4]):
        grid = spec["grid"] and [min(side, 4 if len(specs) == 1 else index + 1) for side in spec["grid"]]
        if grid and len(grid) == 3:
            grid = [2, 2, 2]
        count = torch.Size(grid).numel() if grid else min(spec["num_tokens"], 4 + 2 * index)
        small.append({**spec, "num_tokens": count, "grid": grid, "dim": 4, **_vocabulary(spec)})
    return small


def _vocabulary(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"vocab_size": 16} if spec.get("vocab_size") else {}


def _all(value: Any) -> Any:
    """Return a function that puts one value in the place of every entry of a list."""
    return lambda given: [value] * len(given)


def _shallow(layout: Any) -> Any:
    """Return a nested layout with one layer of each kind: "m1T1" for "m4T2"."""
    return [_shallow(part) for part in layout] if isinstance(layout, list) else re.sub(r"\d+", "1", layout)


def _parts(dim: int, depth: Any = 1) -> dict[str, Any]:
    sizes = {"dim": dim, "depth": depth, "heads": 2}
    return {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}


_CNN = {"image_size": 16, "cnn_channels": 8, "cnn_groups": 4, "cnn_blocks": 1, "cnn_mid_blocks": 1, "z_channels": 8}
_HIERATOK: dict[str, Any] = {
    **_parts(16, lambda depth: min(depth, 1)),
    "image_size": 16,
    "patch_size": 8,
    "latent_dim": 4,
    "scales": lambda scales: [1, 2][-len(scales) :],
    "tail_depth": lambda depth: min(depth, 1),
    "conv_channels": lambda channels: min(channels, 8),
}
_PYRAMID: dict[str, Any] = {
    "image_size": 16,
    "code_dim": 4,
    "vocab_size": 16,
    "decoder_channels": 8,
    "decoder_multipliers": [1, 1],
    "decoder_groups": 4,
    "decoder_blocks": 1,
    "decoder_mid_blocks": 1,
}
_STAGES: dict[str, Any] = {"widths": [16, 16], "depths": [1, 1], "stem": 2}
_GENERATOR: dict[str, Any] = {"level_specs": _levels, "num_classes": 3, "dim": 16, "depth": 2, "num_heads": 2}
_MASKED: dict[str, Any] = {"num_buffer": 2, "feature_shapes": _all([3, 8]), "head_dim": 16, "head_depth": 1}

#: What replaces the sizes of a family's presets. A function is given the preset's value; what is None in a preset stays None.
TOYS: dict[str, dict[str, Any]] = {
    "ResTok": {
        **_CNN,
        **_parts(16, lambda depth: min(depth, 4)),
        "cnn_multipliers": [1, 2],
        "num_latent_tokens": 8,
        "min_tokens": lambda count: min(count, 2),
        "code_dim": 4,
        "vocab_size": 16,
    },
    "TiTok": {
        **_CNN,
        **_parts(16),
        "cnn_multipliers": [1, 2, 2, 2],
        "patch_size": 8,
        "num_latent_tokens": 4,
        "code_dim": 4,
        "vocab_size": 16,
        "proxy_vocab_size": 16,
    },
    "FlexTok": {
        **_parts(16),
        "image_size": 32,
        "patch_size": 2,
        "autoencoder": lambda given: given and shrink(given, {"block_out_channels": _all(32), "layers_per_block": 1}),
        "num_registers": 4,
        "code_levels": [4, 3],
        "num_steps": 2,
    },
    "MaskGITVQ": {**_CNN, "cnn_multipliers": lambda given: given[-3:], "vocab_size": 16},
    "KLAutoencoder": {
        "image_size": 16,
        "autoencoder": {
            "block_out_channels": _all(8),
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 16,
        },
    },
    "VQAutoencoder": {
        "widths": _all(32),
        "num_blocks": 1,
        "latent_channels": 8,
        "code_dim": 4,
        "vocab_size": 16,
        "image_size": 32,
    },
    "MultiScaleVQ": {
        "widths": [32, 32, 32],
        "num_blocks": 1,
        "code_dim": 4,
        "vocab_size": 16,
        "image_size": 16,
        "sides": lambda sides: [*sides[:2], 4],
    },
    "PyramidTokenizer": {
        **_PYRAMID,
        # Whatever the backbone is: matrices of all networks of timm would take minutes.
        "backbone": lambda name: name if name.startswith("mixer:") else "mixer:none",
        "backbone_options": lambda options: _STAGES,
    },
    "SuperResolution": {
        # Behind any base; the base of the presets is shrunk as every pyramid is.
        "base": lambda given: {
            "class": given["class"],
            **_PYRAMID,
            "backbone": "mixer:none",
            "backbone_options": _STAGES,
        },
        "dim": 8,
        "growth": 4,
        "groups": 1,
        "num_heads": 2,
        "last_dim": 8,
        "window": 4,
    },
    "PyramidVAE": {
        # Tokens with places are cells of a cube.
        "num_tokens": lambda counts: ([1, 8] if counts == [8, 64] else [3, 5])[-len(counts) :],
        "anchor_reach": lambda reaches: reaches[:2],
        "token_dim": 4,
        "width": 16,
        "num_heads": 2,
        "encoder_depth": 1,
        "decoder_depth": 1,
        "point_counts": [24, 12, 6],
    },
    "HieraTok": _HIERATOK,
    "FrameTokenizer": {"num_frames": 2, "frame": _HIERATOK},
    "PatchComponents": {"video_size": [4, 12, 12], "patch_size": [4, 6, 6], "dim": 4},
    "LevelAR": _GENERATOR,
    "NextScaleAR": _GENERATOR,
    "MaskedIds": _GENERATOR,
    "RandomOrderAR": {**_GENERATOR, "ffn_dim": 32},
    "HNet": {
        "dims": lambda dims: [16, 16, 24][: len(dims)],
        "num_heads": lambda heads: [2] * len(heads),
        "layout": lambda layout: _shallow(layout),
        "level_specs": _levels,
        "num_classes": 3,
        "state_dim": 8,
        "head_dim": 8,
    },
    "ByteWordTransformer": {
        **_GENERATOR,
        "num_kv_heads": 1,
        "ffn_dim": 32,
        "byte_dim": 16,
        "byte_heads": 2,
        "byte_ffn_dim": 32,
        "encoder_depth": 1,
        "decoder_depth": 1,
    },
    "BlockTransformer": {
        **_GENERATOR,
        "num_heads": 2,
        "vocab_size": 256,
        "token_dim": 16,
        "token_depth": 1,
        "token_heads": 2,
        "embedder_dim": 8,
        "embedder_depth": 1,
        "embedder_heads": 2,
        "embedder_ffn_dim": 16,
        "block_length": lambda length: min(length, 2),
    },
    # Rotations need three pairs of channels per head for clips, and two for images.
    "FlowTransformer": {**_GENERATOR, "dim": 24},
    "MaskedAR": {**_GENERATOR, **_MASKED, **_parts(16)},
    "MaskedCascade": {**_GENERATOR, **_MASKED, "depth": 1},
}


def shrink(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with smaller sizes; `sizes` may name what the config, or the class it is of, has not."""
    small = dict(config)
    for name, size in sizes.items():
        if name not in config:
            continue
        value = config[name]
        if value is None:
            continue
        small[name] = shrink(value, size) if isinstance(size, Mapping) else size(value) if callable(size) else size
    return small


def toy_config(name: str) -> dict[str, Any]:
    """Return the toy's whole config, defaults too."""
    preset = presets()[name]
    assert preset.model in TOYS, f"{name!r} is of {preset.model}: give toy sizes of that family to TOYS"
    parameters = inspect.signature(model_class(preset.model)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return shrink({**defaults, **preset.config}, TOYS[preset.model])


def toys(kind: Kind) -> list[Any]:
    """Return the names of presets whose toys differ, each as a case that is named for all that are alike."""
    cases: dict[str, list[str]] = {}
    for name, preset in presets(kind).items():
        config = toy_config(name) if preset.model in TOYS else name
        cases.setdefault(json.dumps([preset.model, config], sort_keys=True), []).append(name)
    return [pytest.param(names[0], id="+".join(names)) for names in cases.values()]


def make(name: str) -> Any:
    torch.manual_seed(0)
    model = model_class(presets()[name].model)(**toy_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) < MOST_PARAMETERS
    return model.eval()


def examples(tokenizer: Tokenizer[Any]) -> Tensor:
    """Return data as a tokenizer reads them: images, clips or clouds of points."""
    config, rng = tokenizer.config, torch.Generator().manual_seed(1)
    if "num_frames" in config:
        side = config["frame"]["image_size"]
        shape: tuple[int, ...] = (3, config["num_frames"], side, side)
    elif "video_size" in config:
        shape = (3, *config["video_size"])
    elif "point_counts" in config:
        shape = (32, 6)
    else:
        shape = (3, config["image_size"], config["image_size"])
    return torch.rand(BATCH, *shape, generator=rng) * 2 - 1


def decoded(tokenizer: Tokenizer[Any], pyramid: TokenPyramid) -> Tensor:
    """Return what is decoded; of a shape the occupancy at some points."""
    with torch.no_grad():
        made = tokenizer.decode(pyramid)
        return (
            made
            if isinstance(made, Tensor)
            else made.query(torch.linspace(-1, 1, 30).reshape(1, 10, 3).expand(2, -1, -1))
        )


def assert_same(left: TokenPyramid, right: TokenPyramid) -> None:
    assert left.specs == right.specs
    for ours, theirs in zip(left.levels, right.levels, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", toys("tokenizer"))
def test_every_tokenizer(name: str, tmp_path: Path) -> None:
    tokenizer = make(name)
    data = examples(tokenizer)
    pyramid = tokenizer.encode(data)
    assert pyramid.specs == tokenizer.specs
    whole = decoded(tokenizer, pyramid)
    assert whole.isfinite().all()
    assert whole.shape == (data.shape if whole.ndim > 2 else (BATCH, 10))
    assert tokenizer.decodable_levels[-1] == len(pyramid)
    if "image_size" in tokenizer.config:
        # One picture alone, as the demo and `hiergen reconstruct` take it apart.
        assert reconstruct(tokenizer, data[:1]).steps[-1].picture.width == data.shape[-1]
    for count in tokenizer.decodable_levels:
        part = decoded(tokenizer, pyramid.prefix(count))
        assert part.shape == whole.shape
        assert part.isfinite().all()
    output = tokenizer.train()(data, rng=torch.Generator().manual_seed(2))
    if any(parameter.requires_grad for parameter in tokenizer.parameters()):
        (output.reconstruction.square().mean() + sum(output.losses.values())).backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in tokenizer.parameters())

    tokenizer.eval().save_pretrained(tmp_path / "model")
    loaded = type(tokenizer).from_pretrained(tmp_path / "model")
    again = loaded.encode(data)
    assert torch.equal(decoded(loaded, again), decoded(tokenizer, tokenizer.encode(data)))
    labels = torch.arange(BATCH)
    codes = write_codes(
        tmp_path / "codes", lambda start, stop: ([again], labels), num_samples=BATCH, classes=["a", "b"], source=name
    )
    assert_same(codes.pyramid(codes.batch([(0, 0), (1, 0)], seed=0)), again)


def tokens(generator: Generator) -> TokenPyramid | Texts:
    if not generator.specs:
        return Texts.of(["some text", "more of it"])
    rng = torch.Generator().manual_seed(3)
    levels = [
        torch.randint(spec.vocab_size, (BATCH, spec.num_tokens), generator=rng)
        if spec.vocab_size
        else torch.randn(BATCH, spec.num_tokens, spec.dim, generator=rng)
        for spec in generator.specs
    ]
    return TokenPyramid(tuple(levels), generator.specs)


def conditions(generator: Generator) -> Any:
    if text_shape := generator.config.get("text_shape"):
        features = torch.randn(BATCH, *text_shape, generator=torch.Generator().manual_seed(4))
        return TextCondition(features, torch.ones(BATCH, text_shape[0], dtype=torch.bool))
    shapes = generator.config.get("feature_shapes")
    if not shapes:
        return torch.arange(BATCH) if generator.specs else None
    features = [torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(4)) for shape in shapes]
    return features if len(features) > 1 else features[0]


def generated(generator: Generator) -> TokenPyramid:
    if isinstance(generator, SequenceModel) and generator.is_text:
        # As one level of bytes, whose number is known.
        settings = TextSettings(max_new_bytes=5)
        made = [*generator.continue_ids(Texts.of(["ab"]).ids, settings=settings, rng=torch.Generator().manual_seed(5))]
        return TokenPyramid((torch.stack(made, dim=1),), (LevelSpec(5, vocab_size=256),))
    wanted = {"num_steps": 2, "head_steps": 2, "head_spacing": "leading", "guidance_scale": 2.0}
    known = inspect.signature(generator.settings_class).parameters
    assert issubclass(generator.settings_class, GuidanceSettings)
    settings = generator.make_settings(**{key: value for key, value in wanted.items() if key in known})
    return generator.generate(conditions(generator), settings, rng=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", toys("generator"))
def test_every_generator(name: str, tmp_path: Path) -> None:
    generator = make(name)
    pyramid, condition = tokens(generator), conditions(generator)
    optimizer = torch.optim.Adam([p for p in generator.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(6):
        # The same draws at every step, so that the loss is of the same thing.
        torch.manual_seed(6)
        loss = generator.train().loss(pyramid, condition, rng=torch.Generator().manual_seed(7))["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.98 * losses[0], losses

    made = generated(generator.eval())
    assert not generator.specs or made.specs == generator.specs
    assert all(level.isfinite().all() for level in made.levels)
    generator.save_pretrained(tmp_path)
    assert_same(generated(type(generator).from_pretrained(tmp_path)), made)
