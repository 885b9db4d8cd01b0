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
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

from hiergen.kernels import OfficialRules, PSAConfig
from hiergen.kernels.pyramid_attention.backends import dense

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
        replaced: Pattern of the names of its self-attention modules over video; all others stay dense.
        num_replaced: How many such modules there are.
        inputs: Makes the arguments of a forward pass; `grid` counts tokens.
        dispatch: Module and name of the attention function that its processors call, and the layout of its heads.
        text_at: Where text tokens stand among the keys.
        text_tokens: How many text tokens there are among the keys.
        fixed_frames: How many of the first frames stay in raster order.
    """

    model: Callable[..., Any]
    inputs: Callable[..., dict[str, Any]]
    dispatch: tuple[str, str]
    replaced: str
    text_at: str = "start"
    text_tokens: int = 0
    num_replaced: int = 2
    fixed_frames: int = 0


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steps(timestep: float, batch: int, tokens: int | None) -> torch.Tensor:
    """Return a timestep per video, or one per token, where the first third have 0 as tokens of given frames do."""
    if tokens is None:
        return torch.full((batch,), timestep)
    return torch.full((batch, tokens), timestep) * (torch.arange(tokens) >= tokens // 3)


#: Sizes of Wan and of what was made from it.
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 8, "freq_dim": 8, "ffn_dim": 16, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip


def tiny_wan(kind: Any = WanTransformer3DModel, **changes: Any) -> Any:
    torch.manual_seed(0)
    return kind(**WAN | changes).eval()


def tiny_wan_vace(**changes: Any) -> WanVACETransformer3DModel:
    """Return a model with a control layer before the first of its two layers, on a video of six channels."""
    return tiny_wan(WanVACETransformer3DModel, **{"vace_layers": [0], "vace_in_channels": 6} | changes)


def tiny_wan_animate(**changes: Any) -> WanAnimateTransformer3DModel:
    """Return a model that reads a face of 16 x 16 pixels after each of its layers."""
    face = {
        "in_channels": 12, "latent_channels": 4, "image_dim": None, "motion_encoder_size": 16, "motion_style_dim": 8,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}, "motion_dim": 3, "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 8, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 1,
    }  # fmt: skip
    return tiny_wan(WanAnimateTransformer3DModel, **face | changes)


def tiny_skyreels(**changes: Any) -> SkyReelsV2Transformer3DModel:
    return tiny_wan(SkyReelsV2Transformer3DModel, **changes)


def wan_inputs(
    grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0, by_token: bool = False, channels: int = 4
) -> dict[str, Any]:
    frames, rows, columns = grid
    return {
        "hidden_states": noise(batch, channels, frames, 2 * rows, 2 * columns),
        "timestep": steps(timestep, batch, frames * rows * columns if by_token else None),
        "encoder_hidden_states": noise(batch, 7, 8, seed=2),
    }


def wan_vace_inputs(grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0) -> dict[str, Any]:
    frames, rows, columns = grid
    control = noise(batch, 6, frames, 2 * rows, 2 * columns, seed=5)
    return wan_inputs(grid, batch=batch, timestep=timestep) | {"control_hidden_states": control}


def wan_animate_inputs(grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0) -> dict[str, Any]:
    """Return inputs whose first frame is the character; four pictures of the face belong to each later frame."""
    frames, rows, columns = grid
    return wan_inputs(grid, batch=batch, timestep=timestep, channels=12) | {
        "pose_hidden_states": noise(batch, 4, frames - 1, 2 * rows, 2 * columns, seed=5),
        "face_pixel_values": noise(batch, 3, 4 * (frames - 1), 16, 16, seed=6),
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


def tiny_hunyuan15(**changes: Any) -> HunyuanVideo15Transformer3DModel:
    torch.manual_seed(0)
    settings = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 2,
        "num_refiner_layers": 1, "text_embed_dim": 8, "text_embed_2_dim": 6, "image_embed_dim": 5, "rope_axes_dim": (2, 4, 4),
    } | changes  # fmt: skip
    return HunyuanVideo15Transformer3DModel(**settings).eval()


def hunyuan15_inputs(grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0) -> dict[str, Any]:
    """Return inputs of text to video: the picture's two tokens are zero and masked; each text has 1 + its number of padding."""
    return {
        "hidden_states": noise(batch, 4, *grid),
        "timestep": steps(timestep, batch, None),
        "encoder_hidden_states": noise(batch, 7, 8, seed=2),
        "encoder_attention_mask": (torch.arange(7) < 6 - torch.arange(batch)[:, None]).long(),
        "encoder_hidden_states_2": noise(batch, 3, 6, seed=3),
        "encoder_attention_mask_2": (torch.arange(3) < 2 - torch.arange(batch)[:, None]).long(),
        "image_embeds": torch.zeros(batch, 2, 5),
    }


def tiny_mochi(**changes: Any) -> MochiTransformer3DModel:
    """Return a model whose rotary frequencies, which start at zero, are random."""
    torch.manual_seed(0)
    settings = {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "pooled_projection_dim": 12, "in_channels": 4,
        "text_embed_dim": 8, "time_embed_dim": 8,
    } | changes  # fmt: skip
    model = MochiTransformer3DModel(**settings).eval()
    torch.nn.init.normal_(model.pos_frequencies)
    return model


def mochi_inputs(grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0) -> dict[str, Any]:
    """Return inputs in which the texts of a batch have 5, 4, ... real tokens of 7; the rest is padding."""
    frames, rows, columns = grid
    return {
        "hidden_states": noise(batch, 4, frames, 2 * rows, 2 * columns),
        "timestep": steps(timestep, batch, None),
        "encoder_hidden_states": noise(batch, 7, 8, seed=2),
        "encoder_attention_mask": torch.arange(7) < 5 - torch.arange(batch)[:, None],
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


def tiny_ltx2(**changes: Any) -> LTX2VideoTransformer3DModel:
    torch.manual_seed(0)
    settings = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
        "audio_in_channels": 3, "audio_out_channels": 3, "audio_num_attention_heads": 2, "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8, "num_layers": 2, "caption_channels": 8,
    } | changes  # fmt: skip
    return LTX2VideoTransformer3DModel(**settings).eval()


def tiny_ltx23(**changes: Any) -> LTX2VideoTransformer3DModel:
    """Return a model of version 2.3: split rotary tables, gates per head, modulated text, layers that can be perturbed."""
    later = {
        "rope_type": "split", "gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True,
        "audio_cross_attn_mod": True, "perturbed_attn": True,
    }  # fmt: skip
    return tiny_ltx2(**later | changes)


def ltx2_inputs(
    grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0, by_token: bool = False
) -> dict[str, Any]:
    """Return inputs with 9 tokens of sound; the texts of a batch have 5, 4, ... real tokens of 7."""
    mask = (torch.arange(7) < 5 - torch.arange(batch)[:, None]).long()
    return ltx_inputs(grid, batch=batch, timestep=timestep, by_token=by_token) | {
        "audio_hidden_states": noise(batch, 9, 3, seed=5), "audio_num_frames": 9,
        "audio_encoder_hidden_states": noise(batch, 7, 8, seed=6),
        "encoder_attention_mask": mask, "audio_encoder_attention_mask": mask,
        "audio_timestep": steps(timestep, batch, None), "sigma": steps(timestep, batch, None),
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


def dispatched(file: str) -> tuple[str, str]:
    return f"diffusers.models.transformers.transformer_{file}.dispatch_attention_fn", "bshd"


SDPA = ("torch.nn.functional.scaled_dot_product_attention", "bhsd")
BLOCKS1 = r"blocks\.\d+\.attn1"
TRANSFORMER_BLOCKS1 = r"transformer_blocks\.\d+\.attn1"
CASES = {
    "wan": Case(tiny_wan, wan_inputs, dispatched("wan"), BLOCKS1),
    "wan_vace": Case(tiny_wan_vace, wan_vace_inputs, dispatched("wan"), r"(vace_)?blocks\.\d+\.attn1", num_replaced=3),
    "wan_animate": Case(tiny_wan_animate, wan_animate_inputs, dispatched("wan_animate"), BLOCKS1, fixed_frames=1),
    "skyreels_v2": Case(tiny_skyreels, wan_inputs, dispatched("skyreels_v2"), BLOCKS1),
    "cogvideox": Case(tiny_cogvideox, cogvideox_inputs, SDPA, TRANSFORMER_BLOCKS1, "start", 7),
    "cogvideox1.5": Case(
        tiny_cogvideox15, functools.partial(cogvideox_inputs, version=1.5), SDPA, TRANSFORMER_BLOCKS1, "start", 7
    ),
    "hunyuan": Case(
        tiny_hunyuan, hunyuan_inputs, dispatched("hunyuan_video"), r"(single_)?transformer_blocks\.\d+\.attn", "end", 7
    ),
    "hunyuan1.5": Case(
        tiny_hunyuan15, hunyuan15_inputs, dispatched("hunyuan_video15"), r"transformer_blocks\.\d+\.attn", "end", 12
    ),
    "ltx": Case(tiny_ltx, ltx_inputs, dispatched("ltx"), TRANSFORMER_BLOCKS1),
    "ltx2": Case(tiny_ltx2, ltx2_inputs, dispatched("ltx2"), TRANSFORMER_BLOCKS1),
    "ltx2.3": Case(tiny_ltx23, ltx2_inputs, dispatched("ltx2"), TRANSFORMER_BLOCKS1),
    "mochi": Case(tiny_mochi, mochi_inputs, SDPA, TRANSFORMER_BLOCKS1, "end", 7),
}


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


@pytest.fixture(autouse=True)
def _always_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep "auto" from dense attention, which is faster at the sizes of tests."""
    monkeypatch.setattr(dense, "DENSE_FROM", ())
