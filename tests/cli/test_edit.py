from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.__main__ import main
from hiergen.cli.edit import EditSettings, _check
from hiergen.data.images.digits import load_digits
from hiergen.data.images.pixels import to_pictures


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, picture in zip("ab", to_pictures(load_digits("test").images[[3, 30]]), strict=True):
        picture.save(f"{name}.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 16, 32, 32))
    mask.save("mask.png")
    return tmp_path


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def edit(*words: str) -> None:
    assert main(["edit", "--pipeline", "digits-1d", "--image", "a.png", *words]) == 0


def test_pictures_are_edited_by_mask(folder, capsys) -> None:
    edit("b.png", "--mask", "mask.png", "--labels", "3", "--count", "2", "--out", "edited")
    assert {path.name for path in Path("edited").iterdir()} == {
        *(f"{number:03d}-{name}-{count:03d}.png" for number, name in enumerate("ab") for count in range(2)),
        "grid.png",
    }
    upper = slice(0, 14)
    assert np.array_equal(pixels("edited/000-a-001.png")[upper], pixels("a.png")[upper])
    assert np.array_equal(pixels("edited/001-b-000.png")[upper], pixels("b.png")[upper])
    assert "4 images and grid.png in edited" in capsys.readouterr().out
    edit("b.png", "--mask", "mask.png", "--labels", "3", "--count", "2", "--out", "again")
    assert np.array_equal(pixels("edited/000-a-001.png"), pixels("again/000-a-001.png"))


def test_pictures_are_varied_blended_and_moved(folder) -> None:
    from hiergen.pipelines.loading import from_pretrained

    pipe = from_pretrained("digits-1d", dtype=torch.float32)
    first, second = Image.open("a.png"), Image.open("b.png")
    edit("--keep-levels", "5", "--labels", "7", "--count", "1", "--out", "kept")
    whole = np.asarray(pipe.vary(first, 7, keep_levels=5).images[0]).astype(int)
    assert abs(pixels("kept/a-000.png") - whole).max() <= 1
    edit("--keep-levels", "2", "--fine", "b.png", "--out", "blend")
    blend = np.asarray(pipe.blend(first, second, keep_levels=2).images[0]).astype(int)
    assert abs(pixels("blend/a-000.png") - blend).max() <= 1
    edit("--shift", "8", "0", "--labels", "3", "--count", "1", "--feather", "0", "--out", "moved")
    assert np.array_equal(pixels("moved/a-000.png")[:, 8:], pixels("a.png")[:, :24])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": ()}, "image is empty, expected the files of the pictures to edit"),
        ({"image": ("c.png",)}, "--image is 'c.png', which does not exist; expected a picture"),
        ({"mask": "c.png"}, "--mask is 'c.png', which does not exist"),
        ({"fine": "b.png"}, "fine is 'b.png', but keep_levels is not given"),
        ({"keep_levels": 2, "mask": "mask.png"}, "keep_levels and mask are given, expected one of them"),
        ({"scale": 0.5, "mask": "mask.png"}, "mask and shift or scale are given, expected one of them"),
        ({"keep_levels": 2, "strength": 0.5}, "strength is 0.5 beside keep_levels, expected one of them"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder, values, said) -> None:
    with pytest.raises(ValueError, match=said):
        _check(EditSettings(**{"image": ("a.png",), **values}))


def test_a_pipeline_of_clips_is_refused(folder, capsys) -> None:
    assert main(["edit", "--pipeline", "clips", "--image", "a.png"]) == 1
    assert "'clips' holds a ClassToVideoPipeline, expected a pipeline of images" in capsys.readouterr().err


def test_pictures_are_edited_in_words(folder, capsys) -> None:
    from hiergen.pipelines.image import TextToImagePipeline
    from hiergen.pyramid import specs_to_json
    from hiergen.registry import create

    tokenizer = create("hieratok-tiny").eval()
    sizes = {"dim": 16, "depth": 1, "num_heads": 2, "num_classes": None, "text_shape": [4, 8]}
    words = {"text_encoder": {"name": "bytes", "num_pieces": 64, "depth": 0}}
    maker = create("flow-tiny", level_specs=specs_to_json(tokenizer.specs), **sizes, **words)
    for parameter in maker.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    TextToImagePipeline(tokenizer=tokenizer, generator=maker).save_pretrained("words")
    call = ["edit", "--pipeline", "words", "--image", "a.png", "--mask", "mask.png", "--count", "1", "--num-steps", "2"]
    call += ["--guidance-scale", "2"]
    assert main([*call, "--prompt", "a cat", "--out", "cat"]) == 0
    assert main([*call, "--prompt", "a cat", "--negative-prompt", "hat", "--out", "bare"]) == 0
    upper = slice(0, 14)
    assert np.array_equal(pixels("cat/a-000.png")[upper], pixels("a.png")[upper])
    assert not np.array_equal(pixels("cat/a-000.png"), pixels("bare/a-000.png"))
    assert main([*call, "--labels", "3"]) == 1
    said = capsys.readouterr().err
    assert "TextToImagePipeline, which takes texts: give --prompt TEXT, not --labels" in said
    assert main(["edit", "--pipeline", "digits-1d", "--image", "a.png", "--prompt", "three"]) == 1
    assert "ClassToImagePipeline, which takes no texts: give --labels, not" in capsys.readouterr().err
