from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.data.videos.dataset import from_uint8
from hiergen.data.videos.files import write_mp4
from hiergen.data.videos.moving_digits import moving_digits
from hiergen.data.videos.moving_emoji import moving_emoji
from hiergen.evaluation.comparison import compare
from hiergen.evaluation.features.video_extractors import (
    VIDEO_EXTRACTORS,
    build_video_extractor,
    register_video_extractor,
)
from hiergen.evaluation.protocol import quantize
from hiergen.evaluation.settings import DistanceConfig, PassConfig, SamplingConfig
from hiergen.evaluation.videos.evaluate import evaluate_videos
from hiergen.evaluation.videos.settings import ClipConfig, VideoExtractorConfig, VideoSettings
from hiergen.evaluation.videos.sources import open_clips
from hiergen.generators.flow.model import FlowTransformer
from hiergen.metrics.video import VideoExtractor, frame_psnr
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import TokenPyramid, specs_to_json
from hiergen.tokenizers.videos.patch_components import PatchComponents


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline and a tokenizer with random weights, and two folders of clips: still ones, and the same with flashes."""
    out = tmp_path_factory.mktemp("videos")
    torch.manual_seed(0)
    tokenizer = PatchComponents(video_size=(4, 16, 16), patch_size=(2, 8, 8), dim=3)
    tokenizer.save_pretrained(out / "patches")
    generator = FlowTransformer(level_specs=specs_to_json(tokenizer.specs), num_classes=2, dim=16, depth=1, num_heads=1)
    ClassToVideoPipeline(tokenizer=tokenizer, generator=generator).save_pretrained(out / "pipeline")
    for name in ("still", "flashing"):
        (out / name).mkdir()
        for k in range(10):
            clip = torch.full((3, 4, 16, 16), -0.8 + 0.1 * k)
            if name == "flashing":
                clip[:, 1::2] += 0.5
            write_mp4(out / name / f"{k}.mp4", clip)
    return out


def settings(folder: Path, name: str, **changes: Any) -> VideoSettings:
    plain = VideoSettings(
        clips=ClipConfig(num_frames=4, size=16),
        out=str(folder / "out" / name),
        num_reference=10,
        num_videos=10,
        sampling=SamplingConfig(num_steps=2),
        extractor=VideoExtractorConfig("frames-mean-color"),
        distances=DistanceConfig(resamples=4),
        passes=PassConfig(batch_size=3, part_size=4, device="cpu"),
    )
    return dataclasses.replace(plain, **changes)


def test_flashes_are_flicker_and_still_clips_are_themselves(folder: Path) -> None:
    still = str(folder / "still")
    same = evaluate_videos(settings(folder, "same", videos=still, reference=still))
    assert same is not None
    assert same["metrics"]["gFD-frames-mean-color"] == pytest.approx(0, abs=1e-6)
    assert same["metrics"]["ssim"] == pytest.approx(1)
    assert same["metrics"]["flicker_error"] == 0
    other = evaluate_videos(settings(folder, "other", videos=str(folder / "flashing"), reference=still))
    assert other is not None
    # Every step changes every pixel by 0.5 of 2; the codec moves it by little.
    assert other["metrics"]["flicker"] == pytest.approx(0.25, abs=0.02)
    assert other["metrics"]["flicker_reference"] < 0.01
    assert other["protocol"]["pairs"] == "files of the same name"
    row = compare(folder / "out" / "same", folder / "out" / "other", resamples=10)["metrics"]["flicker"]
    assert row["is_clear"]
    assert row["difference"] == pytest.approx(other["metrics"]["flicker"] - same["metrics"]["flicker"])
    assert "flicker" in (folder / "out" / "other" / "report.md").read_text()


def test_generated_clips_do_not_depend_on_the_batch(folder: Path) -> None:
    """And a run of two parts that lost one draws that one again."""
    one = settings(folder, "one", pipeline=str(folder / "pipeline"), keep="mp4")
    report = evaluate_videos(one)
    assert report is not None
    assert sorted(path.name for path in (folder / "out" / "one" / "videos").iterdir()) == [
        f"00000{k}.mp4" for k in range(10)
    ]
    assert "psnr" not in report["metrics"]
    passes = PassConfig(batch_size=1, part_size=8, device="cpu")
    singles = settings(folder, "singles", pipeline=str(folder / "pipeline"), passes=passes)
    parts = [evaluate_videos(singles)]
    (folder / "out" / "singles" / "parts" / "part-00001.safetensors").unlink()
    parts.append(evaluate_videos(singles))
    for found in parts:
        assert found is not None
        assert found["metrics"] == pytest.approx(report["metrics"], rel=1e-2)


def test_rebuilt_clips_are_scored_in_pairs(folder: Path) -> None:
    report = evaluate_videos(settings(folder, "rebuilt", tokenizer=str(folder / "patches")))
    assert report is not None
    assert {"rFD-frames-mean-color", "psnr", "ssim", "flicker_error"} <= set(report["metrics"])
    assert report["protocol"]["rate"] == "8 tokens, 24 numbers, in 3 components, for 3,072 numbers of a clip"


def test_a_tokenizer_of_clips_is_scored_by_prefix(folder: Path) -> None:
    """Components of a linear tokenizer: the last row is the report, and each is what decoding with the others at zero gives."""
    chosen = settings(folder, "prefixes", tokenizer=str(folder / "patches"), prefixes=True)
    report = evaluate_videos(chosen)
    assert report is not None
    rows = report["rate_distortion"]
    assert [(row["unit"], row["count"], row["tokens"], row["numbers"]) for row in rows] == [
        ("components", 1, 8, 8),
        ("components", 2, 8, 16),
        ("components", 3, 8, 24),
    ]
    whole = evaluate_videos(settings(folder, "whole", tokenizer=str(folder / "patches")))
    assert whole is not None
    assert report["metrics"] == whole["metrics"]
    assert rows[-1]["metrics"].items() <= report["metrics"].items()
    tokenizer = PatchComponents.from_pretrained(folder / "patches").eval()
    clips = from_uint8(open_clips(chosen.reference, chosen).videos)
    tokens = tokenizer.encode(clips).levels[0]
    tokens[..., 1:] = 0
    made = from_uint8(quantize(tokenizer.decode(TokenPyramid((tokens,), tokenizer.specs))))
    expected = frame_psnr(made, clips).mean(dim=1)
    assert rows[0]["metrics"]["psnr"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert rows[0]["intervals_95"]["psnr"] == pytest.approx(1.96 * float(expected.std()) / 10**0.5, rel=1e-4)
    assert len(report["tokens"]["by_channel"]) == 3
    text = (folder / "out" / "prefixes" / "report.md").read_text()
    assert "| components | tokens | numbers |" in text
    assert "## Latents" in text
    assert (folder / "out" / "prefixes" / "rate_distortion.png").is_file()


def test_refusals_come_before_any_work(folder: Path) -> None:
    for changes, message in (
        ({}, "got none of --pipeline, --videos and --tokenizer, expected one"),
        ({"videos": "a", "pipeline": "b"}, "got pipeline and videos of"),
        ({"pipeline": str(folder / "pipeline"), "clips": ClipConfig(4, 24)}, r"makes clips of shape \(3, 4, 16, 16\)"),
        ({"pipeline": str(folder / "patches")}, "holds a PatchComponents, expected a pipeline of"),
        ({"tokenizer": str(folder / "patches"), "num_reference": 9}, "the reference holds 9 clips, at least 10"),
        (
            {"videos": str(folder / "still"), "extractor": VideoExtractorConfig("i3d")},
            "unknown extractor of clips 'i3d'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_videos(settings(folder, "refused", **changes))
    assert not list((folder / "out").glob("refused/parts/part-*"))


def test_embedded_clips_have_digits_of_the_size_that_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the extractor that is trained on such clips is trained on the same size."""
    chosen = settings(
        folder, "sizes", clips=ClipConfig(num_frames=4, size=16, digit_size=12), videos=str(folder / "still")
    )
    expected = moving_digits("test", 10, num_frames=4, size=16, digit_size=12)
    assert torch.equal(open_clips("moving-digits", chosen).videos, expected.videos)
    emoji = moving_emoji("test", 10, num_frames=4, size=16)
    assert torch.equal(open_clips("moving-emoji", chosen).videos, emoji.videos)
    asked: list[int] = []

    def build(config: VideoExtractorConfig, *_: object) -> VideoExtractor:
        asked.append(config.digit_size)
        return VideoExtractor("mean", "mean color", lambda clips: clips.float().mean(dim=(2, 3, 4)))

    monkeypatch.setitem(VIDEO_EXTRACTORS, "moving-digits", build)
    evaluate_videos(dataclasses.replace(chosen, extractor=VideoExtractorConfig()))
    assert asked == [12]


def test_extractors_of_clips(folder: Path) -> None:
    """Of a frame extractor: means over time, and mean absolute steps, against a loop."""
    extractor = build_video_extractor(
        VideoExtractorConfig("frames-mean-color"), num_frames=4, size=8, device=torch.device("cpu")
    )
    clips = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    colors = clips.double().mean(dim=(3, 4))
    steps = sum((colors[:, :, t + 1] - colors[:, :, t]).abs() for t in range(3)) / 3
    expected = torch.cat([colors.mean(dim=2), steps], dim=1)
    torch.testing.assert_close(extractor.network(clips).double(), expected, atol=1e-3, rtol=1e-4)
    for taken in ("moving-digits", "frames-other"):
        with pytest.raises(ValueError, match=f"extractor of clips '{taken}' is registered already"):
            register_video_extractor(taken, lambda *_: extractor)
