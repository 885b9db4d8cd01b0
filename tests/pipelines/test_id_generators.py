"""The published pairs of a tokenizer and a generator of ids, in small sizes: a label becomes an image, also after saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hiergen
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.registry import create

VIT = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("dim", 16), ("depth", 1), ("heads", 2))
}
CNN = {"cnn_channels": 8, "cnn_multipliers": [1, 1, 1, 1, 1], "cnn_blocks": 1, "cnn_mid_blocks": 1, "cnn_groups": 4}
IDS = {"dim": 16, "depth": 2, "num_heads": 2}
PAIRS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "titok-l-32": ({**VIT, **CNN}, "maskgit-l-32", {"num_steps": 2, "guidance_schedule": "muse_linear"}),
    "titok-b-64": ({**VIT, **CNN}, "maskgit-b-64", {"num_steps": 2, "anneal_softmax": True}),
    "titok-s-128": ({**VIT, **CNN}, "maskgit-s-128", {"num_steps": 2, "guidance_schedule": "power_cosine"}),
    "maskgit-vq": (CNN, "rar-b", {"guidance_schedule": "power_cosine"}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_label_becomes_an_image(name: str, tmp_path: Path) -> None:
    sizes, generator, settings = PAIRS[name]
    pipe = ClassToImagePipeline(tokenizer=create(name, **sizes).eval(), generator=create(generator, **IDS).eval())
    pipe.set_progress_bar_config(disable=True)
    assert pipe(207, generator=torch.Generator().manual_seed(0)).images[0].size == (256, 256)
    pipe.save_pretrained(tmp_path)
    loaded = hiergen.from_pretrained(str(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    pyramids = [
        made(207, generator=torch.Generator().manual_seed(0), guidance_scale=3.0, **settings).pyramid.levels[0]
        for made in (pipe, loaded)
    ]
    assert torch.equal(*pyramids)
