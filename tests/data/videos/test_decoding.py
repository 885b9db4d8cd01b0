from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from hiergen.data.videos import decoding
from hiergen.data.videos.dataset import load_clips
from hiergen.data.videos.decoding import read_frames, sample_frames
from hiergen.data.videos.files import write_gif

av = pytest.importorskip("av")

#: Milliseconds at which frames of a clip of varying rate are shown.
TIMES = (0, 40, 80, 480, 520, 1000)


def write(
    path: Path,
    frames: list[np.ndarray],
    *,
    rate: int = 10,
    times=None,
    turn=(0, False, False),
    ratio=None,
    codec="libx264",
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "1"} if codec == "libx264" else {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p" if codec == "libx264" else "rgba"
        if ratio:
            stream.codec_context.sample_aspect_ratio = Fraction(ratio)
        if any(turn):
            stream.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        if times:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.shape[-1] == 3 else "rgba")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shaded(count: int, size: int = 32) -> list[np.ndarray]:
    """Frames whose shade says which they are."""
    return [np.full((size, size, 3), 40 * number, np.uint8) for number in range(count)]


def numbers(frames) -> list[int]:
    return (frames.float().mean(dim=(0, 2, 3)) / 40).round().int().tolist()


def write_sound(path: Path, kind: str = "mp4", codec: str = "aac") -> Path:
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=44100)
        stream.layout = "mono"
        for _ in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_cover(path: Path) -> Path:
    """Sound with a cover picture, as players of music keep it: an ID3 tag before an MP3 file."""
    from PIL import Image

    write_sound(path, "mp3", "libmp3lame")
    picture = path.with_suffix(".png")
    Image.new("RGB", (16, 16), "red").save(picture)
    body = b"\0image/png\0\x03\0" + picture.read_bytes()
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    sizes = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    sound = path.read_bytes()
    if sound.startswith(b"ID3"):
        sound = sound[
            10 + sum((byte & 127) << shift for byte, shift in zip(sound[6:10], (21, 14, 7, 0), strict=True)) :
        ]
    path.write_bytes(b"ID3\x03\0\0" + sizes + frame + sound)
    return path


def write_nothing(path: Path) -> Path:
    """A video stream without a frame."""
    whole = write(path, shaded(1)).read_bytes()
    # The table of samples says that there are none; the stream itself is still described.
    for name in (b"stsz", b"stts", b"stsc", b"stco"):
        at = whole.index(name)
        offset = at + (12 if name == b"stsz" else 8)
        whole = whole[:offset] + b"\0\0\0\0" + whole[offset + 4 :]
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (write_sound, "it has no video stream, only audio"),
        (write_cover, "it has no video stream, only a cover picture"),
        (write_nothing, "it holds no frame"),
    ],
)
def test_a_file_without_video_is_refused_in_a_sentence(tmp_path, make, message) -> None:
    path = make(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=rf"^video '.*a\.mp4' cannot be read: {message}$"):
        read_frames(path, size=16)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(
    ("turn", "upright"),
    [
        ((90, False, False), lambda a: np.rot90(a)),
        ((180, False, False), lambda a: np.rot90(a, 2)),
        ((270, False, False), lambda a: np.rot90(a, -1)),
    ],
)
def test_clips_are_turned_as_their_container_says(tmp_path, suffix, turn, upright) -> None:
    _check_turn(tmp_path / f"a.{suffix}", turn, upright)


@pytest.mark.parametrize(
    ("turn", "upright"),
    [
        ((0, True, False), lambda a: a[:, ::-1]),
        ((0, False, True), lambda a: a[::-1]),
        ((90, True, False), lambda a: np.rot90(a)[:, ::-1]),
        ((90, False, True), lambda a: np.rot90(a)[::-1]),
    ],
)
def test_clips_are_mirrored_as_their_container_says(tmp_path, turn, upright) -> None:
    _check_turn(tmp_path / "a.mp4", turn, upright)


def _check_turn(path: Path, turn, upright) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16], pixels[:16, 16:], pixels[16:, :16] = 250, 160, 80
    found = read_frames(write(path, [pixels], turn=turn), size=32)[:, 0].permute(1, 2, 0).numpy()
    expected = upright(pixels)
    # The middle of each quarter: the codec blurs between them.
    for top, left in ((8, 8), (8, 24), (24, 8), (24, 24)):
        assert abs(int(found[top, left, 0]) - int(expected[top, left, 0])) < 10


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(("ratio", "height", "width"), [("2/1", 32, 16), ("1/2", 16, 32)])
def test_pixels_that_are_not_square_are_made_so(tmp_path, suffix, ratio, height, width) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    # An outer quarter along the longer side, which a crop of what is no square would lose.
    if height > width:
        pixels[: height // 4] = 250
    else:
        pixels[:, : width // 4] = 250
    path = write(tmp_path / f"a.{suffix}", [pixels], ratio=ratio)
    found = read_frames(path, size=32)[0, 0].float()
    found = found.T if height > width else found
    assert float(found[:, :6].min()) > 200
    assert float(found[:, 10:].max()) < 50


def test_frames_come_at_the_rate_asked_for(tmp_path) -> None:
    path = write(tmp_path / "a.mkv", shaded(6), rate=10)
    assert numbers(read_frames(path, size=16)) == [0, 1, 2, 3, 4, 5]
    assert numbers(read_frames(path, size=16, fps=10)) == [0, 1, 2, 3, 4, 5]
    assert numbers(read_frames(path, size=16, fps=20)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert numbers(read_frames(path, size=16, fps=5)) == [0, 2, 4]
    assert numbers(read_frames(path, size=16, fps=20, max_frames=3)) == [0, 0, 1]


@pytest.mark.parametrize("rate", [24, 30])
def test_times_in_milliseconds_neither_double_nor_drop_frames(tmp_path, rate) -> None:
    frames = [np.full((32, 32, 3), 40 * (number % 6), np.uint8) for number in range(30)]
    path = write(tmp_path / "a.mkv", frames, rate=rate)
    assert numbers(read_frames(path, size=16, fps=rate)) == [number % 6 for number in range(30)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_varying_rates_are_resampled_by_time(tmp_path, suffix) -> None:
    path = write(tmp_path / f"a.{suffix}", shaded(6), times=TIMES)
    found = numbers(read_frames(path, size=16, fps=25))
    # 40 ms per tick: 0, 1, 2 for 10 ticks, 3, 4 for 12, and the last one.
    assert found[:25] == [0, 1, *[2] * 10, 3, *[4] * 12]
    assert set(found[25:]) == {5}
    assert numbers(read_frames(path, size=16)) == [0, 1, 2, 3, 4, 5]


def test_a_wrong_rate_and_a_wrong_time_are_refused(tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "a.mkv", shaded(6), times=TIMES)
    for fps in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"fps is {fps}, expected above 0"):
            read_frames(path, size=16, fps=fps)
    monkeypatch.setattr(decoding, "MAX_REPEATS", 5)
    with pytest.raises(ValueError, match=r"a\.mkv' cannot be read: its time stamps leave a gap of 0 s"):
        read_frames(path, size=16, fps=25)


def test_what_is_transparent_in_a_clip_is_white(tmp_path) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, 8:] = [200, 0, 0, 255]
    found = read_frames(write(tmp_path / "a.mov", [pixels], codec="png"), size=16)[:, 0]
    assert (found[:, :, :8] == 255).all()
    assert found[:, 0, 12].tolist() == [200, 0, 0]


def test_clips_are_cut_after_they_are_resampled(tmp_path) -> None:
    for name, rate in (("a/x.mkv", 10), ("b/y.mkv", 20)):
        (tmp_path / name).parent.mkdir()
        write(tmp_path / name, shaded(6), rate=rate)
    videos = load_clips(tmp_path, num_frames=3, size=16, fps=10)
    assert [numbers(video) for video in videos.videos] == [[0, 1, 2], [3, 4, 5], [0, 2, 4]]
    assert videos.labels.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="fps is 0, expected above 0"):
        load_clips(tmp_path, fps=0)


def sampled(path: Path, count: int, **more):
    values = {"size": 32, "max_frames": 100, "max_pixels": 10_000, "formats": ("mov", "matroska", "gif")}
    return sample_frames(path, count, **{**values, **more})


def test_frames_are_taken_at_even_times(tmp_path) -> None:
    found = sampled(write(tmp_path / "six.mp4", shaded(6)), 6)
    assert numbers(found.frames) == [0, 1, 2, 3, 4, 5]
    assert (found.found, found.is_whole) == (6, True)
    assert found.seconds == pytest.approx(0.6)
    assert numbers(sampled(tmp_path / "six.mp4", 3).frames) == [1, 3, 5]
    assert numbers(sampled(tmp_path / "six.mp4", 12).frames) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    cut = sampled(tmp_path / "six.mp4", 4, max_frames=4)
    assert (numbers(cut.frames), cut.found, cut.is_whole) == ([0, 1, 2, 3], 4, False)
    # What lasts longer is there more often: the third frame is shown from 80 to 480 ms, the fifth from 520 to 1000.
    varying = sampled(write(tmp_path / "varying.mkv", shaded(6), times=TIMES), 10)
    assert numbers(varying.frames)[:9] == [1, 2, 2, 2, 3, 4, 4, 4, 4]


def test_a_gif_that_holds_equal_frames_once_comes_back_whole(tmp_path) -> None:
    video = torch.linspace(-1, 1, 8)[[0, 1, 1, 1, 4, 5, 5, 7]].expand(3, 32, 32, 8).permute(0, 3, 1, 2)
    write_gif(tmp_path / "clip.gif", video)
    found = sampled(tmp_path / "clip.gif", 8)
    assert found.found == 5
    assert found.seconds == pytest.approx(1.0, abs=0.05)
    assert (found.frames.float() / 127.5 - 1 - video).abs().max() < 0.01


def test_a_file_from_anybody_is_read_within_limits(tmp_path) -> None:
    path = write(tmp_path / "clip.mp4", shaded(3))
    with pytest.raises(ValueError, match="32x32 pixels, at most 1,000 are read"):
        sampled(path, 3, max_pixels=1_000)
    with pytest.raises(ValueError, match="num_frames is 0, expected at least 1"):
        sampled(path, 0)
    # A list of other files, which FFmpeg would read as well.
    (tmp_path / "list").write_text(f"ffconcat version 1.0\nfile '{path.name}'\n")
    assert numbers(read_frames(tmp_path / "list", size=32)) == [0, 1, 2]
    with pytest.raises(ValueError, match="list' cannot be read: Invalid"):
        sampled(tmp_path / "list", 3)
