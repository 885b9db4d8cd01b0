from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hiergen.data.images.windows import Windows
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.prefixes import decode_prefix, encode_adaptive, list_prefixes, rebuild_prefixes
from hiergen.registry import create
from hiergen.tokenizers.hieratok.model import HieraTok
from hiergen.tokenizers.videos.frames import FrameTokenizer

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "latent_dim": 2,
    "scales": [1, 2, 4],
    **{
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (("dim", 8), ("depth", 1), ("heads", 2))
    },
}


def images(count: int = 70) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_tokenizer_of_one_level_is_shown_by_the_scales_of_its_decoder() -> None:
    tokenizer = HieraTok(**SMALL, has_preview_heads=True).eval()
    found = rebuild_prefixes(tokenizer, images())
    assert (found.unit, found.counts, found.tokens) == ("scales", (1, 2, 3), (1, 5, 21))
    with torch.no_grad():
        for k, rebuilt in zip(found.counts, found.images, strict=True):
            small = tokenizer.preview(images(), k)
            assert small.shape[-1] == 4 * 2 ** (k - 1)
            expected = F.interpolate(small, size=16, mode="bilinear").clamp(-1, 1)
            torch.testing.assert_close(rebuilt, expected)
        whole = tokenizer.decode(tokenizer.encode(images())).clamp(-1, 1)
    torch.testing.assert_close(found.images[-1], whole)


@pytest.mark.parametrize("changes", [{}, {"has_preview_heads": True, "mask": "full"}, {"scales": [4]}])
def test_scales_that_show_nothing_are_left_out(changes) -> None:
    found = rebuild_prefixes(HieraTok(**{**SMALL, **changes}).eval(), images(2))
    assert (found.unit, found.counts, found.tokens) == ("levels", (1,), (16,))


def test_levels_are_shown_as_levels() -> None:
    found = rebuild_prefixes(HieraTok(**SMALL, latent="all", has_preview_heads=True).eval(), images(2))
    assert (found.unit, found.counts, found.tokens) == ("levels", (1, 2, 3), (1, 5, 21))
    tokenizer = create("restok-tiny").eval()
    found = rebuild_prefixes(tokenizer, torch.zeros(1, 3, 32, 32))
    assert found.unit == "levels"
    assert found.counts == tokenizer.decodable_levels
    assert found.tokens[-1] == 16


def test_a_large_picture_is_rebuilt_in_windows() -> None:
    tokenizer = HieraTok(**SMALL, latent="all", has_preview_heads=True).eval()
    picture = torch.rand(1, 3, 20, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    windows = Windows(size=16, overlap=4)
    found = rebuild_prefixes(tokenizer, picture, windows=windows)
    parts = rebuild_prefixes(tokenizer, windows.cut(picture))
    assert found.tokens == tuple(6 * tokens for tokens in parts.tokens)
    for whole, cut in zip(found.images, parts.images, strict=True):
        torch.testing.assert_close(whole, windows.join(cut, 20, 40))


@torch.no_grad()
def test_clips_are_rebuilt_from_the_scales_of_their_frames() -> None:
    tokenizer = HieraTok(**SMALL, has_preview_heads=True).eval()
    clips = images(6).unflatten(0, (2, 3)).transpose(1, 2)
    by_frame = FrameTokenizer.of(tokenizer, 3).eval()
    found = list_prefixes(by_frame)
    assert [(p.unit, p.count, p.tokens, p.numbers) for p in found] == [
        ("scales", 1, 3, 6),
        ("scales", 2, 15, 30),
        # All of the code, from which every scale is computed: not 63 vectors.
        ("scales", 3, 63, 96),
    ]
    assert str(found[1]) == "15 tokens, 30 numbers"
    frames = rebuild_prefixes(tokenizer, images(6)).images
    for prefix, expected in zip(found, frames, strict=True):
        rebuilt = decode_prefix(by_frame, by_frame.encode(clips), prefix)
        torch.testing.assert_close(rebuilt, expected.unflatten(0, (2, 3)).transpose(1, 2))
    assert str(list_prefixes(create("restok-tiny"))[0]) == "1 token, 9 bits"


def test_every_image_keeps_its_shortest_prefix_that_is_good_enough() -> None:
    torch.manual_seed(0)
    tokenizer = create(
        "pyramid-tiny-84", image_size=16, backbone_options={"widths": [8, 8], "depths": [0, 0], "stem": 4}
    ).eval()
    data = torch.cat((images(66), images(6).mean(dim=(2, 3), keepdim=True).expand(-1, -1, 16, 16)))
    rebuilt = rebuild_prefixes(tokenizer, data)
    every = torch.stack([psnr(part, data) for part in rebuilt.images])
    bound = float(every.median())
    found = encode_adaptive(tokenizer, data, min_psnr=bound)
    reached = every >= bound
    expected = torch.where(reached.any(dim=0), reached.int().argmax(dim=0), len(every) - 1)
    assert torch.equal(found.chosen, expected)
    assert len(set(found.chosen.tolist())) == 2
    picked = torch.stack(rebuilt.images)[expected, torch.arange(len(data))]
    torch.testing.assert_close(found.images, picked)
    torch.testing.assert_close(found.psnr, psnr(picked, data).float(), rtol=1e-4, atol=1e-4)
    # Four tokens of eight bits, or twenty; and one bit that says which.
    assert set(found.sizes.tolist()) == {4 * 8 + 1, 20 * 8 + 1}
    assert encode_adaptive(tokenizer, data, min_psnr=-100.0).chosen.max() == 0
    assert encode_adaptive(tokenizer, data, min_psnr=1000.0).chosen.min() == 1


def test_continuous_prefixes_are_counted_in_numbers() -> None:
    tokenizer = HieraTok(**SMALL, latent="all", has_preview_heads=True).eval()
    assert encode_adaptive(tokenizer, images(2), min_psnr=-100.0).sizes.tolist() == [2.0, 2.0]
