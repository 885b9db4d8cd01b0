from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.data.images.digits import load_digits
from hiergen.demo.pictures import (
    CELL,
    VIEW_SIZE,
    difference,
    digit_examples,
    draw_tokens,
    montage,
    open_upload,
    open_view,
    shape_views,
)
from hiergen.pyramid import LevelSpec


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def cells(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)[CELL // 2 :: CELL, CELL // 2 :: CELL, :3]


def test_an_upload_is_the_central_square_in_the_public_range() -> None:
    picture = Image.new("RGB", (60, 20), (255, 0, 0))
    picture.paste((0, 255, 0), (20, 0, 40, 20))
    image = open_upload(encoded(picture), size=20, max_pixels=2_000)
    assert image.shape == (1, 3, 20, 20)
    assert torch.equal(image, torch.tensor([-1.0, 1.0, -1.0])[None, :, None, None].expand(1, 3, 20, 20))


def test_a_picture_taken_sideways_is_turned() -> None:
    picture = Image.new("L", (16, 16))
    picture.paste(255, (0, 0, 16, 4))
    # 6: the camera was turned; to be seen upright the picture is turned a quarter clockwise.
    exif = Image.Exif()
    exif[274] = 6
    image = open_upload(encoded(picture, "PNG", exif=exif), size=16, max_pixels=256)
    assert float(image[0, 0, :, -1].mean()) == 1
    assert float(image[0, 0, :, 0].mean()) == -1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is no PNG, JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "it is no PNG, JPEG"),
        (encoded(Image.new("RGB", (8, 8)), "TGA"), "it is no PNG, JPEG"),
        (encoded(Image.effect_noise((64, 64), 50))[:300], "image file is truncated"),
        (encoded(Image.new("1", (101, 100))), "101x100 pixels, at most 10,000 are read"),
        (encoded(Image.new("1", (20_000, 20_000))), "too many pixels, at most 10,000 are read"),
    ],
    ids=["empty", "svg", "postscript", "tga", "truncated", "too many pixels", "bomb"],
)
def test_what_is_no_picture_is_refused_in_a_sentence(data, message) -> None:
    with pytest.raises(ValueError, match=f"^your file cannot be read as a picture: .*{message}") as error:
        open_upload(data, size=16, max_pixels=10_000)
    assert "0x" not in str(error.value)


def test_a_picture_of_an_object_is_put_on_a_white_square_whole() -> None:
    picture = Image.new("RGBA", (30, 10), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (20, 0, 30, 10))
    view = np.asarray(open_view(encoded(picture), max_pixels=300))
    assert view.shape == (30, 30, 3)
    assert (view[10:20, 20:] == (255, 0, 0)).all()
    assert (view == 255).all(axis=-1).sum() == 30 * 30 - 100
    assert open_view(encoded(Image.new("L", (1_024, 768))), max_pixels=10**6).size == (VIEW_SIZE, VIEW_SIZE)
    with pytest.raises(ValueError, match="30x10 pixels, at most 299 are read"):
        open_view(encoded(picture), max_pixels=299)


def test_the_views_of_shapes_show_a_different_object_each_on_white() -> None:
    views = [np.asarray(view) for view in shape_views(32)]
    assert len({view.tobytes() for view in views}) == 8
    for view in views:
        covered = (view < 255).any(axis=-1).mean()
        assert 0.02 < covered < 0.95
        assert (view[0, 0] == 255).all()


def test_the_examples_are_one_held_out_digit_of_each_class() -> None:
    images, pictures = digit_examples(32)
    test = load_digits("test")
    for digit in range(10):
        (found,) = torch.where((test.images == images[digit]).flatten(1).all(dim=1))
        assert test.labels[found[0]] == digit
        assert pictures[digit].size == (32, 32)


def test_ids_are_colored_by_value_in_the_order_of_the_grid() -> None:
    spec = LevelSpec(num_tokens=6, grid=(2, 3), vocab_size=100)
    drawn = cells(draw_tokens(torch.tensor([5, 7, 5, 99, 5, 7]), spec))
    assert drawn.shape == (2, 3, 3)
    assert (drawn[0, 0] == drawn[0, 2]).all()
    assert (drawn[0, 0] == drawn[1, 1]).all()
    assert (drawn[0, 1] == drawn[1, 2]).all()
    assert len({tuple(color) for color in drawn.reshape(-1, 3)}) == 3


def test_ids_without_a_grid_fill_rows_and_leave_the_rest_clear() -> None:
    picture = draw_tokens(torch.arange(18), LevelSpec(num_tokens=18, vocab_size=512))
    assert cells(picture).shape == (2, 16, 3)
    alpha = np.asarray(picture)[CELL // 2 :: CELL, CELL // 2 :: CELL, 3]
    assert (alpha == 255).sum(axis=1).tolist() == [16, 2]


def test_the_tokens_of_a_clip_are_side_by_side_with_a_clear_column_between() -> None:
    ids = torch.arange(12)
    drawn = draw_tokens(ids, LevelSpec(num_tokens=12, grid=(2, 2, 3), vocab_size=512))
    alone = [draw_tokens(part, LevelSpec(num_tokens=6, grid=(2, 3), vocab_size=512)) for part in ids.split(6)]
    assert cells(drawn).shape == (2, 7, 3)
    assert (cells(drawn)[:, :3] == cells(alone[0])).all()
    assert (cells(drawn)[:, 4:] == cells(alone[1])).all()
    alpha = np.asarray(drawn)[CELL // 2 :: CELL, CELL // 2 :: CELL, 3]
    assert (alpha == 255).tolist() == [[True] * 3 + [False] + [True] * 3] * 2


def test_no_line_is_drawn_around_tokens() -> None:
    drawn = np.asarray(draw_tokens(torch.arange(2), LevelSpec(num_tokens=2, vocab_size=512)))
    assert drawn.shape == (CELL - 1, 2 * CELL - 1, 4)
    assert (drawn[..., 3] == 0).sum(axis=1).tolist() == [1] * (CELL - 1)


def test_the_first_ids_of_a_vocabulary_differ_visibly() -> None:
    drawn = cells(draw_tokens(torch.arange(16), LevelSpec(num_tokens=16, vocab_size=16)))[0].astype(int)
    distance = np.abs(drawn[:, None] - drawn[None]).sum(axis=-1) + 1_000 * np.eye(16, dtype=int)
    assert distance.min() > 20


def test_vectors_are_colored_by_their_main_direction() -> None:
    tokens = torch.zeros(4, 5)
    tokens[:, 3] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    drawn = cells(draw_tokens(tokens, LevelSpec(num_tokens=4, grid=(2, 2), dim=5))).reshape(4, 3).astype(int)
    steps = np.diff(drawn[:, 0])
    assert abs(steps).min() >= 84
    assert len(set(np.sign(steps))) == 1
    assert np.abs(drawn[:, 1:] - 128).max() <= 1


def test_a_single_vector_is_grey() -> None:
    drawn = cells(draw_tokens(torch.ones(1, 4), LevelSpec(num_tokens=1, dim=4)))
    assert np.abs(drawn.astype(int) - 128).max() <= 1


def test_what_a_level_adds_is_grey_where_it_adds_nothing() -> None:
    before, after = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, -1.0])
    assert difference(after, before).tolist() == [1.0, 0.0, -1.0]


@pytest.mark.parametrize(("count", "size"), [(1, (4, 4)), (2, (9, 4)), (4, (9, 9)), (8, (14, 14))])
def test_a_sheet_is_about_square(count, size) -> None:
    sheet = montage([Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(count)])
    assert sheet.size == size
    assert sheet.getpixel((0, 0)) == (0, 0, 0)
    assert sheet.getpixel((size[0] - 1, 0))[0] in (count - 1, 1, 2)
