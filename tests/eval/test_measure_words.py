from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hiergen.pipelines.image import TextToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

PROGRAM = Path(__file__).resolve().parents[2] / "eval" / "measure_words.py"
SIZES = {"image_size": 16, "encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2, "decoder_dim": 16}
SIZES |= {"decoder_depth": 1, "decoder_heads": 2, "tail_depth": 0, "scales": [1, 2], "latent_dim": 4}
WORDS = {"num_classes": None, "text_shape": [3, 8], "text_encoder": {"name": "bytes", "num_pieces": 64, "depth": 0}}


@pytest.fixture(scope="module")
def program() -> dict[str, object]:
    return runpy.run_path(str(PROGRAM), run_name="measure_words")


def test_the_right_one_is_first_where_its_error_is_least(program) -> None:
    errors = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.5]])
    found = program["_ranks"](errors)
    assert found == {"first": pytest.approx(1 / 3), "in 5": 1.0, "median rank": 2.0}


def test_pictures_are_found_by_their_texts(program) -> None:
    torch.manual_seed(0)
    tokenizer = create("hieratok-tiny", **SIZES).eval()
    sizes = {"dim": 16, "depth": 1, "num_heads": 2, "level_specs": specs_to_json(tokenizer.specs)}
    pipe = TextToImagePipeline(tokenizer=tokenizer, generator=create("flow-tiny", **sizes, **WORDS))
    pictures = SimpleNamespace(
        name="test",
        classes=["a/b | flat", "a/c | flat", "a/c | round"],
        names=["cat", "dog", "cow"],
        images=lambda indices: torch.rand(len(indices), 3, 16, 16) * 2 - 1,
    )
    settings = program["Settings"](num_candidates=3, attribute="flat")
    found = program["retrieve"](pipe, pictures, settings)
    assert found["candidates"] == 2
    # A new model does not look at the words: what a text gains over no text is nothing, and no picture is better than the right one.
    assert found["error with the right text"] == pytest.approx(found["error without a text"])
    assert found["picture of a text"]["first"] == 1.0
