from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from hiergen.data.videos.files import write_gif
from hiergen.data.videos.moving_emoji import moving_emoji
from hiergen.demo import clips
from hiergen.demo.clips import Film, embedded_clips, open_clip


def shades(count: int) -> torch.Tensor:
    """A clip of 32 x 32 pixels of which each frame is brighter than the one before, `(3, t, 32, 32)`."""
    return torch.linspace(-1, 1, count)[None, :, None, None].expand(3, count, 32, 32)


def gif(clip: torch.Tensor, folder) -> bytes:
    write_gif(folder / "clip.gif", clip)
    return (folder / "clip.gif").read_bytes()


def test_two_clips_are_one_picture_without_loss_so_that_they_play_in_step() -> None:
    noise = torch.rand(3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, second = Film.of(shades(4)), Film.of(noise)
    with Image.open(io.BytesIO(first.beside(second).encoded())) as both:
        assert (both.format, both.n_frames, both.size) == ("WEBP", 4, (32 + 2 + 32, 32))
        for number, frame in enumerate(ImageSequence.Iterator(both)):
            pixels = np.asarray(frame.convert("RGBA"))
            assert np.array_equal(pixels[:, :32, :3], np.asarray(first.frames[number]))
            assert np.array_equal(pixels[:, 34:, :3], np.asarray(second.frames[number]))
            assert (pixels[:, 32:34, 3] == 0).all()
            assert frame.info["duration"] == clips.DURATION
    with Image.open(io.BytesIO(first.encoded("GIF"))) as one:
        assert (one.format, one.n_frames) == ("GIF", 4)


def test_examples_are_held_out_clips_of_what_the_model_knows() -> None:
    emoji = embedded_clips("emoji", 4, 16)
    expected = moving_emoji("test", 10, num_frames=4, size=16).videos
    assert torch.equal(((emoji + 1) * 127.5).round().to(torch.uint8), expected)
    assert not torch.equal(embedded_clips("", 4, 16), emoji)
    assert torch.equal(embedded_clips("", 4, 16), embedded_clips("digits", 4, 16))


def test_an_uploaded_clip_is_what_the_model_takes_and_what_was_done_is_told(tmp_path, monkeypatch) -> None:
    pytest.importorskip("av")

    def opened(count: int) -> tuple[list[int], str]:
        clip, told = open_clip(gif(shades(count), tmp_path), 8, 16, max_pixels=1_024)
        assert clip.shape == (1, 3, 8, 16, 16)
        # Which frame of the upload it is, by its shade.
        return ((clip.mean(dim=(0, 1, 3, 4)) + 1) / 2 * (count - 1)).round().int().tolist(), told

    assert opened(8) == (list(range(8)), "")
    numbers, told = opened(16)
    assert numbers == list(range(1, 16, 2))
    assert told == "Your clip has 16 frames in 1.9 s; the model takes 8, which were taken at even times."
    numbers, told = opened(4)
    assert numbers == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "Your clip has 4 frames in 0.5 s; the model takes 8, so frames were repeated" in told
    monkeypatch.setattr(clips, "MAX_FRAMES", 8)
    numbers, told = opened(16)
    assert numbers == list(range(8))
    assert told.startswith("Of your clip the first 8 frames in 1.0 s were read; ")


def test_what_is_no_clip_is_refused_in_a_sentence(tmp_path) -> None:
    pytest.importorskip("av")
    Image.new("RGB", (32, 32)).save(buffer := io.BytesIO(), "GIF")
    still = buffer.getvalue()
    Image.new("RGB", (32, 32)).save(buffer := io.BytesIO(), "PNG")
    for data, said in (
        (still, "it holds a single frame, a picture"),
        (buffer.getvalue(), "it is no GIF, MP4, MOV, WebM, MKV or AVI file"),
        (b"", "it is no GIF, MP4, MOV, WebM, MKV or AVI file"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "it is no GIF, MP4, MOV, WebM, MKV or AVI file"),
        (gif(shades(4), tmp_path)[:40], "cannot be read as a clip"),
        (gif(shades(4), tmp_path), "32x32 pixels, at most 1,000 are read"),
    ):
        with pytest.raises(ValueError, match=r"^your file cannot be read as a clip: ") as caught:
            open_clip(data, 8, 16, max_pixels=1_000 if said.startswith("32x32") else 1_024)
        assert said in str(caught.value)
        assert "/clip" not in str(caught.value)
