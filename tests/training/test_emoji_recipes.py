"""The recipes for emoji at toy size, from an archive to a picture of a group in a style."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.cli.train import load_recipe
from hiergen.data.codes import CodeSet
from hiergen.data.config import DataConfig
from hiergen.data.sources import open_images
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.pipelines.encoding import encode_images
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.loading import from_pretrained
from hiergen.training.loop import fit

pytestmark = pytest.mark.usefixtures("own_precision")
ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "encoder_dim": 16,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "decoder_dim": 16,
    "decoder_depth": 2,
    "decoder_heads": 2,
}
#: Tokenizer and generator, and what makes them small.
PAIRS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "maps": (
        "hieratok_emoji_64",
        {**SIZES, "conv_channels": 8},
        "flow_emoji_64",
        {"dim": 16, "depth": 1, "num_heads": 2},
    ),
    "levels": (
        "restok_emoji_64",
        {**SIZES, "cnn_channels": 8, "z_channels": 8, "num_latent_tokens": 8, "vocab_size": 32},
        "har_emoji_64",
        {"dim": 16, "depth": 1, "num_heads": 2},
    ),
}


@pytest.fixture
def archive(tmp_path) -> str:
    """An archive of ten things of two subgroups in two styles."""
    files, names = [], [f"{style}/thing-{k}" for style in ("flat", "round") for k in range(10)]
    for k in range(20):
        file = io.BytesIO()
        Image.new("RGB", (64, 64), (10 * k, 80, 0)).save(file, "webp", lossless=True)
        files.append(file.getvalue())
    np.savez(
        tmp_path / "emoji.npz",
        webp=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.arange(20) % 2,
        classes=np.array(["pets/cat", "pets/dog"]),
        styles=np.arange(20) // 10,
        style_names=np.array(["flat", "round"]),
        names=np.array(names),
    )
    return f"npz:{tmp_path / 'emoji.npz'}"


def shorten(name: str, out: Path, overrides: dict[str, Any], **changes: Any) -> Any:
    """Return a recipe for eight samples of a small model."""
    (path,) = ROOT.glob(f"*s/{name}.py")
    config = load_recipe(str(path))
    task = dataclasses.replace(config.task, overrides={**config.task.overrides, **overrides}, **changes)
    return dataclasses.replace(
        config,
        task=task,
        out=str(out),
        samples=8,
        batch_size=4,
        log_every=4,
        checkpoint_every=8,
        trackers=(),
        precision="no",
    )


@pytest.mark.parametrize("kind", PAIRS)
def test_from_an_archive_to_a_picture_of_a_group_in_a_style(kind: str, archive: str, tmp_path) -> None:
    tokenizer_recipe, tokenizer_sizes, generator_recipe, generator_sizes = PAIRS[kind]
    # A handful of pictures, so that one of two is held out.
    pictures = DataConfig(source=archive, size=64, hold_out=2, hold_out_by="name", in_memory=False)
    changes: dict[str, Any] = {"data": pictures, "validation": dataclasses.replace(pictures, split="test")}
    config = shorten(tokenizer_recipe, tmp_path / "tokenizer", tokenizer_sizes, **changes)
    if config.task.perceptual is not None:
        pytest.importorskip("torchvision")
        task = dataclasses.replace(
            config.task, perceptual=dataclasses.replace(config.task.perceptual, weights="random")
        )
        config = dataclasses.replace(config, task=task)
    trained = fit(config)
    assert any("val/psnr" in line for line in trained.log)
    assert (tmp_path / "tokenizer" / "best" / "config.json").is_file()
    tokenizer = from_pretrained(trained.model_dir)
    images: Any = open_images(dataclasses.replace(pictures, label_column="labels+styles"))
    codes = encode_images(tokenizer, images, tmp_path / "codes", views="flips")
    assert CodeSet.open(tmp_path / "codes").classes == codes.classes
    made = fit(shorten(generator_recipe, tmp_path / "generator", generator_sizes, codes=str(tmp_path / "codes")))
    generator = from_pretrained(made.model_dir)
    assert generator.config["id2label"]["0"] == "pets/cat | flat"
    classes = ClassHierarchy.from_json(generator.config["class_hierarchy"])
    assert [level.names for level in classes.levels] == [("pets",), ("pets/cat", "pets/dog"), ("flat", "round")]
    pipeline = ClassToImagePipeline(tokenizer, generator)
    asked = ["pets/dog | round", classes.find("pets | flat"), "round"]
    settings = {"num_steps": 2, "guidance_against": "parent"} if kind == "maps" else {}
    made_images = pipeline(asked, generator=torch.Generator().manual_seed(0), guidance_scale=2.0, **settings).images
    assert [image.size for image in made_images] == [(64, 64)] * 3
