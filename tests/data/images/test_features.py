from __future__ import annotations

import pytest
import torch

from hiergen.data.images.features import FeatureCache

IMAGES = torch.randint(0, 256, (3, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()


class Encoder:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.seen += len(images)
        return [images.flatten(2).mT, images.mean(dim=1)]


def test_every_image_is_encoded_once_whatever_its_place(tmp_path) -> None:
    encode = Encoder()
    cache = FeatureCache(tmp_path, encode, source="a")
    first = cache.features(IMAGES, batch_size=2)
    assert encode.seen == 3
    expected = encode(IMAGES.float() / 127.5 - 1)
    encode.seen = 0
    again = FeatureCache(tmp_path, encode, source="a").features(IMAGES[[2, 0, 1, 1]])
    assert encode.seen == 0
    for made, kept, right in zip(first, again, expected, strict=True):
        assert torch.equal(made, right)
        assert torch.equal(kept, right[[2, 0, 1, 1]])
    changed = IMAGES.clone()
    changed[0, 0, 0, 0] ^= 1
    cache.features(changed)
    assert encode.seen == 1


def test_another_encoder_has_its_own_entries(tmp_path) -> None:
    encode = Encoder()
    FeatureCache(tmp_path, encode, source="a").features(IMAGES)
    FeatureCache(tmp_path, encode, source="b").features(IMAGES)
    assert encode.seen == 6


def test_a_damaged_file_is_named(tmp_path) -> None:
    cache = FeatureCache(tmp_path, Encoder(), source="a")
    cache.features(IMAGES)
    file = next(tmp_path.glob("*/*.safetensors"))
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"{file.name}.*damaged"):
        cache.features(IMAGES)
