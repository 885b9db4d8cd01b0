from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from hiergen.pretrained.image_encoder import ConvEncoder, ImageEncoder

CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
DINO = {**CLIP, "hidden_size": 12, "mlp_ratio": 2}
IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Networks with random weights, saved as the published ones are."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**CLIP)).save_pretrained(root / "clip")
    Dinov2Model(Dinov2Config(**DINO)).save_pretrained(root / "dinov2")
    return root


def pixels(images: torch.Tensor, size: int, mean: list[float], std: list[float]) -> torch.Tensor:
    """As the networks' own processors: Pillow's bicubic resize, then mean and deviation."""
    done = []
    for image in images:
        array = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        small = np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC)) / 255
        done.append(torch.tensor((small - np.array(mean)) / np.array(std), dtype=torch.float32).permute(2, 0, 1))
    return torch.stack(done)


def test_features_are_the_hidden_states_of_the_published_networks(folders) -> None:
    encoder = ImageEncoder.from_transformers(clip=folders / "clip", dinov2=folders / "dinov2")
    assert encoder.feature_shapes == [[5, 16], [5, 12]]
    clip, dinov2 = encoder(IMAGES)
    statistics = {
        "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        "dinov2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    }
    with torch.no_grad():
        expected = [
            kind.from_pretrained(folders / name).eval()(pixels(IMAGES, 28, *statistics[name])).last_hidden_state
            for kind, name in ((CLIPVisionModel, "clip"), (Dinov2Model, "dinov2"))
        ]
    # Pillow rounds to 256 values, and random weights amplify that.
    assert (clip - expected[0]).abs().mean() < 0.01 * expected[0].std()
    assert (dinov2 - expected[1]).abs().mean() < 0.01 * expected[1].std()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_saved_is_loaded(folders, tmp_path) -> None:
    encoder = ImageEncoder.from_transformers(clip=folders / "clip", dinov2=folders / "dinov2")
    encoder.save_pretrained(tmp_path)
    again = ImageEncoder.from_pretrained(tmp_path)
    for a, b in zip(encoder(IMAGES), again.eval()(IMAGES), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_small_network_keeps_where_things_are() -> None:
    encoder = ImageEncoder(encoders=[{"kind": "conv", "config": {"image_size": 32, "dim": 8}}])
    assert encoder.feature_shapes == [[16, 8]]
    blank = torch.zeros(1, 3, 32, 32)
    marked = blank.clone()
    marked[..., :4, :4] = 1
    changed = (encoder(marked)[0] - encoder(blank)[0]).abs().sum(-1)[0] > 0
    assert changed[0]
    assert not changed[10:].any()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="encoders is empty"):
        ImageEncoder(encoders=[])
    with pytest.raises(ValueError, match="kind of an encoder is 'vgg', expected one of clip, dinov2, conv"):
        ImageEncoder(encoders=[{"kind": "vgg"}])
    with pytest.raises(ValueError, match="clip and dinov2 are both None"):
        ImageEncoder.from_transformers()
    with pytest.raises(ValueError, match="image_size is 48, expected 4 times a power of two"):
        ConvEncoder(image_size=48)
    with pytest.raises(ValueError, match="expected square ones"):
        ImageEncoder(encoders=[{"kind": "conv"}])(torch.zeros(1, 3, 8, 9))
