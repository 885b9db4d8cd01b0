"""LlamaGen's generator against the transcription of its transformer in plain float64 loops, with rotations of its own."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hiergen.convert.level_ar import to_official
from hiergen.convert.llamagen import from_official, generator_from_official
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.tokenizers.vq_autoencoder.model import VQAutoencoder

#: The transcription of the same transformer for ResTok, and random weights of it.
PLAIN = runpy.run_path(str(Path(__file__).parent / "test_level_ar.py"))
SIDE, HEADS, VOCAB, CLASSES = 3, PLAIN["HEADS"], PLAIN["VOCAB"], PLAIN["CLASSES"]
LENGTH = SIDE**2
CONFIG = {"image_size": 16 * SIDE, "n_head": HEADS}


def rotate_by_cell(x: Tensor, position: int) -> Tensor:
    """Turn by the cell of the token that is read: the first half of the channels by its row, the others by its column."""
    if position == 0:
        return torch.zeros_like(x)
    turned, half, quarter = torch.empty_like(x), len(x) // 2, len(x) // 4
    for pair in range(half):
        place = (position - 1) // SIDE if pair < quarter else (position - 1) % SIDE
        angle = place * 10000.0 ** (-2 * (pair % quarter) / half)
        cos, sin = (float(torch.tensor(value, dtype=torch.float32)) for value in (math.cos(angle), math.sin(angle)))
        u, v = x[2 * pair], x[2 * pair + 1]
        turned[2 * pair], turned[2 * pair + 1] = u * cos - v * sin, u * sin + v * cos
    return turned


def plain_logits(weights: dict[str, Tensor], ids: list[int], label: int, length: int) -> Tensor:
    PLAIN["plain_logits"].__globals__["plain_rotate"] = rotate_by_cell
    return PLAIN["plain_logits"](weights, ids, label, None, length)


def test_logits_equal_plain_loops() -> None:
    weights = PLAIN["official_weights"](0)
    model = from_official({"model": {**weights, "freqs_cis": torch.zeros(10, 4, 2)}}, CONFIG)
    assert isinstance(model, LevelAR)
    assert not model.training
    assert [spec.grid for spec in model.specs] == [(SIDE, SIDE)]
    ids, labels = torch.randint(VOCAB, (2, LENGTH)), torch.tensor([3, CLASSES])
    wanted = torch.stack(
        [plain_logits(weights, row.tolist(), int(label), LENGTH) for row, label in zip(ids, labels, strict=True)]
    )
    assert wanted.std() > 0.5
    torch.testing.assert_close(model(ids, labels).double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.double()(ids, labels), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("official_interval", [-1, 3])
def test_sampled_ids_equal_plain_loops(official_interval: int) -> None:
    """Guidance over all tokens, and over those up to v + 1 of the official `cfg_interval` v."""
    weights, scale = PLAIN["official_weights"](0), 2.5
    model = generator_from_official(weights, CONFIG)
    settings = LevelARSettings(
        guidance_scale=scale,
        guidance_interval=official_interval + 1 if official_interval >= 0 else -1,
        temperature=0.9,
        top_k=7,
    )
    rng, ids = torch.Generator().manual_seed(4), list[int]()
    for token in range(LENGTH):
        conditional, null = (plain_logits(weights, ids, label, token + 1)[-1] for label in (2, CLASSES))
        guided = official_interval < 0 or token <= official_interval + 1
        logits = null + scale * (conditional - null) if guided else conditional
        logits = logits / 0.9
        logits[logits < logits.topk(7).values[-1]] = -math.inf
        ids.append(int(torch.multinomial(logits.softmax(0).float(), 1, generator=rng)))
    for use_cache in (True, False):
        run = LevelARSettings(**{**vars(settings), "use_cache": use_cache})
        made = model.generate(torch.tensor([2]), run, rng=torch.Generator().manual_seed(4))
        assert made.concat().tolist() == [ids]


def test_round_trip_and_saving(tmp_path: Path) -> None:
    weights = PLAIN["official_weights"](0)
    model = generator_from_official({"module": weights}, CONFIG)
    back = to_official(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    model.save_pretrained(tmp_path)
    ids, labels = torch.randint(VOCAB, (1, LENGTH)), torch.tensor([1])
    assert torch.equal(LevelAR.from_pretrained(tmp_path)(ids, labels), model(ids, labels))


def test_which_of_both_a_checkpoint_holds() -> None:
    state = runpy.run_path(str(Path(__file__).parent / "test_llamagen_tokenizer.py"))["official_tokenizer"]()
    model = from_official({"model": state}, {"image_size": 16})
    assert isinstance(model, VQAutoencoder)
    assert model.specs[0].grid == (4, 4)


def test_refusals() -> None:
    weights = PLAIN["official_weights"](0)
    classless = {name: value for name, value in weights.items() if not name.startswith("cls_embedding")}
    with pytest.raises(ValueError, match="the state dict lacks tensor 'cls_embedding"):
        from_official({"model": classless})
    with pytest.raises(ValueError, match="lacks tensor 'cls_embedding"):
        from_official({"a": {"b": torch.zeros(1)}})
    with pytest.raises(ValueError, match="config entry 'image_sizes' is no setting of LlamaGen's generators; did you"):
        from_official(weights, {"image_sizes": 256})
    with pytest.raises(ValueError, match=r"32 channels are not known: give config\['n_head'\]"):
        from_official(weights)
    with pytest.raises(ValueError, match=r"missing 'layers\.1\.ffn_norm\.weight'"):
        from_official({name: x for name, x in weights.items() if name != "layers.1.ffn_norm.weight"}, CONFIG)
