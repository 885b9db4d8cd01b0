"""Presets of TiTok: the published models in two stages, those in one, and a tiny one."""

from __future__ import annotations

from typing import Any

from hiergen.registry import Preset

#: Width, depth and heads of the transformers.
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}


def _sizes(encoder: str, decoder: str, num_tokens: int) -> dict[str, Any]:
    names = [f"{side}_{name}" for side in ("encoder", "decoder") for name in ("dim", "depth", "heads")]
    sizes = dict(zip(names, SIZES[encoder] + SIZES[decoder], strict=True))
    return {"image_size": 256, "patch_size": 16, **sizes, "num_latent_tokens": num_tokens}


def _two_stages(size: str, num_tokens: int) -> dict[str, Any]:
    return {
        **_sizes(size, size, num_tokens),
        "code_dim": 12,
        "vocab_size": 4096,
        "normalize_codes": True,
        "projection": "reinterpreted",
        "output": "proxy_decoded",
    }


def _one_stage(encoder: str, decoder: str, num_tokens: int, *, vocab_size: int | None) -> dict[str, Any]:
    return {
        **_sizes(encoder, decoder, num_tokens),
        "code_dim": 16 if vocab_size is None else 64,
        "vocab_size": vocab_size,
        "normalize_codes": False,
        "projection": "per_token",
        "output": "pixels",
    }


def _published(config: dict[str, Any], what: str) -> Preset:
    return Preset("TiTok", config, f"TiTok, arXiv:2406.07550, ImageNet 256x256: {what}")


PRESETS: dict[str, Preset] = {
    "titok-l-32": _published(_two_stages("large", 32), "TiTok-L-32, rFID 2.21"),
    "titok-b-64": _published(_two_stages("base", 64), "TiTok-B-64, rFID 1.70"),
    "titok-s-128": _published(_two_stages("small", 128), "TiTok-S-128, rFID 1.71"),
    "titok-bl-64": _published(_one_stage("base", "large", 64, vocab_size=8192), "TiTok-BL-64 VQ, rFID 2.06"),
    "titok-bl-128": _published(_one_stage("base", "large", 128, vocab_size=8192), "TiTok-BL-128 VQ, rFID 1.49"),
    "titok-sl-256": _published(_one_stage("small", "large", 256, vocab_size=8192), "TiTok-SL-256 VQ, rFID 1.03"),
    "titok-ll-32-vae": _published(_one_stage("large", "large", 32, vocab_size=None), "TiTok-LL-32 VAE, rFID 1.61"),
    "titok-bl-64-vae": _published(_one_stage("base", "large", 64, vocab_size=None), "TiTok-BL-64 VAE, rFID 1.25"),
    "titok-bl-128-vae": _published(_one_stage("base", "large", 128, vocab_size=None), "TiTok-BL-128 VAE, rFID 0.84"),
    "titok-tiny": Preset(
        "TiTok",
        {
            "image_size": 32,
            "patch_size": 8,
            "encoder_dim": 128,
            "encoder_depth": 3,
            "encoder_heads": 4,
            "decoder_dim": 128,
            "decoder_depth": 3,
            "decoder_heads": 4,
            "num_latent_tokens": 16,
            "code_dim": 8,
            "vocab_size": 256,
            "normalize_codes": True,
            "projection": "per_token",
            "output": "pixels",
        },
        "ours: 16 tokens of 32x32 images on a CPU, in one stage, with the corrected projection",
    ),
}
