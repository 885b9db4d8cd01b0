from __future__ import annotations

import logging

import pytest
import torch
import trimesh
from PIL import Image
from torch import nn

import hiergen
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.pipelines.shape import ClassToShapePipeline, ImageToShapePipeline, decode_meshes
from hiergen.pretrained.image_encoder import ImageEncoder
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

COARSE = ExtractionSettings(depth=4, coarse_depth=3)
QUICK = {"num_steps": 2, "head_steps": 2, "extraction": COARSE}
TINY_VAE = {
    "num_tokens": [3, 5],
    "token_dim": 4,
    "width": 16,
    "num_heads": 2,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "point_counts": [32, 16, 8],
    # A smooth field, which a coarse grid resolves.
    "init_scale": 0.25,
    "num_frequencies": 6,
}
TINY_CASCADE = {
    "num_classes": 4,
    "num_buffer": 2,
    "dim": 16,
    "depth": 1,
    "num_heads": 2,
    "head_dim": 16,
    "head_depth": 1,
}


@pytest.fixture
def pipe() -> ClassToShapePipeline:
    """Random weights, with the field scaled up so that it has a surface."""
    torch.manual_seed(0)
    tokenizer = create("pyramid-vae-tiny", **TINY_VAE).eval()
    nn.init.normal_(tokenizer.decoder.output.weight)
    generator = create("mar3d-tiny", level_specs=specs_to_json(tokenizer.specs), **TINY_CASCADE).eval()
    pipeline = ClassToShapePipeline(tokenizer=tokenizer, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_labels_become_closed_meshes_and_a_seed_repeats_them(pipe) -> None:
    first = pipe([1, 3], num_shapes_per_label=2, generator=seeded(), **QUICK)
    assert len(first.meshes) == first.pyramid.batch_size == 4
    for mesh in first.meshes:
        assert isinstance(mesh, trimesh.Trimesh)
        assert mesh.is_watertight
        assert abs(mesh.bounds).max() <= 1.05 + 1e-6
    again = pipe([1, 3], num_shapes_per_label=2, generator=seeded(), **QUICK)
    assert torch.equal(first.pyramid.concat(), again.pyramid.concat())
    other = pipe([1, 3], num_shapes_per_label=2, generator=seeded(1), **QUICK)
    assert not torch.equal(first.pyramid.concat(), other.pyramid.concat())


def test_the_mesh_is_the_surface_of_the_finest_level(pipe) -> None:
    result = pipe(0, generator=seeded(), **QUICK)
    field = pipe.tokenizer.decode(result.pyramid)
    vertices = torch.as_tensor(result.meshes[0].vertices, dtype=torch.float32)
    inner = vertices[vertices.abs().amax(1) < 1.0]
    # Linear interpolation between nodes: the field at a vertex is small beside its values on the grid.
    spread = field.query(torch.rand(1, 500, 3) * 2 - 1).abs().mean()
    assert len(inner)
    assert field.query(inner[None]).abs().mean() < 0.2 * spread


def test_every_step_is_reported_and_the_last_shows_the_result(pipe) -> None:
    seen = []
    result = pipe(
        2, generator=seeded(), callback_on_step_end=lambda p, step, _, values: seen.append((p, step, values)), **QUICK
    )
    assert [step for _, step, _ in seen] == list(range(len(seen)))
    assert all(p is pipe for p, _, _ in seen)
    assert torch.equal(seen[-1][2]["pyramid"].concat(), result.pyramid.concat())


def test_saved_is_loaded_by_class_and_by_name(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    expected = pipe(1, generator=seeded(), **QUICK)
    for loaded in (ClassToShapePipeline.from_pretrained(tmp_path), hiergen.from_pretrained(tmp_path)):
        assert isinstance(loaded, ClassToShapePipeline)
        made = loaded(1, generator=seeded(), **QUICK)
        torch.testing.assert_close(made.pyramid.concat(), expected.pyramid.concat(), rtol=1e-4, atol=1e-5)
        assert made.meshes[0].area == pytest.approx(expected.meshes[0].area, rel=1e-3)
    assert '"hiergen.' not in (tmp_path / "model_index.json").read_text()


def test_a_field_without_surface_becomes_a_mesh_without_faces(pipe, caplog) -> None:
    nn.init.zeros_(pipe.tokenizer.decoder.output.weight)
    nn.init.constant_(pipe.tokenizer.decoder.output.bias, -1.0)
    pyramid = pipe.generator.generate(torch.tensor([0, 1]), pipe.generator.make_settings(num_steps=1, head_steps=2))
    with caplog.at_level(logging.WARNING):
        meshes = decode_meshes(pipe.tokenizer, pyramid, COARSE)
    assert [len(mesh.faces) for mesh in meshes] == [0, 0]
    assert "shape 1 of 2 has no mesh: no surface" in caplog.text


def test_bad_requests_are_explained(pipe) -> None:
    with pytest.raises(ValueError, match="class labels span 4 to 4, expected 0 to 3"):
        pipe(4)
    with pytest.raises(ValueError, match="num_shapes_per_label is 0"):
        pipe(1, num_shapes_per_label=0)
    with pytest.raises(ValueError, match="class_labels is empty"):
        pipe([])
    with pytest.raises(TypeError, match="no setting 'guidance'; did you mean guidance_scale"):
        pipe(1, guidance=2.0)
    other = create("mar3d-tiny", **TINY_CASCADE)
    with pytest.raises(ValueError, match="this generator was trained for"):
        ClassToShapePipeline(tokenizer=pipe.tokenizer, generator=other)


@pytest.fixture
def image_pipe(pipe) -> ImageToShapePipeline:
    torch.manual_seed(1)
    encoder = ImageEncoder(encoders=[{"kind": "conv", "config": {"image_size": 16, "dim": 8}}])
    overrides = {**TINY_CASCADE, "num_classes": None, "feature_shapes": encoder.feature_shapes}
    generator = create("mar3d-tiny", level_specs=specs_to_json(pipe.tokenizer.specs), **overrides).eval()
    # The head starts at zero, where no condition matters.
    for parameter in generator.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    made = ImageToShapePipeline(tokenizer=pipe.tokenizer, generator=generator, image_encoder=encoder)
    made.set_progress_bar_config(disable=True)
    return made


def test_images_become_meshes_and_each_image_has_its_own(image_pipe) -> None:
    red, blue = (Image.new("RGB", (20, 20), color) for color in ("red", "blue"))
    both = image_pipe([red, blue], num_shapes_per_image=2, generator=seeded(), **QUICK)
    assert len(both.meshes) == 4
    assert all(mesh.is_watertight for mesh in both.meshes)
    same = image_pipe([red, red], num_shapes_per_image=2, generator=seeded(), **QUICK)
    assert torch.equal(both.pyramid.levels[0][:2], same.pyramid.levels[0][:2])
    assert not torch.equal(both.pyramid.levels[0][2:], same.pyramid.levels[0][2:])


def test_pictures_are_padded_with_white_and_put_on_white(image_pipe) -> None:
    """What the encoder sees of a transparent wide picture is what it sees of the square made by hand."""
    picture = Image.new("RGBA", (16, 8), (255, 0, 0, 128))
    square = torch.ones(1, 3, 16, 16)
    square[:, 1:, 4:12] = 127 / 127.5 - 1
    assert torch.equal(
        image_pipe(picture, generator=seeded(), **QUICK).pyramid.concat(),
        image_pipe(square, generator=seeded(), **QUICK).pyramid.concat(),
    )


def test_an_image_pipeline_saved_is_loaded(image_pipe, tmp_path) -> None:
    image_pipe.save_pretrained(tmp_path)
    picture = Image.new("RGB", (16, 16), "green")
    expected = image_pipe(picture, generator=seeded(), **QUICK)
    for loaded in (ImageToShapePipeline.from_pretrained(tmp_path), hiergen.from_pretrained(tmp_path)):
        loaded.set_progress_bar_config(disable=True)
        made = loaded(picture, generator=seeded(), **QUICK)
        torch.testing.assert_close(made.pyramid.concat(), expected.pyramid.concat(), rtol=1e-4, atol=1e-5)


def test_bad_image_requests_are_explained(image_pipe) -> None:
    with pytest.raises(ValueError, match="images is empty"):
        image_pipe([])
    with pytest.raises(ValueError, match="num_shapes_per_image is 0"):
        image_pipe(torch.zeros(1, 3, 16, 16), num_shapes_per_image=0)
    other = ImageEncoder(encoders=[{"kind": "conv", "config": {"image_size": 16, "dim": 16}}])
    with pytest.raises(ValueError, match=r"gives features \[\[16, 16\]\], the generator was trained for \[\[16, 8\]\]"):
        ImageToShapePipeline(tokenizer=image_pipe.tokenizer, generator=image_pipe.generator, image_encoder=other)


def test_coarse_tokens_of_points_are_kept_and_fine_ones_drawn(pipe) -> None:
    points = torch.rand(2, 32, 6, generator=seeded(4)) * 2 - 1
    with torch.no_grad():
        given = pipe.tokenizer.encode(points)
    made = pipe.vary(points, [1, 3], generator=seeded(), **QUICK).pyramid
    assert torch.equal(made.levels[0], given.levels[0])
    assert not torch.equal(made.levels[1], given.levels[1])
    several = pipe.vary(points, 1, num_shapes_per_input=2, generator=seeded(), **QUICK).pyramid
    assert torch.equal(several.levels[0], given.levels[0].repeat_interleave(2, dim=0))
    assert not torch.equal(several.levels[1][0], several.levels[1][1])
    whole = pipe.vary(points, 1, keep_levels=2, generator=seeded(), **QUICK).pyramid
    assert all(torch.equal(a, b) for a, b in zip(whole.levels, given.levels, strict=True))
    none = pipe.vary(points, 1, keep_levels=0, generator=seeded(), **QUICK).pyramid
    assert torch.equal(none.levels[1], pipe([1, 1], generator=seeded(), **QUICK).pyramid.levels[1])
    # A part of a surface has fewer points: each of them counts several times.
    part = pipe.vary(points[:, :10], 1, generator=seeded(), **QUICK).pyramid
    with torch.no_grad():
        repeated = pipe.tokenizer.encode(torch.cat([points[:, :10]] * 4, dim=1)[:, :32])
    assert torch.equal(part.levels[0], repeated.levels[0])
    with pytest.raises(ValueError, match="keep_levels is 3, expected 0 to 2"):
        pipe.vary(points, 1, keep_levels=3)
    with pytest.raises(ValueError, match=r"points have shape \(2, 0, 6\), expected at least one point per shape"):
        pipe.vary(points[:, :0], 1)
