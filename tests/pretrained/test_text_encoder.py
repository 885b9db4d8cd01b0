"""`TextEncoder` against transformers' own T5, of random weights, with a tokenizer of a few words."""

from __future__ import annotations

import pytest
import torch
from hub_server import write_t5
from transformers import T5EncoderModel

from hiergen.generators.conditioning import TextCondition
from hiergen.pretrained.text_encoder import TextEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    write_t5(path)
    return path


def test_features_are_the_hidden_states_of_each_text_alone(folder) -> None:
    encoder = TextEncoder(folder)
    features, mask = encoder(["  A red CAT ", "cat"])
    assert mask.tolist() == [[True, True, True, True], [True, True, False, False]]
    network = T5EncoderModel.from_pretrained(folder).eval()
    for index, ids in enumerate(([3, 4, 5, 1], [5, 1])):
        alone = network(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(features[index, : len(ids)], alone, rtol=0, atol=1e-6)
    assert not features.requires_grad
    assert len(TextCondition(features, mask)) == 2


def test_long_texts_are_cut(folder) -> None:
    features, mask = TextEncoder(folder, num_tokens=3, dtype=torch.bfloat16)(["a red cat a red cat"])
    assert features.shape == (1, 3, 16)
    assert features.dtype == torch.bfloat16
    assert bool(mask.all())


def test_refusals(folder) -> None:
    with pytest.raises(ValueError, match="num_tokens is 0, expected at least 1"):
        TextEncoder(folder, num_tokens=0)
    encoder = TextEncoder(folder)
    with pytest.raises(TypeError, match="texts is the text 'a cat', expected a list of texts"):
        encoder("a cat")
    with pytest.raises(ValueError, match="texts is empty, expected at least one text"):
        encoder([])
    with pytest.raises(OSError, match="nowhere"):
        TextEncoder(folder / "nowhere")
