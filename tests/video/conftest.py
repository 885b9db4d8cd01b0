"""Tiny video transformers with random weights, and settings whose blocks fit them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
)

from hiergen.kernels import OfficialRules, PSAConfig

Grid = tuple[int, int, int]
BLOCKS: dict[str, Any] = {"query_block": 16, "key_block": 16, "rules": OfficialRules(rounding_tile=16)}
#: Everything at pool 1: dense attention by another way.
FULL = PSAConfig(bounds=((1, 1.0),), **BLOCKS)
SPARSE = PSAConfig(bounds=((1, 0.2), (2, 0.3), (4, 0.4), (8, 0.6)), **BLOCKS)


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture.

    Attributes:
        model: Makes a model of two layers, always the same.
        inputs: Makes the arguments of a forward pass; `grid` counts tokens.
        dispatch: Module and name of the attention function that its processors call, and the layout of its heads.
        text_at: Where text tokens stand among the keys.
        text_tokens: How many text tokens there are among the keys.
    """

    model: Callable[..., Any]
    inputs: Callable[..., dict[str, Any]]
    dispatch: tuple[str, str]
    text_at: str = "start"
    text_tokens: int = 0


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steps(timestep: float, batch: int, tokens: int | None) -> torch.Tensor:
    """Return a timestep per video, or one per token, where the first third have 0 as tokens of given frames do."""
    if tokens is None:
        return torch.full((batch,), timestep)
    return torch.full((batch, tokens), timestep) * (torch.arange(tokens) >= tokens // 3)


def tiny_wan(**changes: Any) -> WanTransformer3DModel:
    torch.manual_seed(0)
    settings = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
        "text_dim": 8, "freq_dim": 8, "ffn_dim": 16, "num_layers": 2, "rope_max_seq_len": 32,
    } | changes  # fmt: skip
    return WanTransformer3DModel(**settings).eval()


def wan_inputs(
    grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0, by_token: bool = False
) -> dict[str, Any]:
    frames, rows, columns = grid
    return {
        "hidden_states": noise(batch, 4, frames, 2 * rows, 2 * columns),
        "timestep": steps(timestep, batch, frames * rows * columns if by_token else None),
        "encoder_hidden_states": noise(batch, 7, 8, seed=2),
    }


def tiny_cogvideox(**changes: Any) -> CogVideoXTransformer3DModel:
    """Return a model of version 1: positions in the embedding, no rotary tables."""
    torch.manual_seed(0)
    settings = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
        "text_embed_dim": 8, "num_layers": 2, "sample_width": 8, "sample_height": 10, "sample_frames": 9, "patch_size": 2,
        "max_text_seq_length": 7,
    } | changes  # fmt: skip
    return CogVideoXTransformer3DModel(**settings).eval()


def tiny_cogvideox15(**changes: Any) -> CogVideoXTransformer3DModel:
    """Return a model of version 1.5: rotary tables, patches over two frames."""
    return tiny_cogvideox(**{"patch_size_t": 2, "use_rotary_positional_embeddings": True} | changes)


def cogvideox_inputs(
    grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0, version: float = 1.0
) -> dict[str, Any]:
    frames, rows, columns = grid
    inputs: dict[str, Any] = {
        "hidden_states": noise(batch, frames * (1 if version == 1 else 2), 4, 2 * rows, 2 * columns),
        "timestep": steps(timestep, batch, None),
        "encoder_hidden_states": noise(batch, 7, 8, seed=2),
    }
    if version > 1:
        angles = noise(frames * rows * columns, 8, seed=4).repeat_interleave(2, dim=1)
        inputs["image_rotary_emb"] = (angles.cos(), angles.sin())
    return inputs


def tiny_hunyuan(**changes: Any) -> HunyuanVideoTransformer3DModel:
    """Return a model with one layer of two streams and one layer of a single stream."""
    torch.manual_seed(0)
    settings = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
        "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 2, "patch_size_t": 1, "text_embed_dim": 8,
        "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4),
    } | changes  # fmt: skip
    return HunyuanVideoTransformer3DModel(**settings).eval()


def hunyuan_inputs(grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0) -> dict[str, Any]:
    """Return inputs in which the texts of a batch have 5, 4, ... real tokens of 7; the rest is padding."""
    frames, rows, columns = grid
    return {
        "hidden_states": noise(batch, 4, frames, 2 * rows, 2 * columns),
        "timestep": steps(timestep, batch, None),
        "encoder_hidden_states": noise(batch, 7, 8, seed=2),
        "encoder_attention_mask": (torch.arange(7) < 5 - torch.arange(batch)[:, None]).long(),
        "pooled_projections": noise(batch, 8, seed=3),
        "guidance": torch.full((batch,), 6000.0),
    }


def tiny_ltx(**changes: Any) -> LTXVideoTransformer3DModel:
    torch.manual_seed(0)
    settings = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
        "num_layers": 2, "caption_channels": 8,
    } | changes  # fmt: skip
    return LTXVideoTransformer3DModel(**settings).eval()


def ltx_inputs(
    grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0, by_token: bool = False
) -> dict[str, Any]:
    frames, rows, columns = grid
    tokens = frames * rows * columns
    return {
        "hidden_states": noise(batch, tokens, 4),
        "timestep": steps(timestep, batch, tokens if by_token else None),
        "encoder_hidden_states": noise(batch, 7, 8, seed=2),
        "encoder_attention_mask": torch.ones(batch, 7),
        "num_frames": frames, "height": rows, "width": columns,
    }  # fmt: skip


#: Sizes of the language models.
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def qwen() -> Any:
    """Return a model with heads of 8 channels and three rotary sections, and a vision tower of one layer."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    text = SIZES | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "window_size": 16, "fullatt_block_indexes": [0], "in_channels": 3,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=60, video_token_id=61,
                              vision_start_token_id=62, vision_end_token_id=63)  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


MODELS = "diffusers.models.transformers"
SDPA = ("torch.nn.functional.scaled_dot_product_attention", "bhsd")
CASES = {
    "wan": Case(tiny_wan, wan_inputs, (f"{MODELS}.transformer_wan.dispatch_attention_fn", "bshd")),
    "cogvideox": Case(tiny_cogvideox, cogvideox_inputs, SDPA, "start", 7),
    "cogvideox1.5": Case(tiny_cogvideox15, functools.partial(cogvideox_inputs, version=1.5), SDPA, "start", 7),
    "hunyuan": Case(tiny_hunyuan, hunyuan_inputs, (f"{MODELS}.transformer_hunyuan_video.dispatch_attention_fn", "bshd"), "end", 7),
    "ltx": Case(tiny_ltx, ltx_inputs, (f"{MODELS}.transformer_ltx.dispatch_attention_fn", "bshd")),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture
def wan() -> Case:
    return CASES["wan"]


@pytest.fixture
def full() -> PSAConfig:
    return FULL


@pytest.fixture
def sparse() -> PSAConfig:
    return SPARSE


@pytest.fixture
def cases() -> dict[str, Case]:
    return CASES


@pytest.fixture(name="llama")
def _llama() -> Callable[[], Any]:
    return llama


@pytest.fixture(name="qwen")
def _qwen() -> Callable[[], Any]:
    return qwen


@pytest.fixture(params=[llama, qwen])
def make(request) -> Callable[[], Any]:
    return request.param


@pytest.fixture
def language_sizes() -> dict[str, Any]:
    return SIZES
