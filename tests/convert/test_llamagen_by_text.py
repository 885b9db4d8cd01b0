"""LlamaGen's generator by text against a transcription of the official program in float64: prefix, padding, guidance, every token from scratch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hiergen.convert.level_ar import to_official
from hiergen.convert.llamagen import from_official
from hiergen.generators.conditioning import TextCondition, Unconditional
from hiergen.generators.level_ar.model import LevelAR, LevelARSettings
from hiergen.pyramid import TokenPyramid

VOCAB, ROWS, CHANNELS, DIM, HEADS, DEPTH, HIDDEN, SIDE = 23, 5, 12, 32, 4, 2, 48, 3
LENGTH = SIDE**2
CONFIG = {"image_size": 16 * SIDE, "n_head": HEADS}


def official_weights() -> dict[str, Tensor]:
    """Random tensors under the official names, scaled so that every term of the model matters."""
    shapes = {
        "cls_embedding.cap_proj.fc1.weight": (DIM, CHANNELS),
        "cls_embedding.cap_proj.fc2.weight": (DIM, DIM),
        "cls_embedding.uncond_embedding": (ROWS, CHANNELS),
        "tok_embeddings.weight": (VOCAB, DIM),
        "norm.weight": (DIM,),
        "output.weight": (VOCAB, DIM),
    }
    for layer in range(DEPTH):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (3 * DIM, DIM),
            f"layers.{layer}.attention.wo.weight": (DIM, DIM),
            f"layers.{layer}.feed_forward.w1.weight": (HIDDEN, DIM),
            f"layers.{layer}.feed_forward.w3.weight": (HIDDEN, DIM),
            f"layers.{layer}.feed_forward.w2.weight": (DIM, HIDDEN),
            f"layers.{layer}.attention_norm.weight": (DIM,),
            f"layers.{layer}.ffn_norm.weight": (DIM,),
        }
    rng = torch.Generator().manual_seed(7)
    draws = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    return {name: 1 + 0.3 * x if x.ndim == 1 else 2 * x * x.shape[1] ** -0.5 for name, x in draws.items()}


def texts() -> TextCondition:
    """Two texts of 3 and 2 tokens, padded behind, in fewer rows than the generator has."""
    rng = torch.Generator().manual_seed(3)
    return TextCondition(
        torch.randn(2, 4, CHANNELS, generator=rng),
        torch.tensor([[True, True, True, False], [True, True, False, False]]),
    )


def plain_logits(weights: dict[str, Tensor], rows: Tensor, is_token: list[bool], ids: list[int]) -> Tensor:
    """Logits of the token behind each of `ids`, and of the first; `rows` are features of a text that is padded in front."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    hidden = rows.double() @ w["cls_embedding.cap_proj.fc1.weight"].T
    hidden = hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    x = torch.cat((hidden @ w["cls_embedding.cap_proj.fc2.weight"].T, w["tok_embeddings.weight"][ids]))
    count, quarter = len(x), DIM // HEADS // 4
    # Queries and keys of the text are zero; an image token turns by its row, then by its column.
    turns = torch.zeros(count, 2 * quarter, dtype=torch.complex128)
    for place in range(len(ids)):
        for pair in range(2 * quarter):
            angle = (place // SIDE if pair < quarter else place % SIDE) * 10000.0 ** (-(pair % quarter) / quarter)
            turns[ROWS + place, pair] = complex(math.cos(angle), math.sin(angle))
    turns = turns.to(torch.complex64).to(torch.complex128)
    for layer in range(DEPTH):
        p = {name.removeprefix(f"layers.{layer}."): tensor for name, tensor in w.items()}
        query, key, value = (norm(x, p["attention_norm.weight"]) @ p["attention.wqkv.weight"].T).split(DIM, dim=1)
        heads = []
        for part in range(HEADS):
            q, k, v = (each.unflatten(1, (HEADS, -1))[:, part] for each in (query, key, value))
            q, k = (
                torch.view_as_real(torch.view_as_complex(y.unflatten(1, (-1, 2))) * turns).flatten(1) for y in (q, k)
            )
            scores = q @ k.T / math.sqrt(DIM // HEADS)
            for row in range(count):
                for column in range(count):
                    is_hidden = column < ROWS and not is_token[column] and column != row
                    if column > row or is_hidden:
                        scores[row, column] = -math.inf
            heads.append(scores.softmax(1) @ v)
        x = x + torch.cat(heads, dim=1) @ p["attention.wo.weight"].T
        y = norm(x, p["ffn_norm.weight"])
        gate, up = y @ p["feed_forward.w1.weight"].T, y @ p["feed_forward.w3.weight"].T
        x = x + (gate / (1 + (-gate).exp()) * up) @ p["feed_forward.w2.weight"].T
    return norm(x[ROWS - 1 :], w["norm.weight"]) @ w["output.weight"].T


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight


def padded_in_front(condition: TextCondition, index: int) -> tuple[Tensor, list[bool]]:
    """The official preparation of one text: rows up to the full number, padding moved to the front, its features zero."""
    features = torch.cat((condition.features[index], torch.ones(ROWS - 4, CHANNELS)))
    mask = torch.cat((condition.mask[index], torch.zeros(ROWS - 4, dtype=torch.bool)))
    count = int(mask.sum())
    return torch.cat((features[count:], features[:count])) * mask.flip(0)[:, None], mask.flip(0).tolist()


def test_logits_equal_the_transcription() -> None:
    weights, condition = official_weights(), texts()
    model = from_official({"model": {**weights, "freqs_cis": torch.zeros(10, 4, 2)}}, CONFIG)
    assert isinstance(model, LevelAR)
    assert not model.training
    ids = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    wanted = torch.stack(
        [plain_logits(weights, *padded_in_front(condition, k), ids[k].tolist()[:-1]) for k in range(2)]
    )
    assert wanted.std() > 0.5
    aligned = condition.aligned(ROWS)
    torch.testing.assert_close(model(ids, aligned).double(), wanted, rtol=0, atol=2e-5)
    torch.testing.assert_close(model.double()(ids, aligned), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_sampled_ids_equal_the_transcription(scale: float) -> None:
    """Guidance moves away from the features of no text under the text's own mask, as the official program does."""
    weights, condition = official_weights(), texts()
    model = from_official(weights, CONFIG)
    wanted = []
    for index in range(2):
        rows, is_token = padded_in_front(condition, index)
        ids: list[int] = []
        for _ in range(LENGTH):
            logits = plain_logits(weights, rows, is_token, ids)[-1]
            if scale > 1:
                null = plain_logits(weights, weights["cls_embedding.uncond_embedding"], is_token, ids)[-1]
                logits = null + scale * (logits - null)
            ids.append(int(logits.argmax()))
        wanted.append(ids)
    assert wanted[0] != wanted[1]
    for use_cache in (True, False):
        settings = LevelARSettings(guidance_scale=scale, greedy=True, use_cache=use_cache)
        assert model.generate(condition, settings).concat().tolist() == wanted
        # What else is in the batch, and how it is padded, changes nothing.
        alone = TextCondition(condition.features[1:, :2], condition.mask[1:, :2])
        assert model.generate(alone, settings).concat().tolist() == wanted[1:]


def test_round_trip_and_saving(tmp_path: Path) -> None:
    weights = official_weights()
    model = from_official({"module": weights}, CONFIG)
    back = to_official(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    model.save_pretrained(tmp_path)
    ids, condition = torch.randint(VOCAB, (2, LENGTH)), texts().aligned(ROWS)
    assert torch.equal(LevelAR.from_pretrained(tmp_path)(ids, condition), model(ids, condition))


def test_training_drops_texts_and_trains_everything_but_the_features_of_none() -> None:
    model = from_official(official_weights(), CONFIG).requires_grad_(True).train()
    ids = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    pyramid = TokenPyramid((ids,), model.specs)
    model.loss(pyramid, texts(), rng=torch.Generator().manual_seed(0))["loss"].backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters())
    assert "class_embedding.null_features" not in dict(model.named_parameters())
    other = TextCondition(texts().features + 1, texts().mask)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for probability, is_equal in ((0.0, False), (1.0, True)):
        model.register_to_config(class_dropout=probability)
        one, two = (model.loss(pyramid, each, rng=torch.Generator())["loss"] for each in (texts(), other))
        assert torch.equal(one, two) == is_equal


def test_refusals() -> None:
    model = from_official(official_weights(), CONFIG)
    with pytest.raises(
        TypeError, match="the condition is a Tensor, this generator was trained on texts: expected a Text"
    ):
        model.generate(torch.tensor([1]))
    with pytest.raises(TypeError, match="the condition is a Tensor, this generator was trained on texts"):
        model(torch.zeros(1, LENGTH, dtype=torch.int64), torch.tensor([1]))
    with pytest.raises(ValueError, match="the texts have features of 7 channels, expected 12"):
        model.generate(TextCondition(torch.zeros(1, 2, 7), torch.ones(1, 2) > 0))
    with pytest.raises(ValueError, match="the texts have 6 rows of features, this generator reads 5: cut them"):
        model.generate(TextCondition(torch.zeros(1, 6, CHANNELS), torch.ones(1, 6) > 0))
    with pytest.raises(ValueError, match="condition holds 2 texts, expected 1, one per sample"):
        model(torch.zeros(1, LENGTH, dtype=torch.int64), texts().aligned(ROWS))
    with pytest.raises(ValueError, match="guidance_against is 'parent', but a text has no parent: leave it at 'null'"):
        model.generate(texts(), LevelARSettings(guidance_scale=2.0, guidance_against="parent"))
    assert model.generate(Unconditional(2)).batch_size == 2
    model.register_to_config(class_dropout=0.0)
    with pytest.raises(ValueError, match="expected texts: none was dropped in training"):
        model.generate(Unconditional(2))
