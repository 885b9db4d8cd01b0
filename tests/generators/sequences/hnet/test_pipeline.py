"""H-Net makes images by class from the ids of discrete tokenizers: a raster of one level, and levels coarse to fine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hiergen
from hiergen.levels import specs_to_json
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.registry import create

CNN = {"cnn_channels": 8, "cnn_blocks": 1, "cnn_mid_blocks": 1, "cnn_groups": 4, "vocab_size": 16}
SIZES = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("dim", 16), ("heads", 2))}
RESTOK = {**SIZES, "encoder_depth": 4, "decoder_depth": 1, "cnn_multipliers": [1, 2], "z_channels": 8}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "maskgit-vq-tiny": {**CNN, "z_channels": 8},
    "restok-tiny": {**CNN, **RESTOK, "image_size": 16, "num_latent_tokens": 8, "code_dim": 4},
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_label_becomes_an_image_also_after_saving(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = create(name, **TOKENIZERS[name]).eval()
    sizes = {"dims": [8, 12], "num_heads": [2, 2], "state_dim": 4, "head_dim": 4}
    generator = create("hnet-tiny-16", **sizes, level_specs=specs_to_json(tokenizer.specs)).eval()
    pipe = ClassToImagePipeline(tokenizer=tokenizer, generator=generator)
    pipe.save_pretrained(tmp_path)
    loaded = hiergen.from_pretrained(str(tmp_path))
    made = []
    for pipeline in (pipe, loaded):
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline(3, generator=torch.Generator().manual_seed(0), guidance_scale=2.0))
    side = tokenizer.config["image_size"]
    assert made[0].images[0].size == (side, side)
    assert torch.equal(made[0].pyramid.concat(), made[1].pyramid.concat())
    assert made[0].pyramid.specs == tokenizer.specs
