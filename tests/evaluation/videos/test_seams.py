"""How much frames differ at the seam of a continued clip, with a toy."""

from __future__ import annotations

import pytest
import torch

from hiergen.evaluation.videos.seams import frame_differences, score_seams
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create


def test_differences_are_in_steps_of_255() -> None:
    clip = torch.tensor([0.0, 0.0, 1.0, -1.0]).view(1, 1, 4, 1, 1).expand(2, 3, 4, 6, 6)
    torch.testing.assert_close(frame_differences(clip), torch.tensor([[0.0, 127.5, 255.0]] * 2))


def test_seam_borders_and_inside_are_told_apart(monkeypatch) -> None:
    torch.manual_seed(0)
    tokenizer = create("patches-tiny", video_size=[12, 12, 12], patch_size=[2, 6, 6], dim=216).eval()
    maker = create("flow-video-tiny", dim=24, num_heads=2, depth=1, level_specs=specs_to_json(tokenizer.specs)).eval()
    pipe = ClassToVideoPipeline(tokenizer=tokenizer, generator=maker)
    pipe.set_progress_bar_config(disable=True)
    # Steps of 1 inside of tokens, 2 at their borders, 5 behind the fourth frame.
    steps = torch.tensor([1, 2, 1, 5, 1, 2, 1, 2, 1, 2, 1]) / 127.5
    path = torch.cat((torch.zeros(1), steps.cumsum(0)))
    clips = path.view(1, 1, 12, 1, 1).expand(1, 3, 12, 12, 12).contiguous()
    found = score_seams(pipe, clips, torch.tensor([3]), num_given=4, num_steps=1)
    assert len(found) == 15
    for kind in ("real", "rebuilt"):
        seen = [found[f"{kind}, {place}"] for place in ("seam", "borders", "inside")]
        assert seen == pytest.approx([5.0, 2.0, 1.0], abs=1e-3)
    given = pipe.extend(clips[:, :, :4], 3, num_steps=1, output_type="pt").frames[:, :, :4]
    assert torch.equal(given, clips[:, :, :4])
