from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hiergen.data.videos.decoding import read_frames
from hiergen.data.videos.files import caption_videos, list_videos, tile_videos, write_gif, write_mp4


def clip(frames: int = 5, height: int = 16, width: int = 24) -> torch.Tensor:
    """A bright bar that moves one column of eight pixels a frame."""
    video = torch.full((3, frames, height, width), -1.0)
    for t in range(frames):
        video[:, t, :, 8 * (t % 3) : 8 * (t % 3) + 8] = 1.0
    return video


def test_a_written_mp4_is_read_again(tmp_path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, clip(height=16, width=16), fps=10, enlarge=2)
    frames = read_frames(path, size=32)
    assert frames.shape == (3, 5, 32, 32)
    assert frames.dtype == torch.uint8
    # Twice as large, the bar is 16 pixels wide; H.264 is lossy.
    bright = frames.float().mean(dim=(0, 2)) > 127
    assert bright[0].tolist() == [True] * 16 + [False] * 16
    assert bright[1].tolist() == [False] * 16 + [True] * 16
    assert read_frames(path, size=32, max_frames=2).shape[1] == 2


def test_a_gif_holds_the_frames_exactly_and_repeats(tmp_path) -> None:
    write_gif(tmp_path / "a.gif", clip(height=15, width=24), fps=8)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 5
        assert picture.info["duration"] in (120, 125)
        assert picture.info["loop"] == 0
        picture.seek(1)
        pixels = np.asarray(picture.convert("L"))
    assert (pixels[:, 8:16] == 255).all()
    assert (pixels[:, :8] == 0).all()
    assert read_frames(tmp_path / "a.gif", size=15).shape == (3, 5, 15, 15)


def test_clips_are_tiled_in_rows() -> None:
    rows = [torch.ones(2, 3, 4, 6, 5), -torch.ones(2, 3, 4, 6, 5)]
    sheet = tile_videos(rows, gap=1)
    assert sheet.shape == (3, 4, 16, 14)
    assert sheet[0, 0, 0].tolist() == [0.0] * 14
    assert sheet[0, 0, 1].tolist() == [0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0]
    assert sheet[0, 0, 8, 1] == -1


def test_clips_stand_side_by_side_under_their_names() -> None:
    left, right = torch.zeros(3, 4, 6, 30), torch.rand(3, 4, 6, 30)
    sheet = caption_videos({"one": left, "another": right}, enlarge=2, gap=2)
    # Names are 24 pixels high, and both clips are of 12 by 60.
    assert sheet.shape == (3, 4, 24 + 12 + 2, 2 + 60 + 2 + 60 + 2)
    assert torch.equal(sheet[:, :, 24:36, 2:62], torch.zeros(3, 4, 12, 60))
    assert torch.equal(sheet[:, :, 24:36:2, 64:124:2], right)
    assert torch.equal(sheet[:, :, 25:36:2, 65:124:2], right)
    bars = sheet[:, :, :24, 2:62], sheet[:, :, :24, 64:124]
    for bar in bars:
        assert float(bar.min()) < 0
        assert float((bar == 1).double().mean()) > 0.7
    assert not torch.equal(*bars)
    smooth = caption_videos({"one": right}, enlarge=2, gap=2, is_smooth=True)[:, :, 24:36, 2:62]
    wanted = F.interpolate(right, size=(12, 60), mode="bicubic").clamp(-1, 1)
    torch.testing.assert_close(smooth, wanted, rtol=0, atol=1e-6)
    assert float(sheet[:, :, :, :2].min()) == 1


def test_what_cannot_be_read_is_named(tmp_path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video at all" * 100)
    for name in ("bad.mp4", "missing.mp4"):
        with pytest.raises(ValueError, match=rf"video '.*{name}' cannot be read"):
            read_frames(tmp_path / name, size=8)
    with pytest.raises(ValueError, match="does not exist"):
        list_videos(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no video file \(\.mp4"):
        list_videos(tmp_path / "empty")
    with pytest.raises(ValueError, match="15 x 24 pixels when written, expected even sides"):
        write_mp4(tmp_path / "odd.mp4", clip(height=15))
    assert not list(tmp_path.glob("*odd*"))


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'needs PyAV: pip install "hiergen\[video\]"'):
        write_mp4(tmp_path / "a.mp4", clip())
