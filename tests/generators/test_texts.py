"""Texts as conditions: words and their pieces, and one contract of all families that read them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hiergen.generators.conditioning import (
    ByteTextEncoder,
    TextCondition,
    TextRows,
    Unconditional,
    condition_table,
    read_words,
    resolve_labels,
)
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json
from hiergen.registry import create

IDS = [LevelSpec(1, (1, 1), 4, 16), LevelSpec(4, (2, 2), 4, 16)]
MAPS = [LevelSpec(4, (2, 2), 4, None)]
TEXT: dict[str, Any] = {"num_classes": None, "text_shape": [4, 8]}
SMALL = {"dim": 16, "depth": 1, "num_heads": 2}
MAR = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in SMALL.items() if name != "num_heads"}
MAR |= {"encoder_heads": 2, "decoder_heads": 2, "head_dim": 16, "head_depth": 1, "num_buffer": 2}
FAMILIES: dict[str, tuple[str, list[LevelSpec], dict[str, Any]]] = {
    "har": ("har-tiny", [LevelSpec(4, None, 4, 16)], SMALL),
    "var": ("var-tiny", IDS, SMALL),
    "var, one modulation": ("var-tiny", IDS, {**SMALL, "shares_modulation": True}),
    "rar": ("rar-tiny", IDS, SMALL),
    "maskgit": ("maskgit-tiny", IDS, {**SMALL, "depth": 2}),
    "maskgit, post-norm": ("maskgit-tiny", IDS, {**SMALL, "blocks": "post_norm"}),
    "flow": ("flow-tiny", MAPS, SMALL),
    "mar": ("mar-tiny", MAPS, MAR),
}


def make(family: str, **changes: Any) -> Any:
    """Return a generator of texts whose output is not what it is at first: the same whatever it is told."""
    preset, specs, sizes = FAMILIES[family]
    torch.manual_seed(0)
    encoder = {"name": "bytes", "num_pieces": 64, "depth": 1, "num_heads": 2}
    config = {"level_specs": specs_to_json(specs), **sizes, **TEXT, "text_encoder": encoder, **changes}
    model = create(preset, **config)
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tokens(model: Any) -> TokenPyramid:
    rng = torch.Generator().manual_seed(1)
    levels = [
        torch.randint(spec.vocab_size, (2, spec.num_tokens), generator=rng)
        if spec.vocab_size
        else torch.randn(2, spec.num_tokens, spec.dim, generator=rng)
        for spec in model.specs
    ]
    return TokenPyramid(tuple(levels), model.specs)


def generated(model: Any, condition: Any, scale: float = 1.0) -> torch.Tensor:
    wanted = {"num_steps": 2, "head_steps": 2, "head_spacing": "leading", "guidance_scale": scale}
    known = model.settings_class.__dataclass_fields__
    settings = model.make_settings(**{name: value for name, value in wanted.items() if name in known})
    return model.generate(condition, settings, rng=torch.Generator().manual_seed(2)).concat()


def test_a_text_is_read_word_by_word_in_pieces() -> None:
    read = read_words(["A red-CAT, now", "cats", ""], 3)
    assert read.mask.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert not read.is_encoded
    again = read_words(["a", "red", "cat"], 1)
    assert torch.equal(read.features[0], again.features[:, 0])
    cat, cats = (set(read.features[place].flatten().tolist()) - {0} for place in ((0, 2), (1, 0)))
    # "<ca" and "cat" are in both; the whole words and their ends are not.
    assert (len(cat), len(cats), len(cat & cats)) == (4, 5, 2)
    with pytest.raises(TypeError, match="texts is the text 'a cat', expected a list of texts"):
        read_words("a cat", 3)
    with pytest.raises(ValueError, match="texts is empty, expected at least one text"):
        read_words([], 3)


def _three() -> tuple[torch.Tensor, torch.Tensor]:
    read = read_words(["a b c"], 3)
    return read.features, read.mask


@torch.no_grad()
def test_words_are_alike_by_their_pieces_and_know_their_places_by_the_blocks() -> None:
    torch.manual_seed(0)
    plain = ByteTextEncoder(32, 2, depth=0)
    read = read_words(["cat cats", "cats cat", "dog"], 2)
    features = plain(read.features, read.mask)
    near, far = (torch.cosine_similarity(features[0, 0], other, dim=0) for other in (features[0, 1], features[2, 0]))
    assert float(near) > float(far) + 0.2
    assert torch.equal(features[0, 0], features[1, 1])
    assert not features[2, 1].any()
    deep = ByteTextEncoder(32, 2, depth=1)
    torch.nn.init.normal_(deep.places)
    told = deep(read.features, read.mask)
    assert not torch.allclose(told[0, 0], told[1, 1], atol=1e-3)
    # What stands behind the last word changes nothing.
    alone = deep(read.features[2:, :1], read.mask[2:, :1])
    torch.testing.assert_close(alone[0, 0], told[2, 0])
    with pytest.raises(ValueError, match="the texts have 3 words, this encoder reads 2: cut them"):
        deep(*_three())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_pieces": 0}, "num_pieces of the text encoder is 0, expected at least 1"),
        ({"depth": -1}, "depth of the text encoder is -1, expected at least 0"),
    ],
)
def test_refusals_of_the_encoder(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        ByteTextEncoder(8, 2, **changes)


def test_refusals_of_the_entry() -> None:
    with pytest.raises(ValueError, match=r"text_encoder has the entries \['depth'\], expected a name among them"):
        TextRows(3, 8, 4, {"depth": 1})
    with pytest.raises(
        ValueError, match=r"text_encoder has an entry 'dept', which 'bytes' has not; did you mean depth\?"
    ):
        TextRows(3, 8, 4, {"name": "bytes", "dept": 1})
    with pytest.raises(
        ValueError, match=r"text_encoder is \{'name': 'bytes'\} beside num_classes 3, expected text_shape"
    ):
        condition_table(TextRows, 4, 3, None, None, {"name": "bytes"})
    # The features of a frozen network are made elsewhere.
    assert TextRows(3, 8, 4, {"name": "google/flan-t5-xl"}).encoder is None


def test_rows_of_padding_are_one_learned_row_and_no_text_is_padding_alone() -> None:
    table = TextRows(3, 2, 4)
    assert table.pool is not None
    text = TextCondition(torch.randn(1, 2, 2), torch.tensor([[True, False]]))
    torch.nn.init.normal_(table.pool.weight)
    told, none = table.resolve(text, torch.device("cpu")), table.resolve(Unconditional(1), torch.device("cpu"))
    rows = table.rows(told)
    torch.testing.assert_close(rows[0, :2], table.null.expand(2, -1))
    torch.testing.assert_close(rows[0, 2], table.proj(text.features[0, 0]))
    torch.testing.assert_close(table(rows, told.mask), table.pool(rows[:, 2]))
    torch.testing.assert_close(table.rows(none)[0], table.null.expand(3, -1))
    torch.testing.assert_close(table(table.rows(none), none.mask)[0], table.pool(table.null))
    with pytest.raises(ValueError, match="the texts have features of 3 channels, expected 2"):
        table.resolve(TextCondition(torch.zeros(1, 2, 3), torch.ones(1, 2) > 0), torch.device("cpu"))
    with pytest.raises(
        TypeError, match="the condition is a Tensor, this generator was trained on texts: expected a Tex"
    ):
        resolve_labels(torch.tensor([1]), None, 0.1, torch.device("cpu"), table)


def test_negative_texts_are_as_many() -> None:
    text, two = read_words(["a"], 2), read_words(["a", "b"], 2)
    with pytest.raises(ValueError, match="negative holds 2 texts, expected 1, one per sample"):
        TextCondition(text.features, text.mask, two)
    both = TextCondition(two.features, two.mask, two)[1:].repeat_interleave(2)
    assert both.negative is not None
    assert torch.equal(both.negative.features, two.features[[1, 1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_told_by_words(family) -> None:
    model = make(family)
    cats, dogs = read_words(["a cat", "cats"], 4), read_words(["a dog", "dogs"], 4)
    made = generated(model, cats)
    assert torch.equal(made, generated(model, cats))
    assert not torch.equal(made, generated(model, dogs))
    # Each sample by its own text: the same text beside another one gives the same tokens.
    mixed = TextCondition(torch.stack((cats.features[0], dogs.features[1])), torch.stack((cats.mask[0], dogs.mask[1])))
    beside = generated(model, mixed)
    torch.testing.assert_close(beside[0], made[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_moves_away_from_negative_texts(family) -> None:
    model = make(family)
    cats = read_words(["a cat", "cats"], 4)
    plain, guided = generated(model, cats), generated(model, cats, 3.0)
    assert not torch.equal(guided, plain)
    # Moved away from itself, a prediction stays where it is.
    against_itself = TextCondition(cats.features, cats.mask, cats)
    torch.testing.assert_close(generated(model, against_itself, 3.0), plain, atol=1e-4, rtol=1e-4)
    dogs = read_words(["a dog", "dogs"], 4)
    assert not torch.equal(generated(model, TextCondition(cats.features, cats.mask, dogs), 3.0), guided)
    if model.makes_unconditional:
        assert not torch.equal(generated(model, Unconditional(2)), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_is_trained_along_and_learns_nothing_of_dropped_texts(family) -> None:
    dropout = "condition_drop" if family == "mar" else "label_dropout" if family == "flow" else "class_dropout"
    for probability in (0.0, 1.0):
        model = make(family, **{dropout: probability}).train()
        words = read_words(["a cat", "two dogs"], 4)
        model.loss(tokens(model), words, rng=torch.Generator().manual_seed(3))["loss"].backward()
        # Dropped texts still multiply by 0.
        grads = [p.grad for name, p in model.named_parameters() if ".encoder.pieces" in name]
        assert len(grads) == 1
        assert (grads[0] is not None and bool(grads[0].any())) == (probability == 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_is_padding_alone(family) -> None:
    """No text, texts without a word, and in train mode texts that are all dropped, are one."""
    dropout = "condition_drop" if family == "mar" else "label_dropout" if family == "flow" else "class_dropout"
    model = make(family, **{dropout: 1.0})
    empty = read_words(["", ""], 4)
    if model.makes_unconditional:
        # Of a prefix, rows that nobody sees and features that stand for no text are not the same.
        same = torch.equal(generated(model, Unconditional(2)), generated(model, empty))
        assert same == (family != "har")
    data = tokens(model)
    told, untold = (
        model.train().loss(data, words, rng=torch.Generator().manual_seed(3))["loss"]
        for words in (read_words(["a cat", "dogs"], 4), read_words(["hat", "two"], 4))
    )
    if family != "har":
        torch.testing.assert_close(told, untold)


@pytest.mark.parametrize("family", ["har", "var", "rar"])
def test_the_likelihood_under_a_text_is_that_of_the_loss(family) -> None:
    model = make(family)
    data, words = tokens(model), read_words(["a cat", "dogs"], 4)
    found = torch.stack(model.score(data, words), dim=1).sum()
    expected = model.loss(data, words)["loss"].detach()
    torch.testing.assert_close(-found / data.concat().numel(), expected)
    assert not torch.allclose(torch.stack(model.score(data, Unconditional(2)), dim=1).sum(), found)


@pytest.mark.parametrize("family", ["flow", "var", "rar"])
def test_a_new_generator_does_not_look_at_the_words_before_it_is_trained(family) -> None:
    preset, specs, sizes = FAMILIES[family]
    model = create(preset, level_specs=specs_to_json(specs), **sizes, **TEXT)
    closed = [p for name, p in model.named_parameters() if ".cross.proj." in name]
    closed += [p for name, p in model.named_parameters() if ".pool." in name]
    assert len(closed) == 4
    assert not any(bool(p.any()) for p in closed)


@pytest.mark.parametrize("family", ["flow", "var", "rar"])
@pytest.mark.parametrize("silent", [".pool.", ".cross.proj."])
def test_a_text_is_told_by_its_mean_and_by_its_rows(family, silent) -> None:
    model = make(family)
    for name, parameter in model.named_parameters():
        if silent in name:
            torch.nn.init.zeros_(parameter)
    data = tokens(model)
    cats, dogs = (
        model.loss(data, read_words([text, text], 4), rng=torch.Generator().manual_seed(3))["loss"]
        for text in ("a cat", "a dog")
    )
    assert float(cats.detach()) != pytest.approx(float(dogs.detach()), abs=1e-5)


def test_features_of_a_frozen_network_are_read_like_words() -> None:
    model = make("flow", text_encoder={"name": "somewhere"})
    rng = torch.Generator().manual_seed(4)
    text = TextCondition(torch.randn(2, 3, 8, generator=rng), torch.ones(2, 3) > 0)
    assert not torch.equal(generated(model, text), generated(model, TextCondition(-text.features, text.mask)))
    with pytest.raises(
        ValueError, match="the texts are words as `read_words` reads them, expected features of 8 channels"
    ):
        generated(model, read_words(["a", "b"], 3))
