"""Pictures from pictures, with toy models of each kind: a flow and masked ids (places), HAR (levels), VAR (both)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from hiergen.pipelines.editing.masks import fill_holes
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    """As pipelines run; with gradients models take other kernels, which round otherwise."""
    with torch.no_grad():
        yield


def pipeline(tokenizer: str, generator: str, **options) -> ClassToImagePipeline:
    torch.manual_seed(0)
    made = create(tokenizer).eval()
    maker = create(generator, level_specs=specs_to_json(made.specs), **{"depth": 1, **options}).eval()
    for name, parameter in maker.named_parameters():
        # Published initializations leave what is inside unseen.
        if name.startswith(("final_", "head.", "blocks.0.modulation")) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    pipe = ClassToImagePipeline(tokenizer=made, generator=maker)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def flow() -> ClassToImagePipeline:
    return pipeline("hieratok-tiny", "flow-tiny", dim=32, num_heads=2)


@pytest.fixture(scope="module")
def har() -> ClassToImagePipeline:
    return pipeline("restok-tiny", "har-tiny", dim=64, num_heads=2)


@pytest.fixture(scope="module")
def masked() -> ClassToImagePipeline:
    return pipeline("maskgit-vq-tiny", "maskgit-tiny", dim=32, num_heads=2, depth=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=seeded(5)) * 2 - 1


@pytest.fixture
def hole() -> torch.Tensor:
    """A hole that covers cells of 8 pixels exactly."""
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 8:24, 8:24] = True
    return mask


def options(seed: int = 0, **more):
    return {"generator": seeded(seed), "output_type": "pt", "num_steps": 3, **more}


@pytest.mark.parametrize("name", ["flow", "masked"])
def test_only_what_the_mask_shows_is_made(name, images, hole, request) -> None:
    pipe = request.getfixturevalue(name)
    made = pipe.edit(images, hole, [3, 7], **options())
    given = pipe.tokenizer.encode(fill_holes(images, hole.expand(2, -1, -1)))
    # Cells of 8 pixels: the middle four of sixteen are made.
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[1:3, 1:3] = True
    tokens, expected = made.pyramid.levels[0], given.levels[0]
    assert torch.equal(tokens[:, ~inside.flatten()], expected[:, ~inside.flatten()])
    assert not torch.equal(tokens[:, inside.flatten()], expected[:, inside.flatten()])
    # A side of 32 pixels has a feather of 1: two pixels around the hole are mixed.
    near = torch.zeros(32, 32, dtype=torch.bool)
    near[6:26, 6:26] = True
    assert torch.equal(made.images[:, :, ~near], images[:, :, ~near])
    assert not torch.equal(made.images[:, :, 7, 8:24], images[:, :, 7, 8:24])
    decoded = pipe._decode(made.pyramid)
    assert torch.equal(made.images[:, :, hole[0]], decoded[:, :, hole[0]])
    hard = pipe.edit(images, hole, [3, 7], feather=0, **options()).images
    assert torch.equal(hard, torch.where(hole[:, None], decoded, images))
    raw = pipe.edit(images, hole, [3, 7], composes=False, **options()).images
    assert torch.equal(raw, decoded)


def test_what_lies_under_the_mask_is_not_looked_at(flow, images, hole) -> None:
    other = torch.where(hole[:, None], -images, images)
    first, second = (flow.edit(given, hole, 3, **options()).images for given in (images, other))
    assert torch.equal(first, second)
    # Unless the picture under it is where the flow starts.
    first, second = (flow.edit(given, hole, 3, strength=0.5, **options()).images for given in (images, other))
    assert not torch.equal(first, second)


def test_a_flow_starts_from_the_picture_with_noise(flow, images) -> None:
    rebuilt = flow._decode(flow.tokenizer.encode(images))
    far = {
        strength: float((flow.edit(images, None, 3, strength=strength, **options()).images - rebuilt).abs().mean())
        for strength in (0.0, 0.1, 0.5, 1.0)
    }
    assert far[0.0] < 1e-5
    assert far[0.0] < far[0.1] < far[0.5] < far[1.0]
    plain = flow([3, 3], **options()).images
    assert torch.equal(flow.edit(images, None, 3, strength=1.0, **options()).images, plain)
    # Half of the way is half of the steps.
    steps = []
    flow.edit(
        images, None, 3, strength=0.5, **options(num_steps=10, timestep_shift=1.0),
        callback_on_step_end=lambda pipe, step, now, given: steps.append(now) or given,
    )  # fmt: skip
    assert steps == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
    assert flow.num_timesteps == 5


def test_levels_are_kept_and_others_drawn(har, images) -> None:
    given = har.tokenizer.encode(images)
    drawn = {"generator": seeded(), "output_type": "pt"}
    made = har.vary(images, 3, keep_levels=2, **drawn).pyramid
    assert all(torch.equal(a, b) for a, b in zip(made.levels[:2], given.levels[:2], strict=True))
    assert not torch.equal(made.levels[4], given.levels[4])
    drawn["generator"] = seeded()
    whole = har.vary(images, 3, keep_levels=5, **drawn)
    assert torch.equal(whole.images, har._decode(given))
    drawn["generator"] = seeded()
    none = har.vary(images, 3, keep_levels=0, **drawn).pyramid
    assert torch.equal(none.concat(), har([3, 3], generator=seeded()).pyramid.concat())
    # Two of five levels are left of a strength of 0.6.
    drawn["generator"] = seeded()
    assert torch.equal(har.edit(images, None, 3, strength=0.6, **drawn).pyramid.concat(), made.concat())


def test_a_mask_over_levels_without_places_acts_on_pixels(har, images, hole) -> None:
    made = har.edit(images, hole, 3, generator=seeded(), output_type="pt", feather=0)
    given = har.tokenizer.encode(images)
    assert torch.equal(made.pyramid.levels[1], given.levels[1])
    assert torch.equal(made.images[:, :, ~hole[0]], images[:, :, ~hole[0]])


def test_levels_of_two_pictures_are_put_together(har, images) -> None:
    first, second = images[:1], images[1:]
    coarse, fine = har.tokenizer.encode(first), har.tokenizer.encode(second)
    made = har.blend(first, second, keep_levels=3, output_type="pt")
    wanted = (*coarse.levels[:3], *fine.levels[3:])
    assert all(torch.equal(a, b) for a, b in zip(made.pyramid.levels, wanted, strict=True))
    assert torch.equal(har.blend(first, second, keep_levels=5, output_type="pt").images, har._decode(coarse))
    assert torch.equal(har.blend(first, second, keep_levels=0, output_type="pt").images, har._decode(fine))
    (picture,) = har.blend(first, second, keep_levels=3).images
    assert isinstance(picture, Image.Image)


def test_a_picture_is_moved_and_its_surroundings_are_made(flow, images) -> None:
    made = flow.outpaint(images, 3, shift=(8, 0), feather=0, **options()).images
    assert torch.equal(made[..., 8:], images[..., :24])
    assert not torch.equal(made[..., :8], torch.zeros_like(made[..., :8]))


def test_several_results_of_a_picture_are_next_to_each_other(flow, images, hole) -> None:
    both = flow.edit(images, hole, [3, 7], num_images_per_input=2, **options()).images
    assert len(both) == 4
    assert not torch.equal(both[0], both[1])
    assert torch.equal(both[1, :, :4], images[0, :, :4])
    assert torch.equal(both[2, :, :4], images[1, :, :4])
    rngs = [seeded(seed) for seed in range(4)]
    each = flow.edit(images, hole, [3, 7], num_images_per_input=2, **{**options(), "generator": rngs}).images
    alone = flow.edit(images[1:], hole, 7, **options(2)).images
    torch.testing.assert_close(each[2:3], alone, atol=1e-5, rtol=0)


def test_pictures_of_any_kind_are_taken(flow) -> None:
    picture = Image.linear_gradient("L").resize((48, 40))
    mask = Image.new("L", (48, 40))
    mask.paste(255, (16, 12, 30, 26))
    (made,) = flow.edit(picture, mask, class_labels=3, num_steps=2, generator=seeded()).images
    assert made.size == (32, 32)
    images, pyramid = flow.edit(picture, num_steps=2, generator=seeded(), output_type="np", return_dict=False)
    assert images.shape == (1, 32, 32, 3)
    assert pyramid.batch_size == 1


@pytest.mark.parametrize(
    ("name", "call", "said"),
    [
        ("flow", lambda p, x, m: p.edit(x, m, 3, strength=1.5), "strength is 1.5, expected 0 to 1"),
        ("flow", lambda p, x, m: p.edit(x, m, 3, feather=-1), "feather is -1, expected at least 0"),
        ("flow", lambda p, x, m: p.edit(x, m, 3, output_type="jpg"), "output_type is 'jpg'"),
        (
            "flow",
            lambda p, x, m: p.edit(x, m, [1, 2, 3]),
            "class_labels holds 3 labels, expected one for all, or 2, one per",
        ),
        (
            "flow",
            lambda p, x, m: p.edit(x, m, 3, num_images_per_input=0),
            "num_images_per_input is 0, expected at least 1",
        ),
        ("flow", lambda p, x, m: p.vary(x, 3, keep_levels=1), "makes 1 level, of which it can keep none: give edit"),
        (
            "masked",
            lambda p, x, m: p.edit(x, None, 3),
            "this MaskedIds makes 1 level, .* give edit\\(\\) a mask_image$",
        ),
        ("masked", lambda p, x, m: p.edit(x, m, 3, strength=0.7), "strength is 0.7, but this MaskedIds makes 1 level"),
        ("har", lambda p, x, m: p.vary(x, 3, keep_levels=6), "keep_levels is 6, expected 0 to 5"),
        ("har", lambda p, x, m: p.vary(x, 3, keep_levels=True), "keep_levels is True, expected 0 to 5"),
        ("har", lambda p, x, m: p.blend(x, x[:1], keep_levels=2), "coarse_image holds 2 pictures and fine_image 1"),
    ],
)
def test_what_cannot_be_done_is_explained(name, call, said, images, hole, request) -> None:
    with pytest.raises(ValueError, match=said):
        call(request.getfixturevalue(name), images, hole)


def test_tokens_of_all_scales_are_given_where_nothing_of_their_cell_is_made(images) -> None:
    pipe = pipeline("multiscale-vq-tiny", "var-tiny", dim=64, num_heads=2)
    sides = [spec.grid[0] for spec in pipe.tokenizer.specs]
    assert len(sides) > 2
    hole = torch.zeros(1, 32, 32, dtype=torch.bool)
    hole[:, 2:10, 4:28] = True
    made = pipe.edit(images, hole, 3, generator=seeded(), output_type="pt").pyramid
    given = pipe.tokenizer.encode(fill_holes(images, hole.expand(2, -1, -1)))
    kept = [(a == b).all(dim=0).unflatten(0, (n, n)) for a, b, n in zip(made.levels, given.levels, sides, strict=True)]
    # Rows of cells without a pixel to make; those that touch the hole are made, by chance some as they were.
    assert all(bool(rows[-(-10 * n // 32) :].all()) for rows, n in zip(kept, sides, strict=True))
    assert not bool(kept[-1].all())
    # With a strength below 1 the first levels stay whole.
    made = pipe.edit(images, torch.ones_like(hole), 3, strength=0.5, generator=seeded(), output_type="pt").pyramid
    whole = pipe.tokenizer.encode(images)
    count = len(sides) - round(0.5 * len(sides))
    assert all(torch.equal(a, b) for a, b in zip(made.levels[:count], whole.levels[:count], strict=True))
    assert not torch.equal(made.levels[-1], whole.levels[-1])
