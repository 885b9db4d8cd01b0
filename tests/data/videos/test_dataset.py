from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from hiergen.data.config import DataConfig
from hiergen.data.sources import open_images
from hiergen.data.videos.dataset import VideoSet, load_clips
from hiergen.data.videos.files import write_mp4

DATA = Path(os.environ.get("HIERGEN_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def ramp(frames: int) -> torch.Tensor:
    """A grey clip whose frame t has the value t / 32 - 1."""
    return (torch.arange(frames) / 32 - 1)[None, :, None, None].expand(3, -1, 16, 16)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, frames in (("walk/a", 11), ("walk/b", 4), ("sit/c", 8)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_mp4(tmp_path / f"{name}.mp4", ramp(frames))
    (tmp_path / "sit" / "broken.mp4").write_bytes(b"nothing")
    return tmp_path


def test_a_folder_becomes_clips_and_what_is_skipped_is_told(folder, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="hiergen.data.videos.dataset"):
        videos = load_clips(folder, num_frames=4, size=8, stride=1)
    assert videos.classes == ("sit", "walk")
    # Eight frames make two clips, eleven two and a rest, four one.
    assert videos.labels.tolist() == [0, 0, 1, 1, 1]
    grey = videos.videos[:, 0, :, 4, 4].float() / 4
    wanted = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]])
    torch.testing.assert_close(grey, wanted.float(), rtol=0, atol=0.75)
    assert [Path(path).name for path in videos.skipped] == ["broken.mp4"]
    assert "skipped (1 so far): video" in caplog.messages[0]


def test_stride_and_number_of_clips(folder) -> None:
    videos = load_clips(folder, num_frames=3, size=8, stride=3, clips_per_file=1)
    assert len(videos) == 2
    torch.testing.assert_close(videos.videos[1, 0, :, 4, 4].float() / 4, torch.tensor([0.0, 3, 6]), rtol=0, atol=0.75)
    assert sorted(Path(path).name for path in videos.skipped) == ["b.mp4", "broken.mp4"]
    assert "has 4 frames, a clip takes 7" in videos.skipped[str(folder / "walk" / "b.mp4")]


def test_bad_requests_are_explained(folder) -> None:
    with pytest.raises(ValueError, match=r"none of the 4 video files of .* can be read; the last: .* a clip takes 50"):
        load_clips(folder, num_frames=50)
    for name in ("num_frames", "size", "stride", "clips_per_file"):
        with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
            load_clips(folder, **{name: 0})


def test_batches_and_frames_are_in_range() -> None:
    videos = torch.arange(2 * 3 * 4 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 4, 2, 2)
    clips = VideoSet(videos, torch.tensor([1, 0]), ("a", "b"))
    batch = clips.batch([(1, 0)], seed=0)
    assert batch["label"].tolist() == [0]
    torch.testing.assert_close(batch["video"][0, 0, 0, 0, 0], torch.tensor(48 / 127.5 - 1))
    frames = clips.frames(every=2)
    assert frames.images.shape == (4, 3, 2, 2)
    assert frames.labels.tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(frames.images[3], batch["video"][0, :, 2])
    other = VideoSet(videos.flip(0), torch.tensor([1, 0]), ("a", "b"))
    assert other.fingerprint != clips.fingerprint
    with pytest.raises(ValueError, match="every is 0"):
        clips.frames(0)


def test_frames_are_a_source_of_images(folder) -> None:
    images = open_images(DataConfig(source=f"clips:{folder}", size=8))
    assert images.classes == ("sit", "walk")
    assert images.images.shape[1:] == (3, 8, 8)
    with pytest.raises(ValueError, match="frames of clips are only in memory"):
        open_images(DataConfig(source="moving-digits", in_memory=False))


@pytest.mark.skipif(not (DATA / "videos").is_dir(), reason="the gesture clips are not here (HIERGEN_DATA)")
def test_real_clips_are_read() -> None:
    videos = load_clips(DATA / "videos" / "asl_gestures", num_frames=4, size=32, stride=4, clips_per_file=1)
    assert videos.videos.shape == (20, 3, 4, 32, 32)
    assert videos.skipped == {}
