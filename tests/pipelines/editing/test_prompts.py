"""Pictures from pictures and words, and pictures scored under words, with toy models of both: a flow (places) and HAR (levels)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hiergen.generators.flow.velocity_errors import velocity_errors
from hiergen.nn.straight_path import interpolate
from hiergen.pipelines.editing.masks import fill_holes
from hiergen.pipelines.image import TextToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create
from hiergen.seeding import make_rng

ENCODER = {"name": "bytes", "num_pieces": 64, "depth": 0}


def pipeline(tokenizer: str, generator: str, **options: object) -> TextToImagePipeline:
    torch.manual_seed(0)
    made = create(tokenizer).eval()
    sizes = {"dim": 32, "depth": 1, "num_heads": 2, "num_classes": None, "text_shape": [4, 8], "text_encoder": ENCODER}
    maker = create(generator, level_specs=specs_to_json(made.specs), **sizes, **options).eval()
    for parameter in maker.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipe = TextToImagePipeline(tokenizer=made, generator=maker)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    """As pipelines run; with gradients models take other kernels, which round otherwise."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def flow() -> TextToImagePipeline:
    return pipeline("hieratok-tiny", "flow-tiny")


@pytest.fixture(scope="module")
def har() -> TextToImagePipeline:
    return pipeline("restok-tiny", "har-tiny")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=seeded(5)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def options(**more: object) -> dict[str, object]:
    return {"generator": seeded(), "output_type": "pt", "num_steps": 2, **more}


def test_what_a_mask_shows_is_made_of_words(flow, images) -> None:
    hole = torch.zeros(1, 32, 32, dtype=torch.bool)
    hole[:, 8:24, 8:24] = True
    made = flow.edit(images, hole, "a cat", guidance_scale=2.0, **options())
    given = flow.tokenizer.encode(fill_holes(images, hole.expand(2, -1, -1))).levels[0].unflatten(1, (4, 4))
    tokens = made.pyramid.levels[0].unflatten(1, (4, 4))
    is_made = (tokens != given).any(dim=-1)
    assert is_made[:, 1:3, 1:3].all()
    assert int(is_made.sum()) == 2 * 4
    # One text for both is that text twice, and each may have its own.
    same = flow.edit(images, hole, prompt=["a cat", "a cat"], guidance_scale=2.0, **options()).images
    assert torch.equal(same, made.images)
    other = flow.edit(images, hole, ["a cat", "two dogs"], guidance_scale=2.0, **options()).images
    assert torch.equal(other[0], made.images[0])
    assert not torch.equal(other[1], made.images[1])
    away = flow.edit(images, hole, "a cat", negative_prompt="a hat", guidance_scale=2.0, **options()).images
    assert not torch.equal(away, made.images)
    encoded = flow.encode_prompt("a cat", "a hat")
    assert torch.equal(flow.edit(images, hole, encoded, guidance_scale=2.0, **options()).images, away)


def test_no_words_and_several_results(flow, images) -> None:
    free = flow.edit(images, None, strength=1.0, **options()).images
    assert torch.equal(free, flow(num_images=2, **options()).images)
    assert len(flow.edit(images, None, num_images_per_input=2, **options()).images) == 4
    four = flow.edit(images, None, ["a", "b"], strength=1.0, num_images_per_input=2, **options()).images
    assert torch.equal(four, flow(["a", "b"], num_images_per_prompt=2, **options()).images)


def test_what_lies_around_a_picture_is_made_of_words(flow, images) -> None:
    made, other = (
        flow.outpaint(images, text, negative_prompt="hat", shift=(8, 0), guidance_scale=2.0, **options()).images
        for text in ("a cat", "a dog")
    )
    # Two pixels beside the hole are mixed.
    assert torch.equal(made[..., 10:], images[..., 2:24])
    assert not torch.equal(made[..., :8], other[..., :8])


def test_levels_are_kept_and_others_made_of_words(har, images) -> None:
    sampling = {"generator": seeded(), "output_type": "pt", "guidance_scale": 2.0, "negative_prompt": "hat"}
    made = har.vary(images, "a cat", keep_levels=2, **sampling).pyramid
    given = har.tokenizer.encode(images)
    assert all(torch.equal(made.levels[k], given.levels[k]) for k in range(2))
    assert not torch.equal(made.levels[4], given.levels[4])
    both = har.blend(images[:1], images[1:], keep_levels=3).pyramid
    assert torch.equal(both.levels[4], given.levels[4][1:])


def test_pictures_are_scored_and_classified_by_texts(har, images) -> None:
    pyramid, texts = har.tokenizer.encode(images), ["a cat", "two dogs", "hat"]
    found = har.score(images, "a cat", batch_size=1)
    told = har.encode_prompt(["a cat", "a cat"])
    torch.testing.assert_close(found.levels, torch.stack(har.generator.score(pyramid, told), dim=1))
    assert not torch.allclose(har.score(pyramid).total, found.total)
    classes = har.classify(pyramid, texts, batch_size=4)
    assert classes.class_labels.tolist() == [0, 1, 2]
    for column, text in enumerate(texts):
        torch.testing.assert_close(classes.log_likelihoods[:, column], har.score(images, text).total)
    assert torch.equal(classes.labels, classes.log_likelihoods.argmax(dim=1))


def test_a_flow_tells_the_error_of_its_velocity_and_no_nats(flow, images) -> None:
    found = flow.velocity_errors(images, ["a cat", "dogs"], times=(0.25, 0.5), seed=3)
    pyramid = flow.tokenizer.encode(images)
    data, told = flow.generator.standardize(pyramid.concat()), flow.encode_prompt(["a cat", "dogs"])
    told = flow.generator.label_embed.resolve(told, torch.device("cpu"))
    errors = []
    for time in (0.25, 0.5):
        noise = torch.randn(data.shape[1:], generator=make_rng("noise", 3, round(100 * time))).expand_as(data)
        state, target = interpolate(data, noise, torch.full((2,), time))
        velocity = flow.generator.velocity(state, torch.full((2,), time), told)
        errors.append((velocity - target).square().mean(dim=(1, 2)))
    torch.testing.assert_close(found, torch.stack(errors).mean(dim=0))
    assert not torch.allclose(flow.velocity_errors(pyramid, times=(0.25, 0.5), seed=3), found)
    assert not torch.allclose(flow.velocity_errors(pyramid, ["a cat", "dogs"], times=(0.25, 0.5), seed=4), found)
    one = flow.velocity_errors(images, "a cat", times=(0.25, 0.5), seed=3, batch_size=1)
    torch.testing.assert_close(one[0], found[0])
    with pytest.raises(ValueError, match="FlowTransformer has no exact likelihood"):
        flow.classify(images, ["a"])


def test_refusals(flow, har, images) -> None:
    with pytest.raises(
        ValueError, match="prompt holds 3 texts, expected one for all, or 2, one per image that is given"
    ):
        flow.edit(images, None, ["a", "b", "c"])
    with pytest.raises(ValueError, match="negative_prompt is 'a' beside no prompt, expected a prompt too"):
        flow.edit(images, None, negative_prompt="a")
    with pytest.raises(ValueError, match="prompt holds 3 of type int, expected texts"):
        flow.edit(images, None, 3)
    with pytest.raises(ValueError, match="num_images_per_input is 0, expected at least 1"):
        flow.edit(images, None, "a", num_images_per_input=0)
    with pytest.raises(ValueError, match="prompt holds 3, expected 1 or 2, one per picture"):
        har.score(images, ["a", "b", "c"])
    with pytest.raises(ValueError, match="prompt is None, but this LevelAR has no classes: give what to choose from"):
        har.classify(images)
    with pytest.raises(ValueError, match="this pipeline has a LevelAR, expected a flow: use score"):
        har.velocity_errors(images, "a")
    for times in ((), (0.5, 1.5)):
        with pytest.raises(ValueError, match=r"times are .*, expected at least one, each 0 to 1"):
            flow.velocity_errors(images, "a", times=times)
    pyramid, told = flow.tokenizer.encode(images), flow.encode_prompt("a")
    with pytest.raises(ValueError, match="condition holds 1 samples, expected 2, one per sample of the pyramid"):
        velocity_errors(flow.generator, pyramid, told, times=(0.5,))
