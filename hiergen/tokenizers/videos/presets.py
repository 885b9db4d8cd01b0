"""Presets of the tokenizers of video: of single frames, and of clips made of them."""

from __future__ import annotations

from typing import Any

from hiergen.registry import Preset

_FRAME_128: dict[str, Any] = {
    "image_size": 128,
    "patch_size": 8,
    "latent_dim": 8,
    "scales": [1, 2, 4, 8, 16],
    "encoder_dim": 384,
    "encoder_depth": 6,
    "encoder_heads": 6,
    "decoder_dim": 384,
    "decoder_depth": 8,
    "decoder_heads": 6,
    "kl_weight": 0.1,
}

PRESETS: dict[str, Preset] = {
    "hieratok-frame-128": Preset(
        model="HieraTok",
        config=_FRAME_128,
        source="Ours, untrained: for one GPU, frames of 128 x 128 pixels, 8 x 8 a latent",
    ),
    "patches-tiny": Preset(
        model="PatchComponents",
        config={"video_size": [32, 24, 24], "patch_size": [4, 6, 6], "dim": 24},
        source="Ours: clips of 32 frames of 24 x 24 pixels, 128 tokens; fitted in closed form",
    ),
    "patches-emoji-48": Preset(
        model="PatchComponents",
        config={"video_size": [16, 48, 48], "patch_size": [4, 8, 8], "dim": 64},
        source="Ours: clips of 16 frames of 48 x 48 pixels in color, 144 tokens; fitted in closed form",
    ),
    "frames-128": Preset(
        model="FrameTokenizer",
        config={"num_frames": 16, "frame": _FRAME_128},
        source="Ours: hieratok-frame-128 on clips of 16 frames, 4,096 tokens",
    ),
}
