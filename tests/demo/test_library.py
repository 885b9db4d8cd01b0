from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from hiergen.data.images.digits import load_digits
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES
from hiergen.demo.inputs import examples_of
from hiergen.demo.library import (
    NOTES_FILE,
    DemoModel,
    Library,
    ModelNotes,
    load_library,
    load_model,
    read_notes,
)
from hiergen.files import write_json
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.card import papers
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.prefixes import rebuild_prefixes
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pretrained.packaged import packaged_models
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

README = Path(__file__).resolve().parents[2] / "README.md"
PACKAGED_DIGITS = [path for path in packaged_models() if path.name.startswith("digits")]


def test_models_come_with_the_package_each_with_a_card_and_a_few_megabytes() -> None:
    assert len(packaged_models()) >= 2
    for folder in packaged_models():
        card = (folder / "README.md").read_text()
        for needed in ("- data: ", "- command: `", "seed 0", "## Measured", "license: "):
            assert needed in card, folder
        size = sum(file.stat().st_size for file in folder.rglob("*"))
        assert size < 16 * 2**20, f"{folder} has {size:,} bytes"
        assert {file.suffix for file in folder.rglob("*") if file.is_file()} <= {
            ".json",
            ".md",
            ".safetensors",
            ".png",
            ".webp",
        }


@pytest.mark.parametrize("folder", packaged_models(), ids=lambda path: path.name)
def test_the_demo_and_the_readme_say_of_a_packaged_model_what_its_card_says(folder) -> None:
    card = _numbers((folder / "README.md").read_text())
    rows = [line for line in README.read_text().splitlines() if line.startswith("|") and f"(`{folder.name}`)" in line]
    told = [read_notes(str(folder)).about, *(" ".join(row.split("|")[2:5]) for row in rows)]
    # How far an average may be off stands beside it.
    for number in (number for text in told for number in _numbers(re.sub(r"± [\d.]+", "", text))):
        places = len(number.partition(".")[2])
        assert any(f"{float(one):.{places}f}" == number for one in card), (
            f"{number} is not in the card of {folder.name}"
        )


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)]


@pytest.mark.parametrize("folder", PACKAGED_DIGITS, ids=lambda path: path.name)
def test_the_card_of_a_packaged_model_says_the_truth(folder) -> None:
    """The ratios of the card, measured again on every fifth of the digits."""
    entry = load_model(str(folder))
    assert len(entry.notes.classes) == entry.num_classes == 10
    claimed = [float(value) for value in re.findall(r"([\d.]+) dB \(\d+\)", (folder / "README.md").read_text())]
    test = load_digits("test").images[::5]
    with torch.no_grad():
        found = [float(psnr(images, test).mean()) for images in rebuild_prefixes(entry.tokenizer, test).images]
    assert found == pytest.approx(claimed, abs=0.5)


def test_the_packaged_shape_model_makes_a_mesh_of_a_class() -> None:
    (folder,) = [path for path in packaged_models() if path.name == "shapes-by-class"]
    entry = load_model(str(folder))
    assert entry.notes.classes == PROCEDURAL_CLASSES
    extraction = ExtractionSettings(depth=5)
    bed, bottle = entry.model(
        [PROCEDURAL_CLASSES.index(name) for name in ("bed", "bottle")],
        generator=torch.Generator().manual_seed(0),
        extraction=extraction,
        **{**entry.notes.sampling, "head_steps": 20},
    ).meshes
    slenderness = [max(mesh.extents) / sorted(mesh.extents)[1] for mesh in (bed, bottle)]
    assert slenderness[1] > slenderness[0]


def test_a_library_lists_models_by_what_they_can_do(library) -> None:
    assert library.image_tokenizers() == ["one-dimensional", "two-dimensional", "words"]
    assert library.image_generators() == ["one-dimensional", "words"]
    assert library.shape_generators() == ["shapes", "seen"]
    assert [library.get(title).is_by_picture for title in library.shape_generators()] == [False, True]
    assert library.get("seen").choices() == []
    assert library.video_generators() == ["clips"]
    assert library.clip_tokenizers() == ["clips"]
    assert library.get("clips").clip_size == (8, 48)
    assert library.get("one-dimensional").clip_size is None
    # Larger frames first: those of the fixture have 48 pixels.
    small = ClassToVideoPipeline(
        tokenizer=create("patches-tiny"),
        generator=create("flow-video-tiny", depth=1),
    )
    both = Library({"small": DemoModel(small, ModelNotes()), **library.models})
    assert both.video_generators() == both.clip_tokenizers() == ["clips", "small"]
    oblong = DemoModel(create("patches-tiny", video_size=[8, 48, 24]), ModelNotes())
    assert Library({"oblong": oblong}).clip_tokenizers() == []
    anything = dataclasses.replace(library.get("two-dimensional"), notes=ModelNotes(whole=True))
    assert Library({**library.models, "whole": anything}).image_tokenizers() == [
        "whole",
        "one-dimensional",
        "two-dimensional",
        "words",
    ]
    with pytest.raises(ValueError, match="there is no model 'one-dimensionl'; did you mean one-dimensional"):
        library.get("one-dimensionl")
    entry = library.get("shapes")
    assert entry.class_name(3) == "class 3"
    assert entry.num_classes == 8
    assert library.get("two-dimensional").num_classes == 0


def test_folders_are_loaded_beside_the_packaged_models(tmp_path) -> None:
    folder = tmp_path / "mine"
    create("restok-tiny").save_pretrained(folder)
    library = load_library([str(folder), str(folder)])
    assert list(library.models)[:2] == ["mine", "mine'"]
    assert len(library.models) == 2 + len(packaged_models())
    for entry in library.models.values():
        assert not entry.tokenizer.training
        assert {parameter.dtype for parameter in entry.tokenizer.parameters()} == {torch.float32}


@pytest.fixture
def own(tmp_path) -> Path:
    """A pipeline whose tokenizer a run here trained on pictures, and its run."""
    for number, name in enumerate(("cats/1.png", "cats/2.png", "dogs/1.png")):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (90 * number, 0, 0)).save(path)
    write_json(tmp_path / "tokens" / "config.json", {"task": {"data": {"source": str(tmp_path / "pets")}}})
    tokenizer = create("restok-tiny").eval()
    tokenizer.save_pretrained(tmp_path / "tokens" / "model")
    tokenizer.register_to_config(_name_or_path=str(tmp_path / "tokens" / "model"))
    generator = create("har-tiny", depth=1, num_classes=4, level_specs=specs_to_json(tokenizer.specs)).eval()
    generator.register_to_config(id2label={"0": "cats, felines", "1": "dogs", "2": "cats"})
    ClassToImagePipeline(tokenizer=tokenizer, generator=generator).save_pretrained(tmp_path / "mine" / "pipeline")
    return tmp_path


def test_a_model_of_ones_own_has_its_name_classes_and_pictures(own) -> None:
    library = load_library([str(own / "tokens" / "model"), str(own / "mine" / "pipeline")], packaged=False)
    assert list(library.models) == ["tokens", "mine"]
    entry = library.get("mine")
    assert entry.class_name(1) == "dogs"
    assert entry.choices() == [("cats (0)", 0), ("dogs (1)", 1), ("cats (2)", 2), ("class 3 (3)", 3)]
    assert entry.about == "3 classes: cats, dogs, cats."
    for title in library.models:
        images, caption = examples_of(library.get(title))
        assert caption == "A picture of its own data"
        reds = ((images[:, 0, 0, 0] + 1) * 127.5).round().tolist()
        assert reds == [0] * 4 + [90] * 3 + [180] * 3
        assert examples_of(library.get(title), 8)[0].shape == (10, 3, 8, 8)


def test_examples_in_the_models_folder_go_before_its_data(own) -> None:
    folder = own / "mine" / "pipeline"
    (folder / "examples").mkdir()
    Image.new("RGB", (40, 40), (33, 0, 0)).save(folder / "examples" / "one.png")
    images, _ = examples_of(load_model(str(folder)))
    assert ((images[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [33] * 10


def test_without_the_pictures_digits_are_shown(own) -> None:
    shutil.rmtree(own / "pets" / "cats")
    shutil.rmtree(own / "pets" / "dogs")
    for folder in ("tokens/model", "mine/pipeline"):
        assert load_model(str(own / folder)).examples == ()
        assert examples_of(load_model(str(own / folder)))[1] == "A held-out digit"
    (own / "tokens" / "config.json").write_text("[")
    assert load_model(str(own / "tokens" / "model")).examples == ()
    assert load_model(str(own / "tokens" / "model")).about == "Its folder says nothing about it."


def test_larger_pictures_come_first_and_each_model_with_its_card() -> None:
    library = load_library()
    sizes = [int(entry.tokenizer.config.get("image_size") or 0) for entry in library.models.values()]
    assert sizes == sorted(sizes, reverse=True)
    for entry in library.models.values():
        assert entry.card.startswith("# ")
        assert entry.card.endswith("Licence: apache-2.0")
    generators = [entry.generator for entry in library.models.values() if entry.generator is not None]
    assert {paper for generator in generators for paper in papers(generator)} >= {"arXiv:2601.03955"}


def test_what_cannot_be_shown_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="there is no model to show"):
        load_library(packaged=False)
    create("har-tiny", depth=1).save_pretrained(tmp_path / "generator")
    with pytest.raises(
        ValueError,
        match="holds a LevelAR; the demo shows tokenizers, pipelines of a tokenizer and a generator, and models of text",
    ):
        load_model(str(tmp_path / "generator"))
    with pytest.raises(ValueError, match="neither a folder nor"):
        load_model("nobody/nothing")


def test_notes_are_data_and_strict(tmp_path) -> None:
    assert read_notes(str(tmp_path)) == ModelNotes()
    (tmp_path / NOTES_FILE).write_text(json.dumps({"title": "Mine", "sampling": {"top_p": 0.9}}))
    assert read_notes(str(tmp_path)) == ModelNotes(title="Mine", sampling={"top_p": 0.9})
    for text in ('{"titel": "Mine"}', "{", "[]"):
        (tmp_path / NOTES_FILE).write_text(text)
        with pytest.raises(ValueError, match=r"the notes .*demo\.json' cannot be used"):
            read_notes(str(tmp_path))


def test_a_model_of_texts_is_refused_where_it_cannot_read_any(library, tmp_path) -> None:
    library.get("words").model.save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).takes_words
    config = json.loads((tmp_path / "generator" / "config.json").read_text())
    wide = {**config, "text_encoder": {"name": "t5:nowhere/at-all"}}
    write_json(tmp_path / "generator" / "config.json", wide)
    with pytest.raises(ValueError, match="makes pictures of texts, but cannot read any: "):
        load_model(str(tmp_path))
