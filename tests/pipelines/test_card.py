from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

import hiergen
from hiergen.files import write_json
from hiergen.pipelines.card import (
    CARD,
    TRAINING,
    CardedPipeline,
    about,
    is_kept,
    make_card,
    save_whole,
    told,
    write_card,
)
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

FACTS = {
    "preset": "har-tiny",
    "data": "`pictures`",
    "unit": "encoded sample",
    "samples": 450,
    "classes": 3,
    "size": None,
    "samples_seen": 9600,
    "batch_size": 64,
    "seed": 0,
    "init": None,
    "lora_rank": 0,
    "hiergen": "1.0",
    "torch": "2.14",
}


def _pipe(classes: tuple[str, ...] = ("airplanes", "Faces", "Motor\nbikes, engines")) -> ClassToImagePipeline:
    torch.manual_seed(0)
    tokenizer = create("restok-tiny").eval()
    generator = create("har-tiny", depth=1, num_classes=len(classes) or 3, level_specs=specs_to_json(tokenizer.specs))
    if classes:
        generator.register_to_config(id2label={str(label): name for label, name in enumerate(classes)})
    return ClassToImagePipeline(tokenizer=tokenizer, generator=generator.eval())


@pytest.fixture(scope="module")
def pipe() -> ClassToImagePipeline:
    pipe = _pipe()
    pipe.generator.register_to_config(**{TRAINING: FACTS})
    return pipe


def test_a_card_says_what_is_known_and_nothing_else(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert text.startswith("---\nlibrary_name: hiergen\n")
    for line in (
        "# ResTok + har-tiny",
        "it makes images from classes.",
        "- tokenizer: `ResTok`, 1,439,763 parameters; 5 levels: 1 token of 512 ids, 1 token of 512 ids, 2 tokens",
        "0. airplanes\n1. Faces\n2. Motor bikes, engines\n",
        "- tokenizer: its config does not say how\n",
        "- generator: preset `har-tiny`; 450 encoded samples of 3 classes from `pictures`; 9,600 samples seen in batches of 64, seed 0",
        'pipe = hiergen.from_pretrained("path/to/this/folder")\nimages = pipe("airplanes", num_images_per_label=4).images',
        "- ResTok: ResTok, arXiv:2601.03955",
        "the transformer is LlamaGen's, arXiv:2406.06525",
        "Apache License 2.0",
    ):
        assert line in text, line
    assert "## Measured" not in text
    assert about(pipe).startswith("3 classes: airplanes, Faces, Motor bikes. The generator: preset `har-tiny`; 450 ")


def test_the_code_of_a_card_runs(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    code = (tmp_path / CARD).read_text().partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(tmp_path)), found)
    assert len(found["images"]) == 4
    # What training left goes along with the weights.
    assert told(found["pipe"].generator) == told(pipe.generator)
    assert tokenizer_fingerprint(found["pipe"].generator) == tokenizer_fingerprint(_pipe().generator)


def test_without_names_numbers_and_with_many_the_first(tmp_path) -> None:
    text = make_card(_pipe(()), tmp_path)
    assert "## Classes" not in text
    assert "images = pipe(0, num_images_per_label=4).images" in text
    text = make_card(_pipe(tuple(f"n{number:03d}" for number in range(103))), tmp_path)
    assert "99. n099\n\nand 3 more: `pipe.labels`" in text
    assert "n100" not in text
    assert about(_pipe(())) == ""


def test_the_card_of_a_model_alone(pipe, tmp_path) -> None:
    write_card(pipe.tokenizer, tmp_path)
    text = (tmp_path / CARD).read_text()
    assert 'tokenizer = hiergen.from_pretrained("path/to/this/folder")\n```' in text
    assert "## Classes" not in text
    assert 'generator = hiergen.from_pretrained("x/y")' in make_card(pipe.generator, tmp_path, place="x/y")


@pytest.mark.parametrize("facts", ["text", {}, {**FACTS, "samples": "many"}, {**FACTS, "more": 1}])
def test_what_a_config_of_others_says_wrongly_is_not_repeated(tmp_path, facts) -> None:
    generator = create("har-tiny", depth=1)
    generator.register_to_config(**{TRAINING: facts})
    assert told(generator) == "its config does not say how"


def test_a_start_and_adapters_are_told() -> None:
    generator = create("har-tiny", depth=1)
    generator.register_to_config(**{TRAINING: {**FACTS, "init": "o/n", "lora_rank": 4, "size": 64, "samples": 1}})
    expected = (
        "preset `har-tiny`, started from `o/n`, adapters of rank 4 alone; 1 encoded sample at 64 x 64 pixels of 3"
    )
    assert told(generator).startswith(expected)


def test_reports_of_these_weights_are_quoted_and_no_others(pipe, tmp_path) -> None:
    own = {name: tokenizer_fingerprint(part) for name, part in pipe.components.items()}
    measured = {
        "models": own,
        "what": "images generated by mine",
        "metrics": {"gFID": 3.21456, "IS": None},
        "counts": {"images": 5000, "reference": None},
        "warnings": ["few images"],
        "extractor": {"name": "digits"},
    }
    write_json(tmp_path / "evaluation" / "gfid" / "report.json", measured)
    write_json(tmp_path / "report.json", {"models": {"tokenizer": own["tokenizer"]}, "summary": "22 dB"})
    write_json(tmp_path / "mine" / "report.json", {"models": {**own, "generator": "0" * 16}, "summary": "stale"})
    write_json(tmp_path / "mine" / "a" / "report.json", {"models": {"judge": "0" * 16}, "summary": "another's"})
    write_json(tmp_path / "mine" / "b" / "report.json", ["no report"])
    (tmp_path / "mine" / "c").mkdir()
    (tmp_path / "mine" / "c" / "report.json").write_text("{")
    pipe.save_pretrained(tmp_path / "mine")
    quoted = "## Measured\n- 22 dB\n- images generated by mine: gFID 3.215 (images 5,000; features: digits)\n  - few images\n\n## Use"
    assert quoted in (tmp_path / "mine" / CARD).read_text()
    # A copy of the weights knows the folder that they were loaded from.
    hiergen.from_pretrained(tmp_path / "mine").save_pretrained(tmp_path / "far" / "copy")
    assert quoted in (tmp_path / "far" / "copy" / CARD).read_text()


def test_what_a_person_wrote_or_edited_is_kept(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path / "a")
    card = tmp_path / "a" / CARD
    ours = card.read_text()
    assert not is_kept(card)
    # The Hub's tools write the head in their own way.
    card.write_text(
        ours.replace("library_name: hiergen\n", "library_name: hiergen\nlicense: mit\n").replace("\n", "\r\n")
    )
    assert not is_kept(card)
    pipe.save_pretrained(tmp_path / "a")
    assert card.read_text() == ours
    for text in ("# Mine\n", ours.replace("airplanes", "planes"), ours + "More.\n", ""):
        card.write_text(text)
        pipe.save_pretrained(tmp_path / "a")
        save_whole(pipe, tmp_path / "a")
        assert card.read_text() == text
    assert (tmp_path / "a" / "model_index.json").is_file()


class Hub:
    """Stands in for the Hub's client: one repository, whose card may be there."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder, self.card, self.uploads = folder, None, []
        self.error: type[Exception] = EntryNotFoundError
        monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, **_: SimpleNamespace(repo_id=f"me/{name}"))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(CardedPipeline, "_upload_folder", self.upload)

    def download(self, repository: str, file: str, **_: Any) -> str:
        if self.card is None:
            raise self.error("no network")
        (self.folder / file).write_text(self.card)
        return str(self.folder / file)

    def upload(self, folder: str, repository: str, **options: Any) -> str:
        assert (Path(folder) / "model_index.json").is_file()
        self.uploads.append((repository, (Path(folder) / CARD).read_text(), options))
        return "uploaded"


def test_pushing_sends_the_card_and_leaves_one_that_a_person_wrote(pipe, monkeypatch, tmp_path) -> None:
    hub = Hub(monkeypatch, tmp_path)
    assert pipe.push_to_hub("mine", commit_message="first", private=True) == "uploaded"
    repository, text, options = hub.uploads[-1]
    assert repository == "me/mine"
    assert 'hiergen.from_pretrained("me/mine")' in text
    assert options == {"commit_message": "first", "token": None, "subfolder": None}
    # Ours is renewed, a person's stays.
    hub.card = text.replace("tags:", "license: mit\ntags:")
    pipe.push_to_hub("mine")
    assert hub.uploads[-1][1] == text
    hub.card = "# By hand\n"
    pipe.push_to_hub("mine")
    assert hub.uploads[-1][1] == "# By hand\n"
    # One that lies in the folder goes before the Hub's.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CARD).write_text("# Here\n")
    pipe.save_pretrained(tmp_path / "out", push_to_hub=True)
    assert hub.uploads[-1][:2] == ("me/out", "# Here\n")


def test_a_hub_that_does_not_answer_is_no_hub_without_a_card(pipe, monkeypatch, tmp_path) -> None:
    hub = Hub(monkeypatch, tmp_path)
    hub.error = LocalEntryNotFoundError
    with pytest.raises(LocalEntryNotFoundError, match="no network"):
        pipe.push_to_hub("mine")
    assert hub.uploads == []
