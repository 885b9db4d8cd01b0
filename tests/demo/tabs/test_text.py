from __future__ import annotations

import re

import pytest
import torch

from hiergen.demo.library import DemoModel, ModelNotes, load_model
from hiergen.demo.steps import StoppedError
from hiergen.demo.tabs.text import MAX_PROMPT, TextRequest, Written, chunk_starts, draw_text, write
from hiergen.generators.sequences.settings import TextSettings
from hiergen.registry import create
from hiergen.seeding import SampleRng

BLOCK = {"dim": 16, "depth": 1, "num_heads": 2, "token_dim": 16, "token_depth": 1, "token_heads": 2}


def entry(preset: str, **sizes: object) -> DemoModel:
    return DemoModel(create(preset, **sizes).eval(), ModelNotes())


def test_a_text_grows_byte_by_byte_and_ends_in_what_the_model_writes(library) -> None:
    model = library.get("bytes")
    request = TextRequest("The ", max_new_bytes=12, seed=3)
    seen = list(write(model, request, seconds=60.0))
    assert [now.is_done for now in seen] == [False] * (len(seen) - 1) + [True]
    sizes = [len(now.made) for now in seen]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 5
    settings = TextSettings(max_new_bytes=12, temperature=0.7)
    assert seen[-1].made == model.model.generate_text("The ", settings, rng=SampleRng.of([0], 3, "text"))[0]
    assert seen[-1].prompt == b"The "
    stop = seen[-1].made[4:5].decode("latin-1")
    if stop.isascii():
        ended = list(write(model, TextRequest("The ", max_new_bytes=12, seed=3, stop=stop), seconds=60.0))[-1]
        assert ended.made == seen[-1].made[: seen[-1].made.index(stop.encode())]


def test_a_text_that_takes_too_long_is_stopped(library) -> None:
    with pytest.raises(StoppedError):
        list(write(library.get("bytes"), TextRequest("a", max_new_bytes=1000), seconds=0.01))


def test_chunks_are_those_that_the_model_reads(library) -> None:
    text = b"Hello, world!"
    assert chunk_starts(entry("block-tiny", **BLOCK), text) == {"block": [0, 3, 7, 11]}
    assert chunk_starts(entry("byte-word-tiny"), text) == {"word": [0, 6]}
    assert chunk_starts(entry("flat-mamba-tiny", layout=["m1"]), text) == {}
    found = chunk_starts(library.get("bytes"), text)["chunk"]
    # The model sees the text's begin before it.
    seen = library.get("bytes").model.find_boundaries(torch.tensor([[254, *text]]))[0][0]
    assert found == [place for place, is_first in enumerate(seen[1:].tolist()) if is_first]
    assert found == [
        place for place in chunk_starts(library.get("bytes"), text + b" And")["chunk"] if place < len(text)
    ]
    assert chunk_starts(library.get("bytes"), b"") == {}


def test_the_page_shows_each_chunk_and_what_is_new() -> None:
    text = Written("Größe <b".encode(), b"\xff!", is_done=True)
    drawn = draw_text(text, {"chunk": [0, 3, 7]})
    assert "3 chunks, 4.0 bytes each" in drawn
    # A character is in the piece of its first byte; one that is none is marked.
    spans = re.findall(r'<span class="hg-chunk([^"]*)">([^<]*)</span>', drawn)
    assert spans == [(" is-odd", "Grö"), ("", "ße"), (" is-odd", " &lt;b"), (" is-odd is-new", "\ufffd!")]
    assert "No chunks" in draw_text(text, {})


def test_models_of_text_are_loaded_and_others_refused(tmp_path) -> None:
    model = create("block-tiny", **BLOCK)
    model.save_pretrained(tmp_path / "bytes")
    loaded = load_model(str(tmp_path / "bytes"))
    assert (loaded.is_of_text, loaded.tokenizer, loaded.is_of_images, loaded.image_size) == (True, None, False, 0)
    assert loaded.generator is loaded.model
    create("block-tiny", **BLOCK, vocab_size=300).save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match=r"holds a BlockTransformer; the demo shows .* models of text as bytes"):
        load_model(str(tmp_path / "words"))


def test_requests_out_of_range_are_named() -> None:
    for match, changes in (
        ("max_new_bytes is 0, expected 1 to 1000", {"max_new_bytes": 0}),
        ("temperature is 5.0, expected 0 to 4", {"temperature": 5.0}),
        (f"prompt has {MAX_PROMPT + 1:,} bytes, expected at most {MAX_PROMPT:,}", {"prompt": "a" * (MAX_PROMPT + 1)}),
    ):
        with pytest.raises(ValueError, match=match):
            TextRequest(**changes)
