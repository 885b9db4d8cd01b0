from __future__ import annotations

import pytest
import torch

import hiergen
from hiergen.registry import create
from hiergen.tokenizers.hieratok.model import HieraTok
from hiergen.tokenizers.videos.frames import FrameTokenizer

FRAME = {
    "image_size": 8, "patch_size": 4, "latent_dim": 3, "scales": [1, 2], "encoder_dim": 16, "encoder_depth": 1,
    "encoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip


@pytest.fixture
def images() -> HieraTok:
    torch.manual_seed(0)
    model = HieraTok(**FRAME)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_a_clip_is_its_frames(images) -> None:
    clips = FrameTokenizer.of(images, 5)
    video = torch.rand(2, 3, 5, 8, 8) * 2 - 1
    pyramid = clips.encode(video)
    (spec,) = clips.specs
    assert (spec.num_tokens, spec.grid, spec.dim) == (20, (5, 2, 2), 3)
    alone = images.encode(video[1, :, 3][None])
    torch.testing.assert_close(pyramid.levels[0][1, 12:16], alone.levels[0][0])
    rebuilt = clips.decode(pyramid)
    assert rebuilt.shape == video.shape
    torch.testing.assert_close(rebuilt[1, :, 3], images.decode(alone)[0])


def test_training_passes_and_saving(images, tmp_path) -> None:
    clips = FrameTokenizer.of(images, 2).train()
    video = torch.rand(1, 3, 2, 8, 8) * 2 - 1
    output = clips(video, rng=torch.Generator().manual_seed(0))
    (output.reconstruction.square().mean() + output.losses["kl"]).backward()
    assert all(p.grad is not None for p in clips.parameters())
    clips.save_pretrained(tmp_path)
    loaded = hiergen.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, FrameTokenizer)
    torch.testing.assert_close(
        loaded.encode(video).levels[0], clips.eval().encode(video).levels[0], rtol=1e-4, atol=1e-5
    )
    assert create("frames-128", num_frames=2, frame=FRAME).frame_size == 8


def test_refusals(images) -> None:
    clips = FrameTokenizer.of(images, 2)
    with pytest.raises(ValueError, match=r"videos have shape \(1, 3, 3, 8, 8\), expected \(b, 3, 2, 8, 8\)"):
        clips.encode(torch.zeros(1, 3, 3, 8, 8))
    with pytest.raises(ValueError, match="num_frames is 0"):
        FrameTokenizer(num_frames=0, frame=FRAME)
    with pytest.raises(ValueError, match="frame is a tokenizer of 2 levels, expected one"):
        FrameTokenizer(num_frames=2, frame={**FRAME, "latent": "all"})
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        clips.decode(FrameTokenizer.of(images, 3).encode(torch.zeros(1, 3, 3, 8, 8)))
