"""Likelihoods of pictures, and the class under which they are likeliest, by a packaged model of digits."""

from __future__ import annotations

import pytest
import torch

import hiergen
from hiergen.data.images.digits import load_digits
from hiergen.data.images.pixels import to_pictures
from hiergen.generators.base import Generator
from hiergen.generators.level_ar.model import LevelAR
from hiergen.known import Known
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.mixins.scoring import Likelihoods


@pytest.fixture(scope="module")
def pipe() -> ClassToImagePipeline:
    return hiergen.from_pretrained("digits-1d")


DIGITS = load_digits("test")
IMAGES, LABELS = DIGITS.images[::8], DIGITS.labels[::8]


def test_a_score_is_that_of_the_generator_and_of_each_picture(pipe: ClassToImagePipeline) -> None:
    found = pipe.score(IMAGES, LABELS, batch_size=7)
    pyramid = pipe.tokenizer.encode(IMAGES)
    torch.testing.assert_close(found.levels, torch.stack(pipe.generator.score(pyramid, LABELS), dim=1))
    torch.testing.assert_close(found.total, found.levels.sum(dim=1))
    assert found.num_tokens == tuple(spec.num_tokens for spec in pyramid.specs)
    torch.testing.assert_close(found.nats_per_token, -found.total / pyramid.num_tokens)
    one = pipe.score(to_pictures(IMAGES[:1])[0], int(LABELS[0]))
    torch.testing.assert_close(one.levels, found.levels[:1], atol=1e-4, rtol=1e-4)
    pictures = pipe.score(to_pictures(IMAGES[:3]), [str(int(label)) for label in LABELS[:3]], batch_size=2)
    torch.testing.assert_close(pictures.levels, found.levels[:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pipe.score(pyramid, LABELS).levels, found.levels)
    free = pipe.score(IMAGES)
    assert free.total.mean() < found.total.mean()


def test_pictures_are_classified_by_their_likelihood(pipe: ClassToImagePipeline) -> None:
    found = pipe.classify(IMAGES)
    assert found.log_likelihoods.shape == (len(IMAGES), 10)
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(len(IMAGES)))
    assert (found.labels == LABELS).float().mean() > 0.9
    for column in (0, 7):
        torch.testing.assert_close(found.log_likelihoods[:, column], pipe.score(IMAGES, column).total)
    few = pipe.classify(IMAGES[:5], ["3", "7"], batch_size=3)
    assert few.class_labels.tolist() == [3, 7]
    torch.testing.assert_close(few.log_likelihoods, found.log_likelihoods[:5, [3, 7]])
    assert torch.equal(few.labels, few.class_labels[few.log_likelihoods.argmax(dim=1)])


def test_noise_is_new_to_a_generator(pipe: ClassToImagePipeline) -> None:
    held_out = pipe.score(IMAGES, LABELS)
    noise = pipe.score(torch.rand(len(LABELS), 3, 32, 32) * 2 - 1, LABELS)
    assert noise.novelty(held_out).mean() > 0.5
    assert abs(float(held_out.novelty(held_out).mean())) < 1e-5
    two = Likelihoods(torch.tensor([[-3.0, -5.0]]), (1, 3))
    assert float(two.novelty(Likelihoods(torch.tensor([[-1.0, -3.0], [-2.0, -2.0]]), (1, 3)))) == 1.0


def test_errors_say_what_came_and_what_was_expected(pipe: ClassToImagePipeline) -> None:
    with pytest.raises(ValueError, match="class_labels holds 2, expected 1 or 3, one per picture"):
        pipe.score(IMAGES[:3], [0, 1])
    with pytest.raises(ValueError, match="class labels span 0 to 12, expected 0 to 9"):
        pipe.score(IMAGES[:2], [0, 12])
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        pipe.classify(IMAGES, batch_size=0)
    with pytest.raises(ValueError, match="images is empty, expected at least one picture"):
        pipe.score([])
    given = {name: pipe.generator.config[name] for name in ("class_dropout", "num_classes")}
    pipe.generator.register_to_config(class_dropout=0.0, num_classes=None)
    try:
        with pytest.raises(ValueError, match="class_labels is None, but what this LevelAR is told was never dropped"):
            pipe.score(IMAGES[:1])
        with pytest.raises(ValueError, match="class_labels is None, but this LevelAR has no classes"):
            pipe.classify(IMAGES[:1])
    finally:
        pipe.generator.register_to_config(**given)
    flow = hiergen.from_pretrained("digits-2d")
    with pytest.raises(ValueError, match="has no exact likelihood"):
        flow.classify(torch.zeros(1, 3, 32, 32))


def test_the_best_of_several_is_the_one_that_gains_most_by_its_class(pipe: ClassToImagePipeline) -> None:
    def drawn(**options: object) -> torch.Tensor:
        rngs = [torch.Generator().manual_seed(seed) for seed in (4, 9)]
        return pipe(["3", "7"], generator=rngs, output_type="pt", **options).pyramid.concat()

    best = drawn(best_of=3)
    # Candidates draw in turn from the generator of their image.
    first, second = (torch.Generator().manual_seed(seed) for seed in (4, 9))
    labels = torch.tensor([3, 3, 3, 7, 7, 7])
    candidates = pipe(labels, generator=[first] * 3 + [second] * 3, output_type="pt").pyramid
    gains = pipe.score(candidates, labels).total - pipe.score(candidates).total
    for image, rows in enumerate((slice(0, 3), slice(3, 6))):
        assert torch.equal(best[image], candidates.concat()[rows][gains[rows].argmax()])
    alone = pipe(3, generator=[torch.Generator().manual_seed(4)], best_of=3, output_type="pt")
    assert torch.equal(alone.pyramid.concat()[0], best[0])
    assert alone.kept.tolist() == [gains[:3].argmax()]
    assert pipe(3).kept is None
    assert torch.equal(drawn(best_of=1), drawn())

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 0
        return tensors

    assert pipe([3, 7], best_of=2, callback_on_step_end=stop).pyramid.batch_size == 2


def test_what_cannot_be_compared_is_refused(pipe: ClassToImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="best_of is 0, expected at least 1"):
        pipe(3, best_of=0)
    with pytest.raises(
        ValueError, match="best_of is 2 without class_labels, by which candidates are compared: expected 1"
    ):
        pipe(num_images=1, best_of=2)
    with pytest.raises(ValueError, match="best_of is 2 beside tokens that are given, expected 1"):
        pipe(3, best_of=2, known=Known(pipe.tokenizer.encode(IMAGES[:1])))
    with monkeypatch.context() as patch:
        patch.setattr(LevelAR, "makes_unconditional", False)
        with pytest.raises(ValueError, match="but what this LevelAR is told was never dropped in training"):
            pipe(3, best_of=2)
    monkeypatch.setattr(LevelAR, "id_logits", Generator.id_logits)
    with pytest.raises(ValueError, match="best_of is 2, but a LevelAR has no exact likelihood to compare by"):
        pipe(3, best_of=2)
