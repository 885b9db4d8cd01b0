"""`TextEncoder` against transformers' own T5, CLIP and SigLIP, of random weights, with a tokenizer of a few words."""

from __future__ import annotations

import pytest
import torch
import transformers
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


def write_tower(kind: str, folder) -> str:
    """Write a text tower of random weights, with 16 channels, and the tokenizer of the T5 beside it."""
    write_t5(folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 8,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = getattr(transformers, f"{kind}TextConfig")(
        **sizes, max_position_embeddings=6, eos_token_id=1, pad_token_id=0
    )
    getattr(transformers, f"{kind}TextModel")(config).save_pretrained(folder)
    return str(folder)


def test_the_text_tower_of_clip_sees_no_padding(tmp_path) -> None:
    encoder = TextEncoder(write_tower("CLIP", tmp_path))
    assert (encoder.num_tokens, encoder.num_channels) == (6, 16)
    features, mask = encoder(["a red cat", "cat"])
    assert mask.tolist() == [[True, True, True, True], [True, True, False, False]]
    torch.testing.assert_close(features[1, :2], encoder(["cat"])[0][0], rtol=0, atol=1e-6)


def test_the_text_tower_of_siglip_is_given_all_of_its_rows(tmp_path) -> None:
    encoder = TextEncoder(write_tower("Siglip", tmp_path))
    features, mask = encoder(["cat"])
    assert features.shape == (1, 6, 16)
    assert mask.tolist() == [[True, True, False, False, False, False]]
    network = transformers.SiglipTextModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(features, network(input_ids=torch.tensor([[5, 1, 0, 0, 0, 0]])).last_hidden_state)


def test_features_are_kept_by_encoder_and_texts(folder, tmp_path, monkeypatch) -> None:
    encoder = TextEncoder(folder, num_tokens=5)
    first = encoder.cached(["a red cat", "cat", "a"], tmp_path, batch_size=2)
    assert first[0].shape == (3, 5, 16)
    assert first[1].sum(dim=1).tolist() == [4, 2, 2]
    torch.testing.assert_close(first[0][1, :2], encoder(["cat"])[0][0])
    encoder.cached(["cat"], tmp_path)
    TextEncoder(folder, num_tokens=4).cached(["cat"], tmp_path)
    assert len(list(tmp_path.glob("texts-*.safetensors"))) == 3
    monkeypatch.setattr(TextEncoder, "__call__", None)
    again = encoder.cached(["a red cat", "cat", "a"], tmp_path)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_a_network_of_another_kind_is_refused(tmp_path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a network of kind 'bert', expected one of t5, clip"):
        TextEncoder(tmp_path)


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
