"""Words by rule, and the model of bytes and words: what sees what, caches, packed rows, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.generators.sequences.byte_word.model import ByteWordTransformer
from hiergen.generators.sequences.byte_word.words import split_words, word_starts
from hiergen.generators.sequences.settings import SequenceSettings, TextSettings
from hiergen.generators.sequences.texts import Texts
from hiergen.levels import LevelSpec, specs_to_json
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.seeding import SampleRng

EXAMPLES = {
    "Hello, world!": ["Hello,", " world!"],
    "how_are_you": ["how_", "are_", "you"],
    "howAreYou": ["how", "Are", "You"],
    "HTTPServer": ["HTTPServer"],
    "don't": ["don'", "t"],
    "3.14": ["3.", "14"],
    "a+b": ["a", "+", "b"],
    "(a)(b)": ["(", "a)(", "b)"],
    "  x": ["  ", "x"],
    "a \n b": ["a", " ", "\n", " b"],
    "http://a.b/c": ["http://", "a.", "b/", "c"],
    "": [],
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_words_of_the_examples(text: str) -> None:
    assert split_words(text) == EXAMPLES[text]


def test_words_are_limited_in_bytes_between_characters() -> None:
    assert split_words("x" * 12, max_bytes=5) == ["xxxxx", "xxxxx", "xx"]
    assert split_words("é" * 5, max_bytes=5) == ["éé", "éé", "é"]
    # No character ends inside a part of two bytes.
    assert word_starts("日".encode(), max_bytes=2) == [0, 2]


def test_words_do_not_change_with_what_follows() -> None:
    text = "The Zen's  of naïve_code 3.5: «日本語» isn't\n\tx😀y, end."
    whole = word_starts(text.encode())
    for count in range(1, len(text)):
        part = text[:count].encode()
        assert word_starts(part) == [start for start in whole if start < len(part)]


def test_bytes_that_are_no_text_are_words_and_unfinished_characters_wait() -> None:
    assert word_starts(b"\xfeab\xff") == [0, 1, 3]
    assert word_starts(b"ab\xe2\x82") == [0]
    assert word_starts(b"ab\xe2\x82x") == [0, 2, 3, 4]
    assert word_starts(b"\xf0\x9f") == [0]
    assert word_starts(b"") == []


SIZES: dict[str, Any] = {
    "dim": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 24, "byte_dim": 12, "byte_heads": 2,
    "byte_ffn_dim": 20, "encoder_depth": 2, "decoder_depth": 2, "window": 9,
}  # fmt: skip
SPECS = specs_to_json([LevelSpec(1, vocab_size=300), LevelSpec(2, vocab_size=300), LevelSpec(3, vocab_size=300)])


def make(**changes: Any) -> ByteWordTransformer:
    torch.manual_seed(0)
    model = ByteWordTransformer(**{**SIZES, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def ids_of(text: str) -> Tensor:
    return Texts.of([text]).ids


def test_logits_follow_earlier_bytes_alone() -> None:
    model, ids = make(), ids_of("ab cd. ef gh")
    with torch.no_grad():
        logits = model(ids)
        for place in range(1, ids.shape[1]):
            changed = ids.clone()
            changed[0, place] = ord("z") if ids[0, place] != ord(" ") else ord(",")
            moved = (model(changed) - logits).abs().amax(dim=(0, 2)) > 1e-6
            assert not moved[:place].any(), place
            assert moved[place]


def test_a_word_reaches_the_bytes_behind_the_next_ones_beginning() -> None:
    """Word j is heard of from word j + 1 on; what it was before, only bytes in the window know."""
    model = make(window=1)
    for layer in model.encoder:
        torch.nn.init.zeros_(layer.attention.out.weight)
    one, two = ids_of("xab cd ef"), ids_of("xzb cd ef")
    with torch.no_grad():
        moved = (model(one) - model(two)).abs().amax(dim=2)[0] > 1e-6
    # The changed letter's own place; and from " cd" on, since the first word is known there.
    assert moved.tolist() == [False, False, True, False, *[True] * 6]


@pytest.mark.parametrize("use_qk_norm", [False, True])
def test_steps_equal_the_full_pass(use_qk_norm: bool) -> None:
    model, texts = make(use_qk_norm=use_qk_norm), Texts.of(["Some words, 日本 x.", "z", "ab cd ef"])
    rest = [b" more of it", "é_Ab. to".encode(), b"gh  (ij) kl"]
    lengths = texts.lengths
    assert lengths is not None
    cache = model.start_cache(3, texts.ids.shape[1] + 9)
    steps = [model.prefill(texts.ids, lengths, cache)]
    steps += [model.step(torch.tensor([part[t] for part in rest]), cache) for t in range(9)]
    for row, part in enumerate(rest):
        count = int(lengths[row])
        whole = torch.cat((texts.ids[row, :count], torch.tensor(list(part[:9]))))[None]
        with torch.no_grad():
            wanted = model(whole)[0, count - 1 :]
        found = torch.stack([logits[row] for logits in steps])
        # Between the bytes of é the cache does not know the character yet.
        known = torch.tensor([not (row == 1 and t == 1) for t in range(10)])
        torch.testing.assert_close(found[known], wanted[known], atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing_and_packed_texts_are_single_ones() -> None:
    model, one, two = make(), ids_of("ab cd ef."), ids_of("(gh) ij kl mn")
    count = one.shape[1]
    with torch.no_grad():
        padded = model(torch.cat((one, two), dim=1), torch.tensor([count]))
        torch.testing.assert_close(padded[:, :count], model(one), atol=1e-5, rtol=1e-5)
        starts = torch.zeros(1, count + two.shape[1], dtype=torch.bool)
        starts[0, [0, count]] = True
        packed = model(torch.cat((one, two), dim=1), starts=starts)
        torch.testing.assert_close(packed[:, :count], model(one), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(packed[:, count:], model(two), atol=1e-5, rtol=1e-5)


def test_a_batch_is_its_texts_one_by_one() -> None:
    model, prompts = make(), ["a b", "some longer prompt", ""]
    for use_cache in (True, False):
        settings = TextSettings(max_new_bytes=8, use_cache=use_cache)
        together = model.generate_text(prompts, settings, rng=SampleRng.of(range(3), "x"))
        assert together == [
            model.generate_text(prompt, settings, rng=SampleRng.of([index], "x"))[0]
            for index, prompt in enumerate(prompts)
        ]


def test_levels_by_class_are_words() -> None:
    model = make(level_specs=SPECS, num_classes=3)
    labels = torch.tensor([0, 2])
    assert model.lay_out(torch.zeros(1, 6, dtype=torch.int64), None).word.tolist() == [[0, 1, 2, 2, 3, 3, 3]]
    made = [
        model.generate(
            labels, SequenceSettings(guidance_scale=1.5, use_cache=use), rng=SampleRng.of([0, 1], 1)
        ).concat()
        for use in (True, False)
    ]
    assert torch.equal(*made)
    logits = model(made[0][:, :5], None, labels)
    assert logits.shape == (2, 6, 300)
    assert (logits - model(made[0][:, :5], None, labels.flip(0))).abs().amax(dim=(0, 2)).min() > 1e-4
    found = model.train().loss(TokenPyramid.split(made[0], model.specs), labels, rng=torch.Generator().manual_seed(0))
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_loss_tells_the_length_of_words() -> None:
    assert make().loss(Texts(ids_of("ab cd ef."), None))["symbols_per_word"] == 9 / 4


@pytest.mark.parametrize(
    ("name", "published", "dead"),
    [
        # What does nothing: queries, keys and their norm in four decoder layers, with normalized heads also those norms.
        ("byte-word-8b", 7_192_495_104, 4 * (1024**2 + 1024 * 4096 + 1024)),
        ("byte-word-7b", 7_192_507_136, 4 * (1024**2 + 1024 * 4096 + 1024 + 2 * 128)),
    ],
)
def test_published_sizes(name: str, published: int, dead: int) -> None:
    with torch.device("meta"):
        model = create(name)
    assert sum(p.numel() for p in model.parameters()) == published - dead


def test_published_sizes_of_parts() -> None:
    with torch.device("meta"):
        small, large = create("byte-word-8b"), create("byte-word-70b")

    def count(*parts: Any) -> int:
        return sum(p.numel() for part in parts for p in part.parameters())

    assert count(small.byte_embedding, small.encoder) == 77_344_768
    assert count(small.pooling) == 41_947_136
    assert count(small.backbone) == 6_979_584_000
    assert count(large.byte_embedding, large.encoder, large.pooling) == 476_610_560
    assert count(large.backbone) == 68_452_352_000


def test_bad_input_is_named() -> None:
    cases: list[tuple[str, Any]] = [
        ("vocab_size is 300, expected 256", lambda: make(vocab_size=300)),
        ("window is 0, expected at least 1", lambda: make(window=0)),
        ("max_word_bytes is 0, expected at least 1", lambda: make(max_word_bytes=0)),
        ("dim is 16, expected a multiple of 2", lambda: make(num_heads=3, num_kv_heads=None)),
        ("num_kv_heads is 3, expected a divisor of num_heads 2", lambda: make(num_kv_heads=3)),
        ("rotary_dim is 3, expected an even number", lambda: make(byte_heads=4)),
        ("num_heads is 5, expected a divisor of dim 12", lambda: make(byte_heads=5)),
    ]
    for match, call in cases:
        with pytest.raises(ValueError, match=match):
            call()
