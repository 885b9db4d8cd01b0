from __future__ import annotations

import pytest
import torch
from PIL import Image

import hiergen
from hiergen.data.codes import CodeSet
from hiergen.data.videos.dataset import VideoSet, from_uint8
from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.flow.sampling import FlowSettings
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pipelines.video_encoding import encode_videos
from hiergen.pyramid import specs_to_json
from hiergen.tokenizers.videos.patch_components import PatchComponents

STEPS = {"num_steps": 2, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def pipe() -> ClassToVideoPipeline:
    torch.manual_seed(0)
    tokenizer = PatchComponents(video_size=(4, 16, 16), patch_size=(2, 4, 4), dim=5).eval()
    tokenizer.fit(torch.rand(4, 3, 4, 16, 16) * 2 - 1)
    generator = FlowTransformer(
        level_specs=specs_to_json(tokenizer.specs), num_classes=3, dim=32, depth=1, num_heads=2
    ).eval()
    # The published initialization predicts no velocity at all.
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipeline = ClassToVideoPipeline(tokenizer=tokenizer, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_labels_become_clips_and_a_seed_repeats_them(pipe) -> None:
    first = pipe([0, 2], num_videos_per_label=2, generator=seeded(), **STEPS)
    assert len(first.frames) == 4
    assert all(len(clip) == 4 for clip in first.frames)
    assert all(isinstance(frame, Image.Image) and frame.size == (16, 16) for clip in first.frames for frame in clip)
    again = pipe([0, 2], num_videos_per_label=2, generator=seeded(), output_type="pt", **STEPS)
    assert torch.equal(first.pyramid.concat(), again.pyramid.concat())
    assert again.frames.shape == (4, 3, 4, 16, 16)
    assert float(again.frames.abs().max()) <= 1
    torch.testing.assert_close(again.frames, pipe.tokenizer.decode(again.pyramid).clamp(-1, 1))
    other = pipe(1, generator=seeded(1), output_type="pt", **STEPS)
    assert not torch.equal(other.frames[0], again.frames[0])


def test_every_step_is_reported_and_the_last_holds_the_tokens(pipe) -> None:
    seen = []
    result = pipe(
        1,
        callback_on_step_end=lambda _, step, time, values: seen.append((step, time, values)),
        callback_on_step_end_tensor_inputs=["pyramid", "frames"],
        output_type="pt",
        **STEPS,
    )
    assert [(step, time) for step, time, _ in seen] == list(enumerate(FlowSettings(**STEPS).times()[1:]))
    assert seen[0][2] == {"pyramid": None, "frames": None}
    assert torch.equal(seen[1][2]["pyramid"].concat(), result.pyramid.concat())
    assert torch.equal(seen[1][2]["frames"], result.frames)


def test_saved_is_loaded_by_class_and_by_name(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    expected = pipe(1, output_type="pt", generator=seeded(), **STEPS).frames
    for loaded in (ClassToVideoPipeline.from_pretrained(tmp_path), hiergen.from_pretrained(tmp_path)):
        loaded.set_progress_bar_config(disable=True)
        made = loaded(1, output_type="pt", generator=seeded(), **STEPS).frames
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_bad_requests_are_explained(pipe) -> None:
    with pytest.raises(ValueError, match="class labels span 3 to 3, expected 0 to 2"):
        pipe(3)
    with pytest.raises(ValueError, match="num_videos_per_label is 0"):
        pipe(1, num_videos_per_label=0)
    with pytest.raises(ValueError, match="class_labels is empty"):
        pipe([])
    with pytest.raises(ValueError, match="output_type is 'jpg'"):
        pipe(1, output_type="jpg")
    with pytest.raises(TypeError, match="no setting 'guidance_scal'; did you mean guidance_scale"):
        pipe(1, guidance_scal=2.0)
    with pytest.raises(ValueError, match="this generator was trained for"):
        ClassToVideoPipeline(tokenizer=PatchComponents(video_size=(4, 16, 16)), generator=pipe.generator)


def test_encoding_keeps_order_and_is_cached(pipe, tmp_path) -> None:
    videos = torch.randint(0, 256, (5, 3, 4, 16, 16), dtype=torch.uint8)
    clips = VideoSet(videos, torch.tensor([2, 0, 1, 1, 0]), ("a", "b", "c"))
    codes = encode_videos(pipe.tokenizer, clips, tmp_path, batch_size=2)
    assert isinstance(codes, CodeSet)
    assert codes.labels.tolist() == [2, 0, 1, 1, 0]
    wanted = pipe.tokenizer.encode(from_uint8(videos))
    torch.testing.assert_close(codes.levels[0][:, 0], wanted.levels[0])
    assert encode_videos(pipe.tokenizer, clips, tmp_path).source == codes.source
    with pytest.raises(ValueError, match="is stale"):
        encode_videos(pipe.tokenizer, VideoSet(videos.flip(0), clips.labels, clips.classes), tmp_path)
