from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import hiergen
from hiergen.data.images.pixels import center_crop, to_tensor
from hiergen.registry import create

_VIT = {
    f"{part}_{name}": size
    for part in ("encoder", "decoder")
    for name, size in (("dim", 32), ("depth", 1), ("heads", 2))
}


@pytest.fixture
def process() -> hiergen.ImageProcessor:
    return hiergen.ImageProcessor(size=16)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def test_pictures_are_scaled_cut_and_put_into_the_range(process, pixels) -> None:
    picture = Image.fromarray(pixels)
    expected = to_tensor(center_crop(picture, 16))
    made = process(picture)
    assert made.shape == (1, 3, 16, 16)
    assert torch.equal(made[0], expected)
    assert torch.equal(process(pixels)[0], expected)
    batch = process([picture, pixels, np.stack([pixels, pixels])])
    assert torch.equal(batch, expected.expand(4, -1, -1, -1))


def test_floats_are_those_of_arrays_or_of_tensors(process) -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(process(images), images)
    assert torch.equal(process(images[0]), images[:1])
    array = (images.movedim(1, -1).numpy() + 1) / 2
    torch.testing.assert_close(process(array), images, rtol=0, atol=1e-6)
    torch.testing.assert_close(process(array.astype(np.float64)[0]), images[:1], rtol=0, atol=1e-6)
    assert process(torch.zeros(2, 3, 32, 48)).shape == (2, 3, 16, 16)
    # A ramp from left to right keeps its middle, from -0.5 to 0.5, and its slope.
    ramp = process(torch.linspace(-1, 1, 64).expand(1, 3, 32, 64))[0, 0, 8]
    torch.testing.assert_close(ramp[1:-1], torch.linspace(-0.5, 0.5, 33)[1::2][1:-1], rtol=0, atol=0.02)


def test_every_mode_and_turn_of_a_picture_is_read_as_elsewhere(process, tmp_path) -> None:
    deep = np.full((16, 16), 40_000, dtype=np.uint16)
    torch.testing.assert_close(process(Image.fromarray(deep)), torch.full((1, 3, 16, 16), (40_000 >> 8) / 127.5 - 1))
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert torch.equal(process(clear), torch.ones(1, 3, 16, 16))
    assert torch.equal(process(np.asarray(clear)), torch.ones(1, 3, 16, 16))
    assert torch.equal(process(np.zeros((16, 16), dtype=np.uint8)), -torch.ones(1, 3, 16, 16))
    upper = Image.new("RGB", (16, 16), "black")
    upper.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    upper.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert torch.equal(process(turned).flip(-2), process(upper))
    grey = hiergen.ImageProcessor(16, channels=1)
    assert grey(upper).shape == (1, 1, 16, 16)
    assert grey(torch.zeros(1, 3, 16, 16)).shape == (1, 1, 16, 16)
    assert process(torch.zeros(1, 1, 16, 16)).shape == (1, 3, 16, 16)


def test_the_way_back(process, pixels) -> None:
    images = process(Image.fromarray(pixels))
    (picture,) = process.postprocess(images)
    assert torch.equal(process(picture), images)
    assert np.array_equal(process.postprocess(images, "np"), (images.movedim(1, -1).numpy() + 1) / 2)
    assert process.postprocess(images, "pt") is images
    with pytest.raises(ValueError, match="output_type is 'jpg', expected 'pil', 'np' or 'pt'"):
        process.postprocess(images, "jpg")


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images is empty, expected at least one image"),
        (torch.zeros(0, 3, 16, 16), ValueError, "images is empty"),
        ("cat.png", TypeError, "images hold a str, expected PIL pictures, arrays or tensors"),
        (torch.full((3, 16, 16), 200.0), ValueError, r"images span 200 to 200, .*scale with x / 127\.5 - 1"),
        (torch.full((3, 16, 16), float("nan")), ValueError, r"images span nan to nan, expected values in \[-1, 1\]"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), TypeError, r"dtype torch\.uint8, .*scale with x / 127\.5 - 1"),
        (torch.zeros(16, 16, 3), ValueError, r"shape \(16, 16, 3\), expected \(c, h, w\) or \(b, c, h, w\)"),
        (np.full((4, 4, 3), 200.0), ValueError, r"spans 200 to 200, expected floats in \[0, 1\]: scale with x / 255"),
        (np.full((4, 4, 3), -0.5), ValueError, r"spans -0\.5 to -0\.5, expected floats in \[0, 1\]"),
        (np.zeros((4, 4, 3), dtype=np.int64), TypeError, r"array of int64, expected uint8, or floats in \[0, 1\]"),
        (np.zeros((3, 4, 5), dtype=np.uint8), ValueError, r"array of shape \(3, 4, 5\), expected \(h, w, c\) or"),
        (np.zeros(3, dtype=np.uint8), ValueError, r"array of shape \(3,\), expected"),
    ],
)
def test_what_is_no_image_is_refused(process, images, error, message) -> None:
    with pytest.raises(error, match=message):
        process(images)


def test_sizes_and_channels_are_checked() -> None:
    with pytest.raises(ValueError, match="size is 0, expected at least 1"):
        hiergen.ImageProcessor(0)
    with pytest.raises(ValueError, match="channels is 4, expected 3, or 1 for grey images"):
        hiergen.ImageProcessor(16, channels=4)


@pytest.mark.parametrize("name", ["hieratok-tiny", "restok-tiny", "kl-16"])
def test_tokenizers_encode_pictures_as_they_are(name, pixels) -> None:
    torch.manual_seed(0)
    kl = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [32, 32],
        "latent_channels": 4,
        "norm_num_groups": 8,
    }
    options = {"hieratok-tiny": _VIT, "kl-16": {"autoencoder": kl, "image_size": 16}}.get(name, {})
    tokenizer = create(name, **options).eval()
    picture = Image.fromarray(pixels)
    images = tokenizer.image_processor([picture, picture])
    with torch.no_grad():
        expected = tokenizer.encode(images)
        for given in ([picture, picture], np.stack([pixels, pixels])):
            assert torch.equal(tokenizer.encode(given).concat(), expected.concat())
        assert tokenizer.encode(picture).batch_size == 1
        with pytest.raises(ValueError, match=r"images span 200 to 200, .*scale with x / 127\.5 - 1"):
            tokenizer.encode(torch.full_like(images, 200.0))
        with pytest.raises(TypeError, match=r"dtype torch\.uint8, expected floating point .*scale with x / 127\.5 - 1"):
            tokenizer.encode(images.to(torch.uint8))


def test_a_tokenizer_of_clips_has_no_processor_of_images() -> None:
    with pytest.raises(ValueError, match="PatchComponents has no image_processor: it does not encode images"):
        create("patches-tiny").image_processor  # noqa: B018  # a property that raises
