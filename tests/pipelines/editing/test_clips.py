from __future__ import annotations

import pytest
import torch

from hiergen.data.images.pixels import to_pictures
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create
from hiergen.tokenizers.videos.frames import FrameTokenizer


def pipeline(tokenizer) -> ClassToVideoPipeline:
    torch.manual_seed(0)
    generator = create(
        "flow-video-tiny", dim=24, num_heads=2, depth=1, level_specs=specs_to_json(tokenizer.specs)
    ).eval()
    for linear in (generator.blocks[0].modulation, generator.final_modulation, generator.final_linear):
        torch.nn.init.normal_(linear.weight, std=0.2)
    pipe = ClassToVideoPipeline(tokenizer=tokenizer, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def boxes() -> ClassToVideoPipeline:
    """Clips of 8 frames, two in a token."""
    return pipeline(create("patches-tiny", video_size=[8, 24, 24], patch_size=[2, 6, 6], dim=6).eval())


@pytest.fixture(scope="module")
def by_frame() -> ClassToVideoPipeline:
    torch.manual_seed(1)
    return pipeline(FrameTokenizer.of(create("hieratok-tiny").eval(), 4))


def options(seed: int = 0):
    return {"generator": torch.Generator().manual_seed(seed), "num_steps": 2, "output_type": "pt"}


@pytest.mark.parametrize(("name", "side", "per_token"), [("boxes", 24, 2), ("by_frame", 32, 1)])
def test_a_clip_begins_with_the_frames_that_are_given(name, side, per_token, request) -> None:
    pipe = request.getfixturevalue(name)
    first = torch.rand(2, 3, 2, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1
    made = pipe.extend(first, 3, **options())
    length = made.frames.shape[2]
    assert torch.equal(made.frames[:, :, :2], first)
    assert not torch.equal(made.frames[:, :, 2:4], first)
    # The generator was given the tokens of these frames, and makes others from others.
    with torch.no_grad():
        padded = torch.cat((first, torch.zeros(2, 3, length - 2, side, side)), dim=2)
        given = pipe.tokenizer.encode(padded).levels[0]
    count = given.shape[1] // length * 2
    torch.testing.assert_close(made.pyramid.levels[0][:, :count], given[:, :count], atol=1e-5, rtol=0)
    other = pipe.extend(first.flip(-1), 3, **options())
    assert not torch.equal(other.frames[:, :, 2:], made.frames[:, :, 2:])
    several = pipe.extend(first, [3, 7], num_videos_per_input=2, **options()).frames
    assert torch.equal(several[:2, :, :2], first[:1].expand(2, -1, -1, -1, -1))
    assert not torch.equal(several[0], several[1])


@torch.no_grad()
def test_a_flow_starts_from_the_last_frame_with_noise(boxes) -> None:
    first = torch.rand(1, 3, 4, 24, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    guess = boxes._decode(boxes.tokenizer.encode(first[:, :, [0, 1, 2, 3, 3, 3, 3, 3]]))
    made = {
        strength: boxes.extend(first, 3, strength=strength, **options()).frames for strength in (0.0, 0.8, 1.0, None)
    }
    torch.testing.assert_close(made[0.0][:, :, 4:], guess[:, :, 4:], atol=1e-5, rtol=0)
    assert torch.equal(made[0.8], made[None])
    assert not torch.equal(made[0.8], made[1.0])


def test_generators_that_are_no_flows_take_no_strength(boxes) -> None:
    sizes = {"encoder_dim": 16, "decoder_dim": 16, "encoder_depth": 1, "decoder_depth": 1, "head_dim": 16}
    heads = {"encoder_heads": 2, "decoder_heads": 2, "head_depth": 1, "num_buffer": 2}
    maker = create("mar-tiny", level_specs=specs_to_json(boxes.tokenizer.specs), **sizes, **heads).eval()
    pipe = ClassToVideoPipeline(tokenizer=boxes.tokenizer, generator=maker)
    pipe.set_progress_bar_config(disable=True)
    first = torch.zeros(3, 4, 24, 24)
    quick = {"num_steps": 2, "head_steps": 2, "head_spacing": "leading", "output_type": "pt"}
    assert torch.equal(pipe.extend(first, 3, **quick).frames[0, :, :4], first)
    with pytest.raises(ValueError, match=r"strength is 0\.5, but a MaskedAR is no flow: leave it out"):
        pipe.extend(first, 3, strength=0.5, **quick)


def test_frames_may_be_pictures(boxes) -> None:
    first = torch.rand(3, 4, 24, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    frames = to_pictures(first.transpose(0, 1))
    (clip,) = boxes.extend(frames, 3, **{**options(), "output_type": "pil"}).frames
    assert len(clip) == 8
    assert clip[:4] == frames
    two, _ = boxes.extend([frames, frames], 3, return_dict=False, **options())
    assert two.shape == (2, 3, 8, 24, 24)


@pytest.mark.parametrize(
    ("frames", "kind", "said"),
    [
        (
            torch.zeros(3, 3, 24, 24),
            ValueError,
            "frames are 3, expected a multiple of 2, the frames of a token, from 2 to 6",
        ),
        (torch.zeros(3, 8, 24, 24), ValueError, "frames are 8, expected a multiple of 2"),
        (torch.zeros(3, 2, 32, 32), ValueError, r"frames have shape \(3, 2, 32, 32\), expected \(3, t, 24, 24\)"),
        (torch.full((3, 2, 24, 24), 2.0), ValueError, r"expected values in \[-1, 1\]"),
        (["a.png"], TypeError, "frames hold a str, expected PIL pictures"),
        ([], ValueError, r"frames are clips of \[0\] frames"),
    ],
)
def test_frames_that_do_not_fit_are_refused(boxes, frames, kind, said, unchecked) -> None:
    with pytest.raises(kind, match=said):
        boxes.extend(frames, 3, **options())
