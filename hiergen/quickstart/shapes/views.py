"""The image part of the shape quickstart: a small encoder of rendered views, trained here because no pretrained one is at hand.

It knows clay renders of the procedural set and nothing else; `ImageEncoder.from_transformers` brings CLIP and DINOv2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from hiergen.data.codes import CodeSet
from hiergen.data.images.pixels import to_uint8
from hiergen.data.shapes.dataset import ShapeDataset
from hiergen.metrics.fidelity import FeatureExtractor
from hiergen.pretrained.image_encoder import ImageEncoder
from hiergen.seeding import derive_seed, make_rng

#: Channels of the encoder's 16 rows.
DIM = 64


def view_encoder(
    folder: str | Path, shapes: ShapeDataset, codes: CodeSet, *, size: int, epochs: int = 12, seed: int = 0
) -> ImageEncoder:
    """Return the encoder in a folder; where there is none, train it on views to say the class and the coarse tokens, and write it.

    Args:
        folder: Folder of the encoder.
        shapes: Training shapes with views.
        codes: Tokens of the shapes, in the same order.
        size: Side of the views in pixels.
        epochs: Number of passes, each over one view of every shape.
        seed: Seed of weights, views and order.
    """
    if (Path(folder) / "config.json").is_file():
        return ImageEncoder.from_pretrained(folder).eval()  # type: ignore[no-any-return]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "view encoder"))
        encoder = ImageEncoder(encoders=[{"kind": "conv", "config": {"image_size": size, "dim": DIM}}])
        tokens = codes.levels[0][:, 0].flatten(1)
        head = nn.Linear(encoder.feature_shapes[0][0] * DIM, len(codes.classes) + tokens.shape[1])
    targets = (tokens - tokens.mean(dim=0)) / tokens.std(dim=0).clamp(min=1e-6)
    encoder.train().requires_grad_(True)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
    rng = make_rng(seed, "view order")
    for epoch in range(epochs):
        for index in torch.randperm(len(shapes), generator=rng).split(16):
            batch = shapes.batch([(int(i), epoch) for i in index], seed=seed)
            said = head(encoder(batch["image"])[0].flatten(1))
            classes, values = said.split([len(codes.classes), tokens.shape[1]], dim=1)
            loss = F.cross_entropy(classes, batch["label"]) + F.mse_loss(values, targets[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    encoder.eval().requires_grad_(False)
    encoder.save_pretrained(folder)
    return encoder


class _MeanFeatures(nn.Module):
    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        return self.encoder(images.float() / 127.5 - 1)[0].mean(dim=1)


def view_extractor(encoder: ImageEncoder) -> FeatureExtractor:
    """Return the encoder's features, averaged over the picture, as what a Fréchet distance of renders is measured on."""
    return FeatureExtractor(
        "procedural-views-conv",
        f"{DIM} averaged features of the quickstart's own view encoder, trained on renders of the training shapes; no FID",
        _MeanFeatures(encoder),
    )


def held_out_views(shapes: ShapeDataset, order: list[int]) -> UInt8[Tensor, "b 3 h w"]:
    """Return one view of each shape, in the given order."""
    samples: list[Any] = [(index, 0) for index in order]
    return to_uint8(shapes.batch(samples, seed=0)["image"])
