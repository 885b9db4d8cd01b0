"""The contract of sequence models, on the smallest model that keeps it: what came before, summed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hiergen.generators.conditioning import Unconditional
from hiergen.generators.sequences.base import SequenceModel
from hiergen.generators.sequences.prediction import Prediction
from hiergen.generators.sequences.settings import SequenceSettings, TextSettings
from hiergen.generators.sequences.texts import BEGIN, END, StopWatch, Texts, to_bytes
from hiergen.levels import LevelSpec, specs_to_json
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import SampleRng

SPECS = specs_to_json([LevelSpec(1, vocab_size=5), LevelSpec(3, vocab_size=5)])


class Sums(SequenceModel):
    """Logits of a decayed sum of embeddings; a packed text starts from nothing."""

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Any = None,
        num_classes: int | None = None,
        vocab_size: int = 256,
        class_dropout: float = 0.1,
        dim: int = 16,
    ) -> None:
        super().__init__()
        vocab_size = self._read_task(level_specs, num_classes, vocab_size, class_dropout)
        self.class_embedding = self._make_class_embedding(num_classes, dim)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.head = nn.Linear(dim, vocab_size)

    def predict(self, ids: Tensor, lengths: Any = None, condition: Any = None, *, starts: Any = None) -> Prediction:
        self.check_inputs(ids, lengths, condition, starts)
        x, state, rows = self.embedding(ids), torch.zeros(len(ids), self.config["dim"]), []
        if condition is not None:
            state = self.class_embedding(condition)
            rows.append(self.head(state))
        for index in range(ids.shape[1]):
            keep = 1.0 if starts is None else (~starts[:, index, None]).float()
            state = 0.5 * keep * state + x[:, index]
            rows.append(self.head(state))
        return Prediction(torch.stack(rows, dim=1), {"extra": torch.tensor(2.0)}, {"seen": torch.tensor(1.0)})

    def start_cache(self, batch: int, num_ids: int) -> dict[str, Any]:
        return {"state": torch.zeros(batch, self.config["dim"])}

    def prefill(self, ids: Tensor, lengths: Any, cache: Any, condition: Any = None) -> Tensor:
        self.check_inputs(ids, lengths, condition)
        state = cache["state"] if condition is None else self.class_embedding(condition)
        for index in range(ids.shape[1]):
            new = 0.5 * state + self.embedding(ids[:, index])
            state = new if lengths is None else torch.where((index < lengths)[:, None], new, state)
        cache["state"] = state
        return self.head(state)

    def step(self, ids: Tensor, cache: Any) -> Tensor:
        cache["state"] = 0.5 * cache["state"] + self.embedding(ids)
        return self.head(cache["state"])


def text_model() -> Sums:
    torch.manual_seed(0)
    return Sums()


def class_model() -> Sums:
    torch.manual_seed(0)
    return Sums(level_specs=SPECS, num_classes=3)


def test_a_loss_of_texts_counts_what_is_no_padding_and_no_start() -> None:
    model, texts = text_model(), Texts.of(["abc", b"d"], end=True)
    assert texts.ids.tolist() == [[BEGIN, 97, 98, 99, END], [BEGIN, 100, END, 0, 0]]
    logits = model(texts.ids)
    wanted = [
        -logits[row, t - 1].log_softmax(-1)[texts.ids[row, t]]
        for row, count in ((0, 5), (1, 3))
        for t in range(1, count)
    ]
    found = model.loss(texts)
    mean = sum(wanted) / len(wanted)
    torch.testing.assert_close(found["loss"], mean + 2)
    torch.testing.assert_close(found["bits_per_byte"], mean.detach() / torch.log(torch.tensor(2.0)))
    assert found["extra"] == 2
    assert found["seen"] == 1


def test_packed_texts_give_the_loss_of_single_ones() -> None:
    model = text_model()
    one, two = Texts.of(["abc"]), Texts.of(["de"])
    packed = Texts(
        torch.cat((one.ids, two.ids), dim=1), starts=torch.tensor([[True, *[False] * 3, True, False, False]])
    )
    single = (3 * (model.loss(one)["loss"] - 2) + 2 * (model.loss(two)["loss"] - 2)) / 5
    torch.testing.assert_close(model.loss(packed)["loss"] - 2, single)


def test_a_loss_of_levels_predicts_the_first_token_from_the_class() -> None:
    model = class_model().eval()
    ids, labels = torch.tensor([[1, 2, 3, 4], [0, 1, 0, 1]]), torch.tensor([0, 2])
    wanted = torch.nn.functional.cross_entropy(model(ids[:, :3], None, labels).flatten(0, 1), ids.flatten())
    found = model.loss(TokenPyramid.split(ids, model.specs), labels)
    torch.testing.assert_close(found["loss"], wanted + 2)
    assert "bits_per_token" in found


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_text_does_not_depend_on_its_batch(use_cache: bool) -> None:
    model, settings = text_model(), TextSettings(max_new_bytes=9, use_cache=use_cache, top_k=200, top_p=0.9)
    prompts = ["", "a longer one", b"xy"]
    together = model.generate_text(prompts, settings, rng=SampleRng.of(range(3), "t"))
    alone = [model.generate_text(p, settings, rng=SampleRng.of([i], "t"))[0] for i, p in enumerate(prompts)]
    assert together == alone
    assert {len(text) for text in together} == {9}


def test_the_cache_changes_no_byte_and_no_token() -> None:
    texts, classes = text_model(), class_model()
    made = [
        (
            texts.generate_text(["ab", "c"], TextSettings(max_new_bytes=8, use_cache=use), rng=SampleRng.of([0, 1], 1)),
            classes.generate(
                torch.tensor([0, 2]), SequenceSettings(use_cache=use, guidance_scale=2.0), rng=SampleRng.of([0, 1], 1)
            ).concat(),
        )
        for use in (True, False)
    ]
    assert made[0][0] == made[1][0]
    assert torch.equal(made[0][1], made[1][1])


def test_generation_of_levels_calls_back_and_leaves_the_mode() -> None:
    model, seen = class_model().train(), []
    made = model.generate(
        Unconditional(2), rng=torch.Generator().manual_seed(0), callback=lambda i, done, latents: seen.append((i, done))
    )
    assert [level.shape for level in made.levels] == [(2, 1), (2, 3)]
    assert [len(done) for _, done in seen] == [1, 1, 1, 2]
    assert model.training
    assert model.count_steps(None) == 4


def test_stop_strings_cut_and_hold_back() -> None:
    watch = StopWatch(["\n\n", "stop"])
    assert [watch.push(byte) for byte in b"a\nsto-st"] == [b"a", b"", b"\n", b"", b"", b"sto-", b"", b""]
    assert watch.finish() == b"st"
    watch = StopWatch(["\n\n", "stop"])
    assert b"".join(watch.push(byte) for byte in b"xstop, more") == b"x"
    assert watch.has_ended
    watch = StopWatch([])
    assert [watch.push(symbol) for symbol in (97, END, 98)] == [b"a", b"", b""]


def test_streams_are_what_is_returned_and_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    model, script = text_model(), iter([[97, 98], [END, 10], [99, 10], [99, 99]])
    monkeypatch.setattr(
        "hiergen.generators.sequences.base.draw_ids", lambda *args, **options: torch.tensor(next(script))
    )
    parts = list(model.stream_text(["", ""], TextSettings(max_new_bytes=50, stop=("\n\n",))))
    assert parts == [[b"a", b"b"], [b"", b""], [b"", b""]]


def test_bad_input_is_named() -> None:
    texts, classes, labels = text_model(), class_model(), torch.tensor([0])
    cases: list[tuple[str, Any]] = [
        ("level_specs is None and num_classes is 3, expected both", lambda: Sums(num_classes=3)),
        ("class_dropout is 2.0, expected 0 to 1", lambda: Sums(class_dropout=2.0)),
        ("vocab_size is 1, expected at least 2", lambda: Sums(vocab_size=1)),
        ("condition was given, but this is a model of text", lambda: texts(labels[None], None, labels)),
        ("condition is None, expected class labels", lambda: classes(labels[None])),
        ("ids holds no id", lambda: texts(labels[None, :0])),
        (r"ids has shape \(1,\)", lambda: Texts(labels)),
        (r"lengths has shape \(2,\)", lambda: Texts(labels[None], torch.tensor([1, 1]))),
        (r"starts has shape \(1,\)", lambda: Texts(labels[None], starts=torch.tensor([True]))),
        ("the batch holds texts, expected a pyramid", lambda: classes.loss(Texts(labels[None]), labels)),
        ("no model of text: use generate", lambda: classes.generate_text("a")),
        ("use generate_text", lambda: texts.generate(labels)),
        ("vocab_size is 300, expected 256", lambda: Sums(vocab_size=300).generate_text("a")),
        ("texts is empty", lambda: texts.generate_text([])),
        ("max_new_bytes is 0, expected at least 1", lambda: TextSettings(max_new_bytes=0)),
    ]
    for match, call in cases:
        with pytest.raises(ValueError, match=match):
            call()
    wrong: Any = 3
    with pytest.raises(TypeError, match="a text is of type int"):
        to_bytes(wrong)
    texts.head.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="logits at step 0 of 256"):
        texts.generate_text("a")
