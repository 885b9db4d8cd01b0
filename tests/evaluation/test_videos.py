from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.data.video_files import write_mp4
from hiergen.evaluation.comparison import compare
from hiergen.evaluation.distances import DistanceConfig
from hiergen.evaluation.protocol import PassConfig
from hiergen.evaluation.sampling import SamplingConfig
from hiergen.evaluation.video_extractors import VideoExtractorConfig, build_video_extractor, register_video_extractor
from hiergen.evaluation.video_sources import ClipConfig, VideoSettings
from hiergen.evaluation.videos import evaluate_videos
from hiergen.generators.flow_transformer import FlowTransformer
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import specs_to_json
from hiergen.tokenizers.patch_components import PatchComponents


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
    assert report["protocol"]["tokens"].startswith("8 for 3,072 numbers a clip")


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
