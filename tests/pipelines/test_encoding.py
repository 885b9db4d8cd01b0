from __future__ import annotations

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from PIL import Image

from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import FolderPictures, PictureSet
from hiergen.pipelines.encoding import encode_images, tokenizer_fingerprint
from hiergen.registry import create
from hiergen.seeding import make_rng

SMALL = {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in (("dim", 16), ("depth", 1), ("heads", 2))
}


def test_continuous_tokens_are_drawn_from_their_posterior_if_asked(tmp_path) -> None:
    tokenizer = create("hieratok-tiny", **SMALL).eval()
    for index in range(3):
        Image.new("RGB", (32, 32), (80 * index, 200, 10)).save(tmp_path / f"{index}.png")
    pictures = PictureSet(FolderPictures(tmp_path), size=32)
    images = pictures.load()
    drawn = encode_images(tokenizer, images, tmp_path / "drawn", flips=True, sample_seed=3)
    rng = make_rng(3, "encode", 0)
    with torch.no_grad():
        for variant, view in enumerate((images.images, images.images.flip(-1))):
            posterior = tokenizer.posterior(view)
            noise = torch.randn(posterior.mean.shape, generator=rng)
            expected = posterior.mean + (posterior.log_variance / 2).exp() * noise
            torch.testing.assert_close(drawn.levels[0][:, variant], expected)
    mode = encode_images(tokenizer, images, tmp_path / "mode")
    assert not torch.allclose(mode.levels[0], drawn.levels[0][:, :1], atol=0.1)
    # Pictures on disk are drawn too, and a cache of other draws is another cache.
    disk = encode_images(tokenizer, pictures, tmp_path / "disk", sample_seed=3)
    assert not torch.allclose(mode.levels[0], disk.levels[0], atol=0.1)
    with pytest.raises(ValueError, match="is stale"):
        encode_images(tokenizer, pictures, tmp_path / "disk", sample_seed=4)


def test_discrete_tokens_are_not_drawn(tmp_path) -> None:
    images = ImageSet(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64), ("a",))
    with pytest.raises(ValueError, match="sample_seed is 0, but the tokens of ResTok are discrete: leave it out"):
        encode_images(create("restok-tiny").eval(), images, tmp_path, sample_seed=0)


def test_options_that_came_later_change_no_fingerprint_at_their_defaults() -> None:
    torch.manual_seed(0)
    model = create("hieratok-tiny", **SMALL)
    before = tokenizer_fingerprint(model)
    assert "conv_channels" in model.config
    earlier = {name: value for name, value in model.config.items() if not name.startswith("conv_")}
    model._internal_dict = FrozenDict(earlier)
    assert tokenizer_fingerprint(model) == before
    model._internal_dict = FrozenDict({**earlier, "conv_channels": 8})
    assert tokenizer_fingerprint(model) != before
